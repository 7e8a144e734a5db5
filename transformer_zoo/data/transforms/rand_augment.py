"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719) with the operations and ranges of timm.

Each of `num_layers` times an operation is chosen uniformly from the fifteen below and applied with `probability`, at a
magnitude m drawn from a normal distribution and clipped to [0, max(10, magnitude)]. (sign) is a coin's. With
`increasing` every operation grows with m; without it three do not, as in the TPU code that big_vision follows.

    operation             increasing                         not increasing
    auto_contrast         stretches each channel to 0..255
    equalise              flattens each channel's histogram
    invert                255 - pixel
    rotate                30 m/10 (sign) degrees
    shear_x, shear_y      0.3 m/10 (sign)
    translate_x, _y       0.45 m/10 (sign) of the side
    colour, contrast,     factor max(0.1, 1 + 0.9 m/10       factor 0.1 + 1.8 m/10
      brightness,           (sign))
      sharpness
    posterise             keeps 4 - floor(4 m/10) bits       keeps floor(4 m/10) bits
    solarise              inverts from 256 - floor(25.6 m)   inverts from floor(25.6 m) on
                            on
    solarise_add          adds min(128, floor(11 m)) to pixels below 128

timm's 'rand-m9-mstd0.5-inc1' is {"magnitude": 9, "magnitude_std": 0.5}. big_vision's 'randaug(2,15)' is close to
{"magnitude": 15, "magnitude_std": 0, "increasing": False, "probability": 1}: it moves by pixels instead of shares of
the side, and has cutout as a sixteenth operation.
"""

import functools
from collections.abc import Callable

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps

from transformer_zoo import naming
from transformer_zoo.data import draws
from transformer_zoo.data.transforms import Fields
from transformer_zoo.data.transforms.images import FILTERS, each_frame, each_picture

OPERATIONS = (
    "auto_contrast",
    "equalise",
    "invert",
    "rotate",
    "posterise",
    "solarise",
    "solarise_add",
    "colour",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
_ENHANCERS = {
    "colour": PIL.ImageEnhance.Color,
    "contrast": PIL.ImageEnhance.Contrast,
    "brightness": PIL.ImageEnhance.Brightness,
    "sharpness": PIL.ImageEnhance.Sharpness,
}
Operation = Callable[[PIL.Image.Image], PIL.Image.Image]


def rand_augment(
    batch: Fields,
    seeds: np.ndarray,
    num_layers: int = 2,
    magnitude: float = 9.0,
    magnitude_std: float = 0.5,
    increasing: bool = True,
    probability: float = 0.5,
    interpolation: str = "bicubic",
    fill: int = 128,
) -> Fields:
    """Random operations on uint8 pictures of 1 or 3 channels; all frames of a clip get the same.

    Args:
        batch: with `image` or `video`.
        seeds: uint64 [batch].
        num_layers: how many operations a picture may get, one after the other.
        magnitude: mean of the magnitude; 10 is the end of the ranges above, more goes beyond.
        magnitude_std: its standard deviation.
        increasing: which ranges.
        probability: of a chosen operation to be applied.
        interpolation: of rotations, shears and shifts: nearest, bilinear or bicubic.
        fill: grey level of what they bring in from outside.
    """
    if interpolation not in FILTERS[:3]:
        raise naming.unknown("data.transforms.rand_augment.interpolation", interpolation, FILTERS[:3])
    if magnitude < 0 or magnitude_std < 0:
        raise ValueError(
            f"data.transforms.rand_augment: magnitude {magnitude} and magnitude_std {magnitude_std} must be at least 0"
        )
    resample = PIL.Image.Resampling[interpolation.upper()]
    plan = [_draw(seeds, 6 * layer, magnitude, magnitude_std, probability) for layer in range(num_layers)]

    def change(picture: np.ndarray, row: int) -> np.ndarray:
        fills = (fill,) * picture.shape[-1]
        steps = [
            operation(OPERATIONS[numbers[row]], float(levels[row]), float(signs[row]), increasing, resample, fills)
            for numbers, applied, levels, signs in plan
            if applied[row]
        ]
        return each_frame(picture, lambda image: functools.reduce(lambda found, step: step(found), steps, image))

    return each_picture(batch, change)


def _draw(
    seeds: np.ndarray, slot: int, magnitude: float, std: float, probability: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of one layer [batch]: the operation's number, whether it is applied, its magnitude and its sign."""
    radius = np.sqrt(-2 * np.log(1 - draws.uniforms(seeds, slot + 2)))  # Box and Muller's transform to normal draws
    levels = magnitude + std * radius * np.cos(2 * np.pi * draws.uniforms(seeds, slot + 3))
    numbers = draws.integers(seeds, slot, len(OPERATIONS))
    applied = draws.uniforms(seeds, slot + 1) < probability
    return numbers, applied, levels.clip(0, max(10.0, magnitude)), 1.0 - 2.0 * draws.integers(seeds, slot + 4, 2)


def operation(
    name: str, level: float, sign: float, increasing: bool, resample: PIL.Image.Resampling, fill: tuple[int, ...]
) -> Operation:
    """What an operation does to an image at magnitude `level` and with `sign` 1 or -1."""
    share = level / 10
    amount = int(share * 4), min(256, int(share * 256))
    bits, threshold = (max(0, 4 - amount[0]), 256 - amount[1]) if increasing else (min(8, amount[0]), amount[1])
    added, upper = min(128, int(share * 110)), range(128, 256)
    if name in _ENHANCERS:
        factor = max(0.1, 1 + sign * 0.9 * share) if increasing else 0.1 + 1.8 * share
        return lambda image: _ENHANCERS[name](image).enhance(factor)
    if name == "rotate":
        return lambda image: image.rotate(sign * 30 * share, resample, fillcolor=_fill(image, fill))
    if name.startswith(("shear", "translate")):
        return lambda image: _move(image, name, sign * share, resample, fill)
    plain: dict[str, Operation] = {
        "auto_contrast": PIL.ImageOps.autocontrast,
        "equalise": PIL.ImageOps.equalize,
        "invert": PIL.ImageOps.invert,
        "posterise": lambda image: _by_table(image, [level & (256 - 2 ** (8 - bits)) for level in range(256)]),
        "solarise": lambda image: PIL.ImageOps.solarize(image, threshold),
        "solarise_add": lambda image: _by_table(image, [*(min(255, level + added) for level in range(128)), *upper]),
    }
    return plain[name]


def _move(
    image: PIL.Image.Image, name: str, amount: float, resample: PIL.Image.Resampling, fill: tuple[int, ...]
) -> PIL.Image.Image:
    """Shears by 0.3 or shifts by 0.45 of the side, times `amount`; (a, b, c, d, e, f) is where a pixel comes from."""
    shear, shift = 0.3 * amount, 0.45 * amount
    matrix = {
        "shear_x": (1, shear, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, shear, 1, 0),
        "translate_x": (1, 0, shift * image.width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, shift * image.height),
    }[name]
    affine = PIL.Image.Transform.AFFINE
    return image.transform(image.size, affine, matrix, resample, fillcolor=_fill(image, fill))


def _fill(image: PIL.Image.Image, fill: tuple[int, ...]) -> int | tuple[int, ...]:
    return fill if image.mode == "RGB" else fill[0]


def _by_table(image: PIL.Image.Image, table: list[int]) -> PIL.Image.Image:
    return image.point(table * len(image.getbands()))
