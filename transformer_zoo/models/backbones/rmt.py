"""RMT: Retentive Networks Meet Vision Transformers (Fan et al., CVPR 2024, arXiv 2309.11523).

A pyramid behind a convolutional stem whose attention decays with distance: gamma^(|dy| + |dx|), a fixed gamma a head,
enters the softmax (its logarithm is added to the logits, equation 5). The Manhattan distance is a sum over the axes, so
early stages attend along rows and then along columns (equation 6) and late ones to the whole map. Reference:
qhfan/RMT. Sizes stand in `zoo/papers/rmt.toml`.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from transformer_zoo.layers.attention import HeadProjection, attend
from transformer_zoo.layers.blocks import drop_path_rates, scan_blocks
from transformer_zoo.layers.constraints import constrain_batch
from transformer_zoo.layers.convolutions import DepthwiseConv, Downsample, tokens_of
from transformer_zoo.layers.depths import pyramid_depths
from transformer_zoo.layers.distances import grid_distances, head_decays
from transformer_zoo.layers.mlp import gelu
from transformer_zoo.layers.norms import DropPath, LayerScale, layer_norm
from transformer_zoo.layers.rope import Rope, apply_rope

Map = Float[Array, "batch height width channels"]

TRUNCATED = nn.initializers.truncated_normal(0.02)


def rotation(tokens: int, angles: np.ndarray | Float[Array, " pairs"]) -> Rope:
    """Pairs (2i, 2i + 1) of channels turned by index * angles[i], the index counting along the whole sequence."""
    turns = np.arange(tokens)[:, None, None] * angles
    maths: Any = np if isinstance(turns, np.ndarray) else jnp
    return Rope(jnp.asarray(maths.cos(turns), jnp.float32), jnp.asarray(maths.sin(turns), jnp.float32), True)


class ManhattanAttention(nn.Module):
    """Self-attention on a map, its logits lowered by the Manhattan distance; with 5 x 5 local positions on the values.

    Attributes:
        num_heads: of the attention.
        decomposed: along the columns of each row first, then along the rows of each column, with the same queries and
            keys, turned by their index in the whole map; else over the whole map at once.
        implementation: see `attend`.
        dtype: of the computation.
    """

    num_heads: int
    decomposed: bool = False
    implementation: str = "auto"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Map, rope: Rope, decays: Any) -> Map:
        """Attends; `decays` is each head's log gamma [heads], or None for no decay."""
        grid, head_dim = (x.shape[1], x.shape[2]), x.shape[3] // self.num_heads
        query, key, value = HeadProjection(3, self.num_heads, head_dim, dtype=self.dtype, name="qkv")(tokens_of(x))
        local = DepthwiseConv((5, 5), dtype=self.dtype, name="local_positions")(value.reshape(x.shape))
        query, key = apply_rope(query, rope), apply_rope(key, rope)
        if self.decomposed:
            value = self._along(2, query, key, value, grid, decays)
            y = self._along(1, query, key, value, grid, decays)
        else:
            y = attend(query, key, value, bias=manhattan_bias(grid, decays), implementation=self.implementation)
        y = y.reshape(x.shape) + local
        return nn.Dense(x.shape[-1], kernel_init=TRUNCATED, dtype=self.dtype, name="out")(y)

    def _along(self, axis: int, query: Array, key: Array, value: Array, grid: tuple[int, int], decays: Any) -> Array:
        """Attention of the tokens of every row (axis 2) or every column (axis 1) of a map among themselves."""
        length, shape = grid[axis - 1], query.shape

        def lines(x: Array) -> Array:
            return jnp.moveaxis(x.reshape(shape[0], *grid, *shape[2:]), axis, 2).reshape(-1, length, *shape[2:])

        bias = manhattan_bias((1, length), decays)
        y = attend(lines(query), lines(key), lines(value), bias=bias, implementation=self.implementation)
        y = y.reshape(shape[0], shape[1] // length, length, *shape[2:])
        return jnp.moveaxis(y, 2, axis).reshape(shape)


def manhattan_bias(grid: tuple[int, int], decays: Any) -> Float[Array, "1 heads tokens tokens"] | None:
    """log(gamma^(|dy| + |dx|)) for every head and pair of tokens (equation 4); None where there are no decays."""
    if decays is None:
        return None
    return jnp.asarray(decays)[None, :, None, None] * jnp.asarray(grid_distances(grid))


class ConvolvedMlp(nn.Module):
    """Dense, GELU, plus a 3 x 3 depthwise convolution of it, dense back."""

    hidden: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Map) -> Map:
        y = gelu(nn.Dense(self.hidden, kernel_init=TRUNCATED, dtype=self.dtype, name="up")(x))
        y = y + DepthwiseConv(dtype=self.dtype, name="depthwise")(y)
        return nn.Dense(x.shape[-1], kernel_init=TRUNCATED, dtype=self.dtype, name="down")(y)


