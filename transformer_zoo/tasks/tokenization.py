"""Tokenization: pictures to discrete tokens and back, with or without a discriminator and a feature network.

The tokenizer (player 'model') minimises the error of its reconstruction, its quantizer's own losses, the distance of
features, and the discriminator's ability to tell; the discriminator, where there is one, tells real from reconstructed
(VQGAN, Esser et al. 2021, arXiv 2012.09841, equations 5 and 6; MaskGIT and MAGVIT leave out its adaptive weight).
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Bool, Float, Int, Key

from transformer_zoo.data.pictures import to_uint8
from transformer_zoo.data.scenes.checker import BRIGHTNESS, SATURATION
from transformer_zoo.layers.norms import unit_length
from transformer_zoo.layers.quantizers.interface import code_usage
from transformer_zoo.task import Aux, Batch, Context, Evaluator, Result, Task, Tree, Variables
from transformer_zoo.tasks import adversarial
from transformer_zoo.tasks.networks import apply_frozen, apply_network, frozen_network, init_network
from transformer_zoo.tasks.similarity import psnr, ssim

Pixels = Float[Array, "batch *sides channels"]

PIXEL_LOSSES = ("l1", "l2")
FEATURES = ("logits", "levels", "distance")
INK = 0.2  # of the range: in a picture of one channel, what is brighter is an object
LECAM_DECAY = 0.999


def object_pixels(pixels: Float[Array, "*shape channels"]) -> Bool[Array, "*shape"]:
    """Which pixels of pictures in [0, 1] belong to objects: ink of digits, saturated colours as scenes have them.

    A still background fills most of either, so that its error hides what becomes of the objects.
    """
    highest, lowest = pixels.max(axis=-1), pixels.min(axis=-1)
    if pixels.shape[-1] == 1:
        return highest > INK
    return (highest > BRIGHTNESS / 255) & (highest - lowest > SATURATION * highest)


def feature_distance(first: list[Array], second: list[Array]) -> Float[Array, " batch"]:
    """Squared distance of features of unit length, the mean over places, summed over levels (LPIPS unweighted)."""
    total = jnp.zeros(len(first[0]))
    for x, y in zip(first, second, strict=True):
        apart = jnp.square(unit_length(x, 1e-6) - unit_length(y, 1e-6)).sum(axis=-1)
        total += apart.reshape(len(apart), -1).mean(axis=1)
    return total


@dataclasses.dataclass(frozen=True)
class Tokenization(Task):
    """Trains a tokenizer (`models.tokenizers.tokenizer.Tokenizer`) of images or clips.

    Attributes:
        network: the tokenizer.
        discriminator: gives (logits, aux) of pixels; None trains without. Its player comes after 'model'.
        perceptual: gives (logits, aux with 'levels') of images; comes with its weights from what the config `requires`
            under this name, a run or a folder that `convert import` wrote, and judges frames one by one. None leaves
            its loss out.
        video_perceptual: likewise of whole clips in [0, 1], gives (logits, aux with 'pooled'), such as I3D (Phenaki).
        field: of the batch that holds the pixels.
        pixel_loss: 'l1' or 'l2'.
        object_weight: of an object's pixels in it (`object_pixels`), where all others count 1.
        perceptual_weight: of the distance of features.
        perceptual_features: 'logits', their mean squared difference (MaskGIT, MAGVIT), 'levels', unweighted LPIPS of
            any network's, or 'distance', what a network made for it says of pixels in [0, 1] (LPIPS itself).
        perceptual_mean, perceptual_std: taken off pixels in [0, 1], and divided by, as `perceptual` was trained, unless
            it gives a distance; it sees pictures of its own `image_size`, or as they are where that is None.
        video_perceptual_weight: of the mean squared difference of the 'pooled' features of `video_perceptual`.
        adversarial_loss: one of `adversarial.LOSSES`.
        adversarial_weight: of the generator's part.
        adversarial_start: the step from which the discriminator trains and counts.
        r1_weight: of its penalty for steep gradients at real data.
        lecam_weight: of the one for straying from its past averages.
        num_pictures: that evaluation draws.
    """

    network: nn.Module
    discriminator: nn.Module | None = None
    perceptual: nn.Module | None = None
    video_perceptual: nn.Module | None = None
    field: str = "image"
    pixel_loss: str = "l2"
    object_weight: float = 1.0
    perceptual_weight: float = 0.1
    perceptual_features: str = "logits"
    perceptual_mean: tuple[float, ...] = (0.5,)
    perceptual_std: tuple[float, ...] = (0.5,)
    video_perceptual_weight: float = 1.0
    adversarial_loss: str = "non_saturating"
    adversarial_weight: float = 0.1
    adversarial_start: int = 0
    r1_weight: float = 10.0
    lecam_weight: float = 0.0
    num_pictures: int = 8

    def __post_init__(self) -> None:
        known = {"pixel_loss": PIXEL_LOSSES, "perceptual_features": FEATURES, "adversarial_loss": adversarial.LOSSES}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"task.{name} is {getattr(self, name)!r}, but must be one of {', '.join(values)}")
        if self.perceptual_features == "distance" and not hasattr(self.perceptual, "distance"):
            raise ValueError(
                f"task.perceptual_features is 'distance', but {type(self.perceptual).__name__} gives none; config."
                "requires.perceptual must name weights of lpips, or the features be 'logits' or 'levels'"
            )
        if self.object_weight <= 0:
            raise ValueError(f"task.object_weight is {self.object_weight}, but must be above 0 (1: all pixels alike)")

    @property
    def players(self) -> tuple[str, ...]:
        """The tokenizer, then the discriminator if there is one."""
        return ("model",) if self.discriminator is None else ("model", "discriminator")

    def spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        return {self.field: jax.ShapeDtypeStruct((batch_size, *self.network.input_shape), jnp.float32)}

    def check(self, batch: Batch) -> None:
        low, high = self.network.pixel_range
        least, greatest = float(np.min(batch[self.field])), float(np.max(batch[self.field]))
        if least < low - 1e-3 or greatest > high + 1e-3:
            raise ValueError(
                f"{self.field} has values from {least:.3g} to {greatest:.3g}, but the tokenizer takes {low:g} to "
                f"{high:g}: set data.transforms to (('scale', {{'low': {low:g}, 'high': {high:g}}}),)"
            )

    def init(self, key: Key[Array, ""]) -> Variables:
        pixels = jnp.zeros(self.spec()[self.field].shape)
        model_key, judge_key = jax.random.split(key)
        params, state = init_network(self.network, model_key, pixels)
        variables = Variables(params={"model": params}, state={"model": state} if state else {})
        if self.discriminator is not None:
            variables.params["discriminator"] = init_network(self.discriminator, judge_key, pixels)[0]
            if self.lecam_weight:
                variables.state["lecam"] = {"real": jnp.zeros(()), "fake": jnp.zeros(())}
        if self.perceptual is not None:
            shape = (1, *self._perceptual_size, self.network.channels)
            frozen = frozen_network(self.perceptual, jnp.zeros(shape))
            variables.frozen["perceptual"] = frozen
        if self.video_perceptual is not None:
            variables.frozen["video_perceptual"] = frozen_network(self.video_perceptual, pixels)
        return variables

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], Aux]:
        pixels = batch[self.field]
        reconstruction, aux, state = apply_network(self.network, variables, pixels, key=ctx.key, train=ctx.train)
        return self.combine(variables, pixels, reconstruction, aux, state, ctx)

    def combine(
        self,
        variables: Variables,
        pixels: Pixels,
        reconstruction: Pixels,
        aux: dict[str, Any],
        state: Tree,
        ctx: Context,
        pixel_scale: Array | float = 1.0,
    ) -> tuple[Float[Array, ""], Aux]:
        """The loss of `ctx.player` for a reconstruction; `aux` is what a tokenizer gives beside it.

        Args:
            variables: of all players.
            pixels: the original.
            reconstruction: of it.
            aux: with 'losses', 'metrics' and 'ids'.
            state: the new one.
            ctx: of the step.
            pixel_scale: of the pixel loss.
        """
        if ctx.player == "discriminator":
            return self._discriminator_loss(variables, pixels, jax.lax.stop_gradient(reconstruction), ctx)
        losses = {"pixel": pixel_scale * self.pixel_errors(pixels, reconstruction).mean(), **aux["losses"]}
        if self.perceptual is not None:
            apart = self.perceptual_distances(variables, pixels, reconstruction)
            losses["perceptual"] = self.perceptual_weight * apart.mean()
        if self.video_perceptual is not None:
            network, frozen = self.video_perceptual, variables.frozen["video_perceptual"]
            first, second = (apply_frozen(network, frozen, self.unit(clip))[1] for clip in (pixels, reconstruction))
            apart = jnp.square(first["pooled"] - second["pooled"]).mean()
            losses["video_perceptual"] = self.video_perceptual_weight * apart
        if self.discriminator is not None:
            fake = self._judge(variables, reconstruction)
            generator, _ = adversarial.LOSSES[self.adversarial_loss](fake, fake)
            losses["adversarial"] = self.adversarial_weight * self._counts(ctx) * generator
        metrics = {f"{name}_loss": value for name, value in losses.items()} | aux["metrics"]
        total = sum(losses.values(), jnp.zeros(()))
        return total, Aux(metrics=metrics | self._usage(aux["ids"]), state=state)

    def reconstruct(self, variables: Variables, pixels: Pixels, ctx: Context) -> tuple[Pixels, dict[str, Any]]:
        """What becomes of pixels on the way through their ids, and the network's intermediates, 'ids' among them."""
        reconstruction, aux, _ = apply_network(self.network, variables, pixels)
        return reconstruction, aux

    def pixel_errors(self, pixels: Pixels, reconstruction: Pixels) -> Pixels:
        """The error of every value, weighted."""
        errors = reconstruction.astype(jnp.float32) - pixels
        errors = jnp.abs(errors) if self.pixel_loss == "l1" else jnp.square(errors)
        if self.object_weight == 1:
            return errors
        return errors * jnp.where(object_pixels(self.unit(pixels)), self.object_weight, 1.0)[..., None]

    def unit(self, pixels: Pixels) -> Pixels:
        """Pixels of the tokenizer's range in [0, 1]."""
        low, high = self.network.pixel_range
        return (jnp.clip(pixels.astype(jnp.float32), low, high) - low) / (high - low)

    def perceptual_distances(
        self, variables: Variables, pixels: Pixels, reconstruction: Pixels
    ) -> Float[Array, " batch"]:
        """Of each sample's features, the mean over frames; pixels lie in the tokenizer's range."""
        network, frozen = self.perceptual, variables.frozen["perceptual"]
        assert network is not None

        def images(one: Pixels) -> Array:
            frames = self.unit(one).reshape(-1, *one.shape[-3:])
            return jax.image.resize(frames, (len(frames), *self._perceptual_size, frames.shape[-1]), "linear")

        def features(images: Array) -> tuple[Array, list[Array]]:
            images = (images - jnp.asarray(self.perceptual_mean)) / jnp.asarray(self.perceptual_std)
            logits, aux = apply_frozen(network, frozen, images)
            return logits, list(aux["levels"])

        first, second = images(pixels), images(reconstruction)
        if self.perceptual_features == "distance":
            apart = apply_frozen(network, frozen, first, second, method="distance")
        else:
            (logits, levels), (other_logits, other_levels) = features(first), features(second)
            apart = feature_distance(levels, other_levels)
            if self.perceptual_features == "logits":
                apart = jnp.square(logits - other_logits).reshape(len(logits), -1).mean(axis=1)
        return apart.reshape(len(pixels), -1).mean(axis=1)

    @property
    def perceptual_name(self) -> str:
        """Of the figure of `perceptual_distances`: the features, what extracts them, the size it sees, the frames."""
        kind = getattr(self.perceptual, "extractor", f"in_repo_{type(self.perceptual).__name__.lower()}")
        kind = kind if self.perceptual_features == "distance" else f"{self.perceptual_features}_{kind}"
        frames = f"_{self.network.input_shape[0]}f" if len(self.network.input_shape) == 4 else ""
        return f"perceptual_{kind}_{'x'.join(map(str, dict.fromkeys(self._perceptual_size)))}px{frames}"

    @property
    def _perceptual_size(self) -> tuple[int, int]:
        assert self.perceptual is not None
        return self.perceptual.image_size or self.network.input_shape[-3:-1]

    def evaluators(self) -> dict[str, Evaluator]:
        return {"reconstruction": Reconstruction(task=self)}

    def _counts(self, ctx: Context) -> Float[Array, ""]:
        return (ctx.step >= self.adversarial_start).astype(jnp.float32)

    def _judge(self, variables: Variables, pixels: Pixels) -> Array:
        assert self.discriminator is not None
        return self.discriminator.apply({"params": variables.params["discriminator"]}, pixels)[0]

    def _discriminator_loss(
        self, variables: Variables, pixels: Pixels, reconstruction: Pixels, ctx: Context
    ) -> tuple[Float[Array, ""], Aux]:
        real, fake = self._judge(variables, pixels), self._judge(variables, reconstruction)
        _, loss = adversarial.LOSSES[self.adversarial_loss](real, fake)
        metrics = {"real_logit": real.mean(), "fake_logit": fake.mean()}
        if self.r1_weight:
            penalty = adversarial.r1_penalty(lambda x: self._judge(variables, x), pixels)
            metrics["r1_penalty"] = penalty
            loss += self.r1_weight * penalty
        state = None
        if self.lecam_weight:
            averages = variables.state["lecam"]
            loss += self.lecam_weight * adversarial.lecam_penalty(real, fake, averages["real"], averages["fake"])
            means = {"real": jax.lax.stop_gradient(real.mean()), "fake": jax.lax.stop_gradient(fake.mean())}
            moved = jax.tree.map(lambda old, new: LECAM_DECAY * old + (1 - LECAM_DECAY) * new, averages, means)
            state = {**variables.state, "lecam": moved}
        return self._counts(ctx) * loss, Aux(metrics=metrics, state=state)

    def _usage(self, ids: Array) -> dict[str, Array]:
        size, several = self.network.codebook_size, self.network.num_codebooks
        columns = ids.reshape(-1, several).T  # codebooks do not share codes
        found = jax.vmap(lambda column: code_usage(column, size))(columns)
        return {name: value.mean() for name, value in found.items()}


