"""Painting: one buffer of numbers a picture, from which each field is looked up only when it is asked for.

A pixel of the buffer is `object << 24 | texel` (uint32). Object 0 is the background, whose texel is `2 * row + dark`,
where `dark` swaps light and dark stripes of the ground; bit 31 marks a snowflake in front.
"""

import functools

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt32

from transformer_zoo.data.scenes import palette, shapes
from transformer_zoo.data.scenes.slots import Environment

SHIFT = np.uint32(24)
TEXEL = np.uint32(0xFFFFFF)
FLAKE = np.uint32(1 << 31)

Buffer = UInt32[np.ndarray, "pictures height width"]


def ground_depth(row: np.ndarray, horizon: np.ndarray, side: int) -> np.ndarray:
    """0.9 at the horizon to 0.1 at the lowest row; 0.9 above the horizon."""
    return 0.9 - 0.8 * np.maximum(0, (row - horizon + 1) / (side - horizon))


@functools.cache
def _backgrounds(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tables by background texel [2 side]: colour [skies, grounds, horizons], depth, normal, semseg [horizons]."""
    horizon = (3 * side // 8 + np.arange(side // 8))[:, None]
    row, dark = np.divmod(np.arange(2 * side), 2)
    is_sky = row < horizon
    q = (row - horizon + 1) / (side - horizon)
    striped = (np.floor(2 / np.maximum(0.05, 1.05 - q)).astype(int) + dark) % 2 == 1
    factor = np.where(striped, palette.STRIPE, 1.0)[None, :, :, None]
    ground = np.round(palette.GROUND_RGB[:, None, None] * factor)
    colour = np.where(is_sky[None, None, :, :, None], palette.SKY_RGB[:, None, None, None], ground[None])
    depth = np.where(is_sky, 1.0, ground_depth(row, horizon, side)).astype(np.float32)
    normal = np.where(is_sky[..., None], shapes.NORMAL_SKY, shapes.NORMAL_GROUND)
    return shapes.pack(colour), depth, shapes.pack(normal), np.where(is_sky, 0, 1).astype(np.uint8)


def empty(pictures: int, height: int, width: int, band: int = 0) -> Buffer:
    """Nothing but background; columns in every other band `band` pixels wide swap the stripes of the ground."""
    dark = np.arange(width) // band % 2 if band else np.zeros(width, int)
    codes = (2 * np.arange(height)[:, None] + dark).astype(np.uint32)
    return np.repeat(codes[None], pictures, axis=0)


def half_of(sprite: np.ndarray, side: int) -> np.ndarray:
    """R of sprites; 0 for -1, none."""
    halves = palette.half_widths(side)
    return np.concatenate([np.repeat(halves, len(palette.SHAPES)), halves[:1], [0]])[sprite]


def paint(
    buffer: Buffer, side: int, sprite: np.ndarray, row: np.ndarray, column: np.ndarray, bottom: np.ndarray
) -> None:
    """Paints objects into the buffer, in place, from the farthest to the nearest.

    Args:
        buffer: uint32 [pictures, height, width].
        side: which atlas of sprites.
        sprite: int [pictures, objects], -1 where there is none.
        row: of each centre; sprites must lie inside of the buffer.
        column: likewise.
        bottom: the row that decides depth: a larger one is nearer, and equal ones are painted by number.
    """
    atlas = shapes.atlas(side)
    half = half_of(sprite, side)
    order = np.argsort(np.where(sprite < 0, -1, bottom), axis=1, kind="stable")
    picture, place = np.nonzero(np.take_along_axis(sprite >= 0, order, axis=1))
    number = order[picture, place]
    kind, half = sprite[picture, number], half[picture, number]
    height, width = buffer.shape[1:]
    top_left = (picture * height + row[picture, number] - half) * width + column[picture, number] - half
    length = atlas.first[kind + 1] - atlas.first[kind]
    texel = np.arange(length.sum()) + np.repeat(atlas.first[kind] - np.cumsum(length) + length, length)
    where = np.repeat(top_left, length) + atlas.row[texel] * width + atlas.column[texel]
    # Of equal places the last is kept: within a picture that is the nearest object.
    buffer.reshape(-1)[where] = (np.repeat(number + 1, length) << 24 | texel).astype(np.uint32)


class Pictures:
    """The fields of painted buffers [pictures, side, side], each computed when first asked for.

    Args:
        side: which atlas and which heights of the horizon.
        buffer: as painted, uint32 [pictures, side, side].
        environment: of each picture.
        colour: of each object, int [pictures, objects].
        bottom: the row that decides each object's depth, as in `paint`.
    """

    def __init__(
        self, side: int, buffer: Buffer, environment: Environment, colour: np.ndarray, bottom: np.ndarray
    ) -> None:
        self.side, self.buffer, self.environment = side, buffer, environment
        self.colour, self.bottom = colour, bottom
        self.atlas = shapes.atlas(side)

    @functools.cached_property
    def instance(self) -> np.ndarray:
        """uint8 [pictures, side, side], 0 for none, k + 1 for object k."""
        return ((self.buffer & ~FLAKE) >> SHIFT).astype(np.uint8)

    @functools.cached_property
    def _covered(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of pixels that show an object: flat place, texel, picture, and row of a flattened table of objects."""
        where = np.flatnonzero(self.instance)
        picture = where // (self.buffer.shape[1] * self.buffer.shape[2])
        which = picture * self.colour.shape[1] + self.instance.reshape(-1)[where] - 1
        return where, self.buffer.reshape(-1)[where] & TEXEL, picture, which

    def _background(self, table: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Looks up background texels in rows of `table` [rows, 2 side]; pixels that show an object hold anything."""
        texel = np.minimum(self.buffer & TEXEL, np.uint32(2 * self.side - 1)).astype(np.int32)
        return table.reshape(-1)[texel + (row * (2 * self.side)).astype(np.int32)[:, None, None]]

    @property
    def _horizon(self) -> np.ndarray:
        return self.environment.horizon - 3 * self.side // 8

    @functools.cached_property
    def rgb(self) -> UInt8[np.ndarray, "pictures side side 3"]:
        colours = _backgrounds(self.side)[0]
        at = np.ravel_multi_index((self.environment.sky, self.environment.ground, self._horizon), colours.shape[:3])
        packed = self._background(colours, at)
        where, texel, picture, which = self._covered
        row = 3 * np.maximum(self.colour.reshape(-1)[which], 0) + self.environment.light[picture]
        packed.reshape(-1)[where] = self.atlas.lit[row, texel]
        flakes = self.buffer & FLAKE
        if flakes.any():
            packed[flakes > 0] = shapes.pack(np.array(palette.FLAKE_RGB))
        return shapes.unpack(packed)

    @functools.cached_property
    def depth(self) -> Float[np.ndarray, "pictures side side"]:
        depth = self._background(_backgrounds(self.side)[1], self._horizon)
        where, texel, _, which = self._covered
        base = ground_depth(self.bottom, self.environment.horizon[:, None], self.side)
        depth.reshape(-1)[where] = base.reshape(-1)[which] - self.atlas.relief[texel]
        return depth

    @functools.cached_property
    def normal(self) -> UInt8[np.ndarray, "pictures side side 3"]:
        packed = self._background(_backgrounds(self.side)[2], self._horizon)
        where, texel, _, _ = self._covered
        packed.reshape(-1)[where] = self.atlas.normal[texel]
        return shapes.unpack(packed)

    @functools.cached_property
    def semseg(self) -> UInt8[np.ndarray, "pictures side side"]:
        classes = self._background(_backgrounds(self.side)[3], self._horizon)
        where, texel, _, _ = self._covered
        classes.reshape(-1)[where] = self.atlas.semseg[texel]
        return classes

    @functools.cached_property
    def visible(self) -> Int[np.ndarray, "pictures objects"]:
        """How many pixels of each object are seen."""
        which = self._covered[3]
        return np.bincount(which, minlength=self.colour.size).reshape(self.colour.shape)
