"""Masked spans of sequences: each becomes one sentinel in the input and is spelled out in the target (T5; 4M).

tokens  a b c d e, of which b, c and e are masked
input   a [S1] d [S2]
target  [S1] b c [S2] e [S3]
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

DECAY, TRIES = 0.9, 64  # a kept share of 1 falls to 0.001, and then to 0, until an input fits its budget

Ids = Int[Array, "batch length"]
Counts = Int[Array, "batch"]


class Spans(NamedTuple):
    """A masked sequence: the input in front of its budget's places, the target behind them.

    Attributes:
        values: int32 [batch, 2 * (length + 1)] ids.
        inputs: bool, the same shape, where an input stands.
        targets: likewise of the target.
        source: int32, the same shape: of an input the place it comes from, or -1 for a sentinel and where none is.
    """

    values: Array
    inputs: Array
    targets: Array
    source: Array


def choose_masked(
    key: Key[Array, ""],
    length: int,
    lengths: Counts,
    budget: Counts,
    keep: Float[Array, "batch"],
    chunk: int = 1,
) -> Bool[Array, "batch length"]:
    """Which places are masked, so that what is left, with a sentinel a span, fits the budget; all where it is 0.

    Each piece of `chunk` places is kept with probability `keep`; while the input is too long the probability is
    lowered and all is drawn anew. The attempts are made side by side, and the first that fits counts.
    """
    batch, pieces = lengths.shape[0], -(-length // chunk)
    chances = keep[:, None] * jnp.append(DECAY ** jnp.arange(TRIES - 1), 0.0)
    drawn = jax.random.uniform(key, (batch, TRIES, pieces)) < chances[..., None]
    kept = jnp.repeat(drawn, chunk, axis=-1)[..., :length]
    there = (jnp.arange(length) < lengths[:, None])[:, None]
    masked = there & ~kept
    fits = (there & kept).sum(-1) + _starts(masked).sum(-1) <= budget[:, None]
    first = jnp.where(budget > 0, jnp.argmax(fits, axis=1), TRIES - 1)
    return jnp.take_along_axis(masked, first[:, None, None], axis=1)[:, 0]


def mask_spans(
    key: Key[Array, ""],
    ids: Ids,
    lengths: Counts,
    masked: Bool[Array, "batch length"],
    input_budget: Counts,
    target_budget: Counts,
    first_sentinel: int,
) -> Spans:
    """Input and target of a sequence whose masked places are known.

    A target longer than its budget is cut: from a random sentinel on, or, where that would leave budget unused, from
    the earliest whose rest fits.

    Args:
        key: for that choice.
        ids: padded sequences.
        lengths: ids of each.
        masked: places that the input hides.
        input_budget: places for the input, 0 for none; see `choose_masked`.
        target_budget: most places for the target.
        first_sentinel: the id of the first span's sentinel; the others follow.
    """
    batch, length = ids.shape
    places = 2 * (length + 1)
    there = jnp.arange(length) < lengths[:, None]
    starts = _starts(masked)
    span = jnp.cumsum(starts, axis=1)  # counted from 1
    sentinels = first_sentinel + span - 1

    shown = ((there & ~masked) | starts) & (input_budget > 0)[:, None]
    place = jnp.where(shown, jnp.cumsum(shown, axis=1) - 1, places)
    values = _scatter(batch, places, 0, place, jnp.where(starts, sentinels, ids))
    source = _scatter(batch, places, -1, place, jnp.where(starts, -1, jnp.arange(length)))
    number = shown.sum(axis=1)

    behind = jnp.where(masked, jnp.cumsum(masked, axis=1) + span - 1, places)
    spoken = _scatter(batch, places, 0, behind, ids)
    in_front = jnp.where(starts, behind - 1, places)
    last = masked.sum(axis=1) + span[:, -1]  # the closing sentinel's place
    in_front = jnp.concatenate([in_front, last[:, None]], axis=1)
    named = jnp.concatenate([sentinels, first_sentinel + span[:, -1:]], axis=1)
    spoken = spoken + _scatter(batch, places, 0, in_front, named)
    is_sentinel = _scatter(batch, places, 0, in_front, jnp.ones_like(named)) > 0

    begin, end = _window(key, is_sentinel, span[:, -1], last + 1, target_budget)
    where = jnp.arange(places) - input_budget[:, None]
    targets = (where >= 0) & (where < (end - begin)[:, None])
    moved = jnp.take_along_axis(spoken, jnp.clip(where + begin[:, None], 0, places - 1), axis=1)
    inputs = jnp.arange(places) < number[:, None]
    return Spans(jnp.where(targets, moved, jnp.where(inputs, values, 0)), inputs, targets, source)


def _window(
    key: Key[Array, ""], is_sentinel: Bool[Array, "batch places"], spans: Counts, length: Counts, budget: Counts
) -> tuple[Counts, Counts]:
    """Where the part of a target that fits its budget begins and ends."""
    places = jnp.arange(is_sentinel.shape[1])
    chosen = jax.random.randint(key, spans.shape, 0, jnp.maximum(spans, 1))  # never the closing one
    begin = jnp.argmax(jnp.cumsum(is_sentinel, axis=1) > chosen[:, None], axis=1)
    rest_fits = is_sentinel & (length[:, None] - places <= budget[:, None])
    earliest = jnp.argmax(rest_fits, axis=1)
    begin = jnp.where(length - begin >= budget, begin, earliest)
    begin = jnp.where(length <= budget, 0, begin)
    return begin, jnp.minimum(length, begin + budget)


def _starts(masked: Bool[Array, "*batch length"]) -> Bool[Array, "*batch length"]:
    before = jnp.pad(masked, [(0, 0)] * (masked.ndim - 1) + [(1, 0)])[..., :-1]
    return masked & ~before


def _scatter(batch: int, places: int, empty: int, where: Int[Array, "batch n"], values: Int[Array, "batch n"]) -> Array:
    """`values` at the places `where`, those past the end dropped."""
    rows = jnp.arange(batch)[:, None]
    return jnp.full((batch, places), empty, jnp.int32).at[rows, where].set(values.astype(jnp.int32), mode="drop")
