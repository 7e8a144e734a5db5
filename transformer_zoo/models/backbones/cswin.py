"""CSWin: A General Vision Transformer Backbone with Cross-Shaped Windows (Dong et al., CVPR 2022, arXiv 2107.00652).

Half of the heads attend inside vertical stripes of the map, the other half inside horizontal ones, in parallel: one
block sees a cross. Stripes widen from stage to stage and cover the whole map in the last. Positions come only from
LePE, a depthwise convolution of the values, added to what attention gives; it runs inside each stripe, so zeros stand
around every stripe and not only around the map.
Reference: microsoft/CSWin-Transformer (MIT). Sizes stand in `zoo/papers/cswin.toml`.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo.layers.attention import HeadProjection, attend
from transformer_zoo.layers.blocks import drop_path_rates, scan_blocks
from transformer_zoo.layers.constraints import constrain_batch
from transformer_zoo.layers.convolutions import DepthwiseConv, Downsample, map_of, tokens_of
from transformer_zoo.layers.depths import pyramid_depths
from transformer_zoo.layers.mlp import Mlp, mlp_width
from transformer_zoo.layers.norms import DropPath, layer_norm
from transformer_zoo.layers.windows import Size, merge, pad_to_windows, partition

Map = Float[Array, "batch height width channels"]
Heads = Float[Array, "batch height width heads dim"]


class LePEAttention(nn.Module):
    """softmax(query key^T * scale) value + depthwise(value), both inside windows of a map (section 3.2).

    A map that windows do not tile is padded below and to the right with zeros, which take part; the result is cropped.

    Attributes:
        window: rows and columns.
        lepe: whether the depthwise convolution is added.
        scale, implementation: see `attend`.
        dtype: of the computation.
    """

    window: Size
    lepe: bool = True
    scale: float | None = None
    implementation: str = "auto"
    dtype: Any = None

    @nn.compact
    def __call__(self, query: Heads, key: Heads, value: Heads) -> Map:
        """Heads side by side."""
        height, width, heads, dim = value.shape[1:]
        maps = [pad_to_windows(x.reshape(*x.shape[:3], heads * dim), self.window) for x in (query, key, value)]
        padded = (maps[0].shape[1], maps[0].shape[2])
        parts = [partition(x, self.window) for x in maps]
        split = [x.reshape(*x.shape[:2], heads, dim) for x in parts]
        y = attend(*split, scale=self.scale, implementation=self.implementation).reshape(parts[2].shape)
        if self.lepe:
            y = y + tokens_of(DepthwiseConv(dtype=self.dtype, name="lepe")(map_of(parts[2], self.window)))
        return merge(y, self.window, padded)[:, :height, :width]


class CSWinBlock(nn.Module):
    """x + cross_attention(norm(x)), then x + mlp(norm(x)), on a map (section 3.3).

    Attributes:
        num_heads, mlp_ratio, qkv_bias, scale, lepe, attention: see `CSWin`.
        stripe_width: of the stripes; 0 means one window for the whole map and all heads.
        cross: see `CSWin`.
        train: whether drop path applies.
        dtype: of the computation.
    """

    num_heads: int
    stripe_width: int
    cross: bool = True
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    scale: float | None = None
    lepe: bool = True
    attention: str = "auto"
    train: bool = False
    dtype: Any = None

    def windows(self, size: Size) -> list[Size]:
        """Rows and columns of the windows in which an equal share of the heads each attends."""
        if not self.stripe_width:
            return [size]
        stripes = [(size[0], min(self.stripe_width, size[1])), (min(self.stripe_width, size[0]), size[1])]
        return stripes if self.cross else [(round(math.prod(stripe) ** 0.5),) * 2 for stripe in stripes]

    @nn.compact
    def __call__(self, x: Map, drop_path_rate: Float[Array, ""] | float) -> tuple[Map, Map]:
        x = constrain_batch(x)
        size, width = (x.shape[1], x.shape[2]), x.shape[-1]
        windows = self.windows(size)
        if width % self.num_heads or self.num_heads % len(windows):
            raise ValueError(f"num_heads {self.num_heads} must divide the width {width} and share out in two halves")
        project = HeadProjection(
            3, self.num_heads, width // self.num_heads, use_bias=self.qkv_bias, dtype=self.dtype, name="qkv"
        )
        parts = project(tokens_of(layer_norm(1e-5, self.dtype, "norm1")(x)))
        maps = [part.reshape(part.shape[0], *size, *part.shape[2:]) for part in parts]
        share = self.num_heads // len(windows)
        branches = [
            LePEAttention(window, self.lepe, self.scale, self.attention, self.dtype, name=f"branch{number}")(
                *(part[:, :, :, number * share : (number + 1) * share] for part in maps)
            )
            for number, window in enumerate(windows)
        ]
        y = nn.Dense(width, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="out")(
            jnp.concatenate(branches, axis=-1)
        )
        x = x + DropPath(self.train, name="attention_drop")(y, drop_path_rate)
        mlp = Mlp(mlp_width(width, self.mlp_ratio), dtype=self.dtype, name="mlp")
        y = mlp(layer_norm(1e-5, self.dtype, "norm2")(x))
        x = x + DropPath(self.train, name="mlp_drop")(y, drop_path_rate)
        return x, x


class ConvolutionalStep(nn.Module):
    """A strided convolution, then LayerNorm: the stem, and the way into each further stage (section 3.1).

    Attributes:
        width, kernel_size, stride, padding: see `Downsample`.
        dtype: of the computation.
    """

    width: int
    kernel_size: int = 3
    stride: int = 2
    padding: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, "batch rows columns dim"]:
        y = Downsample(self.width, self.kernel_size, self.stride, self.padding, dtype=self.dtype, name="downsample")(x)
        return layer_norm(1e-5, self.dtype, "norm")(y)


def stem_padding(stride: int) -> int:
    """Zeros on every side with which an image of whole strides has one token a stride."""
    return (8 - stride) // 2


class CSWin(nn.Module):
    """The pyramid, with a linear head where `num_classes` is not 0.

    Attributes:
        num_classes: width of the head; 0 leaves it out.
        image_size: (height, width) in pixels that it is made for, which decides the stages with one window; other
            inputs work.
        channels: of the image.
        stride: pixels from one of the first tokens to the next; the convolution that makes them is 7 x 7.
        depths: blocks a stage.
        width: of the first stage; each further stage has twice that of the one before.
        num_heads: a stage; even where there are stripes.
        stripe_widths: a stage. The last stage, and one whose map at `image_size` is a square as wide as its stripes,
            attends in one window with all heads.
        cross: False gives every half of the heads square windows of the stripes' area instead (an ablation).
        lepe: whether values are convolved (an ablation).
        mlp_ratio: hidden width of the MLP over the block's, fractions of a channel cut off.
        qkv_bias, scale: of the attention; `scale` None means head_dim^-0.5.
        attention: implementation, see `attend`.
        drop_path_rate: of the last block, growing linearly from 0 in the first.
        remat, unroll: see `scan_blocks`.
        dtype: of the computation; parameters stay float32.
    """

    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    stride: int = 4
    depths: tuple[int, ...] = (1, 2, 21, 1)
    width: int = 64
    num_heads: tuple[int, ...] = (2, 4, 8, 16)
    stripe_widths: tuple[int, ...] = (1, 2, 7, 7)
    cross: bool = True
    lepe: bool = True
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    scale: float | None = None
    attention: str = "auto"
    drop_path_rate: float = 0.0
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    def layer_numbers(self, params: Any) -> Any:
        """Layer number of every parameter, see `pyramid_depths`."""
        return pyramid_depths(params, self.depths)

    def stripes(self, stage: int) -> int:
        """Width of a stage's stripes, 0 where one window covers its map."""
        added = 2 * stem_padding(self.stride) - 7
        rows, columns = ((length + added) // self.stride + 1 for length in self.image_size)
        for _ in range(stage):
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
        width = self.stripe_widths[stage]
        return 0 if stage == len(self.depths) - 1 or rows == columns == width else width

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> tuple[Float[Array, "batch out"], dict[str, Any]]:
        """Logits [batch, num_classes], or with no head the pooled vector; and named intermediates.

        Of these 'patches' are the first tokens, 'levels' the maps [batch, rows, columns, width] that the stages end
        with, 'blocks' the outputs of all blocks by stage, stacked, 'tokens' the last map normalised, as a sequence, and
        'pooled' what the head reads.

        Raises:
            ValueError: stages whose depths, heads and stripes differ in number, or heads that cannot be shared out.
        """
        if not len(self.depths) == len(self.num_heads) == len(self.stripe_widths):
            raise ValueError(
                f"depths {self.depths}, num_heads {self.num_heads} and stripe_widths {self.stripe_widths} must have "
                "one entry a stage each"
            )
        stem = ConvolutionalStep(self.width, 7, self.stride, stem_padding(self.stride), dtype=self.dtype, name="stem")
        x = stem(images)
        aux: dict[str, Any] = {"patches": tokens_of(x)}
        rates = drop_path_rates(self.drop_path_rate, sum(self.depths))
        levels, blocks = [], []
        for stage, (depth, num_heads) in enumerate(zip(self.depths, self.num_heads)):
            if stage:
                x = ConvolutionalStep(2 * x.shape[-1], dtype=self.dtype, name=f"stage{stage}_merge")(x)
            block = CSWinBlock(
                num_heads,
                self.stripes(stage),
                cross=self.cross,
                mlp_ratio=self.mlp_ratio,
                qkv_bias=self.qkv_bias,
                scale=self.scale,
                lepe=self.lepe,
                attention=self.attention,
                train=train,
                dtype=self.dtype,
            )
            first, name = sum(self.depths[:stage]), f"stage{stage}_blocks"
            scanned = rates[first : first + depth]
            x, outputs = scan_blocks(self, block, depth, x, scanned, name=name, remat=self.remat, unroll=self.unroll)
            levels.append(x)
            blocks.append(outputs)
        tokens = layer_norm(1e-5, self.dtype, "norm")(tokens_of(x))
        pooled = tokens.mean(axis=1)
        aux |= {"levels": tuple(levels), "blocks": tuple(blocks), "tokens": tokens, "pooled": pooled}
        if not self.num_classes:
            return pooled, aux
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="head")
        return head(pooled).astype(jnp.float32), aux
