"""Parts of a clip that are given, others to be made: prediction, interpolation, inpainting, outpainting.

A region is a mask of (frames, rows, columns) that scales: the same name gives the pixels that are given and the tokens
of a coarser grid that show them (Yu et al. 2023, arXiv 2212.05199, section 3.2 and appendix). Regions are constants.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from transformer_zoo import naming

Clip = Float[Array, "batch frames height width channels"]
Region = Bool[np.ndarray, "frames rows columns"]
Shape = tuple[int, int, int]


def _frames(shape: Shape, first: int, last: int) -> Region:
    """The first and the last frames."""
    index = np.arange(shape[0])
    return np.broadcast_to(((index < first) | (index >= shape[0] - last))[:, None, None], shape)


def _middle(length: int) -> Bool[np.ndarray, " length"]:
    index = np.arange(length)
    return (index >= length // 4) & (index < length * 3 // 4)


def _window(shape: Shape) -> Region:
    """A window of half the width that moves from left to right."""
    frames, _, columns = shape
    start = np.round(np.linspace(0, columns // 2, frames, dtype=np.float32)).astype(int)[:, None, None]
    index = np.arange(columns)
    return np.broadcast_to((index >= start) & (index < start + columns // 2), shape)


def _box(shape: Shape, rows: bool, columns: bool) -> Region:
    """The middle half of rows, columns or both."""
    inside = np.ones(shape, bool)
    inside &= _middle(shape[1])[:, None] if rows else True
    return inside & (_middle(shape[2]) if columns else True)


# Name to (shape, frames that are given at an end) to what is given.
REGIONS: dict[str, Callable[[Shape, int], Region]] = {
    "full_generation": lambda shape, frames: np.zeros(shape, bool),
    "frame_prediction": lambda shape, frames: _frames(shape, frames, 0),
    "frame_interpolation": lambda shape, frames: _frames(shape, frames, frames),
    "outpainting_h": lambda shape, frames: _box(shape, True, False),
    "outpainting_v": lambda shape, frames: _box(shape, False, True),
    "outpainting_c": lambda shape, frames: _box(shape, True, True),
    "outpainting_dv": lambda shape, frames: _window(shape),
    "inpainting_c": lambda shape, frames: ~_box(shape, True, True),
    "inpainting_dv": lambda shape, frames: ~(_window(shape) & _box(shape, True, False)),
}
EDGED = ("frame_prediction", "outpainting_h", "outpainting_v", "outpainting_c")  # filled with the nearest given pixel


def region(name: str, shape: Shape, frames: int = 1) -> Region:
    """What is given, of a clip or of a grid of tokens.

    Args:
        name: a key of `REGIONS`: h, v and c are the middle half of rows, of columns and of both, dv is a window that
            moves sideways; inpainting gives what lies outside.
        shape: frames, rows, columns.
        frames: given at the start, and for interpolation also at the end.

    Raises:
        ValueError: an unknown name, or as many frames as the clip has.
    """
    if name not in REGIONS:
        raise naming.unknown("task", name, REGIONS)
    if name.startswith("frame_") and not 0 < frames * (2 if name == "frame_interpolation" else 1) < shape[0]:
        raise ValueError(f"{name} with {frames} frames at an end leaves none of {shape[0]} to make")
    return np.ascontiguousarray(REGIONS[name](shape, frames))


def condition_clip(clip: Clip, name: str, frames: int = 1) -> Clip:
    """The clip with what is not given filled in: the nearest given pixel, a blend of two frames, or zero."""
    _, length, height, width, _ = clip.shape
    given = region(name, (length, height, width), frames)
    if name == "frame_interpolation":
        start, end = clip[:, frames - 1 : frames], clip[:, length - frames : length - frames + 1]
        between = length - 2 * frames
        shares = (jnp.arange(1, between + 1) / (between + 1))[:, None, None, None]
        middle = start + (end - start) * shares
        return jnp.concatenate([clip[:, :frames], middle, clip[:, length - frames :]], axis=1)
    if name in EDGED:
        for axis in range(3):
            present = np.flatnonzero(given.any(axis=tuple(other for other in range(3) if other != axis)))
            nearest = np.clip(np.arange(given.shape[axis]), present[0], present[-1])
            clip = jnp.take(clip, nearest, axis=1 + axis)
        return clip
    return jnp.where(given[None, ..., None], clip, 0.0)
