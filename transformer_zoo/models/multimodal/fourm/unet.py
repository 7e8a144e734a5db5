"""The UNet of 4M's diffusion decoder, and the blocks that it shares with `UViT`.

Reference: apple/ml-4m (Apache-2.0), `fourm/vq/models/unet`, after ADM (Dhariwal and Nichol 2021, arXiv 2105.05233);
equal to it.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from transformer_zoo.layers.attention import HeadProjection, attend
from transformer_zoo.layers.constraints import constrain_batch
from transformer_zoo.layers.convolutions import Downsample, map_of, tokens_of
from transformer_zoo.layers.convolutions_3d import upsample_nearest
from transformer_zoo.models.multimodal.fourm.tokenizers import Found, Maps, NewMaps

Times = Int[Array, "batch"] | Float[Array, "batch"]
Vectors = Float[Array, "batch width"]


def repeat_to(
    codes: Shaped[Array, "batch rows columns channels"], grid: tuple[int, int]
) -> Shaped[Array, "batch new_rows new_columns channels"]:
    """Each place of `grid` gets the code whose part of the picture it begins in."""
    for axis, places in enumerate(grid, start=1):
        codes = jnp.take(codes, np.arange(places) * codes.shape[axis] // places, axis=axis)
    return codes


class UNet(nn.Module):
    """Residual blocks that know the time, at ever lower resolution and back, with skips across (ADM's).

    Attributes:
        out_width: channels of the result.
        width: channels of the first level.
        multipliers: of the width, one a level; sides halve between levels.
        num_blocks: residual blocks of a level going down; one more going up.
        attention_levels: levels whose blocks attend; the middle always does.
        dtype: of the computation.
    """

    out_width: int
    width: int = 256
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 3
    attention_levels: tuple[int, ...] = (2, 3)
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps, times: Times) -> tuple[NewMaps, Found]:
        """The result, and 'time', 'down', 'middle' and 'up', the outputs of the blocks."""
        shared = dict(kernel_init=nn.initializers.lecun_normal(), dtype=self.dtype)
        time = nn.Dense(4 * self.width, name="time1", **shared)(time_embedding(times, self.width))
        time = nn.Dense(4 * self.width, name="time2", **shared)(nn.silu(time))

        def block(x: Array, level: int, name: str, attends: bool) -> Array:
            x = TimedResidualBlock(self.width * self.multipliers[level], self.dtype, name=name)(x, time)
            return MapAttention(self.dtype, name=f"{name}_attention")(x) if attends else x

        x = nn.Conv(self.width * self.multipliers[0], (3, 3), name="stem", **shared)(x)
        down, last = [x], len(self.multipliers) - 1
        for level in range(last + 1):
            for number in range(self.num_blocks):
                x = block(x, level, f"down{level}_block{number}", level in self.attention_levels)
                down.append(x)
            if level < last:
                x = Downsample(x.shape[-1], dtype=self.dtype, name=f"down{level}")(x)
                down.append(x)
        x = block(x, last, "middle1", True)
        x = middle = block(x, last, "middle2", False)
        skips, up = list(down), []
        for level in reversed(range(last + 1)):
            for number in range(self.num_blocks + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = block(x, level, f"up{level}_block{number}", level in self.attention_levels)
                up.append(x)
            if level:
                x = nn.Conv(x.shape[-1], (3, 3), name=f"up{level}", **shared)(upsample_nearest(x, (2, 2)))
        x = nn.silu(group_norm("norm", self.dtype)(x))
        head = nn.Conv(self.out_width, (3, 3), kernel_init=nn.initializers.zeros, dtype=self.dtype, name="head")
        return head(x).astype(jnp.float32), {"time": time, "down": down, "middle": middle, "up": up}


class TimedResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; the time is added before the second norm."""

    width: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps, time: Vectors) -> NewMaps:
        def convolution(name: str, kernel_size: int = 3, zero: bool = False) -> nn.Conv:
            init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
            return nn.Conv(self.width, (kernel_size, kernel_size), kernel_init=init, dtype=self.dtype, name=name)

        x = constrain_batch(x)
        y = convolution("conv1")(nn.silu(group_norm("norm1", self.dtype)(x)))
        y = y + nn.Dense(self.width, dtype=self.dtype, name="time")(nn.silu(time))[:, None, None]
        y = convolution("conv2", zero=True)(nn.silu(group_norm("norm2", self.dtype)(y)))
        return y + (x if x.shape[-1] == self.width else convolution("shortcut", 1)(x))


class MapAttention(nn.Module):
    """One head of self-attention among all places of a map, on a residual branch."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        tokens = tokens_of(x)
        normed = group_norm("norm", self.dtype)(tokens)
        parts = HeadProjection(3, 1, x.shape[-1], dtype=self.dtype, name="qkv")(normed)
        y = attend(*parts)[:, :, 0]
        y = nn.Dense(x.shape[-1], kernel_init=nn.initializers.zeros, dtype=self.dtype, name="out")(y)
        return x + map_of(y, x.shape[1:3])


def group_norm(name: str, dtype: Any) -> nn.GroupNorm:
    """Always 32 groups, with torch's epsilon."""
    return nn.GroupNorm(32, epsilon=1e-5, use_fast_variance=False, dtype=dtype, name=name)


def time_embedding(times: Times, width: int) -> Vectors:
    """Cosines, then sines, of times at frequencies 10000^(-i / n), n = width / 2."""
    half = width // 2
    angles = times[:, None].astype(jnp.float32) * 10000.0 ** (-jnp.arange(half) / half)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
