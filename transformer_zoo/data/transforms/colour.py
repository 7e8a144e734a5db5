"""Values of pixels: scaling, normalisation, jitter, erasing. `image` and `video` alike, all frames of a clip alike."""

import functools
import math
from collections.abc import Callable

import numpy as np
import PIL.Image
import PIL.ImageEnhance

from transformer_zoo.data import draws
from transformer_zoo.data.transforms import Fields
from transformer_zoo.data.transforms.images import dense_fields, each_frame, each_picture

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ATTEMPTS = 10  # at a box that fits


def scale(batch: Fields, seeds: np.ndarray, low: float = -1.0, high: float = 1.0) -> Fields:
    """uint8 0..255 to float32 in [low, high]."""
    table = (np.arange(256) / 255 * (high - low) + low).astype(np.float32)
    return batch | {field: table[_uint8(batch[field], "scale")] for field in dense_fields(batch)}


def normalise(
    batch: Fields,
    seeds: np.ndarray,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Fields:
    """uint8 to float32 (pixel / 255 - mean) / std, by channel; a `mean` and `std` of one number serve all channels."""
    if len(mean) != len(std) or any(value <= 0 for value in std):
        raise ValueError(f"data.transforms.normalise: mean {mean} and std {std} must be as many, and std above 0")

    def normalised(pixels: np.ndarray) -> np.ndarray:
        pixels = _uint8(pixels, "normalise")
        channels = pixels.shape[-1]
        if len(mean) not in (1, channels):
            raise ValueError(f"data.transforms.normalise: {len(mean)} means for pictures of {channels} channels")
        # Rows of all channels together and a picture at a time: four times as fast as arrays that end in 3.
        repeats = pixels.shape[-2] * channels // len(mean)
        factor = np.tile(1 / (255 * np.asarray(std)), repeats).astype(np.float32)
        offset = np.tile(-np.asarray(mean) / np.asarray(std), repeats).astype(np.float32)
        found = np.empty((*pixels.shape[:-2], repeats * len(mean)), np.float32)
        for row, record in enumerate(pixels.reshape(found.shape)):
            np.multiply(record, factor, out=found[row])
            found[row] += offset
        return found.reshape(pixels.shape)

    return batch | {field: normalised(batch[field]) for field in dense_fields(batch)}


def colour_jitter(
    batch: Fields,
    seeds: np.ndarray,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.0,
) -> Fields:
    """Random changes of colour in random order, as torchvision's ColorJitter draws them, on uint8.

    Args:
        batch: with `image` or `video`.
        seeds: uint64 [batch].
        brightness: a factor uniform in [max(0, 1 - brightness), 1 + brightness]; likewise
        contrast: about the mean grey, and
        saturation: about the grey picture; pictures of one channel have none.
        hue: turns the hue by a share of the circle uniform in [-hue, hue]; at most 0.5.
    """
    limits = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    for name, value in limits.items():
        if value < 0 or (name == "hue" and value > 0.5):
            bounds = "between 0 and 0.5" if name == "hue" else "at least 0"
            raise ValueError(f"data.transforms.colour_jitter.{name} is {value}, but must be {bounds}")
    order = np.argsort([draws.draw(seeds, 4 + number) for number in range(4)], axis=0)
    drawn = [draws.uniforms(seeds, number) for number in range(4)]

    def change(picture: np.ndarray, row: int) -> np.ndarray:
        steps = []
        for number in order[:, row]:
            name, amount, draw = list(limits)[number], limits[list(limits)[number]], drawn[number][row]
            if amount == 0 or (picture.shape[-1] == 1 and name in ("saturation", "hue")):
                continue
            low = max(0.0, 1 - amount)
            factor = low + (1 + amount - low) * draw
            steps.append(_turn_hue(amount * (2 * draw - 1)) if name == "hue" else _enhance(name, factor))
        return each_frame(picture, lambda image: functools.reduce(lambda found, step: step(found), steps, image))

    return each_picture(batch, change)


def random_erasing(
    batch: Fields,
    seeds: np.ndarray,
    probability: float = 0.25,
    scale: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 10 / 3),
    noise: bool = True,
) -> Fields:
    """A random box filled with normal noise, or with 0 (Zhong et al. 2017, arXiv 1708.04896), as timm draws it.

    Comes after `normalise` or `scale`, so that noise is like pixels; a box is the same in all frames of a clip.

    Args:
        batch: with float32 `image` or `video` of one size.
        seeds: uint64 [batch].
        probability: of a record to lose a box.
        scale: bounds of the box's share of the area, uniform.
        ratio: bounds of its height over width, uniform in the logarithm.
        noise: whether every value of the box is drawn; otherwise it is 0.
    """
    chosen = np.flatnonzero(draws.uniforms(seeds, 0) < probability)
    new = dict(batch)
    for field in dense_fields(batch):
        if batch[field].dtype == np.uint8:
            raise ValueError("data.transforms.random_erasing must come after 'normalise' or 'scale'")
        new[field] = batch[field].copy()
        height, width = batch[field].shape[-3:-1]
        for row in chosen:
            box = _erased_box(seeds[row], height, width, scale, ratio)
            if box is not None:
                erased = new[field][row][..., box[0], box[1], :]
                erased[...] = _normal(seeds[row], erased.shape) if noise else 0.0
    return new


def _erased_box(
    seed: draws.Numbers, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[slice, slice] | None:
    """Rows and columns of the first of ten boxes that is smaller than the picture; None where none is."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(_ATTEMPTS):
        slots = range(1 + 4 * attempt, 5 + 4 * attempt)
        area, aspect, top, left = (float(draws.uniforms(seed, slot)) for slot in slots)
        pixels = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        aspect = math.exp(low + (high - low) * aspect)
        rows, columns = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if rows < height and columns < width:
            first, second = int(top * (height - rows + 1)), int(left * (width - columns + 1))
            return slice(first, first + rows), slice(second, second + columns)
    return None


def _normal(seed: draws.Numbers, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 by Box and Muller's transform of hashed uniforms."""
    seeds = draws.record_seeds(0, 0, seed ^ np.arange(math.prod(shape), dtype=np.uint64))
    radius = np.sqrt(-2 * np.log(1 - draws.uniforms(seeds, 0)))
    return (radius * np.cos(2 * np.pi * draws.uniforms(seeds, 1))).astype(np.float32).reshape(shape)


def _enhance(name: str, factor: float) -> Callable[[PIL.Image.Image], PIL.Image.Image]:
    kinds = {
        "brightness": PIL.ImageEnhance.Brightness,
        "contrast": PIL.ImageEnhance.Contrast,
        "saturation": PIL.ImageEnhance.Color,
    }
    return lambda image: kinds[name](image).enhance(factor)


def _turn_hue(share: float) -> Callable[[PIL.Image.Image], PIL.Image.Image]:
    def turn(image: PIL.Image.Image) -> PIL.Image.Image:
        hue, saturation, value = image.convert("HSV").split()
        hue = hue.point([(level + int(share * 255)) % 256 for level in range(256)])
        return PIL.Image.merge("HSV", (hue, saturation, value)).convert("RGB")

    return turn


def _uint8(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.dtype != np.uint8:
        raise ValueError(f"data.transforms.{name} takes uint8 pixels, not {pixels.dtype}; it may stand there only once")
    return pixels
