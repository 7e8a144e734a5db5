"""Seeds, and the draws that families share: which objects a scene has, under the compositional hold-out.

A draw is `u = mix(b + slot * 0xA24BAED4963EE407)` with `b = mix(a ^ index)`, `a = mix(seed * 0xD1342543DE82EF95 +
16 * family + split)` and `mix` the splitmix64 finaliser; a whole number below n is `u % n`. Slots below 64 are first
draws, slots 64 to 575 redraws of them (slot + 64 t, t = 1..8); what a family needs beyond lies from 576 on.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt64

from transformer_zoo.data import draws
from transformer_zoo.data.scenes import palette

FAMILIES = {"still": 0, "layers": 1, "glyph": 2, "clip": 3, "portrait": 4, "person": 5, "orbit": 6, "group": 7}
FAMILIES |= {"degrade": 8}
SPLITS = {"train": 0, "val": 1, "test": 2, "comp": 3}

# Slots that families share; those of four take four slots from there, one an object.
COUNT, SKY, GROUND, LIGHT, HORIZON = 0, 1, 2, 3, 4
HELD_OUT_PAIR = 7  # which of the six pairs object 0 shows in split `comp`
COLOUR = 8  # eight slots: a permutation of the colours
SHAPE, SIZE, ROW, COLUMN, SIZE_STATED = 16, 20, 24, 28, 32

REDRAW, TRIES = 64, 8

Seeds = UInt64[np.ndarray, " batch"]
Table = Int[np.ndarray, "batch 4"]


def scene_seeds(seed: int, family: str, split: str, indices: np.ndarray) -> Seeds:
    """One uint64 a sample."""
    stream = (seed * 0xD1342543DE82EF95 + 16 * FAMILIES[family] + SPLITS[split]) % 2**64
    return draws.mix(draws.mix(np.uint64(stream)) ^ np.asarray(indices).astype(np.uint64))


def integers(seeds: Seeds, first: int, number: int, high: int | np.ndarray) -> Int[np.ndarray, "batch number"]:
    """Whole numbers in [0, high), `number` of them from slot `first` on; `high` may be [batch, number]."""
    drawn = np.stack([draws.draw(seeds, first + k) for k in range(number)], axis=1)
    return (drawn % np.asarray(high).astype(np.uint64)).astype(np.int64)


def permutation(seeds: Seeds, first: int, number: int) -> Int[np.ndarray, "batch number"]:
    """A permutation of 0 .. number - 1: the argsort of `number` slots."""
    return np.stack([draws.draw(seeds, first + k) for k in range(number)], axis=1).argsort(axis=1, kind="stable")


def held_out(shape: draws.Numbers, colour: draws.Numbers) -> draws.Numbers:
    """Whether a pair of shape and colour never occurs in train, val and test: 6 of 48."""
    return (3 * shape + colour) % 8 == 5


@dataclasses.dataclass(frozen=True)
class Objects:
    """What a batch of scenes shows; rows past `count` hold -1.

    Attributes:
        count: int [batch], 1 to 3.
        shape: int [batch, 4].
        colour: int [batch, 4], pairwise distinct in a scene.
        size: int [batch, 4].
    """

    count: Int[np.ndarray, " batch"]
    shape: Table
    colour: Table
    size: Table

    @property
    def exists(self) -> Bool[np.ndarray, "batch 4"]:
        return np.arange(palette.MAX_OBJECTS) < self.count[:, None]


def draw_objects(seeds: Seeds, split: str, *, alike: np.ndarray | None = None, single: bool = False) -> Objects:
    """Draws objects that keep to the split.

    In train, val and test a held-out pair has its shape drawn again, up to eight times, and then takes the next colour
    that is allowed and free. In `comp` object 0 takes one of the held-out pairs, and the others are free.

    Args:
        seeds: uint64 [batch].
        split: a key of `SPLITS`.
        alike: bool [batch]; where true all objects of a scene share size and shape, those of object 0.
        single: one object each.
    """
    number = palette.MAX_OBJECTS
    rows = np.arange(len(seeds))
    alike = np.zeros(len(seeds), bool) if alike is None else alike
    count = np.ones(len(seeds), np.int64) if single else 1 + draws.integers(seeds, COUNT, 3)
    exists = np.arange(number) < count[:, None]
    colour = permutation(seeds, COLOUR, len(palette.COLOURS))
    shape, size = integers(seeds, SHAPE, number, len(palette.SHAPES)), integers(seeds, SIZE, number, 3)
    if split == "comp":
        shape[:, 0] = draws.integers(seeds, HELD_OUT_PAIR, len(palette.SHAPES))
        wanted = (5 - 3 * shape[:, 0]) % 8
        place = (colour == wanted[:, None]).argmax(axis=1)
        colour[rows, place] = colour[:, 0]
        colour[:, 0] = wanted
    colour = colour[:, :number]
    shape, size = (np.where(alike[:, None], table[:, :1], table) for table in (shape, size))
    if split != "comp":
        for turn in range(1, TRIES + 1):
            wrong = exists & held_out(shape, colour)
            if not wrong.any():
                break
            again = integers(seeds, SHAPE + REDRAW * turn, number, len(palette.SHAPES))
            wrong = np.where(alike[:, None], wrong.any(axis=1, keepdims=True), wrong)
            shape = np.where(wrong, np.where(alike[:, None], again[:, :1], again), shape)
        for row, column in zip(*np.nonzero(exists & held_out(shape, colour))):
            others = np.delete(colour[row, : count[row]], column)
            while held_out(shape[row, column], colour[row, column]) or colour[row, column] in others:
                colour[row, column] = (colour[row, column] + 1) % 8
    return Objects(count, *(np.where(exists, table, -1) for table in (shape, colour, size)))


class Environment(NamedTuple):
    """Sky, ground, light and the row of the horizon, int [batch] each."""

    sky: np.ndarray
    ground: np.ndarray
    light: np.ndarray
    horizon: np.ndarray


def draw_environment(seeds: Seeds, side: int) -> Environment:
    """The horizon lies in [3/8, 1/2) of the side."""
    return Environment(
        draws.integers(seeds, SKY, len(palette.SKIES)),
        draws.integers(seeds, GROUND, len(palette.GROUNDS)),
        draws.integers(seeds, LIGHT, len(palette.LIGHTS)),
        3 * side // 8 + draws.integers(seeds, HORIZON, side // 8),
    )
