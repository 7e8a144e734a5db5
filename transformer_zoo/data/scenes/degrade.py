"""`degrade`: a picture as a bad camera and a bad connection leave it, at a quarter of its side.

Order 1: blur, resize, noise, JPEG. With probability 1/2 a second, weaker order. Then a last JPEG. The side halves in
each order where there are two, and is quartered by the first where there is one.

Slots of a sample's seed (family 8); those of order 2 lie 16 higher:
    0    a second order if 1 of [0, 2)
    1    quality of the last JPEG, 30 to 95
    16   anisotropic blur if 1 of [0, 2); 17, 18: its two sigmas, 0.2 to 2 pixels; 19: its angle, 0 to pi
    20   resize by area, bilinear or bicubic, [0, 3)
    21   Poisson noise if 1 of [0, 2); 22: its scale, 0.05 to 2, or the sigma of Gaussian noise, 1 to 15 of 255
    23   JPEG quality, 30 to 95
    64   which stream noise is drawn from: value k has the seed `mix(slot 64 + order)` and slot k
The second order's blur reaches sigma 1, its noise 8 of 255 or scale 1, its quality falls to 50.

Pixels pass through an exponential and a JPEG library, so they are the same wherever those are; the drawn parameters are
the same everywhere.
"""

import functools
import io
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from transformer_zoo.data import draws
from transformer_zoo.data.scenes.slots import Seeds

SECOND, LAST_QUALITY, ORDER, NOISE = 0, 1, 16, 64
FACTOR = 4
METHODS = ("area", "bilinear", "bicubic")
RADIUS = 6  # of the blur's kernel, three of the largest sigma

Images = UInt8[np.ndarray, "batch side side 3"]


class Order(NamedTuple):
    """Drawn parameters of one order, [batch] each; `sigma` [batch, 2]."""

    sigma: Float[np.ndarray, "batch 2"]
    angle: Float[np.ndarray, " batch"]
    method: Int[np.ndarray, " batch"]
    poisson: np.ndarray
    noise: Float[np.ndarray, " batch"]
    quality: Int[np.ndarray, " batch"]


def draw_order(seeds: Seeds, order: int) -> Order:
    """The parameters of order 0 or 1."""
    first = ORDER * (1 + order)
    max_sigma, max_gauss, max_poisson, min_quality = ((2.0, 15.0, 2.0, 30), (1.0, 8.0, 1.0, 50))[order]

    def between(slot: int, low: float, high: float) -> np.ndarray:
        return low + (high - low) * draws.uniforms(seeds, first + slot)

    isotropic = draws.integers(seeds, first, 2) == 0
    major = between(1, 0.2, max_sigma)
    minor = np.where(isotropic, major, between(2, 0.2, max_sigma))
    poisson = draws.integers(seeds, first + 5, 2) == 1
    noise = np.where(poisson, between(6, 0.05, max_poisson), between(6, 1.0, max_gauss))
    quality = min_quality + draws.integers(seeds, first + 7, 96 - min_quality)
    sigma, angle = np.stack([major, minor], axis=1), between(3, 0.0, np.pi)
    return Order(sigma, angle, draws.integers(seeds, first + 4, len(METHODS)), poisson, noise, quality)


