"""PUT: Reduce Information Loss in Transformers for Pluralistic Image Inpainting (Liu et al. 2022, arXiv 2205.05076).

Ordinary inpainters in token space quantize what they see. Here a transformer reads the features of the image's patches
as they are, NOT quantized, and predicts codes for the hidden patches only; patches do not overlap, so no feature knows
what its neighbours hide, and the decoder copies known pixels back. A patch that is filled in shows the transformer the
vector of its code; the surest patch is filled first (sections 3.2, 3.3).

Reference: liuqk3/PUT (MIT), `masked_image_inpainting_transformer_in_feature.py`.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from transformer_zoo.data.pictures import side_by_side, to_uint8
from transformer_zoo.decoding.masked import Step, decode_masked
from transformer_zoo.layers.blocks import Block, drop_path_rates, scan_blocks
from transformer_zoo.layers.norms import layer_norm
from transformer_zoo.models.tokenizers.pvqvae import hide, random_holes, whole_patches
from transformer_zoo.task import Aux, Batch, Context, Evaluator, Result, Tree, Variables
from transformer_zoo.tasks.masked_tokens import MaskedTokens
from transformer_zoo.tasks.networks import apply_frozen, apply_network, frozen_network, init_network

Images = Float[Array, "batch height width channels"]
Known = Bool[Array, "batch height width"]
Patches = Bool[Array, "batch rows columns"]
Features = Float[Array, "batch rows columns dim"]
Ids = Int[Array, "batch rows columns"]


class UQTransformer(nn.Module):
    """Features of patches, as they are or of their codes, to the logits of the codes at every patch.

    Attributes:
        grid: rows and columns of patches.
        feature_width: channels of a feature and of a code.
        num_codes: that may be predicted: those of whole patches.
        depth, width, num_heads, mlp_ratio: of the blocks.
        attention, remat, unroll, dtype: see `Block` and `scan_blocks`.
    """

    grid: tuple[int, ...] = (32, 32)
    feature_width: int = 256
    num_codes: int = 512
    depth: int = 30
    width: int = 512
    num_heads: int = 8
    mlp_ratio: float = 4.0
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(
        self, features: Features, *, train: bool = False
    ) -> tuple[Float[Array, "batch rows columns codes"], dict[str, Array]]:
        """Logits, and 'embedded' and 'levels' (all blocks' outputs)."""
        normal = nn.initializers.normal(0.02)
        tokens = features.reshape(features.shape[0], -1, features.shape[-1])
        x = nn.Dense(self.width, kernel_init=normal, dtype=self.dtype, name="embed")(tokens)
        places = self.param("positions", nn.initializers.zeros, (math.prod(self.grid), self.width))
        x = x + places.astype(x.dtype)
        embedded = x
        block = Block(
            self.num_heads,
            mlp_ratio=self.mlp_ratio,
            activation="quick_gelu",
            attention=self.attention,
            norm_epsilon=1e-5,
            dtype=self.dtype,
        )
        rates = drop_path_rates(0.0, self.depth)
        x, levels = scan_blocks(self, block, self.depth, x, rates, remat=self.remat, unroll=self.unroll)
        x = layer_norm(1e-5, self.dtype, "norm")(x)
        logits = nn.Dense(self.num_codes, kernel_init=normal, dtype=self.dtype, name="logits")(x)
        shape = (*features.shape[:-1], self.num_codes)
        return logits.astype(jnp.float32).reshape(shape), {"embedded": embedded, "levels": levels}


@dataclasses.dataclass(frozen=True)
class InpaintingTokens(MaskedTokens):
    """Cross-entropy of the codes of patches with holes, from the features of what is left of the image.

    Attributes:
        sampling: of which temperature, top_k and top_p count.
        tokens_per_step: patches that a call fills.
        quantized_share: of whole patches that show the vector of their code instead of their feature in training, as
            filled ones do in sampling.
    """

    tokens_per_step: int = 4
    quantized_share: float = 0.3

    def __post_init__(self) -> None:
        if tuple(self.network.grid) != tuple(self.tokenizer.grid):
            raise ValueError(f"model.grid is {self.network.grid}, but the tokenizer's is {self.tokenizer.grid}")
        for name, ours, theirs in (
            ("num_codes", self.network.num_codes, self.tokenizer.num_codes),
            ("feature_width", self.network.feature_width, self.tokenizer.width),
        ):
            if ours != theirs:
                raise ValueError(f"model.{name} is {ours}, but the tokenizer's is {theirs}")

    def spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        return {"image": jax.ShapeDtypeStruct((batch_size, *self.tokenizer.input_shape), jnp.float32)}

    def init(self, key: Key[Array, ""]) -> Variables:
        features = jnp.zeros((1, *self.network.grid, self.network.feature_width))
        params, _ = init_network(self.network, key, features)
        frozen = {"tokenizer": frozen_network(self.tokenizer, jnp.zeros(self.spec()["image"].shape))}
        return Variables(params={"model": params}, frozen=frozen)

    def look(self, variables: Variables, images: Images, known: Known) -> tuple[Features, Ids, Patches]:
        """Features of the image without its holes, ids of its patches as if whole, and which patches are whole."""
        frozen = variables.frozen["tokenizer"]
        codes, aux = apply_frozen(self.tokenizer, frozen, hide(images, known), method="encode")
        return aux["latents"], codes.ids, whole_patches(known, self.tokenizer.patch_size)

    def vectors(self, variables: Variables, ids: Ids) -> Features:
        """The codes of ids."""
        return apply_frozen(self.tokenizer, variables.frozen["tokenizer"], ids, method=lookup)

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], Aux]:
        hole_key, noise_key, key = jax.random.split(ctx.key, 3)
        images = batch["image"]
        known = random_holes(hole_key, images.shape[0], self.tokenizer.image_size)
        noise = jax.random.uniform(noise_key, (images.shape[0], *self.network.grid))
        logits, whole = self.predict_holes(variables, images, known, noise, key=key, train=ctx.train)
        loss, right = hole_loss(logits, self.tokenize(variables, batch), whole)
        return loss, Aux(metrics={"accuracy": right})

    def predict_holes(
        self,
        variables: Variables,
        images: Images,
        known: Known,
        noise: Float[Array, "batch rows columns"],
        key: Key[Array, ""] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch rows columns codes"], Patches]:
        """Logits of every patch, some whole ones quantized where `noise` is low, and which patches are whole."""
        features, whole = self.mixed_features(variables, images, known, noise)
        logits, _, _ = apply_network(self.network, variables, features, key=key, train=train)
        return logits, whole

    def mixed_features(
        self, variables: Variables, images: Images, known: Known, noise: Float[Array, "batch rows columns"]
    ) -> tuple[Features, Patches]:
        """Features, of some whole patches the vectors of their codes, and which patches are whole."""
        features, ids, whole = self.look(variables, images, known)
        quantized = whole & (noise < self.quantized_share)
        return jnp.where(quantized[..., None], self.vectors(variables, ids), features), whole

    def fill(self, variables: Variables, images: Images, known: Known, key: Key[Array, ""]) -> Ids:
        """Ids of all patches, those with holes filled in, the surest first."""
        features, ids, whole = self.look(variables, images, known)
        chosen, total = self.sampling, math.prod(self.network.grid)
        steps = -(-total // self.tokens_per_step)
        left = np.maximum(total - self.tokens_per_step * np.arange(1, steps + 1), 0)

        def logits(shown: Array, step: Step) -> Array:
            filled = ~whole & ~step.unknown
            now = jnp.where(filled[..., None], self.vectors(variables, jnp.maximum(shown, 0)), features)
            return apply_network(self.network, variables, now)[0]

        return decode_masked(
            logits,
            ids,
            ~whole,
            key,
            hidden=-1,
            steps=steps,
            schedule=left,
            order="highest_logit",
            choice_temperature=0.0,
            temperature=chosen.temperature,
            top_k=chosen.top_k,
            top_p=chosen.top_p,
        ).ids

    def complete(self, variables: Variables, images: Images, known: Known, key: Key[Array, ""]) -> Images:
        """Images whose holes are filled in; known pixels are exactly those that were given."""
        ids = self.fill(variables, images, known, key)
        frozen = variables.frozen["tokenizer"]
        made = apply_frozen(self.tokenizer, frozen, ids, images, known, method="detokenize")
        return jnp.where(known[..., None], images, made)

    def evaluators(self) -> dict[str, Evaluator]:
        return {"": Inpainted(task=self)}


def lookup(tokenizer: Any, ids: Ids) -> Features:
    """The codes of a tokenizer, called by `apply`."""
    return tokenizer.quantizer.lookup(ids)


def hole_loss(
    logits: Float[Array, "batch rows columns codes"], ids: Ids, whole: Patches
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy and accuracy of the patches with holes, the mean over those of all samples together."""
    holes = ~whole
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
    count = jnp.maximum(holes.sum(), 1)
    return (losses * holes).sum() / count, ((logits.argmax(axis=-1) == ids) & holes).sum() / count


@dataclasses.dataclass(frozen=True)
class Inpainted(Evaluator):
    """Squared error inside of the holes of completed images.

    Beside it stand that of the mean of the known pixels, that of the tokenizer with the true ids, the greatest change
    of a known pixel, and how far two completions of one image lie apart in the hole (mean square).
    """

    batches: int = 2
    task: InpaintingTokens | None = None
    num_pictures: int = 8

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        assert self.task is not None
        task, images = self.task, batch["image"]
        hole_key, *keys = jax.random.split(ctx.key, 3)
        known = random_holes(hole_key, images.shape[0], task.tokenizer.image_size)
        holes = ~known[..., None]
        first, second = (task.complete(variables, images, known, key) for key in keys)
        ids = task.tokenize(variables, batch)
        best = apply_frozen(task.tokenizer, variables.frozen["tokenizer"], ids, images, known, method="detokenize")
        seen = jnp.maximum(known.sum(axis=(1, 2)), 1)[:, None, None, None]
        mean = (images * known[..., None]).sum(axis=(1, 2), keepdims=True) / seen

        def inside(errors: Array) -> Array:
            count = jnp.maximum(holes.sum(axis=(1, 2, 3)) * images.shape[-1], 1)
            return (errors * holes).sum(axis=(1, 2, 3)) / count

        return {
            "hole_error": inside(jnp.square(first - images)),
            "hole_error_of_mean": inside(jnp.square(mean - images)),
            "hole_error_ceiling": inside(jnp.square(best - images)),
            "known_change": (jnp.abs(first - images) * known[..., None]).max(axis=(1, 2, 3)),
            "spread": inside(jnp.square(first - second)),
            "pictures": jnp.stack([hide(images, known), first, second, images], axis=1)[: self.num_pictures],
        }

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        weight = batch["weight"]
        errors = {name: value for name, value in arrays.items() if name not in ("pictures", "known_change")}
        sums = {name: (value * weight).sum() for name, value in errors.items()}
        new = {"sums": sums | {"weight": weight.sum()}, "known_change": float((arrays["known_change"] * weight).max())}
        return new | {"pictures": arrays["pictures"]} if state is None else self.merge(state, new)

    def merge(self, first: dict, second: dict) -> dict:
        sums = {name: first["sums"][name] + second["sums"][name] for name in first["sums"]}
        return first | {"sums": sums, "known_change": max(first["known_change"], second["known_change"])}

    def result(self, state: dict) -> Result:
        sums = dict(state["sums"])
        weight = sums.pop("weight")
        metrics = {name: float(value / weight) for name, value in sums.items()} | {
            "known_change": state["known_change"]
        }
        views = [to_uint8(state["pictures"][:, view]) for view in range(4)]
        return Result(metrics, images={"given_completed_again_original": side_by_side(views)})
