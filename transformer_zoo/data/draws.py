"""Random draws by hashing: the same numbers whatever the batch size, the order or the number of workers.

A draw is a pure function of a record's seed and a slot number; both are vectorised over records.
"""

from typing import Any

import numpy as np

Numbers = Any  # whole numbers: uint64 arrays, or numpy scalars where there is one record

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: Numbers) -> Numbers:
    """The splitmix64 finaliser (Steele, Lea and Flood 2014) of uint64 [...], with wraparound."""
    with np.errstate(over="ignore"):
        x = np.asarray(x, np.uint64) + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def record_seeds(seed: int, stream: int, numbers: Numbers) -> Numbers:
    """One uint64 seed a record, from the run's seed, a stream (split, epoch, ...) and record numbers [...]."""
    return mix(mix(np.uint64(mix(seed)) ^ np.uint64(stream)) ^ np.asarray(numbers, np.uint64))


def draw(seeds: Numbers, slot: int) -> Numbers:
    """A uint64 a record, [...] like `seeds`; another slot is another independent draw."""
    with np.errstate(over="ignore"):
        return mix(seeds + np.uint64(slot) * np.uint64(0xA24BAED4963EE407))


def integers(seeds: Numbers, slot: int, high: int) -> Numbers:
    """A whole number in [0, high) a record, int64."""
    return (draw(seeds, slot) % np.uint64(high)).astype(np.int64)


def uniforms(seeds: Numbers, slot: int) -> Numbers:
    """A float64 in [0, 1) a record."""
    return (draw(seeds, slot) >> np.uint64(11)) * 2.0**-53


def permute(positions: np.ndarray, size: int, seeds: np.ndarray) -> np.ndarray:
    """Where a random permutation of 0 .. size - 1 puts each position, without storing the permutation.

    A four-round Feistel network over the next even number of bits, repeated until the result is below `size`
    (Black and Rogaway 2002, "cycle walking"). Positions with equal seeds get distinct results.

    Args:
        positions: int64 [count], each in [0, size).
        size: number of things permuted.
        seeds: uint64 [count], which permutation to use for each position.
    """
    half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
    low = (np.uint64(1) << half) - np.uint64(1)
    result = np.asarray(positions, np.uint64)
    walking = np.ones(result.shape, bool)
    while walking.any():
        left, right = result[walking] >> half, result[walking] & low
        for turn in range(4):
            left, right = right, left ^ (draw(seeds[walking] ^ right, turn) & low)
        result[walking] = left << half | right
        walking = result >= size
    return result.astype(np.int64)
