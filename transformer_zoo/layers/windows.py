"""Attention inside rectangular windows of a map of tokens, shifted windows, and relative positions inside a window.

Everything that depends on sizes alone is numpy: indices and masks are constants of the compiled program.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from transformer_zoo.layers.attention import Attention

Size = tuple[int, int]  # rows and columns


def partition(x: Float[Array, "batch height width channels"], window: Size) -> Float[Array, "windows tokens channels"]:
    """Windows of a map, sample by sample and row by row, as sequences of tokens in row-major order.

    Raises:
        ValueError: windows that do not tile the map.
    """
    batch, height, width, channels = x.shape
    (rows, columns), (p, q) = _grid((height, width), window), window
    x = x.reshape(batch, rows, p, columns, q, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch * rows * columns, p * q, channels)


def merge(
    windows: Float[Array, "windows tokens channels"], window: Size, size: Size
) -> Float[Array, "batch height width channels"]:
    """The inverse of `partition`, for maps of `size`."""
    (rows, columns), (p, q) = _grid(size, window), window
    channels = windows.shape[-1]
    x = windows.reshape(-1, rows, columns, p, q, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, rows * p, columns * q, channels)


def _grid(size: Size, window: Size) -> Size:
    if size[0] % window[0] or size[1] % window[1]:
        raise ValueError(f"a map of {size[0]} x {size[1]} tokens is not tiled by windows of {window[0]} x {window[1]}")
    return size[0] // window[0], size[1] // window[1]


def pad_to_windows(
    x: Float[Array, "batch height width channels"], window: Size
) -> Float[Array, "batch padded_height padded_width channels"]:
    """Zeros below and to the right, up to the next multiple of the window."""
    rows, columns = (-length % side for length, side in zip(x.shape[1:3], window))
    return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0))) if rows or columns else x


@functools.cache
def shift_mask(size: Size, window: Size, shift: Size) -> Bool[np.ndarray, "windows tokens tokens"]:
    """Which tokens of a window belong together after the map was rolled by -`shift`: those that were neighbours.

    A roll brings opposite edges of the map into one window; a token sees only those of its own side.
    """
    labels = np.zeros(size, np.int64)
    for axis, (length, side, step) in enumerate(zip(size, window, shift)):
        if step:
            region = np.zeros(length, np.int64)
            region[length - side : length - step] = 1
            region[length - step :] = 2
            labels = labels * 3 + (region[:, None] if axis == 0 else region[None])
    (rows, columns), (p, q) = _grid(size, window), window
    tokens = labels.reshape(rows, p, columns, q).transpose(0, 2, 1, 3).reshape(rows * columns, p * q)
    return tokens[:, :, None] == tokens[:, None, :]


@functools.cache
def relative_position_index(window: Size, keys: Size, table: Size) -> Int[np.ndarray, "queries keys"]:
    """Row of a table of relative positions for every pair of a query and a key, whose windows have the same centre.

    Args:
        window: of the queries.
        keys: of the keys.
        table: rows and columns of offsets that the table holds, the middle one for offset 0; row-major.
    """
    queries = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij"), -1).reshape(-1, 1, 2)
    asked = np.stack(np.meshgrid(*map(np.arange, keys), indexing="ij"), -1).reshape(1, -1, 2)
    centre = (np.array(keys) - np.array(window)) // 2  # where the first query stands among the keys
    offsets = queries + centre - asked + np.array(table) // 2
    return offsets[..., 0] * table[1] + offsets[..., 1]


class RelativePositionBias(nn.Module):
    """A learned bias of every head for every offset inside a window (Liu et al. 2021, arXiv 2103.14030, equation 4).

    Attributes:
        window: the largest one; smaller ones read the middle of the table.
        num_heads: of the attention.
    """

    window: Size
    num_heads: int

    @nn.compact
    def __call__(self, window: Size) -> Float[Array, "heads queries keys"]:
        offsets = (2 * self.window[0] - 1, 2 * self.window[1] - 1)
        shape = (offsets[0] * offsets[1], self.num_heads)
        table = self.param("table", nn.initializers.truncated_normal(0.02), shape)
        return jnp.moveaxis(table[relative_position_index(window, window, offsets)], -1, 0)


class WindowAttention(nn.Module):
    """Self-attention inside windows of a map, which may be shifted; with relative position biases.

    Attributes:
        num_heads: of the attention.
        window: rows and columns of a window. An axis of the map that is no longer than the window is one window.
        relative_bias: whether heads have learned biases by relative position.
        qkv_bias, scale, implementation: see `Attention`.
        dtype: of the computation.
    """

    num_heads: int
    window: Size
    relative_bias: bool = True
    qkv_bias: bool = True
    scale: float | None = None
    implementation: str = "auto"
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], shifted: Bool[Array, ""] | np.bool_ | bool = False
    ) -> Float[Array, "batch height width channels"]:
        """Attends inside windows, of the map rolled by half a window where `shifted`.

        A map that windows do not tile is padded below and to the right with zeros, which take part; the result is
        cropped. A map that one window covers is not shifted.
        """
        size = (x.shape[1], x.shape[2])
        window, shift = fit_window(self.window, size)
        x = pad_to_windows(x, window)
        padded = (x.shape[1], x.shape[2])
        known = isinstance(shifted, bool | np.bool_)  # in an unrolled stack, where half of the blocks need no roll
        rolls = any(shift) and not (known and not shifted)
        steps = jnp.where(shifted, jnp.array(shift), 0)
        mask = bias = None
        if rolls:
            x = jnp.roll(x, -steps, axis=(1, 2))
            together = jnp.asarray(shift_mask(padded, window, shift)) | ~jnp.asarray(shifted)
            mask = jnp.tile(together, (x.shape[0], 1, 1))[:, None]
        if self.relative_bias:
            bias = RelativePositionBias(self.window, self.num_heads, name="relative_bias")(window)[None]
        y: Any = Attention(
            self.num_heads,
            qkv_bias=self.qkv_bias,
            scale=self.scale,
            implementation=self.implementation,
            dtype=self.dtype,
            name="attention",
        )(partition(x, window), bias=bias, mask=mask)
        y = merge(y, window, padded)
        y = jnp.roll(y, steps, axis=(1, 2)) if rolls else y
        return y[:, : size[0], : size[1]]


def fit_window(window: Size, size: Size) -> tuple[Size, Size]:
    """The window no larger than the map, and half of it as the shift; 0 along an axis that one window covers."""
    fitted = (min(window[0], size[0]), min(window[1], size[1]))
    rows, columns = (0 if side == length else side // 2 for side, length in zip(fitted, size))
    return fitted, (rows, columns)
