"""ResFormer: Scaling ViTs with Multi-Resolution Training (Tian et al., CVPR 2023, arXiv 2212.00776).

A ViT for images of any size. Its positions are functions of the grid: sines of places that run from 0 to 2 pi whatever
the size, convolved (global, section 3.3), and a convolution of the values inside every attention (local). It trains on
each image at several sizes at once, and the class token of a smaller size is drawn towards that of the next larger one
(scale consistency, section 3.2). Reference: ruitian12/resformer (MIT). Sizes stand in `zoo/papers/resformer.toml`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from transformer_zoo.data import mixing
from transformer_zoo.layers.attention import HeadProjection, attend
from transformer_zoo.layers.blocks import drop_path_rates, scan_blocks
from transformer_zoo.layers.constraints import constrain_tokens
from transformer_zoo.layers.convolutions import DepthwiseConv, depthwise, map_of, tokens_of
from transformer_zoo.layers.depths import layer_depths
from transformer_zoo.layers.mlp import Mlp
from transformer_zoo.layers.norms import DropPath, layer_norm
from transformer_zoo.layers.patches import PatchEmbed, grid_of
from transformer_zoo.layers.positions import sincos_1d
from transformer_zoo.task import Aux, Batch, Context, Evaluator, Result, Tree, Variables
from transformer_zoo.tasks.classification import Accuracy, Classification
from transformer_zoo.tasks.networks import apply_network

EPSILON = 1e-6  # of LayerNorms, and in the places of the global positions


def normalised_sincos(grid: tuple[int, int], width: int) -> Float[Array, "rows columns width"]:
    """Sines and cosines in turn of 2 pi row / rows, then of 2 pi column / columns, counted from 1 (equation 4)."""
    rows, columns = (
        sincos_1d(2 * np.pi * np.arange(1, length + 1) / (length + EPSILON), width // 2, layout="interleaved")
        for length in grid
    )
    shape = (*grid, width // 2)
    return jnp.concatenate([jnp.broadcast_to(rows[:, None], shape), jnp.broadcast_to(columns[None], shape)], axis=-1)


class GlobalPositions(nn.Module):
    """The table of `normalised_sincos` after a 3 x 3 depthwise convolution, as a sequence."""

    width: int

    @nn.compact
    def __call__(self, grid: tuple[int, int]) -> Float[Array, "tokens width"]:
        return tokens_of(DepthwiseConv(name="convolution")(normalised_sincos(grid, self.width)[None]))[0]


class LocalPositionAttention(nn.Module):
    """Self-attention that adds a 3 x 3 depthwise convolution of the patches' values, one for all heads (equation 5).

    Attributes:
        num_heads, qkv_bias, implementation: see `Attention`.
        local_positions: whether there is the convolution; it starts at 0.
        dtype: of the computation.
    """

    num_heads: int
    qkv_bias: bool = True
    local_positions: bool = True
    implementation: str = "auto"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"], grid: tuple[int, int]) -> Float[Array, "batch tokens w"]:
        """Attends among a class token and the patches of `grid` behind it."""
        width = x.shape[-1]
        projection = HeadProjection(3, self.num_heads, width // self.num_heads, self.qkv_bias, self.dtype, name="qkv")
        query, key, value = projection(x)
        y = attend(query, key, value, implementation=self.implementation).reshape(x.shape)
        if self.local_positions:
            head_dim = width // self.num_heads
            kernel = self.param("local_kernel", nn.initializers.zeros, (3, 3, 1, head_dim)).astype(y.dtype)
            bias = self.param("local_bias", nn.initializers.zeros, (head_dim,)).astype(y.dtype)
            patches = map_of(value.reshape(x.shape)[:, 1:], grid)
            local = depthwise(patches, jnp.tile(kernel, self.num_heads)) + jnp.tile(bias, self.num_heads)
            y = y + jnp.pad(tokens_of(local), ((0, 0), (1, 0), (0, 0)))
        return nn.Dense(width, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="out")(y)


class ResFormerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Attributes:
        num_heads, qkv_bias, local_positions, attention: see `LocalPositionAttention`.
        mlp_ratio: hidden width of the MLP over the block's.
        train: whether drop path applies.
        dtype: of the computation.
    """

    num_heads: int
    qkv_bias: bool = True
    local_positions: bool = True
    mlp_ratio: float = 4.0
    attention: str = "auto"
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], drop_path_rate: Float[Array, ""] | float, grid: tuple[int, int]
    ) -> tuple[Float[Array, "batch tokens width"], Float[Array, "batch tokens width"]]:
        x = constrain_tokens(x)
        attention = LocalPositionAttention(
            self.num_heads, self.qkv_bias, self.local_positions, self.attention, self.dtype, name="attention"
        )
        y = attention(layer_norm(EPSILON, self.dtype, "norm1")(x), grid)
        x = x + DropPath(self.train, name="attention_drop")(y, drop_path_rate)
        mlp = Mlp(round(self.mlp_ratio * x.shape[-1]), dtype=self.dtype, name="mlp")
        x = x + DropPath(self.train, name="mlp_drop")(mlp(layer_norm(EPSILON, self.dtype, "norm2")(x)), drop_path_rate)
        return x, x


