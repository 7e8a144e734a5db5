import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.data.pictures import captioned
from transformer_zoo.data.scenes.source import Clip, Still
from transformer_zoo.data.transforms.captions import shorten
from transformer_zoo.evaluation.scenes import SceneSamples
from transformer_zoo.task import Context, Variables

CTX = Context(jax.random.key(0), jnp.int32(0), train=False)


@dataclasses.dataclass(frozen=True)
class Copies:
    """Gives the true pictures in [-1, 1], or grey ones, as samples; as reconstructions always the true ones."""

    field: str
    grey: bool = False
    calls: int = 7
    pixel_range: tuple[float, float] = (-1.0, 1.0)

    def generate(self, variables, batch, key):
        return self.reconstruct(variables, batch) * (0.0 if self.grey else 1.0)

    def reconstruct(self, variables, batch):
        return batch[self.field] / 127.5 - 1


def figures(source, field, **options):
    judge = SceneSamples(task=Copies(field, **options), num_pictures=3)
    state = None
    for number in range(2):
        batch = source.read(np.arange(8) + 8 * number, np.zeros(8, np.uint64))
        batch["weight"] = np.r_[np.ones(8 - number), np.zeros(number)]
        arrays = jax.device_get(judge.compute(Variables({}), {field: jnp.asarray(batch[field], jnp.float32)}, CTX))
        state = judge.update(state, arrays, batch)
    return judge.result(state)


def test_true_pictures_reach_the_ceiling_and_other_captions_are_chance():
    result = figures(Still(split="test", difficulty="easy"), "image")
    found = result.metrics
    for kind in ("exact", "coherent", "colour", "shape"):
        assert found[kind] == found[f"ceiling_{kind}"] == 1
    assert found["chance_colour"] < 0.6 and found["chance_exact"] < 0.4 and found["calls"] == 7
    assert len(result.images["samples"]) == 3 and len(result.texts["captions"]) == 3
    grey = figures(Still(split="test", difficulty="easy"), "image", grey=True).metrics
    assert grey["exact"] == grey["coherent"] == grey["colour"] == 0 and grey["ceiling_exact"] == 1


def test_clips_are_judged_by_their_motion_and_by_every_frame():
    result = figures(Clip(split="test", difficulty="easy"), "video")
    assert result.metrics["motion"] == result.metrics["coherent"] == 1 and result.metrics["chance_motion"] < 0.6
    assert result.clips["samples"].shape == (3, 8, 32, 32, 3)


def test_captions_are_shortened_and_never_cut():
    batch = {"caption": np.array([[1, 5, 2, 0, 0], [1, 5, 6, 2, 0]])}
    assert shorten(batch, np.zeros(2), length=4)["caption"].shape == (2, 4)
    with pytest.raises(ValueError, match="length is 3, but a caption has 4 ids"):
        shorten(batch, np.zeros(2), length=3)


def test_captions_stand_below_enlarged_pictures():
    tiles = captioned(np.zeros((2, 32, 32, 3), np.uint8), ["a small red ball .", ""])
    assert tiles.shape == (2, 128 + 44, 128, 3) and not tiles[:, :128].any()
    assert (tiles[0, 128:] < 128).any() and (tiles[1, 128:] == 255).all()