class RMTBlock(nn.Module):
    """x + depthwise(x), x + attention(norm(x)), x + mlp(norm(x)), on a map (figure 3).

    Attributes:
        num_heads, decomposed, attention: see `ManhattanAttention`.
        mlp_ratio: hidden width of the MLP over the block's.
        layer_scale: initial value of LayerScale on the last two branches; 0 leaves it out.
        train: whether drop path applies.
        dtype: of the computation.
    """

    num_heads: int
    decomposed: bool = False
    mlp_ratio: float = 4.0
    layer_scale: float = 0.0
    attention: str = "auto"
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Map, drop_path_rate: Float[Array, ""] | float, rope: Rope, decays: Any) -> tuple[Map, Map]:
        def branch(y: Map, name: str) -> Map:
            if self.layer_scale:
                y = LayerScale(self.layer_scale, name=f"{name}_scale")(y)
            return DropPath(self.train, name=f"{name}_drop")(y, drop_path_rate)

        x = constrain_batch(x)
        x = x + DepthwiseConv(dtype=self.dtype, name="positions")(x)
        attention = ManhattanAttention(
            self.num_heads,
            self.decomposed,
            implementation=self.attention,
            dtype=self.dtype,
            name="attention",
        )
        x = x + branch(attention(layer_norm(1e-6, self.dtype, "norm1")(x), rope, decays), "attention")
        mlp = ConvolvedMlp(round(self.mlp_ratio * x.shape[-1]), dtype=self.dtype, name="mlp")
        x = x + branch(mlp(layer_norm(1e-6, self.dtype, "norm2")(x)), "mlp")
        return x, x


