"""Convolutional encoders and decoders of VQGANs, for images and for clips: which of them, the input's axes tell."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo.layers.constraints import constrain_batch
from transformer_zoo.layers.convolutions_3d import Conv3D, average_pool, upsample_nearest

Map = Float[Array, "batch *sides channels"]
NewMap = Float[Array, "batch *new_sides new_channels"]

ACTIVATIONS = {"swish": nn.swish, "relu": nn.relu}
NORMS = ("group", "frame_group", "layer")
REMATS = ("none", "full")
# Of what makes pixels. An ordinary kernel begins with noise of the size of pixels, which takes small runs a quarter of
# their steps to forget.
ALMOST_ZERO = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")


def convolution(
    x: Map,
    width: int,
    kernel_size: int,
    name: str,
    *,
    strides: Sequence[int] = (),
    use_bias: bool = True,
    causal: bool = False,
    kernel_init: Any = nn.initializers.lecun_normal(),  # noqa: B008, a pure function
    bias_init: Any = nn.initializers.zeros_init(),  # noqa: B008
    dtype: Any,
) -> NewMap:
    """A convolution over all sides of an image or a clip, zeros around; called inside a compact method.

    `causal` lets no frame see a later one (see `padding_of`) and puts as many zeros before as behind rows and columns,
    those of images too.
    """
    sides = x.ndim - 2
    steps: Any = tuple(strides) or (1,) * sides
    options: dict[str, Any] = dict(
        use_bias=use_bias, kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, name=name
    )
    if sides == 3:
        return Conv3D(width, (kernel_size,) * 3, steps, "causal" if causal else "same", **options)(x)
    padding = kernel_size // 2 if causal else "SAME"
    return nn.Conv(width, (kernel_size,) * sides, steps, padding, **options)(x)


def normalisation(kind: str, channels: int, name: str, dtype: Any) -> nn.Module:
    """GroupNorm of 32 groups (as many as divide the channels where those are fewer or odd), or LayerNorm.

    'frame_group' has statistics of every frame for itself, where 'group' has those of the whole clip.
    """
    if kind == "layer":
        return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)
    return group_norm(kind, channels, name, dtype)


def group_norm(kind: str, channels: int, name: str, dtype: Any, *, affine: bool = True) -> nn.Module:
    """The GroupNorms of `normalisation`, with or without learned scale and bias."""
    axes = (-3, -2, -1) if kind == "frame_group" else None
    return nn.GroupNorm(
        math.gcd(32, channels),
        epsilon=1e-6,
        use_bias=affine,
        use_scale=affine,
        reduction_axes=axes,
        use_fast_variance=False,
        dtype=dtype,
        name=name,
    )


def fold_pixels(
    x: Float[Array, "*lead height width channels"], factor: int
) -> Float[Array, "*lead rows columns folded"]:
    """Squares of factor x factor pixels as one place each, their pixels (row, column, channel) as its channels."""
    *lead, height, width, channels = x.shape
    x = x.reshape(*lead, height // factor, factor, width // factor, factor, channels)
    return jnp.swapaxes(x, -4, -3).reshape(*lead, height // factor, width // factor, factor**2 * channels)


def unfold_pixels(
    x: Float[Array, "*lead rows columns folded"], factor: int
) -> Float[Array, "*lead height width channels"]:
    """The inverse of `fold_pixels`."""
    *lead, rows, columns, channels = x.shape
    x = x.reshape(*lead, rows, columns, factor, factor, channels // factor**2)
    return jnp.swapaxes(x, -4, -3).reshape(*lead, rows * factor, columns * factor, channels // factor**2)


class ResidualBlock(nn.Module):
    """Norm, activation, convolution, twice, beside a shortcut that is a 1-wide convolution where channels change.

    Attributes:
        width: channels of the result.
        activation, norm: one of `ACTIVATIONS` and `NORMS`.
        shortcut_from_output: the shortcut convolves the branch's result and not the block's input, so that such a
            block carries nothing of its input past the branch: a slip in MaskGIT's code that its weights rely on.
        causal: see `convolution`.
        dtype: of the computation.
    """

    width: int
    activation: str = "swish"
    norm: str = "group"
    shortcut_from_output: bool = False
    causal: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Map) -> NewMap:
        x = constrain_batch(x)
        y = x
        for number in (1, 2):
            y = normalisation(self.norm, y.shape[-1], f"norm{number}", self.dtype)(y)
            y = ACTIVATIONS[self.activation](y)
            y = convolution(y, self.width, 3, f"conv{number}", use_bias=False, causal=self.causal, dtype=self.dtype)
        if x.shape[-1] != self.width:
            source = y if self.shortcut_from_output else x
            x = convolution(source, self.width, 1, "shortcut", use_bias=False, dtype=self.dtype)
        return x + y


class ConvolutionalEncoder(nn.Module):
    """Residual blocks in levels of half the size each, `num_blocks` more at the end, and a 1-wide convolution.

    Attributes:
        width: channels of the first level.
        multipliers: of the width, one a level.
        num_blocks: of a level.
        latent_width: channels of the result.
        temporal_downsample: for clips, whether time is halved after each level but the last.
        conv_downsample: levels end in 4-wide convolutions of stride 2 and not in means.
        causal: see `convolution`; levels end in 3-wide convolutions of stride 2.
        patch: squares of so many pixels a side are folded into channels first, so that small runs skip the levels of
            full size, which cost most.
        activation, norm, shortcut_from_output, dtype: see `ResidualBlock`.
        remat: 'none', or 'full', which recomputes blocks in the backward pass.
    """

    width: int
    multipliers: tuple[int, ...]
    num_blocks: int
    latent_width: int
    temporal_downsample: tuple[bool, ...] = ()
    conv_downsample: bool = False
    causal: bool = False
    patch: int = 1
    activation: str = "swish"
    norm: str = "group"
    shortcut_from_output: bool = False
    remat: str = "none"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Map) -> tuple[NewMap, dict[str, Any]]:
        """Latents, and in order the outputs of the 'blocks' and what is left 'halved' after each level."""
        block = block_maker(self)
        factors = [
            step_factors(x.ndim - 2, self.temporal_downsample, step) for step in range(len(self.multipliers) - 1)
        ]
        blocks, halved = [], []
        x = fold_pixels(x, self.patch)
        x = convolution(x, self.width, 3, "stem", use_bias=False, causal=self.causal, dtype=self.dtype)
        for level, multiplier in enumerate(self.multipliers):
            width = self.width * multiplier
            for number in range(self.num_blocks):
                x = block(width, f"level{level}_block{number}")(x)
                blocks.append(x)
            if level == len(self.multipliers) - 1:
                continue
            if self.conv_downsample or self.causal:
                size, options = 3 if self.causal else 4, dict(causal=self.causal, dtype=self.dtype)
                x = convolution(x, width, size, f"level{level}_down", strides=factors[level], **options)
            else:
                x = average_pool(x, factors[level])
            halved.append(x)
        for number in range(self.num_blocks):
            x = block(width, f"last_block{number}")(x)
            blocks.append(x)
        x = ACTIVATIONS[self.activation](normalisation(self.norm, width, "norm", self.dtype)(x))
        return convolution(x, self.latent_width, 1, "head", dtype=self.dtype), {
            "blocks": blocks,
            "halved": halved,
        }


class ConvolutionalDecoder(nn.Module):
    """The mirror of `ConvolutionalEncoder`; maps grow by repetition and a convolution. Pixels lie in [0, 1].

    Attributes:
        channels: of the result.
        Others: see `ConvolutionalEncoder`.
    """

    width: int
    multipliers: tuple[int, ...]
    num_blocks: int
    channels: int
    temporal_downsample: tuple[bool, ...] = ()
    patch: int = 1
    activation: str = "swish"
    norm: str = "group"
    shortcut_from_output: bool = False
    remat: str = "none"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Map) -> tuple[NewMap, dict[str, Any]]:
        """Pixels, and the outputs of the 'blocks' in order."""
        block = block_maker(self)
        width = self.width * self.multipliers[-1]
        blocks = []
        x = convolution(x, width, 3, "stem", dtype=self.dtype)
        for number in range(self.num_blocks):
            x = block(width, f"first_block{number}")(x)
            blocks.append(x)
        for level in reversed(range(len(self.multipliers))):
            width = self.width * self.multipliers[level]
            for number in range(self.num_blocks):
                x = block(width, f"level{level}_block{number}")(x)
                blocks.append(x)
            if level:
                x = upsample_nearest(x, step_factors(x.ndim - 2, self.temporal_downsample, level - 1))
                x = convolution(x, width, 3, f"level{level}_up", dtype=self.dtype)
        x = ACTIVATIONS[self.activation](normalisation(self.norm, width, "norm", self.dtype)(x))
        grey: dict[str, Any] = {"kernel_init": ALMOST_ZERO, "bias_init": nn.initializers.constant(0.5)}
        x = convolution(x, self.channels * self.patch**2, 3, "head", dtype=self.dtype, **grey)
        return unfold_pixels(x, self.patch), {"blocks": blocks}


def step_factors(sides: int, temporal_downsample: Sequence[bool], step: int) -> tuple[int, ...]:
    """By how much each side shrinks after level `step`: an image's by 2, a clip's time where its flag says so."""
    return (2, 2) if sides == 2 else (1 + bool(temporal_downsample[step]), 2, 2)


def block_maker(network: Any) -> Callable[[int, str], nn.Module]:
    """(width, name) to a `ResidualBlock` with the settings of a network that has them.

    Raises:
        ValueError: an activation, a norm or a remat that there is not.
    """
    for field, known in (("activation", tuple(ACTIVATIONS)), ("norm", NORMS), ("remat", REMATS)):
        if getattr(network, field) not in known:
            raise ValueError(f"{field} is {getattr(network, field)!r}, but must be one of {', '.join(known)}")
    kind = nn.remat(ResidualBlock) if network.remat == "full" else ResidualBlock
    shortcut, causal = (getattr(network, field, False) for field in ("shortcut_from_output", "causal"))
    settings = (network.activation, network.norm, shortcut, causal, network.dtype)
    return lambda width, name: kind(width, *settings, name=name)