@dataclasses.dataclass(frozen=True)
class Reconstruction(Evaluator):
    """How well pictures survive, what the tokens cost, and how the codebook is used.

    `psnr` (dB) and `ssim` are means over samples, `object_psnr` over those that show an object, of its pixels alone;
    `mean_colour_psnr` and `mean_colour_object_psnr` are those of a picture that is all of its own mean colour.
    `perplexity` (exp of the entropy) and `usage` (share of codes that occur) are those of all ids together, means over
    codebooks. `bits_per_pixel` is what the ids cost if all are as likely. Of clips `motion_error` is the squared error
    of the differences between frames over that of a clip at rest: 0 is best, 1 is no motion at all. Where the task has
    a feature network, `perceptual_...` (see `Tokenization.perceptual_name`) is the mean distance of its features, and
    `mean_colour_perceptual_...` that of pictures of their own mean colour.
    """

    task: Tokenization | None = None

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        assert self.task is not None
        task, pixels = self.task, batch[self.task.field]
        reconstruction, aux = task.reconstruct(variables, pixels, ctx)
        original, found = task.unit(pixels), task.unit(reconstruction)
        sides = tuple(range(1, original.ndim))
        flat = jnp.broadcast_to(original.mean(axis=sides[:-1], keepdims=True), original.shape)
        inside = object_pixels(original)[..., None].astype(jnp.float32)
        count = inside.sum(axis=sides) * original.shape[-1]
        shown: dict[str, Array] = {"ssim": ssim(original, found), "objects": (count > 0).astype(jnp.float32)}
        for name, guess in (("", found), ("mean_colour_", flat)):
            errors = jnp.square(guess - original)
            shown[f"{name}psnr"] = psnr(errors.mean(axis=sides))
            of_objects = psnr((errors * inside).sum(axis=sides) / jnp.maximum(count, 1))
            shown[f"{name}object_psnr"] = jnp.where(count > 0, of_objects, 0.0)
        if original.ndim == 5:
            moves, kept = jnp.diff(original, axis=1), jnp.diff(found, axis=1)
            shown["motion"] = jnp.square(moves).mean(axis=sides)
            shown["lost_motion"] = jnp.square(moves - kept).mean(axis=sides)
        if task.perceptual is not None:
            low, high = task.network.pixel_range
            shown["perceptual"] = task.perceptual_distances(variables, pixels, reconstruction)
            shown["mean_colour_perceptual"] = task.perceptual_distances(variables, pixels, low + (high - low) * flat)
        first = slice(task.num_pictures)
        return shown | {"ids": aux["ids"], "pictures": jnp.stack([original[first], found[first]], axis=1)}

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        assert self.task is not None
        network, weight = self.task.network, batch["weight"]
        ids = arrays["ids"][weight > 0].reshape(-1, network.num_codebooks)
        new = {name: (arrays[name] * weight).sum() for name in arrays if name not in ("ids", "pictures")}
        new["count"] = weight.sum()
        new["codes"] = np.stack([np.bincount(column, minlength=network.codebook_size) for column in ids.T])
        new["pictures"] = arrays["pictures"]
        return new if state is None else self.merge(state, new)

    def merge(self, first: dict, second: dict) -> dict:
        added = {name: first[name] + second[name] for name in first if name != "pictures"}
        return added | {"pictures": first["pictures"]}

    def result(self, state: dict) -> Result:
        assert self.task is not None
        network = self.task.network
        means = {}
        for name in state:
            if name.endswith(("psnr", "ssim")):
                count = state["objects"] if "object" in name else state["count"]
                means[name] = float(state[name] / max(count, 1))
        for name in ("perceptual", "mean_colour_perceptual"):
            if name in state:
                shown_as = name.replace("perceptual", self.task.perceptual_name)
                means[shown_as] = float(state[name] / max(state["count"], 1))
        if "motion" in state:
            means["motion_error"] = float(state["lost_motion"] / max(state["motion"], 1e-9))
        usage = codebook_usage(state["codes"])
        ids = np.prod(network.grid) * network.num_codebooks
        bits = ids * np.log2(network.codebook_size) / np.prod(network.input_shape[:-1])
        result = Result(means | usage | {"bits_per_pixel": float(bits)})
        if collapsed(state["codes"]):
            warning = (
                f"the codebook has collapsed: {usage['perplexity']:.3g} of {network.codebook_size} codes carry all "
                "tokens. Try a lower learning rate, fewer codes, a higher entropy weight, dead codes replaced or FSQ"
            )
            logging.warning(warning)
            result.texts["warning"] = [warning]
        views = state["pictures"]  # [count, (original, reconstruction), (frames,) height, width, channels]
        pair = above(to_uint8(views[:, 0], 0.0, 1.0), to_uint8(views[:, 1], 0.0, 1.0))
        shown = result.clips if views.ndim == 6 else result.images
        shown["original_above_reconstruction"] = pair
        return result


def codebook_usage(codes: Int[np.ndarray, "codebooks codes"]) -> dict[str, float]:
    """'perplexity' and 'usage' of counts of codes, the means over codebooks."""
    shares = codes / np.maximum(codes.sum(axis=1, keepdims=True), 1)
    entropies = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=1)
    return {"perplexity": float(np.exp(entropies).mean()), "usage": float((codes > 0).mean())}


def collapsed(codes: Int[np.ndarray, "codebooks codes"]) -> bool:
    """Whether a codebook carries less than a hundredth of what it could, by the number of codes and of tokens seen."""
    possible = min(codes.shape[1], max(int(codes.sum(axis=1).max()), 1))
    return codebook_usage(codes)["perplexity"] < max(1.5, possible / 100)


def above(first: np.ndarray, second: np.ndarray, border: int = 1) -> np.ndarray:
    """uint8 [..., height, width, 3] each, the first over the second with a white border between them."""
    gap = np.full((*first.shape[:-3], border, *first.shape[-2:]), 255, np.uint8)
    return np.concatenate([first, gap, second], axis=-3)