class RMT(nn.Module):
    """The pyramid; its head reads the mean of a projected, normalised map.

    Attributes:
        num_classes: width of the head; 0 leaves it out.
        image_size: (height, width) in pixels that it is made for; other inputs work, as no parameter depends on it.
        channels: of the image.
        depths, widths, num_heads, mlp_ratios: a stage.
        decay_starts, decay_spreads: a stage, of its heads' gammas, see `head_decays`.
        decomposed: a stage, see `ManhattanAttention`.
        layer_scales: a stage, see `RMTBlock`.
        decay: whether attention decays with distance, the paper's ablation (table 6).
        head_width: of the projection in front of the head.
        drop_path_rate: of the last block, growing linearly from 0 in the first.
        attention: implementation, see `attend`.
        remat, unroll: see `scan_blocks`.
        dtype: of the computation; parameters stay float32.
    """

    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    depths: tuple[int, ...] = (2, 2, 8, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    num_heads: tuple[int, ...] = (4, 4, 8, 16)
    mlp_ratios: tuple[float, ...] = (3.0, 3.0, 3.0, 3.0)
    decay_starts: tuple[float, ...] = (2.0, 2.0, 2.0, 2.0)
    decay_spreads: tuple[float, ...] = (4.0, 4.0, 6.0, 6.0)
    decomposed: tuple[bool, ...] = (True, True, False, False)
    layer_scales: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    decay: bool = True
    head_width: int = 1024
    drop_path_rate: float = 0.0
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    def layer_numbers(self, params: Any) -> Any:
        """Layer number of every parameter, see `pyramid_depths`."""
        return pyramid_depths(params, self.depths, stem="^stem")

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        tables: Sequence[tuple[Array, Array]] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "batch out"], dict[str, Any]]:
        """Logits [batch, num_classes], or with no head the pooled vector; and named intermediates.

        Of these 'patches' are the first tokens, 'blocks' every block's output by stage, [depth, batch, rows, columns,
        width], 'levels' the last of each stage, 'tokens' the projected map as a sequence, and 'pooled' its mean, which
        the head reads. Batch statistics are in the collection `batch_stats`.

        Args:
            images: of any size.
            tables: a stage, the angles [head_dim / 2] and log gammas [heads] to use instead of exact ones; the
                reference's are rounded.
            train: whether batch statistics are taken from the batch and drop path applies.

        Raises:
            ValueError: settings of the stages that differ in number, or heads that do not divide a width evenly.
        """
        self._check()

        def batch_norm(x: Map, name: str) -> Map:
            norm = nn.BatchNorm(
                not train, momentum=0.9, epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name=name
            )
            return norm(x)

        x = images
        half, full = self.widths[0] // 2, self.widths[0]
        for layer, (width, stride) in enumerate([(half, 2), (half, 1), (full, 2), (full, 1)]):
            x = gelu(x) if layer else x
            x = Downsample(width, stride=stride, dtype=self.dtype, name=f"stem{layer}")(x)
            x = batch_norm(x, f"stem{layer}_norm")
        aux: dict[str, Any] = {"patches": tokens_of(x)}
        rates = drop_path_rates(self.drop_path_rate, sum(self.depths))
        levels, blocks = [], []
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths)):
            if stage:
                x = Downsample(width, dtype=self.dtype, name=f"stage{stage}_downsample")(x)
                x = batch_norm(x, f"stage{stage}_downsample_norm")
            block = RMTBlock(
                self.num_heads[stage],
                self.decomposed[stage],
                mlp_ratio=self.mlp_ratios[stage],
                layer_scale=self.layer_scales[stage],
                attention=self.attention,
                train=train,
                dtype=self.dtype,
            )
            first = sum(self.depths[:stage])
            scanned, name = rates[first : first + depth], f"stage{stage}_blocks"
            angles, decays = self._tables(stage) if tables is None else tables[stage]
            fixed = rotation(x.shape[1] * x.shape[2], angles), decays if self.decay else None
            x, outputs = scan_blocks(
                self, block, depth, x, scanned, *fixed, name=name, remat=self.remat, unroll=self.unroll
            )
            levels.append(x)
            blocks.append(outputs)
        x = nn.Dense(self.head_width, kernel_init=TRUNCATED, dtype=self.dtype, name="projection")(x)
        x = jax.nn.silu(batch_norm(x, "norm"))
        pooled = x.mean(axis=(1, 2))
        aux |= {"blocks": tuple(blocks), "levels": tuple(levels), "tokens": tokens_of(x), "pooled": pooled}
        if not self.num_classes:
            return pooled, aux
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="head")
        return head(pooled).astype(jnp.float32), aux

    def _tables(self, stage: int) -> tuple[np.ndarray, np.ndarray]:
        pairs = self.widths[stage] // self.num_heads[stage] // 2
        decays = head_decays(self.num_heads[stage], self.decay_starts[stage], self.decay_spreads[stage])
        return 10000.0 ** -np.linspace(0, 1, pairs), decays

    def _check(self) -> None:
        names = ("widths", "num_heads", "mlp_ratios", "decay_starts", "decay_spreads", "decomposed", "layer_scales")
        for name in names:
            if len(getattr(self, name)) != len(self.depths):
                raise ValueError(f"{name} {getattr(self, name)} must have one entry for each of depths {self.depths}")
        for width, num_heads in zip(self.widths, self.num_heads):
            if width % (2 * num_heads):
                raise ValueError(f"widths {self.widths} must be multiples of twice num_heads {self.num_heads}")