class ResFormer(nn.Module):
    """The encoder, with a linear head on its class token. No parameter depends on the size of images.

    Attributes:
        num_classes: width of the head; 0 leaves it out.
        image_size: (height, width) in pixels that it is given; other sizes that patches tile work alike.
        patch_size: (height, width) in pixels.
        channels: of the image.
        depth, width, num_heads, mlp_ratio, qkv_bias: of the encoder; the width is a multiple of 4.
        global_positions, local_positions: the paper's two ablations (table 8).
        drop_path_rate: of the last block, growing linearly from 0 in the first.
        attention: implementation, see `attend`.
        remat, unroll: see `scan_blocks`.
        dtype: of the computation; parameters stay float32.
    """

    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    channels: int = 3
    depth: int = 12
    width: int = 384
    num_heads: int = 6
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    global_positions: bool = True
    local_positions: bool = True
    drop_path_rate: float = 0.0
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    def layer_numbers(self, params: Any) -> Any:
        """Layer number of every parameter, see `layer_depths`."""
        return layer_depths(params, self.depth)

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> tuple[Float[Array, "batch out"], dict[str, Array]]:
        """Logits [batch, num_classes], or with no head the normalised class token; and named intermediates.

        Of these 'patches' stand before positions, 'embedded' is what the first block reads, 'levels' [depth, batch,
        tokens, width] are every block's output, 'encoded' the normalised last one, 'tokens' its patches and 'pooled'
        its class token, which stands first.

        Raises:
            ValueError: an image that patches do not tile.
        """
        grid = grid_of((images.shape[1], images.shape[2]), self.patch_size)
        patches = PatchEmbed(self.width, self.patch_size, dtype=self.dtype, name="patch_embed")(images)
        x = patches
        if self.global_positions:
            x = x + GlobalPositions(self.width, name="positions")(grid).astype(x.dtype)
        token = self.param("class_token", nn.initializers.truncated_normal(0.02), (1, self.width)).astype(x.dtype)
        x = embedded = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
        block = ResFormerBlock(
            self.num_heads,
            self.qkv_bias,
            self.local_positions,
            mlp_ratio=self.mlp_ratio,
            attention=self.attention,
            train=train,
            dtype=self.dtype,
        )
        rates = drop_path_rates(self.drop_path_rate, self.depth)
        x, levels = scan_blocks(self, block, self.depth, x, rates, grid, remat=self.remat, unroll=self.unroll)
        x = layer_norm(EPSILON, self.dtype, "norm")(x)
        aux = {"patches": patches, "embedded": embedded, "levels": levels, "encoded": x}
        aux |= {"tokens": x[:, 1:], "pooled": x[:, 0]}
        if not self.num_classes:
            return x[:, 0], aux
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="head")
        return head(x[:, 0]).astype(jnp.float32), aux


def scale_consistency(
    student: Float[Array, "batch width"], teacher: Float[Array, "batch width"]
) -> Float[Array, " batch"]:
    """Smooth L1 distance to the teacher's whitened features, which get no gradient; mean over channels (equation 3)."""
    teacher = jax.lax.stop_gradient(teacher).astype(jnp.float32)
    centred = teacher - teacher.mean(axis=-1, keepdims=True)
    whitened = centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + EPSILON)
    return optax.huber_loss(student.astype(jnp.float32), whitened).mean(axis=-1)


