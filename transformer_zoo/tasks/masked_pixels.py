"""Masked pixels: predict the pixels of hidden patches (MAE section 3, and every paper that only changes its mask)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from transformer_zoo.data.pictures import side_by_side, to_uint8
from transformer_zoo.layers.patches import patchify, unpatchify
from transformer_zoo.masking.random import Mask, num_kept, random_mask
from transformer_zoo.task import Aux, Batch, Context, Evaluator, Result, Task, Tree, Variables


def normalise_patches(patches: Float[Array, "batch tokens pixels"]) -> Float[Array, "batch tokens pixels"]:
    """Each patch to zero mean and unit variance over its pixels (MAE's norm_pix_loss; unbiased variance)."""
    variance = patches.var(axis=-1, ddof=1, keepdims=True)
    return (patches - patches.mean(axis=-1, keepdims=True)) / jnp.sqrt(variance + 1e-6)


def hidden_mean(values: Float[Array, "batch tokens"], mask: Mask) -> Float[Array, ""]:
    """Mean over the hidden tokens of all samples together."""
    return (values * mask.hidden).sum() / mask.hidden.sum()


@dataclasses.dataclass(frozen=True)
class MaskedPixels(Task):
    """Mean squared error of the hidden patches' pixels.

    Attributes:
        network: gives (prediction [batch, tokens, pixels], aux) of (images, mask); has image_size, patch_size,
            channels, grid and `encode`.
        mask_ratio: share of hidden patches.
        normalise_targets: regress patches of zero mean and unit variance (MAE: better features, blurrier pictures).
        sampler: (key, batch, tokens, mask_ratio) to a Mask.
        num_pictures: rows of the picture that evaluation draws.
    """

    network: nn.Module
    mask_ratio: float = 0.75
    normalise_targets: bool = True
    sampler: Callable[[Key[Array, ""], int, int, float], Mask] = random_mask
    num_pictures: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"task.mask_ratio is {self.mask_ratio}, but must lie between 0 and 1, both excluded")
        rows, columns = self.network.grid
        if num_kept(rows * columns, self.mask_ratio) == 0:
            raise ValueError(
                f"task.mask_ratio {self.mask_ratio} leaves none of {rows} x {columns} patches visible; "
                f"the highest that leaves one is {1 - 1 / (rows * columns):.4g}"
            )

    def spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        shape = (batch_size, *self.network.image_size, self.network.channels)
        return {"image": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def init(self, key: Key[Array, ""]) -> Variables:
        images = jnp.zeros(self.spec()["image"].shape)
        return Variables(params={"model": self.network.init(key, images, self._mask(key, images))["params"]})

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], Aux]:
        mask_key, dropout_key = jax.random.split(ctx.key)
        mask = self._mask(mask_key, batch["image"])
        prediction, _ = self.network.apply(
            {"params": variables.params["model"]}, batch["image"], mask, train=ctx.train, rngs={"dropout": dropout_key}
        )
        return hidden_mean(self._errors(prediction, batch["image"]), mask), Aux()

    def evaluators(self) -> dict[str, Evaluator]:
        return {"reconstruction": Reconstruction(task=self)}

    def features(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        aux: Any = self.network.apply({"params": variables.params["model"]}, batch["image"], method="encode")
        return {"pooled": aux["tokens"].mean(axis=1), "class_token": aux["encoded"][:, 0], "levels": aux["levels"]}

    def _mask(self, key: Key[Array, ""], images: Array) -> Mask:
        rows, columns = self.network.grid
        return self.sampler(key, images.shape[0], rows * columns, self.mask_ratio)

    def _errors(self, prediction: Array, images: Array) -> Float[Array, "batch tokens"]:
        target = patchify(images, self.network.patch_size)
        target = normalise_patches(target) if self.normalise_targets else target
        return jnp.square(prediction - target).mean(axis=-1)


@dataclasses.dataclass(frozen=True)
class Reconstruction(Evaluator):
    """Loss on held-out images, the loss of guessing the mean of the visible patches, and pictures."""

    task: MaskedPixels | None = None

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        assert self.task is not None
        network, images = self.task.network, batch["image"]
        mask = self.task._mask(ctx.key, images)
        prediction, _ = network.apply({"params": variables.params["model"]}, images, mask)
        patches = patchify(images, network.patch_size)
        visible = 1 - mask.hidden[:, :, None]
        visible_mean = (patches * visible).sum(axis=(1, 2)) / (visible.sum(axis=1)[:, 0] * patches.shape[-1])
        guess = jnp.broadcast_to(visible_mean[:, None, None], patches.shape)
        if self.task.normalise_targets:  # to pixels again, with the statistics that the target was normalised with
            deviation = jnp.sqrt(patches.var(axis=-1, ddof=1, keepdims=True) + 1e-6)
            pixels = prediction * deviation + patches.mean(axis=-1, keepdims=True)
            guess = (guess - patches.mean(axis=-1, keepdims=True)) / deviation
        else:
            pixels = prediction
        masked = jnp.where(visible > 0, patches, 0)
        views = [masked, jnp.where(visible > 0, patches, pixels), patches]
        pictures = jnp.stack([unpatchify(view, network.grid, network.patch_size) for view in views], axis=1)
        hidden_count = mask.hidden.sum(axis=1)
        return {
            "loss": (self.task._errors(prediction, images) * mask.hidden).sum(axis=1) / hidden_count,
            "baseline": (self.task._errors(guess, images) * mask.hidden).sum(axis=1) / hidden_count,
            "pictures": pictures[: self.task.num_pictures],
        }

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        weight = batch["weight"]
        sums = {name: (arrays[name] * weight).sum() for name in ("loss", "baseline")} | {"count": weight.sum()}
        new = sums | {"pictures": arrays["pictures"]}
        return new if state is None else self.merge(state, new)

    def merge(self, first: dict, second: dict) -> dict:
        return {name: first[name] + second[name] for name in ("loss", "baseline", "count")} | {
            "pictures": first["pictures"]
        }

    def result(self, state: dict) -> Result:
        views = state["pictures"]  # [count, (masked, reconstructed, original), height, width, channels]
        low, high = float(views[:, 2].min()), float(views[:, 2].max())
        picture = side_by_side([to_uint8(views[:, view], low, high) for view in range(3)])
        return Result(
            metrics={
                "loss": float(state["loss"] / state["count"]),
                "mean_of_visible_loss": float(state["baseline"] / state["count"]),
            },
            images={"masked_reconstructed_original": picture},
        )
