"""Distances between the tokens of a grid, and decays made of them; numpy constants of the compiled program."""

import functools

import numpy as np
from jaxtyping import Float

KINDS = ("manhattan", "squared")


@functools.cache
def grid_distances(grid: tuple[int, int], kind: str = "manhattan") -> Float[np.ndarray, "tokens tokens"]:
    """Distance of every two tokens of a row-major grid: |dy| + |dx|, or 'squared', dy^2 + dx^2; float32.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"distance {kind!r} is none of {', '.join(KINDS)}")
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, 2)
    apart = np.abs(places[:, None] - places[None])
    return (apart if kind == "manhattan" else apart**2).sum(-1).astype(np.float32)


def head_decays(num_heads: int, start: float, spread: float) -> Float[np.ndarray, " heads"]:
    """Log gamma of every head, gamma = 1 - 2^-(start + spread * head / heads) (RetNet; RMT, arXiv 2309.11523)."""
    exponents = start + spread * np.arange(num_heads) / num_heads
    return np.log(1 - 2.0**-exponents).astype(np.float32)
