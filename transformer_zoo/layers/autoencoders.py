"""Convolutional encoders and decoders of VQGANs, for images and for clips: which of them, the input's axes tell."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from transformer_zoo.layers.constraints import constrain_batch
from transformer_zoo.layers.convolutions_3d import Conv3D, average_pool, upsample_nearest

Map = Float[Array, "batch *sides channels"]
NewMap = Float[Array, "batch *new_sides new_channels"]

ACTIVATIONS = {"swish": nn.swish, "relu": nn.relu}
NORMS = ("group", "layer")
REMATS = ("none", "full")


def convolution(
    x: Map,
    width: int,
    kernel_size: int,
    name: str,
    *,
    strides: Sequence[int] = (),
    use_bias: bool = True,
    kernel_init: Any = nn.initializers.lecun_normal(),  # noqa: B008, a pure function
    dtype: Any,
) -> NewMap:
    """A convolution over all sides of an image or a clip, zeros around; called inside a compact method."""
    sides = x.ndim - 2
    kind: Callable[..., nn.Module] = Conv3D if sides == 3 else nn.Conv
    steps = tuple(strides) or (1,) * sides
    options = dict(use_bias=use_bias, kernel_init=kernel_init, dtype=dtype, name=name)
    return kind(width, (kernel_size,) * sides, steps, **options)(x)


def normalisation(kind: str, channels: int, name: str, dtype: Any) -> nn.Module:
    """GroupNorm of 32 groups (as many as divide the channels where those are fewer or odd), or LayerNorm."""
    if kind == "layer":
        return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)
    return nn.GroupNorm(math.gcd(32, channels), epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)


class ResidualBlock(nn.Module):
    """Norm, activation, convolution, twice, beside a shortcut that is a 1-wide convolution where channels change.

    Attributes:
        width: channels of the result.
        activation, norm: one of `ACTIVATIONS` and `NORMS`.
        shortcut_from_output: the shortcut convolves the branch's result and not the block's input, so that such a
            block carries nothing of its input past the branch: a slip in MaskGIT's code that its weights rely on.
        dtype: of the computation.
    """

    width: int
    activation: str = "swish"
    norm: str = "group"
    shortcut_from_output: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Map) -> NewMap:
        x = constrain_batch(x)
        y = x
        for number in (1, 2):
            y = normalisation(self.norm, y.shape[-1], f"norm{number}", self.dtype)(y)
            y = ACTIVATIONS[self.activation](y)
            y = convolution(y, self.width, 3, f"conv{number}", use_bias=False, dtype=self.dtype)
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
        activation, norm, shortcut_from_output, dtype: see `ResidualBlock`.
        remat: 'none', or 'full', which recomputes blocks in the backward pass.
    """

    width: int
    multipliers: tuple[int, ...]
    num_blocks: int
    latent_width: int
    temporal_downsample: tuple[bool, ...] = ()
    conv_downsample: bool = False
    activation: str = "swish"
    norm: str = "group"
    shortcut_from_output: bool = False
    remat: str = "none"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Map) -> tuple[NewMap, dict[str, Any]]:
        """Latents, and the outputs of the 'blocks' in order."""
        block = block_maker(self)
        factors = [
            step_factors(x.ndim - 2, self.temporal_downsample, step) for step in range(len(self.multipliers) - 1)
        ]
        blocks = []
        x = convolution(x, self.width, 3, "stem", use_bias=False, dtype=self.dtype)
        for level, multiplier in enumerate(self.multipliers):
            width = self.width * multiplier
            for number in range(self.num_blocks):
                x = block(width, f"level{level}_block{number}")(x)
                blocks.append(x)
            if level == len(self.multipliers) - 1:
                continue
            if self.conv_downsample:
                x = convolution(x, width, 4, f"level{level}_down", strides=factors[level], dtype=self.dtype)
            else:
                x = average_pool(x, factors[level])
        for number in range(self.num_blocks):
            x = block(width, f"last_block{number}")(x)
            blocks.append(x)
        x = ACTIVATIONS[self.activation](normalisation(self.norm, width, "norm", self.dtype)(x))
        return convolution(x, self.latent_width, 1, "head", dtype=self.dtype), {"blocks": blocks}


class ConvolutionalDecoder(nn.Module):
    """The mirror of `ConvolutionalEncoder`; maps grow by repetition and a convolution.

    Attributes:
        channels: of the result.
        Others: see `ConvolutionalEncoder`.
    """

    width: int
    multipliers: tuple[int, ...]
    num_blocks: int
    channels: int
    temporal_downsample: tuple[bool, ...] = ()
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
        return convolution(x, self.channels, 3, "head", dtype=self.dtype), {"blocks": blocks}


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
    settings = (network.activation, network.norm, network.shortcut_from_output, network.dtype)
    return lambda width, name: kind(width, *settings, name=name)
