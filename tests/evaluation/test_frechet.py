"""Frechet distances against the matrix square root, in parts, and between scenes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from transformer_zoo.data import sources
from transformer_zoo.evaluation.frechet import Moments, NetworkFrechet, SceneFrechet, frechet_distance, moments
from transformer_zoo.evaluation.perceptual import PerceptualDistance
from transformer_zoo.evaluation.run import Judge
from transformer_zoo.task import Context, Variables

CTX = Context(jax.random.key(0), jnp.int32(0), train=False)


def test_the_distance_is_that_of_its_formula():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)) + 1, rng.normal(size=(70, 4)) @ rng.normal(size=(4, 4))
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(c1 @ c2).real
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(c1 + c2 - 2 * root)
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(moments(x), moments(x)) == pytest.approx(0, abs=1e-9)


def test_moments_of_parts_add_up():
    x = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    added = Moments(*(a + b for a, b in zip(moments(x[:11]), moments(x[11:]))))
    assert frechet_distance(added, moments(x)) == pytest.approx(0, abs=1e-9)


def test_covariances_need_two_samples():
    with pytest.raises(ValueError, match="needs at least two samples, but a set has 1"):
        frechet_distance(moments(np.zeros((1, 2))), moments(np.zeros((3, 2))))


@dataclasses.dataclass(frozen=True)
class Stub:
    """A task whose reconstructions are darker."""

    field: str = "image"

    def unit(self, pixels):
        return pixels

    def reconstruct(self, variables, pixels, ctx):
        return pixels * variables.params["model"]["shade"], {}


@pytest.mark.parametrize("name, field, frames", [("scenes:still", "image", 1), ("scenes:clip", "video", 8)])
def test_worse_scenes_are_farther_and_the_name_says_what_was_seen(name, field, frames):
    source = sources.open_source(name, "test", {"difficulty": "easy", "fields": (field,)})
    pixels = source.read(np.arange(24), np.arange(24, dtype=np.uint64))[field] / np.float32(255)
    judge = SceneFrechet(task=Stub(field))
    batch = {"weight": np.array([1.0] * 23 + [0.0]), field: pixels}

    def distance(other):
        return judge.result(judge.update(None, {"original": pixels, "reconstruction": other}, batch)).metrics

    key = f"frechet_scene_state16_32px_{frames}f"
    same, grey, mirrored = distance(pixels), distance(0 * pixels + 0.5), distance(pixels[..., ::-1])
    assert set(same) == {key, f"{key}_between_halves"}
    assert same[key] == pytest.approx(0, abs=1e-6) and same[f"{key}_between_halves"] > 0
    assert grey[key] > mirrored[key] > 0.01


class Colours(nn.Module):
    """A picture's or a clip's mean colour, times a weight."""

    over_time: bool = False
    resize = 5
    extractor = "colours3"

    @nn.compact
    def __call__(self, pixels):
        return pixels.mean(axis=tuple(range(1, pixels.ndim - 1))) * self.param("weight", nn.initializers.ones, ())

    def features(self, pixels):
        return self(pixels)

    def distance(self, first, second):
        return (self(first) - self(second)).sum(axis=-1)


WEIGHTS = {"params": {"weight": np.float32(3)}}
SHADE = Variables({"model": {"shade": np.float32(0.5)}})


def judged(judge, pixels, field=""):
    batches = [{field or judge.task.field: pixels, "weight": np.array([1.0] * (len(pixels) - 1) + [0.0], np.float32)}]
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    run = Judge({"it": judge}).run("it", SHADE, CTX, lambda split, limit: iter(batches), lambda _: device)
    return run[1].metrics


def test_weights_by_path_judge_pictures_rounded_to_bytes():
    pixels = np.random.default_rng(0).random((9, 4, 6, 3)).astype(np.float32)
    bytes_of = [np.round(one[:8] * 255).astype(np.float64) / 255 for one in (pixels, pixels * np.float32(0.5))]
    features = [3 * one.mean(axis=(1, 2)) for one in bytes_of]
    found = judged(NetworkFrechet(task=Stub(), network=Colours(), weights=WEIGHTS), pixels)
    key = "fid_colours3_resize5"
    assert set(found) == {key, f"{key}_between_halves"}
    assert found[key] == pytest.approx(frechet_distance(*map(moments, features)), rel=1e-4)
    halves = moments(features[0][::2]), moments(features[0][1::2])
    assert found[f"{key}_between_halves"] == pytest.approx(frechet_distance(*halves), rel=1e-3)
    found = judged(PerceptualDistance(task=Stub(), network=Colours(), weights=WEIGHTS), pixels)
    assert found["colours3_4x6px"] == pytest.approx(3 * 0.5 * pixels[:8].mean() * 3, rel=1e-5)
    assert found["of_mean_colour_colours3_4x6px"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("over_time, key", [(True, "fvd_colours3_resize5_2f"), (False, "fid_colours3_resize5_2f")])
def test_clips_are_judged_by_their_first_frames_and_the_name_says_how_many(over_time, key):
    clips = np.random.default_rng(0).random((7, 3, 4, 4, 3)).astype(np.float32)
    judge = NetworkFrechet(task=Stub("video"), network=Colours(over_time), weights=WEIGHTS, frames=2)
    found = judged(judge, clips)
    rounded = [np.round(one[:6, :2] * 255) / 255 for one in (clips, clips * np.float32(0.5))]
    axes = (1, 2, 3) if over_time else (2, 3)
    features = [3 * one.mean(axis=axes, dtype=np.float64).reshape(-1, 3) for one in rounded]
    assert found[key] == pytest.approx(frechet_distance(*map(moments, features)), rel=1e-4)


@dataclasses.dataclass(frozen=True)
class Generator:
    """Samples are darker pictures of [-1, 1], reconstructions brighter ones."""

    pixels: str = "image"
    pixel_range: tuple[float, float] = (-1.0, 1.0)

    def generate(self, variables, batch, key):
        return batch["image"] - variables.params["model"]["shade"]

    def reconstruct(self, variables, batch):
        return batch["image"] + 0.25


def test_samples_of_a_generator_stand_beside_what_its_tokenizer_reaches():
    pixels = np.random.default_rng(0).uniform(-0.4, 0.4, (9, 4, 4, 3)).astype(np.float32)
    found = judged(NetworkFrechet(task=Generator(), network=Colours(), weights=WEIGHTS), pixels, "image")
    key = "fid_colours3_resize5"
    assert set(found) == {key, f"ceiling_{key}", f"{key}_between_halves"}
    assert found[key] == pytest.approx(3 * (3 * 0.25) ** 2, rel=0.03)  # three colours, a quarter of [0, 1], three times
    assert found[f"ceiling_{key}"] == pytest.approx(3 * (3 * 0.125) ** 2, rel=0.03)


def test_a_network_of_clips_refuses_pictures():
    judge = NetworkFrechet(task=Stub(), network=Colours(True), weights=WEIGHTS)
    with pytest.raises(ValueError, match="colours3 takes clips, but 'image' holds pictures"):
        judged(judge, np.zeros((3, 4, 4, 3), np.float32))
