"""Geometry of pictures and clips: resizing, crops, flips. All frames of a clip are treated alike.

Every function takes `image` uint8 [batch, height, width, channels] and `video` uint8 [batch, frames, height, width,
channels], whichever the batch has, or object arrays [batch] of such records without the batch axis, and gives dense
arrays where all records end up with one shape. Resizing is Pillow's, with antialiasing.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image

from transformer_zoo import naming
from transformer_zoo.data import draws
from transformer_zoo.data.transforms import RESIZERS, Fields

PICTURES = ("image", "video")
FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")
_ATTEMPTS = 10  # at a box that fits, before the whole picture is taken
Size = int | tuple[int, int]
Boxes = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # top, left, height, width, each int [batch]


def resize(batch: Fields, seeds: np.ndarray, size: Size, interpolation: str = "bicubic") -> Fields:
    """To `size`, (height, width) or the side of a square; the aspect changes as it must."""
    size = _pair(size, "resize")
    return each_picture(batch, lambda picture, row: resized(picture, size, interpolation))


def resize_short_side(batch: Fields, seeds: np.ndarray, size: int, interpolation: str = "bicubic") -> Fields:
    """The shorter side to `size`, the longer one by the same factor, rounded down (as torchvision's Resize)."""

    def change(picture: np.ndarray, row: int) -> np.ndarray:
        height, width = picture.shape[-3:-1]
        return resized(picture, _short_side(height, width, size), interpolation)

    return each_picture(batch, change)


def centre_crop(
    batch: Fields,
    seeds: np.ndarray,
    size: Size,
    crop: float = 0.875,
    interpolation: str = "bicubic",
    keep_aspect: bool = True,
) -> Fields:
    """The middle of the picture: resized to `size / crop`, then cut to `size`, as timm and torchvision judge.

    Args:
        batch: with `image` or `video`.
        seeds: unused.
        size: (height, width) of the result, or the side of a square.
        crop: `size` as a share of the resized picture (timm's crop_pct).
        interpolation: one of `FILTERS`.
        keep_aspect: whether the shorter side is resized to size / crop (timm); otherwise both are (transformers).
    """
    height, width = _pair(size, "centre_crop")
    if not 0 < crop <= 1:
        raise ValueError(f"data.transforms.centre_crop.crop is {crop}, but must be above 0 and at most 1")
    large = (math.floor(height / crop), math.floor(width / crop))

    def change(picture: np.ndarray, row: int) -> np.ndarray:
        picture = resized(
            picture, _before_crop(picture.shape[-3], picture.shape[-2], large, keep_aspect), interpolation
        )
        top, left = round((picture.shape[-3] - height) / 2), round((picture.shape[-2] - width) / 2)
        return picture[..., top : top + height, left : left + width, :]

    return each_picture(batch, change)


def random_resized_crop(
    batch: Fields,
    seeds: np.ndarray,
    size: Size,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bicubic",
) -> Fields:
    """A random box resized to `size` (Szegedy et al. 2015, arXiv 1409.4842, section 6), as torchvision draws it.

    Args:
        batch: with `image` or `video`; all frames of a clip get one box.
        seeds: uint64 [batch].
        size: (height, width) of the result, or the side of a square.
        scale: bounds of the box's share of the picture's area, uniform.
        ratio: bounds of the box's width over height, uniform in the logarithm.
        interpolation: one of `FILTERS`.
    """
    size = _pair(size, "random_resized_crop")
    _check_bounds("random_resized_crop.scale", scale, 1.0)
    _check_bounds("random_resized_crop.ratio", ratio, math.inf)
    boxes = random_boxes(seeds, *_sides(batch), scale, ratio)

    def change(picture: np.ndarray, row: int) -> np.ndarray:
        top, left, height, width = (int(part[row]) for part in boxes)
        return resized(picture[..., top : top + height, left : left + width, :], size, interpolation)

    return each_picture(batch, change)


def flip(batch: Fields, seeds: np.ndarray) -> Fields:
    """Left and right exchanged in half of the records; any dtype."""
    chosen = draws.integers(seeds, 0, 2) == 1

    def flipped(records: np.ndarray) -> np.ndarray:
        new = records.copy()
        if records.dtype != object:
            new[chosen] = records[chosen][..., ::-1, :]
        else:
            for row in np.flatnonzero(chosen):
                new[row] = records[row][..., ::-1, :]
        return new

    return batch | {field: flipped(batch[field]) for field in picture_fields(batch)}


def random_boxes(
    seeds: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Boxes:
    """Boxes of random area and aspect at random places, one a record: the first of ten draws that fits inside.

    Where none fits, the box is the largest central one whose aspect lies within `ratio`.

    Args:
        seeds: uint64 [batch]; slots 0 to 21 are used.
        heights: of the pictures, int [batch].
        widths: of the pictures, int [batch].
        scale: bounds of the share of the area.
        ratio: bounds of width / height.
    """
    aspects = widths / heights
    box_heights = np.where(aspects < ratio[0], np.rint(widths / ratio[0]), heights).astype(np.int64)
    box_widths = np.where(aspects > ratio[1], np.rint(heights * ratio[1]), widths).astype(np.int64)
    tops, lefts = (heights - box_heights) // 2, (widths - box_widths) // 2
    searching = np.ones(len(seeds), bool)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(_ATTEMPTS):
        area = heights * widths * (scale[0] + (scale[1] - scale[0]) * draws.uniforms(seeds, 2 * attempt))
        aspect = np.exp(low + (high - low) * draws.uniforms(seeds, 2 * attempt + 1))
        height, width = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
        fits = searching & (height >= 1) & (width >= 1) & (height <= heights) & (width <= widths)
        box_heights[fits], box_widths[fits] = height[fits], width[fits]
        tops[fits] = (draws.uniforms(seeds, 2 * _ATTEMPTS) * (heights - height + 1))[fits].astype(np.int64)
        lefts[fits] = (draws.uniforms(seeds, 2 * _ATTEMPTS + 1) * (widths - width + 1))[fits].astype(np.int64)
        searching &= ~fits
    return tops, lefts, box_heights, box_widths


def resized(picture: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """A picture [height, width, channels], or every frame of a clip, resized to (height, width)."""
    if interpolation not in FILTERS:
        raise naming.unknown("data.transforms: interpolation", interpolation, FILTERS)
    if picture.shape[-3:-1] == size:
        return picture
    resample = PIL.Image.Resampling[interpolation.upper()]
    return each_frame(picture, lambda image: image.resize((size[1], size[0]), resample))


def each_frame(picture: np.ndarray, change: Callable[[PIL.Image.Image], PIL.Image.Image]) -> np.ndarray:
    """`change` of a picture [height, width, channels], or of each frame of a clip [frames, ...], with Pillow."""
    if picture.dtype != np.uint8:
        raise ValueError(f"data.transforms: pixels are {picture.dtype} too early; put 'scale' or 'normalise' later")
    if picture.shape[-1] not in (1, 3):
        raise ValueError(f"data.transforms: pictures must have 1 or 3 channels here, not {picture.shape[-1]}")
    if picture.ndim == 4:
        return np.stack([each_frame(frame, change) for frame in picture])
    image = change(PIL.Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture))
    return np.asarray(image).reshape(image.height, image.width, picture.shape[-1])


def each_picture(batch: Fields, change: Callable[[np.ndarray, int], np.ndarray]) -> Fields:
    """The batch with `change(record, row)` in place of every record of `image` and `video`."""
    return batch | {
        field: pack([change(record, row) for row, record in enumerate(batch[field])]) for field in picture_fields(batch)
    }


def pack(records: Sequence[np.ndarray]) -> np.ndarray:
    """One array [batch, ...] where all records have one shape, else an object array [batch]."""
    if len({record.shape for record in records}) == 1:
        return np.stack(records)
    packed = np.empty(len(records), object)
    packed[:] = records
    return packed


def picture_fields(batch: Fields) -> list[str]:
    """Which of `image` and `video` the batch has.

    Raises:
        ValueError: neither, or one that is still encoded.
    """
    fields = [field for field in PICTURES if field in batch]
    if not fields:
        raise ValueError(f"data.transforms: there is neither 'image' nor 'video', only {', '.join(batch)}")
    for field in fields:
        if batch[field].dtype == object and any(isinstance(record, bytes) for record in batch[field]):
            raise ValueError(f"data.transforms: {field!r} is still encoded; put 'decode' first")
    return fields


def dense_fields(batch: Fields) -> list[str]:
    """`picture_fields`, which must have one size.

    Raises:
        ValueError: pictures differ in size.
    """
    for field in picture_fields(batch):
        if batch[field].dtype == object:
            raise ValueError(
                f"data.transforms: {field!r} has records of different sizes; put one of {', '.join(RESIZERS)} before"
            )
    return picture_fields(batch)


def _sides(batch: Fields) -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths int64 [batch]; a batch with pictures and clips must have them of one size."""
    sides = [[record.shape[-3:-1] for record in batch[field]] for field in picture_fields(batch)]
    if any(other != sides[0] for other in sides):
        raise ValueError("data.transforms: 'image' and 'video' differ in size, so no box fits both")
    heights, widths = np.array(sides[0], np.int64).T
    return heights, widths


def _short_side(height: int, width: int, size: int) -> tuple[int, int]:
    longer = int(size * max(height, width) / min(height, width))
    return (size, longer) if height <= width else (longer, size)


def _before_crop(height: int, width: int, large: tuple[int, int], keep_aspect: bool) -> tuple[int, int]:
    """(height, width) that a picture is resized to before a crop is cut from it; `large` is the crop's size / share."""
    if not keep_aspect:
        return large
    if large[0] == large[1]:
        return _short_side(height, width, large[0])
    ratio = min(height / large[0], width / large[1])
    return round(height / ratio), round(width / ratio)


def _pair(size: Size, name: str) -> tuple[int, int]:
    pair = size if isinstance(size, tuple) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
        raise ValueError(
            f"data.transforms.{name}.size is {size!r}, but must be (height, width) or one side, at least 1"
        )
    return pair


def _check_bounds(where: str, bounds: tuple[float, float], highest: float) -> None:
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= highest:
        limit = f" and at most {highest:g}" if highest < math.inf else ""
        raise ValueError(f"data.transforms.{where} is {tuple(bounds)}, but must be (low, high), above 0{limit}")