def degrade(images: Images, seeds: Seeds) -> dict[str, np.ndarray]:
    """`lq` uint8 [batch, side / 4, side / 4, 3], and `lq_up`, `lq` enlarged to the side again (bicubic).

    Raises:
        ValueError: a side that 4 does not divide.
    """
    side = images.shape[1]
    if side % FACTOR:
        raise ValueError(f"degrade needs images whose side is a multiple of {FACTOR}, but the side is {side}")
    twice = draws.integers(seeds, SECOND, 2) == 1
    low = np.zeros((len(images), side // FACTOR, side // FACTOR, 3), np.uint8)
    once, again = np.flatnonzero(~twice), np.flatnonzero(twice)
    low[once] = _apply(images[once], seeds[once], 0, side // FACTOR)
    low[again] = _apply(_apply(images[again], seeds[again], 0, side // 2), seeds[again], 1, side // FACTOR)
    low = _jpeg(low, 30 + draws.integers(seeds, LAST_QUALITY, 66))
    method = np.full(len(images), METHODS.index("bicubic"))
    return {"lq": low, "lq_up": _to_bytes(_resize(low.astype(np.float64), side, method))}


def add_degraded(batch: dict[str, np.ndarray], seeds: Seeds) -> dict[str, np.ndarray]:
    """`degrade` of the batch's `image`, as a transform: adds `lq` and `lq_up`."""
    return batch | degrade(batch["image"], seeds)


def _apply(images: Images, seeds: Seeds, order: int, side: int) -> UInt8[np.ndarray, "batch low low 3"]:
    drawn = draw_order(seeds, order)
    pixels = _blur(images.astype(np.float64), drawn.sigma, drawn.angle)
    pixels = _noise(_to_bytes(_resize(pixels, side, drawn.method)), seeds, order, drawn)
    return _jpeg(pixels, drawn.quality)


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def _blur(pixels: np.ndarray, sigma: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Each image under its own Gaussian, of standard deviations `sigma` along and across `angle`."""
    y, x = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]
    cos, sin = (function(angle)[:, None, None] for function in (np.cos, np.sin))
    along, across = (x * cos + y * sin) / sigma[:, :1, None], (y * cos - x * sin) / sigma[:, 1:, None]
    kernel = np.exp(-(along**2 + across**2) / 2)
    kernel /= kernel.sum(axis=(1, 2), keepdims=True)
    height, width = pixels.shape[1:3]
    padded = np.pad(pixels, ((0, 0), (RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0)), "edge")
    blurred = np.zeros_like(pixels)
    for down in range(2 * RADIUS + 1):
        for right in range(2 * RADIUS + 1):
            weight = kernel[:, down, right, None, None, None]
            blurred += weight * padded[:, down : down + height, right : right + width]
    return blurred


@functools.cache
def _resize_matrix(before: int, after: int, method: str) -> np.ndarray:
    """Weights [after, before] of antialiased resizing, as image libraries define it (bicubic with a = -0.5)."""
    scale = max(1.0, before / after)
    centres = (np.arange(after) + 0.5) * before / after
    distance = abs((np.arange(before) + 0.5 - centres[:, None]) / scale)
    if method == "area":
        weights = np.where(distance < 0.5, 1.0, np.where(distance == 0.5, 0.5, 0.0))
    elif method == "bilinear":
        weights = np.maximum(0, 1 - distance)
    else:
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = -0.5 * (((distance - 5) * distance + 8) * distance - 4)
        weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


def _resize(pixels: np.ndarray, side: int, method: np.ndarray) -> np.ndarray:
    """Each image [before, before, 3] to [side, side, 3] by its own method."""
    batch, before = pixels.shape[:2]
    weights = np.stack([_resize_matrix(before, side, name) for name in METHODS])[method]
    rows = weights @ pixels.reshape(batch, before, 3 * before)
    return weights[:, None] @ rows.reshape(batch, side, before, 3)


@functools.cache
def _poisson_table() -> np.ndarray:
    """Ascending: level + P(at most k | mean = level) for levels 0..255 and k = 0..511."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, 512)))])
    levels = np.arange(256)[:, None]
    log_mean = np.log(np.maximum(levels, 1))
    chance = np.where(levels > 0, np.exp(np.arange(512) * log_mean - levels - log_factorial), np.arange(512) == 0)
    return (levels + np.minimum(np.cumsum(chance, axis=1), 1 - 2**-40)).reshape(-1)


def _noise(images: Images, seeds: Seeds, order: int, drawn: Order) -> Images:
    """Gaussian noise, or the noise of counting as many photons as a pixel's level, times a scale."""
    batch, number = len(images), int(np.prod(images.shape[1:]))
    streams = draws.mix(draws.draw(seeds, NOISE + order))[:, None]
    with np.errstate(over="ignore"):
        steps = np.arange(2 * number, dtype=np.uint64) * np.uint64(0xA24BAED4963EE407)
        uniform = (draws.mix(streams + steps) >> np.uint64(11)) * 2.0**-53
    first, second = uniform[:, :number], uniform[:, number:]
    normal = np.sqrt(-2 * np.log(1 - first)) * np.cos(2 * np.pi * second)
    level = images.reshape(batch, number).astype(np.float64)
    counted = np.searchsorted(_poisson_table(), level + first * (1 - 2**-39)) - 512 * level
    added = np.where(drawn.poisson[:, None], counted - level, normal) * drawn.noise[:, None]
    return _to_bytes((level + added).reshape(images.shape))


def _jpeg(images: Images, quality: np.ndarray) -> Images:
    """Each image written at its quality and read again."""
    from PIL import Image  # only where pictures are written

    read = []
    for image, number in zip(images, quality):
        written = io.BytesIO()
        Image.fromarray(image).save(written, "JPEG", quality=int(number))
        read.append(np.asarray(Image.open(written)))
    return np.stack(read) if read else images
