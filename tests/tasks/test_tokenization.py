"""Tokenization: the weighted loss, both players, what is measured, and what collapses."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tasks.test_tasks import CTX, judged, padded_batches
from transformer_zoo.layers.discriminators import PatchDiscriminator
from transformer_zoo.layers.quantizers.vector import CosineQuantizer
from transformer_zoo.models.features.vgg16 import LPIPS
from transformer_zoo.models.tokenizers.tokenizer import Tokenizer
from transformer_zoo.task import Variables
from transformer_zoo.tasks import tokenization
from transformer_zoo.tasks.tokenization import Tokenization
from transformer_zoo.training.report_page import write_report


class Shift(nn.Module):
    """Adds a learned number to pixels; ids are pixels of the first channel in tenths."""

    image_size: tuple[int, int] = (8, 8)
    channels: int = 1
    input_shape = (8, 8, 1)
    grid = (8, 8)
    pixel_range = (0.0, 1.0)
    codebook_size = 11
    num_codebooks = 1

    @nn.compact
    def __call__(self, pixels, *, train=False):
        shift = self.param("shift", nn.initializers.zeros, ())
        ids = jnp.round(pixels[..., 0] * 10).astype(jnp.int32)
        losses = {"commitment": 0.5 * shift**2}
        return pixels + shift, {"ids": ids, "losses": losses, "metrics": {}}


class Judge(nn.Module):
    """The mean pixel times a learned number."""

    @nn.compact
    def __call__(self, pixels):
        slope = self.param("slope", nn.initializers.ones, ())
        return slope * pixels.reshape(pixels.shape[0], -1).mean(axis=1), {}


SHIFT = Variables({"model": {"shift": np.float32(0.1)}, "discriminator": {"slope": np.float32(2)}})
PIXELS = np.random.default_rng(0).uniform(0, 1, (5, 8, 8, 1)).astype(np.float32)


def loss(task, player="model", variables=SHIFT, step=0):
    ctx = CTX.replace(player=player, step=jnp.int32(step))
    return jax.jit(task.loss)(variables, {"image": PIXELS}, ctx)


@pytest.mark.parametrize("kind, error", [("l1", 0.1), ("l2", 0.01)])
def test_objects_weigh_more_in_the_pixel_loss(kind, error):
    share = (PIXELS > tokenization.INK).mean()
    value, aux = loss(Tokenization(Shift(), pixel_loss=kind, object_weight=5.0))
    assert float(aux.metrics["pixel_loss"]) == pytest.approx(error * (1 + 4 * share), rel=1e-4)
    assert float(value) == pytest.approx(error * (1 + 4 * share) + 0.005, rel=1e-4)
    even = loss(Tokenization(Shift(), pixel_loss=kind))[1].metrics["pixel_loss"]
    assert float(even) == pytest.approx(error, rel=1e-4)


def test_saturated_colours_are_objects_and_grey_is_none():
    pixels = jnp.array([[0.9, 0.2, 0.2], [0.5, 0.5, 0.5], [0.9, 0.9, 0.8], [0.1, 0.0, 0.0]])
    assert tokenization.object_pixels(pixels).tolist() == [True, False, False, False]
    assert tokenization.object_pixels(jnp.array([[0.9], [0.1]])).tolist() == [True, False]


def test_the_discriminator_plays_from_its_step_on():
    task = Tokenization(Shift(), Judge(), adversarial_start=3, r1_weight=2.0, adversarial_weight=0.5)
    assert task.players == ("model", "discriminator")
    real = 2 * PIXELS.reshape(5, -1).mean(axis=1)
    fake = real + 0.2
    alone = 0.01 + 0.005
    assert float(loss(task, step=2)[0]) == pytest.approx(alone, rel=1e-4)
    assert float(loss(task, step=3)[0]) == pytest.approx(alone + 0.5 * np.log1p(np.exp(-fake)).mean(), rel=1e-4)
    assert float(loss(task, "discriminator", step=2)[0]) == 0
    expected = np.log1p(np.exp(-real)).mean() + np.log1p(np.exp(fake)).mean() + 2 * 64 * (2 / 64) ** 2
    assert float(loss(task, "discriminator", step=3)[0]) == pytest.approx(expected, rel=1e-4)


def test_each_player_is_blind_to_the_others_parameters():
    task = Tokenization(Shift(), Judge(), adversarial_loss="hinge", r1_weight=0.0)

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(player):
        return jax.grad(lambda v: task.loss(v, {"image": jnp.asarray(PIXELS)}, CTX.replace(player=player))[0])(
            SHIFT
        ).params

    assert float(gradient("discriminator")["model"]["shift"]) == 0
    assert float(gradient("discriminator")["discriminator"]["slope"]) != 0
    assert float(gradient("model")["model"]["shift"]) == pytest.approx(0.2 + 0.1 - 0.1 * 2, abs=1e-6)


def test_lecam_keeps_averages_of_both_logits():
    task = Tokenization(Shift(), Judge(), lecam_weight=1.0, r1_weight=0.0)
    state = {"lecam": {"real": jnp.float32(1.5), "fake": jnp.float32(0.5)}}
    real = 2 * PIXELS.reshape(5, -1).mean(axis=1)
    fake = real + 0.2
    plain = loss(Tokenization(Shift(), Judge(), r1_weight=0.0), "discriminator")[0]
    value, aux = loss(task, "discriminator", SHIFT.replace(state=state))
    penalty = (np.maximum(real - 0.5, 0) ** 2).mean() + (np.maximum(1.5 - fake, 0) ** 2).mean()
    assert float(value - plain) == pytest.approx(penalty, rel=1e-4)
    assert float(aux.state["lecam"]["real"]) == pytest.approx(0.999 * 1.5 + 0.001 * real.mean(), rel=1e-6)


class Moves(nn.Module):
    """Pooled features are the means of the pixels and of their squares."""

    @nn.compact
    def __call__(self, pixels, *, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        means = [power.mean(axis=(1, 2, 3)) for power in (pixels, pixels**2)]
        return scale, {"pooled": scale * jnp.stack(means, axis=-1)}


def test_a_network_of_clips_compares_what_it_sees_in_them_as_a_whole():
    task = Tokenization(Shift(), video_perceptual=Moves(), video_perceptual_weight=0.5)
    assert jax.eval_shape(task.init, jax.random.key(0)).frozen["video_perceptual"]["params"]["scale"].shape == ()
    variables = SHIFT.replace(frozen={"video_perceptual": {"params": {"scale": jnp.float32(3)}, "state": {}}})
    value, aux = loss(task, variables=variables)
    means = [[power.mean(axis=(1, 2, 3)) for power in (one, one**2)] for one in (PIXELS, np.minimum(PIXELS + 0.1, 1))]
    expected = 0.5 * np.square(3 * np.subtract(*means)).mean()
    assert float(aux.metrics["video_perceptual_loss"]) == pytest.approx(expected, rel=1e-4)
    assert float(value) == pytest.approx(0.01 + 0.005 + expected, rel=1e-4)


class Features(nn.Module):
    """Logits are sums of pixels; one level of the pixels and their squares."""

    image_size: tuple[int, int] = (4, 4)

    @nn.compact
    def __call__(self, images, *, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * images.sum(axis=(1, 2)), {"levels": [jnp.concatenate([images, images**2 + 1], axis=-1)]}


@pytest.mark.parametrize("kind", ["logits", "levels"])
def test_features_of_another_run_are_compared_at_their_own_size(kind):
    task = Tokenization(Shift(), perceptual=Features(), perceptual_weight=0.5, perceptual_features=kind)
    frozen = jax.eval_shape(task.init, jax.random.key(0)).frozen
    assert frozen["perceptual"]["params"]["scale"].shape == ()
    variables = SHIFT.replace(frozen={"perceptual": {"params": {"scale": jnp.float32(3)}, "state": {}}})
    found = float(loss(task, variables=variables)[1].metrics["perceptual_loss"])
    x, y = (jax.image.resize(np.minimum(one, 1), (5, 4, 4, 1), "linear") * 2 - 1 for one in (PIXELS, PIXELS + 0.1))
    if kind == "logits":
        expected = np.square(3 * (x - y).sum(axis=(1, 2))).mean()
    else:
        both = [np.concatenate([one, one**2 + 1], axis=-1) for one in (x, y)]
        both = [one / np.linalg.norm(one, axis=-1, keepdims=True) for one in both]
        expected = np.square(both[0] - both[1]).sum(axis=-1).mean()
    assert found == pytest.approx(0.5 * expected, rel=1e-4)


def test_held_out_figures_leave_padding_out():
    task = Tokenization(Shift(), num_pictures=2)
    pixels = 0.8 * PIXELS
    pixels[1] = 0.1  # shows no object
    result = judged(task, "reconstruction", SHIFT, padded_batches(("image", pixels)))
    assert result.metrics["psnr"] == pytest.approx(20, abs=1e-3)
    assert result.metrics["object_psnr"] == pytest.approx(20, abs=1e-3)
    ids = np.round(pixels * 10).astype(int).ravel()
    shares = np.bincount(ids, minlength=11) / len(ids)
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    assert result.metrics["perplexity"] == pytest.approx(np.exp(entropy), rel=1e-5)
    assert result.metrics["usage"] == pytest.approx((shares > 0).mean())
    assert result.metrics["bits_per_pixel"] == pytest.approx(np.log2(11))
    assert result.images["original_above_reconstruction"].shape == (2, 17, 8, 3) and "warning" not in result.texts
    guess = [np.square(one - one.mean()).mean() for one in pixels]
    expected = np.mean([-10 * np.log10(max(error, 1e-10)) for error in guess])
    assert result.metrics["mean_colour_psnr"] == pytest.approx(expected, rel=1e-4)


def test_a_collapsed_codebook_is_said_to_have_collapsed(monkeypatch):
    said = []
    monkeypatch.setattr(tokenization.logging, "warning", said.append)
    result = judged(Tokenization(Shift()), "reconstruction", SHIFT, padded_batches(("image", 0 * PIXELS)))
    assert result.metrics["perplexity"] == pytest.approx(1)
    assert "the codebook has collapsed: 1 of 11" in result.texts["warning"][0]
    assert said == result.texts["warning"]  # one warning, which the report shows as well


@pytest.mark.parametrize(
    "counts, expected",
    [
        ([[40, 0, 0, 0]], True),  # one code for all
        ([[39, 1, 0, 0]], True),  # all but one
        ([[20, 20, 0, 0]], False),
        ([[500] * 9 + [0] * 991], True),  # less than a hundredth of a thousand
        ([[500] * 11 + [0] * 989], False),
        ([[1] * 4 + [0] * 9996], False),  # four tokens cannot show more than four codes
    ],
)
def test_a_collapse_is_measured_by_what_could_have_been_used(counts, expected):
    assert tokenization.collapsed(np.array(counts)) == expected


def test_every_report_shows_curves_of_reconstruction_and_usage(tmp_path):
    trained = loss(Tokenization(Shift()))[1].metrics
    judgement = judged(Tokenization(Shift()), "reconstruction", SHIFT, padded_batches(("image", PIXELS)))
    lines = [{"step": step, "split": "train"} | {name: float(v) for name, v in trained.items()} for step in (1, 2)]
    held_out = {f"test/reconstruction_{name}": value for name, value in judgement.metrics.items()}
    lines += [{"step": step, "split": "test"} | held_out for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(tmp_path).read_text()
    for name in ("pixel_loss", "perplexity", "usage", "reconstruction_psnr", "reconstruction_usage"):
        assert f"<h3>{name}</h3>" in page, name


class Codes(Tokenizer):
    """Clips whose pixels are latents; the codebook is kept by averages."""

    num_frames: int = 2
    image_size: tuple[int, int] = (4, 4)
    channels: int = 3
    grid = (2, 4, 4)
    codebook_size = 6

    def setup(self):
        self.quantizer = CosineQuantizer(6, 3)
        self.head = nn.Dense(3)

    def encoder(self, pixels):
        return pixels, {}

    def decoder(self, values):
        return self.head(values), {}


def test_clips_and_codebooks_of_averages_are_carried():
    task = Tokenization(Codes(), PatchDiscriminator(4, 1), field="video")
    assert task.spec(3)["video"].shape == (3, 2, 4, 4, 3)
    variables = jax.jit(task.init)(jax.random.key(0))
    clips = np.random.default_rng(1).uniform(0, 1, (3, 2, 4, 4, 3)).astype(np.float32)
    before = variables.state["model"]["codebook"]["quantizer"]["embedding"]
    _, aux = jax.jit(task.loss)(variables, {"video": clips}, CTX)
    assert np.abs(aux.state["model"]["codebook"]["quantizer"]["embedding"] - before).max() > 0.01
    _, aux = jax.jit(task.loss)(variables, {"video": clips}, CTX.replace(player="discriminator"))
    assert aux.state is None
    batches = [{"video": clips, "weight": np.ones(3, np.float32)}]
    result = judged(task, "reconstruction", variables, batches)
    assert result.clips["original_above_reconstruction"].shape == (3, 2, 9, 4, 3)


def test_pixels_outside_of_the_tokenizers_range_are_refused():
    with pytest.raises(ValueError, match=r"image has values from -1 to .*, but the tokenizer takes 0 to 1: set data"):
        Tokenization(Shift()).check({"image": np.array([-1.0, 0.5])})


@pytest.mark.parametrize("field, value", [("pixel_loss", "l3"), ("object_weight", 0.0), ("adversarial_loss", "w")])
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=f"task.{field} is "):
        Tokenization(Shift(), **{field: value})


def test_a_network_made_for_it_gives_the_distance_and_a_figure_that_names_it():
    network = LPIPS((2, 2, 2, 2, 2), image_size=(16, 16))
    task = Tokenization(Shift(), perceptual=network, perceptual_weight=2.0, perceptual_features="distance")
    shapes = jax.eval_shape(task.init, jax.random.key(0)).frozen["perceptual"]
    draws = np.random.default_rng(0)
    frozen = jax.tree.map(lambda leaf: draws.normal(size=leaf.shape).astype(np.float32), shapes)
    variables = SHIFT.replace(frozen={"perceptual": frozen})
    other = np.minimum(PIXELS + np.float32(0.1), 1)
    apart = jax.jit(lambda x, y: network.apply({"params": frozen["params"]}, x, y, method="distance"))
    seen = [jax.image.resize(one, (5, 16, 16, 1), "linear") for one in (PIXELS, other)]
    expected = np.asarray(apart(*seen)).mean()
    assert float(loss(task, variables=variables)[1].metrics["perceptual_loss"]) == pytest.approx(2 * expected, rel=1e-3)
    metrics = judged(task, "reconstruction", variables, padded_batches(("image", PIXELS))).metrics
    assert metrics["perceptual_lpips_vgg16_16px"] == pytest.approx(expected, rel=1e-3)
    assert "mean_colour_perceptual_lpips_vgg16_16px" in metrics
    assert Tokenization(Shift(), perceptual=Features()).perceptual_name == "perceptual_logits_in_repo_features_4px"
    with pytest.raises(ValueError, match=r"task\.perceptual_features is 'distance', but Features gives none"):
        Tokenization(Shift(), perceptual=Features(), perceptual_features="distance")
