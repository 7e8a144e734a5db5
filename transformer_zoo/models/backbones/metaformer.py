"""MetaFormer Is Actually What You Need for Vision (Yu et al., CVPR 2022, arXiv 2111.11418; baselines: 2210.13452).

What makes transformers work on images is the skeleton, norm, token mixer, residual, norm, channel MLP, residual, more
than the mixer in it. The proof is PoolFormer, whose mixer is a 3 x 3 average pooling without a parameter. Here every
stage names its mixer. References: sail-sg/poolformer and sail-sg/metaformer (Apache-2.0); equal to timm's
`poolformer_*`, `poolformerv2_*`, `convformer_*` and `caformer_*` on the same weights. Sizes stand in
`zoo/papers/metaformer.toml`.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo.layers.attention import Attention
from transformer_zoo.layers.blocks import drop_path_rates, scan_blocks
from transformer_zoo.layers.constraints import constrain_batch
from transformer_zoo.layers.convolutions import DepthwiseConv, Downsample, map_of, tokens_of
from transformer_zoo.layers.depths import pyramid_depths
from transformer_zoo.layers.mlp import gelu
from transformer_zoo.layers.norms import DropPath, LayerScale, layer_norm

Map = Float[Array, "batch height width channels"]

MIXERS = ("pooling", "identity", "spatial", "convolution", "attention")
NORMS = ("group", "layer")
ACTIVATIONS = ("gelu", "star_relu")
HEADS = ("linear", "mlp")
HEAD_DIM = 32  # of attention
TRUNCATED = nn.initializers.truncated_normal(0.02)


def pool_difference(x: Map, size: int = 3) -> Map:
    """Mean of each place's neighbourhood, of places inside the map alone, minus the place itself (equation 4)."""
    around = ((size // 2, size // 2),) * 2
    return nn.avg_pool(x, (size, size), (1, 1), around, count_include_pad=False).astype(x.dtype) - x


class StarReLU(nn.Module):
    """scale * relu(x)^2 + bias, both one learned number (2210.13452, equation 11)."""

    @nn.compact
    def __call__(self, x: Map) -> Map:
        scale = self.param("scale", nn.initializers.ones, (1,)).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (1,)).astype(x.dtype)
        return scale * jnp.square(jax.nn.relu(x)) + bias


def activate(name: str) -> Callable[[Array], Array]:
    """An activation by name, with parameters of its own where it has any; called inside a compact method."""
    return gelu if name == "gelu" else StarReLU(name="activation")


class SeparableConvolution(nn.Module):
    """Dense to twice the width, StarReLU, 7 x 7 depthwise, dense back; no biases (2210.13452, section 3.2)."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Map) -> Map:
        y = nn.Dense(2 * x.shape[-1], use_bias=False, kernel_init=TRUNCATED, dtype=self.dtype, name="up")(x)
        y = DepthwiseConv((7, 7), use_bias=False, dtype=self.dtype, name="depthwise")(activate("star_relu")(y))
        return nn.Dense(x.shape[-1], use_bias=False, kernel_init=TRUNCATED, dtype=self.dtype, name="down")(y)


class ChannelMlp(nn.Module):
    """Dense, activation, dense, at every place."""

    activation: str
    use_bias: bool
    mlp_ratio: float = 4.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Map) -> Map:
        def dense(width: int, name: str) -> nn.Dense:
            return nn.Dense(width, use_bias=self.use_bias, kernel_init=TRUNCATED, dtype=self.dtype, name=name)

        hidden = activate(self.activation)(dense(round(self.mlp_ratio * x.shape[-1]), "up")(x))
        return dense(x.shape[-1], "down")(hidden)


class MetaFormerBlock(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)): the skeleton (equations 1 and 2).

    Attributes:
        mixer: one of `MIXERS`.
        norm: one of `NORMS`; 'group' is GroupNorm with one group, over places and channels together.
        activation, mlp_ratio: of the MLP.
        use_bias: whether norms, MLP and the output of attention have biases.
        layer_scale: initial value of LayerScale on both branches; 0 leaves it out.
        residual_scale: whether x is multiplied by a learned vector (from 1) before a branch is added.
        residual, channel_mlp: the two ablations of the skeleton (table 5).
        norm_epsilon, attention, train, dtype: see `Block`.
    """

    mixer: str
    norm: str
    activation: str
    mlp_ratio: float
    use_bias: bool
    layer_scale: float
    residual_scale: bool
    residual: bool
    channel_mlp: bool
    norm_epsilon: float
    attention: str
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Map, drop_path_rate: Float[Array, ""] | float) -> tuple[Map, None]:
        x = constrain_batch(x)
        x = self._add(x, self._mix(self._norm("norm1")(x)), "mixer", drop_path_rate)
        if self.channel_mlp:
            mlp = ChannelMlp(self.activation, self.use_bias, self.mlp_ratio, self.dtype, name="mlp")
            x = self._add(x, mlp(self._norm("norm2")(x)), "mlp", drop_path_rate)
        return x, None

    def _norm(self, name: str) -> nn.Module:
        options: dict = dict(epsilon=self.norm_epsilon, use_bias=self.use_bias, dtype=self.dtype, name=name)
        if self.norm == "group":
            return nn.GroupNorm(1, use_fast_variance=False, **options)
        return nn.LayerNorm(use_fast_variance=False, **options)

    def _mix(self, x: Map) -> Map:
        if self.mixer == "pooling":
            return pool_difference(x)
        if self.mixer == "identity":
            return x
        if self.mixer == "convolution":
            return SeparableConvolution(self.dtype, name="convolution")(x)
        grid, tokens = x.shape[1:3], tokens_of(x)
        if self.mixer == "spatial":
            mixed = nn.Dense(tokens.shape[1], kernel_init=TRUNCATED, dtype=self.dtype, name="spatial")
            return map_of(mixed(tokens.swapaxes(1, 2)).swapaxes(1, 2), grid)
        y: Any = Attention(
            max(1, x.shape[-1] // HEAD_DIM),
            head_dim=HEAD_DIM,
            qkv_bias=False,
            out_bias=self.use_bias,
            implementation=self.attention,
            dtype=self.dtype,
            name="attention",
        )(tokens)
        return map_of(y, grid)

    def _add(self, x: Map, y: Map, name: str, drop_path_rate: Any) -> Map:
        if self.layer_scale:
            y = LayerScale(self.layer_scale, name=f"{name}_scale")(y)
        y = DropPath(self.train, name=f"{name}_drop")(y, drop_path_rate)
        if not self.residual:
            return y
        return (LayerScale(1.0, name=f"{name}_residual_scale")(x) if self.residual_scale else x) + y


class MetaFormer(nn.Module):
    """The pyramid, with a head where `num_classes` is not 0.

    Attributes:
        num_classes: width of the head; 0 leaves it out.
        image_size: (height, width) in pixels that it is made for; only 'spatial' mixers and `positions` depend on it.
        channels: of the image.
        depths: blocks a stage.
        widths: channels a stage.
        mixers: token mixer a stage, of `MIXERS`.
        norm, activation, mlp_ratio, use_bias, layer_scale, residual, channel_mlp, norm_epsilon: see `MetaFormerBlock`.
        residual_scale_from: first stage with learned scales of the residual; the number of stages means none.
        transition_norms: norms without bias after the stem and before each downsampling.
        positions: a learned table of positions before the first stage of attention, as the paper's hybrids have it.
        norm_map: the last norm before the mean over places, GroupNorm as in the reference; else a LayerNorm behind it,
            as in timm and in the second paper.
        head: one of `HEADS`; 'mlp' is dense to four times the width, squared ReLU, LayerNorm, dense.
        drop_path_rate: of the last block, growing linearly from 0 in the first.
        attention: implementation, see `attend`.
        stem_kernel, stem_stride, stem_padding: of the first convolution.
        remat, unroll: see `scan_blocks`.
        dtype: of the computation; parameters stay float32.
    """

    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    depths: tuple[int, ...] = (2, 2, 6, 2)
    widths: tuple[int, ...] = (64, 128, 320, 512)
    mixers: tuple[str, ...] = ("pooling", "pooling", "pooling", "pooling")
    norm: str = "group"
    activation: str = "gelu"
    mlp_ratio: float = 4.0
    use_bias: bool = True
    layer_scale: float = 1e-5
    residual_scale_from: int = 4
    residual: bool = True
    channel_mlp: bool = True
    norm_epsilon: float = 1e-5
    transition_norms: bool = False
    positions: bool = False
    norm_map: bool = False
    head: str = "linear"
    drop_path_rate: float = 0.0
    attention: str = "auto"
    stem_kernel: int = 7
    stem_stride: int = 4
    stem_padding: int = 2
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    def layer_numbers(self, params: Any) -> Any:
        """Layer number of every parameter, see `pyramid_depths`."""
        return pyramid_depths(params, self.depths)

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> tuple[Float[Array, "batch out"], dict[str, Any]]:
        """Logits [batch, num_classes], or with no head the pooled vector; and named intermediates.

        Of these 'patches' are the first tokens, 'levels' the maps [batch, rows, columns, width] that the stages end
        with, 'tokens' the last of them as a sequence, and 'pooled' what the head reads.

        Raises:
            ValueError: a name that is no mixer, norm, activation or head, or stages of unequal number.
        """
        self._check()
        stem: Any = dict(kernel_size=self.stem_kernel, stride=self.stem_stride, padding=self.stem_padding)
        x = Downsample(self.widths[0], **stem, dtype=self.dtype, name="stem")(images)
        x = self._transition("stem_norm")(x)
        aux: dict[str, Any] = {"patches": tokens_of(x)}
        rates = drop_path_rates(self.drop_path_rate, sum(self.depths))
        levels = []
        for stage, (depth, width, mixer) in enumerate(zip(self.depths, self.widths, self.mixers)):
            if stage:
                x = self._transition(f"stage{stage}_transition_norm")(x)
                x = Downsample(width, dtype=self.dtype, name=f"stage{stage}_downsample")(x)
            if self.positions and mixer == "attention" and "attention" not in self.mixers[:stage]:
                table = self.param("positions", TRUNCATED, (*x.shape[1:3], width))
                x = x + table.astype(x.dtype)
            block = MetaFormerBlock(
                mixer,
                self.norm,
                self.activation,
                self.mlp_ratio,
                self.use_bias,
                self.layer_scale,
                stage >= self.residual_scale_from,
                self.residual,
                self.channel_mlp,
                self.norm_epsilon,
                self.attention,
                train,
                self.dtype,
            )
            first = sum(self.depths[:stage])
            scanned, name = rates[first : first + depth], f"stage{stage}_blocks"
            x, _ = scan_blocks(self, block, depth, x, scanned, name=name, remat=self.remat, unroll=self.unroll)
            levels.append(x)
        if self.norm_map:
            x = nn.GroupNorm(1, epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name="norm")(x)
        pooled = x.mean(axis=(1, 2))
        if not self.norm_map:
            pooled = layer_norm(1e-6, self.dtype, "norm")(pooled)
        aux |= {"levels": tuple(levels), "tokens": tokens_of(x), "pooled": pooled}
        if not self.num_classes:
            return pooled, aux
        return self._head(pooled).astype(jnp.float32), aux

    def _check(self) -> None:
        if not len(self.depths) == len(self.widths) == len(self.mixers):
            raise ValueError(f"depths {self.depths}, widths {self.widths}, mixers {self.mixers} differ in length")
        chosen = [("norm", self.norm, NORMS), ("activation", self.activation, ACTIVATIONS), ("head", self.head, HEADS)]
        for name, value, options in [*(("mixer", mixer, MIXERS) for mixer in self.mixers), *chosen]:
            if value not in options:
                raise ValueError(f"{name} {value!r} is none of {', '.join(options)}")

    def _transition(self, name: str) -> Callable[[Map], Map]:
        if not self.transition_norms:
            return lambda x: x
        return nn.LayerNorm(1e-6, use_bias=False, use_fast_variance=False, dtype=self.dtype, name=name)

    def _head(self, pooled: Float[Array, "batch width"]) -> Float[Array, "batch classes"]:
        if self.head == "mlp":
            pooled = nn.Dense(4 * pooled.shape[-1], kernel_init=TRUNCATED, dtype=self.dtype, name="head_hidden")(pooled)
            pooled = layer_norm(1e-6, self.dtype, "head_norm")(jnp.square(jax.nn.relu(pooled)))
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="head")(pooled)
