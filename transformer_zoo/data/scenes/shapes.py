"""The sprites of all shapes and sizes, as one list of texels a side, so that a pixel is a number and a field a table.

Sprite number `6 * size + shape` covers `first[sprite] : first[sprite + 1]`, only the pixels of its mask; sprite 18 is
the player: a small ball, near white, with a black ring one pixel wide, not shaded.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt32

from transformer_zoo.data.scenes import palette

PLAYER_SPRITE = len(palette.SIZES) * len(palette.SHAPES)
NORMAL_SKY, NORMAL_GROUND = (128, 128, 255), (128, 0, 128)


class Sprite(NamedTuple):
    """One shape at one size: mask, unit normal (x, y, z) and height over its middle plane, in units of R."""

    mask: np.ndarray  # bool [2 R + 1, 2 R + 1]
    normal: np.ndarray  # float [2 R + 1, 2 R + 1, 3]
    height: np.ndarray  # float [2 R + 1, 2 R + 1]


def sprite(shape: str, half_width: int) -> Sprite:
    """A shape on the grid u, v in [-1, 1]; normal and height mean nothing outside of the mask."""
    v, u = np.mgrid[-half_width : half_width + 1, -half_width : half_width + 1] / half_width
    radius = np.sqrt(u**2 + v**2)
    bulge = np.sqrt(np.maximum(0, 1 - radius**2))
    flat = np.stack([0 * u, 0 * u, 0 * u + 1], axis=-1)
    low, high = np.minimum(abs(u), abs(v)), np.maximum(abs(u), abs(v))
    if shape == "ball":
        return Sprite(radius <= 1, _unit(u, v, bulge), bulge)
    if shape == "box":
        return Sprite(high <= 0.86, flat, 0 * u + 0.5)
    if shape == "cone":
        width = 0.55 * (v + 1)
        p = np.clip(u / np.maximum(width, 1e-9), -1, 1)
        around = np.sqrt(1 - p**2)
        return Sprite((v <= 0.85) & (abs(u) <= width), _unit(p, 0 * p - 0.45, around), width * around)
    if shape == "gem":
        slope = 0.6
        normal = _unit(slope * np.sign(u), slope * np.sign(v), 0 * u + 0.75)
        return Sprite(abs(u) + abs(v) <= 1, normal, 1 - abs(u) - abs(v))
    if shape == "ring":
        q = np.clip((radius - 0.76) / 0.24, -1, 1)
        around, safe = np.sqrt(1 - q**2), np.maximum(radius, 1e-9)
        return Sprite((radius >= 0.52) & (radius <= 1), _unit(q * u / safe, q * v / safe, around), 0.24 * around)
    return Sprite((low <= 0.34) & (high <= 0.95), flat, 0 * u + 0.3)  # cross


def _unit(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    length = np.maximum(np.sqrt(x * x + y * y + z * z), 1e-9)
    return np.stack([x / length, y / length, z / length], axis=-1)


def player_ring(mask: np.ndarray) -> np.ndarray:
    """The outermost pixels of a mask: those with a 4-neighbour outside of it."""
    inner = np.pad(mask, 1)
    return mask & ~(inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:])


class Atlas(NamedTuple):
    """Texels of all sprites of one side.

    Attributes:
        first: where each sprite's texels begin; one more entry than sprites.
        row: offset of a texel from the sprite's top row.
        column: offset from its left column.
        semseg: shape id + 2.
        normal: packed (see `pack`).
        relief: how much nearer than its object's base a texel is, 0.08 h R / R_large.
        lit: packed colours, row `3 * colour + light`.
    """

    first: Int[np.ndarray, " sprites_1"]
    row: Int[np.ndarray, " texels"]
    column: Int[np.ndarray, " texels"]
    semseg: UInt8[np.ndarray, " texels"]
    normal: UInt32[np.ndarray, " texels"]
    relief: Float[np.ndarray, " texels"]
    lit: UInt32[np.ndarray, "24 texels"]


def pack(colours: np.ndarray) -> np.ndarray:
    """Whole numbers 0..255 [..., 3] as uint32 [...], so that one look-up fetches a pixel; `unpack` undoes it."""
    four = np.zeros((*colours.shape[:-1], 4), np.uint8)
    four[..., :3] = colours
    return four.view(np.uint32)[..., 0]


def unpack(packed: np.ndarray) -> UInt8[np.ndarray, "*shape 3"]:
    """The three bytes of each number."""
    return np.ascontiguousarray(packed[..., None].view(np.uint8)[..., :3])


def encode_normals(normals: np.ndarray) -> np.ndarray:
    """round(127.5 n + 127.5), halves to even."""
    return np.round(127.5 * normals + 127.5).astype(np.uint8)


@functools.cache
def atlas(side: int) -> Atlas:
    """All sprites of a side, rendered once."""
    halves = palette.half_widths(side)
    parts: list[list[np.ndarray]] = [[], [], [], [], [], []]
    for half in halves:
        for number, name in enumerate(palette.SHAPES):
            drawn = sprite(name, int(half))
            rows, columns = np.nonzero(drawn.mask)
            relief = 0.08 * drawn.height[drawn.mask] * (half / halves[-1])
            normal = drawn.normal[drawn.mask]
            for part, value in zip(parts, (rows, columns, rows * 0 + number + 2, normal, relief, shade(normal))):
                part.append(value)
    ball = sprite("ball", int(halves[0]))
    ring = player_ring(ball.mask)[ball.mask]
    white = np.where(ring[:, None], 0, np.array(palette.PLAYER_RGB))
    player = [part[0] for part in parts[:5]] + [np.broadcast_to(white, (24, *white.shape)).astype(np.uint8)]
    for part, value in zip(parts, player):
        part.append(value)
    lengths = [len(part) for part in parts[0]]
    row, column, semseg, normal, relief = (np.concatenate(part) for part in parts[:5])
    first = np.concatenate([[0], np.cumsum(lengths)])
    lit = pack(np.concatenate(parts[5], axis=1))
    return Atlas(first, row, column, semseg.astype(np.uint8), pack(encode_normals(normal)), relief, lit)


def shade(normal: np.ndarray) -> UInt8[np.ndarray, "24 texels 3"]:
    """round(colour * (0.6 + 0.4 max(0, n . L))) of normals [texels, 3], for every colour and light."""
    lit = []
    for colour in palette.COLOUR_RGB:
        for x, y, z in palette.LIGHT_DIRECTIONS:
            length = np.sqrt(x * x + y * y + z * z)
            facing = (normal[:, 0] * x + normal[:, 1] * y + normal[:, 2] * z) / length
            lit.append(np.round(colour * (0.6 + 0.4 * np.maximum(0, facing))[:, None]))
    return np.stack(lit).astype(np.uint8)
