"""Encoded pictures to pixels."""

import io
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.ImageSequence

from transformer_zoo.data.checks import CORRUPT, DataError, record_name
from transformer_zoo.data.transforms import Fields
from transformer_zoo.data.transforms.images import PICTURES, pack

_MODES = {1: "L", 3: "RGB"}


def decode(batch: Fields, seeds: np.ndarray, channels: int = 3, min_side: int = 0) -> Fields:
    """`image` and `video` from the bytes of any format that Pillow reads to uint8 [..., height, width, channels].

    Pictures are turned upright by their EXIF orientation; colours, palettes and 16-bit greys become 8-bit RGB or grey,
    an alpha channel is dropped. A record of `video` is an animation (GIF, WebP, APNG) whose frames are taken in order.
    Records that are arrays already keep their pixels, and get the channels.

    A record that does not decode is replaced, with all its fields, by the next one of the batch that does; the field
    `corrupt` tells the loader what was wrong.

    Args:
        batch: with `image` or `video`.
        seeds: unused.
        channels: 1 or 3.
        min_side: if not 0, a JPEG may be read at a half, a quarter or an eighth of its size, as long as both sides
            keep at least this many pixels: far fewer operations for large photographs, at slightly other pixels.

    Raises:
        ValueError: channels of another number, or no field to decode.
        DataError: no record of the batch decodes.
    """
    if channels not in _MODES:
        raise ValueError(f"data.transforms.decode.channels is {channels}, but must be 1 or 3")
    fields = [field for field in PICTURES if field in batch]
    if not fields:
        raise ValueError(f"data.transforms.decode: there is neither 'image' nor 'video', only {', '.join(batch)}")
    count = len(batch[fields[0]])
    reasons = np.full(count, "", object)
    decoded: dict[str, list[Any]] = {field: [None] * count for field in fields}
    for field in fields:
        for row, record in enumerate(batch[field]):
            try:
                decoded[field][row] = _pixels(record, field == "video", _MODES[channels], min_side)
            except PIL.UnidentifiedImageError:
                reasons[row] = "no picture of a known format" if record else "no bytes"
            except Exception as error:  # decoders raise what they meet: OSError, SyntaxError, struct.error, ...
                reasons[row] = str(error) or type(error).__name__
    rows = _replacements(batch, reasons)
    kept = {name: values[rows] for name, values in batch.items() if name not in fields}
    found = {field: pack([decoded[field][row] for row in rows]) for field in fields}
    if not any(reasons):
        return kept | found
    corrupt = [f"{record_name(batch, row)}: {reason}" if reason else "" for row, reason in enumerate(reasons)]
    return kept | found | {CORRUPT: np.array(corrupt, object)}


def _replacements(batch: Fields, reasons: np.ndarray) -> np.ndarray:
    """For every row itself, or the next one, around the end, that has no reason to be left out."""
    good = np.flatnonzero(reasons == "")
    if not len(good):
        names = ", ".join(record_name(batch, row) for row in range(min(3, len(reasons))))
        raise DataError(f"none of {len(reasons)} records of a batch decodes ({names}, ...: {reasons[0]})")
    return good[np.searchsorted(good, np.arange(len(reasons))) % len(good)]


def _pixels(record: Any, is_clip: bool, mode: str, min_side: int) -> np.ndarray:
    if not isinstance(record, bytes):
        return _channels(record, len(mode))
    with PIL.Image.open(io.BytesIO(record)) as image:
        if is_clip:
            return np.stack([_array(frame.copy(), mode) for frame in PIL.ImageSequence.Iterator(image)])
        if min_side and image.format == "JPEG":
            image.draft(mode, (min_side, min_side))
        return _array(PIL.ImageOps.exif_transpose(image), mode)


def _array(image: PIL.Image.Image, mode: str) -> np.ndarray:
    if image.mode.startswith("I"):  # Pillow would cut off what lies above 255 instead of scaling 16 bits to 8
        image = PIL.Image.fromarray(((np.asarray(image) + 128) // 257).clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image = image if image.mode == mode else image.convert(mode)
    return np.asarray(image).reshape(image.height, image.width, len(mode))


def _channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.shape[-1] not in (1, 3, 4):
        raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}, not uint8 with 1, 3 or 4 channels")
    pixels = pixels[..., :3]
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    weighted = pixels @ np.array([19595, 38470, 7471])  # ITU-R 601 luma in 16-bit fixed point, as Pillow has it
    return ((weighted + 32768) >> 16).astype(np.uint8)[..., None]
