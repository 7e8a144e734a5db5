"""Discriminators of images and of clips: which of them, the input's axes tell."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo.layers.autoencoders import Map, NewMap, convolution, normalisation
from transformer_zoo.layers.constraints import constrain_batch
from transformer_zoo.layers.convolutions_3d import average_pool

XAVIER = nn.initializers.xavier_uniform()


def leaky_relu(x: Map) -> Map:
    """Leaky ReLU with the slope 0.2 of StyleGAN."""
    return jax.nn.leaky_relu(x, 0.2)


class DiscriminatorBlock(nn.Module):
    """Convolution, mean of 2 x 2 (x 2), convolution, beside the mean of the input, by 1 / sqrt(2)."""

    width: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Map) -> NewMap:
        x = constrain_batch(x)
        halves = (2,) * (x.ndim - 2)
        y = leaky_relu(convolution(x, x.shape[-1], 3, "conv1", kernel_init=XAVIER, dtype=self.dtype))
        y = leaky_relu(
            convolution(average_pool(y, halves), self.width, 3, "conv2", kernel_init=XAVIER, dtype=self.dtype)
        )
        skip = average_pool(x, halves)
        skip = convolution(skip, self.width, 1, "shortcut", use_bias=False, kernel_init=XAVIER, dtype=self.dtype)
        return (skip + y) / jnp.sqrt(2).astype(y.dtype)


class StyleGANDiscriminator(nn.Module):
    """StyleGAN2's discriminator (arXiv 1912.04958) with means in the place of its blur, as MAGVIT trains with.

    Attributes:
        width: channels after the first convolution.
        multipliers: of the width, one a block; every block halves all sides, rounding up.
        dtype: of the computation.
    """

    width: int = 64
    multipliers: tuple[int, ...] = (2, 4, 4, 4, 4)
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Map) -> tuple[Float[Array, "batch"], dict[str, Any]]:
        """Logits, larger for what looks real, and the outputs of the 'blocks'."""
        blocks = []
        x = leaky_relu(convolution(x, self.width, 3, "stem", kernel_init=XAVIER, dtype=self.dtype))
        for number, multiplier in enumerate(self.multipliers):
            x = DiscriminatorBlock(self.width * multiplier, self.dtype, name=f"block{number}")(x)
            blocks.append(x)
        x = leaky_relu(convolution(x, x.shape[-1], 3, "last", kernel_init=XAVIER, dtype=self.dtype))
        hidden = nn.Dense(x.shape[-1], kernel_init=XAVIER, dtype=self.dtype, name="hidden")
        x = leaky_relu(hidden(x.reshape(x.shape[0], -1)))
        logits = nn.Dense(1, kernel_init=XAVIER, dtype=self.dtype, name="head")(x)
        return logits[:, 0].astype(jnp.float32), {"blocks": blocks}


class PatchDiscriminator(nn.Module):
    """A logit for every patch of the input (pix2pix, Isola et al. 2017, arXiv 1611.07004, appendix 6.1.2).

    GroupNorm takes the place of batch normalisation: no sample's logit may depend on another's.

    Attributes:
        width: channels after the first convolution; they double with each, up to 8 times.
        num_layers: convolutions that halve all sides.
        dtype: of the computation.
    """

    width: int = 64
    num_layers: int = 3
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Map) -> tuple[Float[Array, "batch *patches"], dict[str, Any]]:
        """Logits, larger for what looks real, and the outputs of the 'blocks'."""
        init = nn.initializers.normal(0.02)
        blocks = []
        for number in range(self.num_layers + 1):
            width = self.width * min(2**number, 8)
            strides = (2 if number < self.num_layers else 1,) * (x.ndim - 2)
            options = dict(strides=strides, use_bias=number == 0, kernel_init=init, dtype=self.dtype)
            x = convolution(constrain_batch(x), width, 4, f"block{number}", **options)
            if number:
                x = normalisation("group", width, f"norm{number}", self.dtype)(x)
            x = leaky_relu(x)
            blocks.append(x)
        logits = convolution(x, 1, 4, "head", kernel_init=init, dtype=self.dtype)
        return logits[..., 0].astype(jnp.float32), {"blocks": blocks}
