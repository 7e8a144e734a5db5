"""Depthwise convolutions, and how a network's pixels become coarser maps."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from transformer_zoo.layers.norms import layer_norm

Size = tuple[int, int]


def same_padding(kernel_size: Size) -> tuple[tuple[int, int], tuple[int, int]]:
    """(kernel - 1) / 2 on every side, as papers in torch pad; 'SAME' pads otherwise where there is a stride."""
    return tuple((side // 2, side // 2) for side in kernel_size)  # type: ignore[return-value]


def depthwise(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "rows columns 1 #channels"]
) -> Float[Array, "batch height width channels"]:
    """Every channel convolved with a kernel of its own (or one for all), stride 1, zeros around; odd kernels.

    On a CPU as a sum of shifted maps: XLA's grouped convolution there takes two to twenty times as long.
    """
    return jax.lax.platform_dependent(x, kernel, cpu=_shift_and_add, default=_grouped_convolution)


@jax.custom_vjp
def _shift_and_add(x: Array, kernel: Array) -> Array:
    rows, columns = kernel.shape[:2]
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), *same_padding((rows, columns)), (0, 0)))
    shifted = (
        padded[:, row : row + height, column : column + width] * kernel[row, column, 0]
        for row, column in np.ndindex(rows, columns)
    )
    return sum(shifted, jnp.zeros_like(x))


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _shift_and_add(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    """The kernel's gradient is gathered row by row of the maps: sums over all of them take five times as long."""
    x, kernel = saved
    batch, height, width, channels = x.shape
    rows, columns = kernel.shape[:2]
    padded = jnp.pad(x, ((0, 0), *same_padding((rows, columns)), (0, 0)))

    def add_row(number: Array, total: Array) -> Array:
        sample, row = number // height, number % height
        seen = jax.lax.dynamic_slice(padded, (sample, row, 0, 0), (1, rows, padded.shape[2], channels))[0]
        asked = jax.lax.dynamic_slice(gradient, (sample, row, 0, 0), (1, 1, width, channels))[0, 0]
        return total + jnp.stack([seen[r, c : c + width] * asked for r, c in np.ndindex(rows, columns)])

    start = jnp.zeros((rows * columns, width, channels), jnp.float32)
    total = jax.lax.fori_loop(0, batch * height, add_row, start).sum(axis=1)
    total = total.sum(axis=-1, keepdims=True) if kernel.shape[3] == 1 else total
    return _shift_and_add(gradient, kernel[::-1, ::-1]), total.reshape(kernel.shape).astype(kernel.dtype)


_shift_and_add.defvjp(_forward, _backward)


def _grouped_convolution(x: Array, kernel: Array) -> Array:
    full = jnp.broadcast_to(kernel, (*kernel.shape[:3], x.shape[-1]))
    padding = same_padding((kernel.shape[0], kernel.shape[1]))
    return jax.lax.conv_general_dilated(
        x, full, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1]
    )


class DepthwiseConv(nn.Module):
    """A convolution of every channel on its own, stride 1, zeros around.

    Attributes:
        kernel_size: odd rows and columns.
        use_bias: whether there is one.
        kernel_init: of the kernel [rows, columns, 1, channels].
        dtype: of the computation.
    """

    kernel_size: Size = (3, 3)
    use_bias: bool = True
    kernel_init: Any = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=(0, 1, 2))
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, 1, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = depthwise(x, kernel)
        return y if bias is None else y + bias


class Downsample(nn.Module):
    """A strided convolution with zeros around, such as stems and the steps between stages of a pyramid are.

    Attributes:
        width: channels of the result.
        kernel_size: rows and columns.
        stride: along both axes.
        padding: zeros on every side.
        use_bias: whether there is one.
        dtype: of the computation.
    """

    width: int
    kernel_size: int = 3
    stride: int = 2
    padding: int = 1
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch rows columns dim"]:
        return nn.Conv(
            self.width,
            (self.kernel_size, self.kernel_size),
            (self.stride, self.stride),
            padding=((self.padding, self.padding),) * 2,
            use_bias=self.use_bias,
            kernel_init=nn.initializers.truncated_normal(0.02),
            dtype=self.dtype,
            name="convolution",
        )(x)


class PatchMerging(nn.Module):
    """Two by two neighbours side by side, normalised, mapped to twice the width (Swin, arXiv 2103.14030, section 3.1).

    The four lie in the reference's order: the row's parity changes fastest.
    """

    norm_epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch rows columns dim"]:
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        y = layer_norm(self.norm_epsilon, self.dtype, "norm")(jnp.concatenate(corners, axis=-1))
        return nn.Dense(
            2 * x.shape[-1],
            use_bias=False,
            kernel_init=nn.initializers.truncated_normal(0.02),
            dtype=self.dtype,
            name="projection",
        )(y)


def unfold(
    x: Float[Array, "batch height width channels"], kernel_size: int, stride: int, padding: int
) -> Float[Array, "batch rows columns patch"]:
    """Overlapping patches; the values of a patch channel by channel, each row-major, as torch.nn.Unfold orders them.

    Copied by slices: as the convolution that `conv_general_dilated_patches` is, it would round where products do, and
    its gradient takes a CPU many times as long.
    """
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    bottom, right = (length - kernel_size + 1 for length in x.shape[1:3])
    taps = [
        x[:, row : row + bottom : stride, column : column + right : stride]
        for row in range(kernel_size)
        for column in range(kernel_size)
    ]
    y = jnp.stack(taps, axis=-1)
    return y.reshape(*y.shape[:3], -1)


def tokens_of(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch tokens channels"]:
    """A map as a row-major sequence."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def map_of(
    x: Float[Array, "batch tokens channels"], grid: Sequence[int]
) -> Float[Array, "batch height width channels"]:
    """The inverse of `tokens_of`."""
    return x.reshape(x.shape[0], *grid, x.shape[-1])
