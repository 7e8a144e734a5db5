"""Convolutions over time, height and width, and how clips become shorter and smaller and grow again."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Clip = Float[Array, "batch frames height width channels"]
NewClip = Float[Array, "batch new_frames new_height new_width new_channels"]
Kernel = Float[Array, "taps rows columns channels outputs"]
Size = tuple[int, int, int]
Padding = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

PADDINGS = ("same", "causal")


def padding_of(kind: str, size: Sequence[int], kernel_size: Sequence[int], strides: Size) -> Padding:
    """Zeros before and after each axis of an input of `size`.

    'same' leaves size / stride of an axis, rounded up, with the odd zero behind (TensorFlow's rule). 'causal' puts
    all of kernel - 1 in front of time, so that no frame sees a later one, and stride s makes 1 + n frames of 1 + s n;
    rows and columns get kernel // 2 on both sides (MAGVIT-v2, arXiv 2310.05737, section 3.2).

    Raises:
        ValueError: another kind.
    """
    if kind == "same":
        return tuple(jax.lax.padtype_to_pads(size, kernel_size, strides, "SAME"))  # type: ignore[return-value]
    if kind == "causal":
        frames, rows, columns = kernel_size
        return (frames - 1, 0), (rows // 2, rows // 2), (columns // 2, columns // 2)
    raise ValueError(f"padding is {kind!r}, but must be one of {', '.join(PADDINGS)}")


def conv_3d(x: Clip, kernel: Kernel, strides: Size = (1, 1, 1), padding: str = "same") -> NewClip:
    """A convolution with zeros around; see `padding_of`.

    On a CPU as a sum of convolutions of single frames, one for every tap in time: XLA's own takes five times as long
    there. Taps that only ever meet padding are left out.
    """
    pads = padding_of(padding, x.shape[1:4], kernel.shape[:3], strides)
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))
    taps, stride = kernel.shape[0], strides[0]
    before, after = pads[0]
    frames = (x.shape[1] + before + after - taps) // stride + 1
    reached = [tap for tap in range(taps) if _frames_reached(tap - before, stride, frames, x.shape[1])]
    padded = jnp.pad(x, ((0, 0), pads[0], (0, 0), (0, 0), (0, 0)))
    found = []
    for tap in reached:
        taken = padded[:, tap : tap + stride * (frames - 1) + 1 : stride]
        y = jax.lax.conv_general_dilated(
            taken.reshape(-1, *x.shape[2:]),
            kernel[tap],
            strides[1:],
            pads[1:],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        found.append(y.reshape(x.shape[0], frames, *y.shape[1:]))
    return functools.reduce(jnp.add, found)


def _frames_reached(first: int, stride: int, count: int, frames: int) -> bool:
    """Whether any of `count` frames from `first` in steps of `stride` is there."""
    return any(0 <= frame < frames for frame in range(first, first + stride * count, stride))


class Conv3D(nn.Module):
    """A convolution over time, height and width with learned `kernel` [frames, rows, columns, in, out] and `bias`.

    Attributes:
        width: channels of the result.
        kernel_size, strides: over time, height and width.
        padding: one of `PADDINGS`.
        use_bias: whether there is one.
        kernel_init, bias_init: of the parameters.
        dtype: of the computation.
    """

    width: int
    kernel_size: Size = (3, 3, 3)
    strides: Size = (1, 1, 1)
    padding: str = "same"
    use_bias: bool = True
    kernel_init: Any = nn.initializers.lecun_normal()
    bias_init: Any = nn.initializers.zeros
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Clip) -> NewClip:
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, x.shape[-1], self.width))
        bias = self.param("bias", self.bias_init, (self.width,)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv_3d(x, kernel, self.strides, self.padding)
        return y if bias is None else y + bias


def average_pool(
    x: Float[Array, "batch *sides channels"], factors: Sequence[int]
) -> Float[Array, "batch *cells channels"]:
    """Means of cells of `factors` places; a cell over the edge is the mean of what lies inside (TensorFlow's SAME)."""
    return nn.avg_pool(x, tuple(factors), tuple(factors), "SAME", count_include_pad=False)


def upsample_nearest(
    x: Float[Array, "batch *sides channels"], factors: Sequence[int]
) -> Float[Array, "batch *larger channels"]:
    """Every place `factors` times along its axes."""
    for axis, factor in enumerate(factors, start=1):
        x = jnp.repeat(x, factor, axis=axis) if factor > 1 else x
    return x


def depth_to_space(x: Clip, factors: Size, *, causal: bool = False) -> NewClip:
    """Channels (frame, row, column, channel) to `factors` times as many frames, rows and columns.

    `causal` drops what a doubled first frame gives too much, all but its first, so that 1 + n frames become
    1 + factor n (MAGVIT-v2's decoder).
    """
    batch, frames, height, width, channels = x.shape
    time, rows, columns = factors
    x = x.reshape(batch, frames, height, width, time, rows, columns, channels // (time * rows * columns))
    x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
    x = x.reshape(batch, frames * time, height * rows, width * columns, -1)
    return jnp.concatenate([x[:, :1], x[:, time:]], axis=1) if causal and time > 1 else x


def inflate(kernel: Float[Array, "rows columns channels outputs"], frames: int, *, how: str = "central") -> Kernel:
    """A kernel over time from one of images (MAGVIT, arXiv 2212.05199, section 3.1).

    'central' puts it in the middle tap and zeros elsewhere, 'last' in the last one (the middle of a causal kernel),
    'average' gives every tap an equal share. All of them treat a clip at rest as the images' network treats a frame,
    away from the ends.

    Raises:
        ValueError: another way.
    """
    if how == "average":
        return jnp.repeat(kernel[None] / frames, frames, axis=0)
    places = {"central": frames // 2, "last": frames - 1}
    if how not in places:
        raise ValueError(f"how is {how!r}, but must be one of central, last, average")
    return jnp.zeros((frames, *kernel.shape), kernel.dtype).at[places[how]].set(kernel)