def resize(images: Float[Array, "batch height width channels"], size: int) -> Float[Array, "batch size size channels"]:
    """Squares of `size` pixels a side, bicubic, smoothed where they shrink."""
    return jax.image.resize(images, (images.shape[0], size, size, images.shape[3]), "cubic")


@dataclasses.dataclass(frozen=True)
class MultiResolution(Classification):
    """Classification of every image at several sizes in one step, each a student of the next larger one.

    Images come in one size and are resized on the device, so all sizes share a crop and what was mixed in; the
    reference's recipe draws a crop for each. Evaluation is at the size that images come in, and at `test_resolutions`.

    Attributes:
        resolutions: pixels a side in training, from the largest down.
        consistency: weight of `scale_consistency` (equation 2).
        test_resolutions: further pixels a side at which accuracy is judged, alone and in the mean.
    """

    resolutions: tuple[int, ...] = (224, 160, 128)
    consistency: float = 1.0
    test_resolutions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.resolutions or list(self.resolutions) != sorted(set(self.resolutions), reverse=True):
            raise ValueError(f"task.resolutions is {self.resolutions}, but must fall from the largest size down")
        for name in ("resolutions", "test_resolutions"):
            for size in getattr(self, name):
                for side in self.network.patch_size:
                    if size % side or size < side:
                        near = max(side, round(size / side) * side)
                        raise ValueError(f"task.{name} has {size}, but must be multiples of {side}, such as {near}")

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], Aux]:
        """The mean over sizes; in evaluation the cross-entropy at the size that images come in."""
        if not ctx.train:
            return super().loss(variables, batch, ctx)
        images, targets = mixing.mix(
            jax.random.fold_in(ctx.key, 1),
            batch["image"],
            self.targets(batch["label"]),
            self.mixup_alpha,
            self.cutmix_alpha,
            self.switch_probability,
        )
        return self.multi_resolution_loss(variables, [resize(images, size) for size in self.resolutions], targets, ctx)

    def multi_resolution_loss(
        self, variables: Variables, images: list[Array], targets: Float[Array, "batch classes"], ctx: Context
    ) -> tuple[Float[Array, ""], Aux]:
        """The loss on images that are given at every size, the largest first; 'loss_SIZE' are its parts."""
        losses: dict[str, Array] = {}
        distances, accuracies, teacher = [], [], None
        for number, resized in enumerate(images):
            key = jax.random.fold_in(ctx.key, 2 + number)
            logits, aux, _ = apply_network(self.network, variables, resized, key=key, train=ctx.train)
            one = self.losses(logits, targets).mean()
            if teacher is not None:
                distances.append(scale_consistency(aux["pooled"], teacher).mean())
                one = one + self.consistency * distances[-1]
            losses[f"loss_{resized.shape[1]}"] = one
            accuracies.append((logits.argmax(axis=-1) == targets.argmax(axis=-1)).mean())
            teacher = aux["pooled"]
        metrics = losses | {"accuracy": accuracies[0]}
        if distances:
            metrics["consistency"] = jnp.stack(distances).mean()
        return jnp.stack(list(losses.values())).mean(), Aux(metrics=metrics)

    def evaluators(self) -> dict[str, Evaluator]:
        resized: dict[str, Evaluator] = {"resized": ResizedAccuracy(task=self)} if self.test_resolutions else {}
        return super().evaluators() | resized


@dataclasses.dataclass(frozen=True)
class ResizedAccuracy(Accuracy):
    """Accuracy on images resized to each of the task's `test_resolutions`, and the mean over these sizes."""

    task: MultiResolution | None = None

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        assert self.task is not None
        found = {}
        for size in self.task.test_resolutions:
            logits, _, _ = apply_network(self.task.network, variables, resize(batch["image"], size))
            found[f"accuracy_{size}"] = logits.argmax(axis=-1) == batch["label"]
        return found

    def result(self, state: Tree) -> Result:
        found = {name: float(total / state["count"]) for name, total in state.items() if name != "count"}
        return Result(found | {"accuracy": float(np.mean(list(found.values())))})
