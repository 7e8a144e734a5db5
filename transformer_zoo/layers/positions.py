"""Absolute positions: sine-cosine tables, learned tables, and moving both, and patch kernels, to other sizes."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

RESIZE_METHODS = ("bilinear", "bicubic", "bilinear_torch", "bicubic_torch")


def grid_positions(grid: Sequence[int]) -> np.ndarray:
    """Indices of the tokens of a grid of any number of axes, row-major: float64 [tokens, axes]."""
    return np.stack(np.meshgrid(*(np.arange(n) for n in grid), indexing="ij"), -1).reshape(-1, len(grid)).astype(float)


def sincos_1d(
    positions: np.ndarray, width: int, *, theta: float = 10000.0, layout: str = "sin_cos", endpoint: bool = False
) -> Float[Array, "tokens width"]:
    """Sines and cosines of position * theta^(-i / n), i < n = width / 2, computed in float64.

    Args:
        positions: [tokens], whole or fractional.
        width: channels; even.
        theta: the base of the wavelengths.
        layout: 'sin_cos' has all sines first (MAE), 'cos_sin' all cosines, 'interleaved' a sine and a cosine in turn
            (Vaswani et al. 2017, arXiv 1706.03762, section 3.5; VideoMAE).
        endpoint: divides by n - 1 instead of n, so that the last frequency is 1 / theta (tensor2tensor, big_vision).

    Raises:
        ValueError: an odd width or an unknown layout.
    """
    if width % 2:
        raise ValueError(f"width {width} of a sine-cosine table is odd; {width + 1} is the next that serves")
    half = width // 2
    angles = np.asarray(positions, float)[:, None] * theta ** (-np.arange(half) / (half - endpoint))
    parts = {
        "sin_cos": lambda: np.concatenate([np.sin(angles), np.cos(angles)], 1),
        "cos_sin": lambda: np.concatenate([np.cos(angles), np.sin(angles)], 1),
        "interleaved": lambda: np.stack([np.sin(angles), np.cos(angles)], -1).reshape(-1, width),
    }
    if layout not in parts:
        raise ValueError(f"layout {layout!r} is none of {', '.join(parts)}")
    return jnp.asarray(parts[layout](), jnp.float32)


def sincos_nd(
    positions: np.ndarray,
    width: int,
    *,
    axis_widths: Sequence[int] | None = None,
    combine: str = "concat",
    theta: float = 10000.0,
    endpoint: bool = False,
) -> Float[Array, "tokens width"]:
    """A `sincos_1d` table for every axis, side by side or added up.

    Args:
        positions: [tokens, axes], see `grid_positions`; fractions serve scaled grids (PixArt, MicroDiT).
        width: channels of the result.
        axis_widths: channels an axis where `combine` is 'concat'; None shares them out equally.
        combine: 'concat', or 'sum' of one table of full width for each axis (VDT).
        theta: see `sincos_1d`.
        endpoint: see `sincos_1d`.

    Raises:
        ValueError: widths that do not add up to `width`, or an unknown `combine`.
    """
    axes = positions.shape[-1]
    if combine not in ("concat", "sum"):
        raise ValueError(f"combine {combine!r} is none of concat, sum")
    widths = (width if combine == "sum" else width // axes,) * axes if axis_widths is None else tuple(axis_widths)
    if len(widths) != axes or (combine == "concat" and sum(widths) != width):
        raise ValueError(f"axis_widths {widths} must be {axes} numbers that add up to width {width}")
    tables = [sincos_1d(positions[:, axis], widths[axis], theta=theta, endpoint=endpoint) for axis in range(axes)]
    return jnp.concatenate(tables, 1) if combine == "concat" else sum(tables[1:], tables[0])


def sincos_2d(grid: tuple[int, int], width: int, order: str = "mae") -> Float[Array, "tokens width"]:
    """The fixed table of an image's (rows, columns) patches, row-major: [sin x, cos x, sin y, cos y], x the column.

    Args:
        grid: rows and columns.
        width: channels; a multiple of 4, a quarter for each of the four parts.
        order: the frequencies, 10000^(-i / n) of 'mae' with n = width / 4 (MAE, MoCo v3, DiT, 4M) or of 'big_vision'
            with n = width / 4 - 1.

    Raises:
        ValueError: width is no multiple of 4, or an unknown order.
    """
    if width % 4:
        raise ValueError(f"width {width} of a 2-D sine-cosine table is no multiple of 4; {width + 4 - width % 4} is")
    if order not in ("mae", "big_vision"):
        raise ValueError(f"order {order!r} is none of mae, big_vision")
    return sincos_nd(grid_positions(grid)[:, ::-1], width, endpoint=order == "big_vision")


def interpolation_matrix(old: int, new: int, method: str) -> np.ndarray:
    """Rows of weights that take `old` samples to `new`, [new, old], as torch's F.interpolate does by default.

    Sample centres are aligned (align_corners False), nothing is smoothed when shrinking (antialias False), and samples
    past an end are the last one.

    Args:
        old: number of samples.
        new: number of samples wanted.
        method: 'bilinear' or 'bicubic', the cubic kernel with a = -0.75.
    """
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    taps = np.floor(centres)[:, None] + np.arange(-1, 3)
    x = np.abs(centres[:, None] - taps)
    if method == "bilinear":
        weights = np.maximum(1 - x, 0)
    else:
        a = -0.75
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        weights = np.where(x <= 1, near, np.where(x < 2, far, 0))
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], np.clip(taps, 0, old - 1).astype(int)), weights)
    return matrix


def resize_positions(
    table: Float[Array, "old_tokens width"],
    old_grid: Sequence[int],
    new_grid: Sequence[int],
    method: str = "bicubic",
    prefix: int = 0,
) -> Float[Array, "new_tokens width"]:
    """Interpolates a row-major table of positions from one grid to another, of the same number of axes.

    Args:
        table: the rows of the grid, behind `prefix` others.
        old_grid: tokens an axis of the table.
        new_grid: tokens an axis of the result.
        method: 'bilinear' and 'bicubic' smooth when shrinking, as torch's F.interpolate with antialias=True, which timm
            uses; 'bilinear_torch' and 'bicubic_torch' are its default, which MAE, DINO and SSAST use.
        prefix: rows in front that stay as they are (class token, registers).

    Raises:
        ValueError: an unknown method, or a table with other rows than prefix and old grid.
    """
    if method not in RESIZE_METHODS:
        raise ValueError(f"method {method!r} is none of {', '.join(RESIZE_METHODS)}")
    if table.shape[0] != prefix + int(np.prod(old_grid)):
        raise ValueError(f"a table of {table.shape[0]} rows is no grid {tuple(old_grid)} behind {prefix} prefix rows")
    if tuple(old_grid) == tuple(new_grid):
        return table
    rows = table[prefix:].reshape(*old_grid, -1)
    if method.endswith("_torch"):
        for axis, (old, new) in enumerate(zip(old_grid, new_grid)):
            matrix = jnp.asarray(interpolation_matrix(old, new, method.removesuffix("_torch")), table.dtype)
            rows = jnp.moveaxis(jnp.tensordot(matrix, rows, (1, axis), precision="highest"), 0, axis)
    else:
        rows = jax.image.resize(rows, (*new_grid, rows.shape[-1]), method)
    return jnp.concatenate([table[:prefix], rows.reshape(-1, table.shape[-1])])


class LearnedPositions(nn.Module):
    """A learned table of positions, interpolated where the grid of the input is not its own.

    Attributes:
        grid: tokens an axis of the table.
        width: channels.
        std: of the normal initialisation.
        prefix: rows in front for tokens outside the grid (class token, registers).
        method: see `resize_positions`.
    """

    grid: tuple[int, ...]
    width: int
    std: float = 0.02
    prefix: int = 0
    method: str = "bicubic"

    @nn.compact
    def __call__(self, grid: tuple[int, ...]) -> Float[Array, "tokens width"]:
        """The prefix rows, then those of `grid`, row-major."""
        shape = (self.prefix + int(np.prod(self.grid)), self.width)
        table = self.param("table", nn.initializers.normal(self.std), shape)
        return resize_positions(table, self.grid, grid, self.method, self.prefix)


def resize_patch_kernel(
    kernel: Float[Array, "pixels width"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Array, "new_pixels width"]:
    """A patch embedding for patches of another size (FlexiViT, Beyer et al. 2022, arXiv 2212.08013, section 3.4).

    With R the bilinear resize of a patch from `old` to `new`, the kernel becomes pinv(R^T) kernel: where patches are
    enlarged, a resized patch then gives the token that it gave before.

    Args:
        kernel: [rows * columns * channels, width], pixels in (row, column, channel) order.
        old: rows and columns of a patch that the kernel was made for.
        new: rows and columns of the patches it shall take.

    Raises:
        ValueError: the kernel's pixels are no multiple of the old patch.
    """
    if kernel.shape[0] % (old[0] * old[1]):
        raise ValueError(f"a kernel of {kernel.shape[0]} pixels is no multiple of a patch of {old[0]} x {old[1]}")
    inverses: list[Any] = [
        jnp.asarray(np.linalg.pinv(interpolation_matrix(a, b, "bilinear").T), kernel.dtype) for a, b in zip(old, new)
    ]
    pixels = kernel.reshape(*old, -1, kernel.shape[-1])
    resized = jnp.einsum("ap,bq,pqcd->abcd", *inverses, pixels, precision="highest")
    return resized.reshape(-1, kernel.shape[-1])
