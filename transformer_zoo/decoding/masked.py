"""Masked parallel decoding (Chang et al., CVPR 2022, arXiv 2202.04200, section 3.2): one compiled loop for every paper.

All places that are unknown get a token at once; the surest are kept, the others are hidden again, fewer from step to
step. A paper brings the function that gives logits, and says what stands at a hidden place: a mask token, or a token of
a condition (COMMIT, arXiv 2212.05199, section 3.2). States have any shape: [batch, tokens], [batch, frames, rows,
columns]; known tokens never change.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from transformer_zoo import naming
from transformer_zoo.decoding import sampling
from transformer_zoo.decoding.schedules import ramp, shares_after
from transformer_zoo.layers.constraints import constrain_batch
from transformer_zoo.masking.tokens import lowest

Ids = Int[Array, "batch *places"]
Unknown = Bool[Array, "batch *places"]
ORDERS = ("confidence", "filtered_confidence", "highest_logit", "random", "raster")


class Step(flax.struct.PyTreeNode):
    """What a logits function may know of a step beside the tokens.

    Attributes:
        index: 0 to steps - 1; traced, but a Python number where the loop is unrolled.
        unknown: [batch, *places] whose tokens are not known yet.
        asked: [batch, *places] which of them this step may fill: all, unless `order` chose before it asks.
        carry: what the function gave beside its logits in the step before, at first what the caller gave.
    """

    index: Any
    unknown: Any
    asked: Any
    carry: Any = None


class Decoded(NamedTuple):
    """What `decode_masked` found.

    Attributes:
        ids: [batch, *places], all known.
        history: [steps, batch, *places], every step with all its guesses.
        unknown: [steps, batch, *places], places that are hidden again after each step.
        carry: as the last call left it.
    """

    ids: Array
    history: Array
    unknown: Array
    carry: Any


# (ids, step) to logits [batch, *places, codes], or to (logits, carry) where a carry was given.
LogitsFunction = Callable[[Array, Step], Any]
# Index of a step to its Gumbel noise: [batch, *places, codes] for the tokens, [batch, *places] for the order.
Noise = Callable[[Any], tuple[Array, Array]]


def decode_masked(
    logits: LogitsFunction,
    ids: Ids,
    unknown: Unknown,
    key: Key[Array, ""],
    *,
    hidden: Ids | int,
    steps: int = 8,
    schedule: str | Sequence[int] | np.ndarray = "cosine",
    order: str = "confidence",
    choice_temperature: float | Sequence[float] = 4.5,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | float = 0,
    top_p: float = 0.0,
    carry: Any = None,
    unroll: bool = False,
    noise: Noise | None = None,
) -> Decoded:
    """Fills the unknown places in `steps` calls of `logits`.

    Args:
        logits: (ids, step) to logits in which -inf forbids a code; with `carry` to (logits, new carry).
        ids: the known tokens; what stands at unknown places is not read.
        unknown: which places to fill.
        key: of all draws; equal keys and equal logits give equal tokens.
        hidden: what the function sees at an unknown place: a mask token's id, or an id a place.
        steps: calls.
        schedule: of the share of the unknown tokens that is left after each step, see `hidden_share`; or the numbers
            themselves, [steps].
        order: which tokens are kept first. 'confidence': of the highest log-probability; 'filtered_confidence': the
            same after filters and temperature; 'highest_logit': where the highest logit is highest, before any draw
            (PUT); 'random' (4M's ROAR) and 'raster': chosen before the call, so that the function is asked for them
            only.
        choice_temperature: of Gumbel noise added to the confidence; a number falls linearly to 0 at the last step.
        temperature: of the draw of tokens, one number, or one a step.
        top_k: codes to draw from, see `keep_top_k`.
        top_p: likewise, see `keep_top_p`.
        carry: a tree handed from call to call (features that are reused).
        unroll: writes all steps out, so that shapes may differ between calls.
        noise: replaces the draws from `key`.

    Raises:
        ValueError: an unknown order or schedule, or numbers that do not fit the steps.
    """
    if order not in ORDERS:
        raise naming.unknown("order", order, ORDERS)
    if steps < 1:
        raise ValueError(f"steps is {steps}, but must be at least 1")
    axes = tuple(range(1, ids.ndim))
    total = unknown.sum(axis=axes)
    left = _left_after(schedule, steps, total, math.prod(ids.shape[1:]))
    choice_temperatures = jnp.asarray(ramp("falling", choice_temperature, steps))
    temperatures = jnp.asarray(ramp("constant", temperature, steps))
    ids = jnp.where(unknown, hidden, ids).astype(jnp.int32)
    places = jnp.arange(math.prod(ids.shape[1:]), dtype=jnp.float32).reshape(ids.shape[1:])

    def step(state: tuple[Array, Array, Any], index: Any) -> tuple[tuple[Array, Array, Any], tuple[Array, Array]]:
        ids, unknown, carry = state
        ids, unknown = constrain_batch(ids), constrain_batch(unknown)
        token_key, choice_key = jax.random.split(jax.random.fold_in(key, index))
        now = unknown.sum(axis=axes)
        keep_hidden = jnp.where(index == steps - 1, 0, jnp.maximum(jnp.minimum(left[index], now - 1), 1))
        keep_hidden = jnp.minimum(keep_hidden, now)
        asked = unknown
        if order in ("random", "raster"):
            scores = -places if order == "raster" else jax.random.uniform(choice_key, ids.shape)
            asked = unknown & ~lowest(jnp.where(unknown, scores, jnp.inf), keep_hidden)
        found = logits(ids, Step(index, unknown, asked, carry))
        found, carry = (found, None) if carry is None else found
        found = found.astype(jnp.float32)
        filtered = sampling.temper(sampling.filter_logits(found, top_k, top_p), temperatures[index])
        if noise is None:
            token_noise = jax.random.gumbel(token_key, found.shape)
            choice_noise = jax.random.gumbel(choice_key, ids.shape)
        else:
            token_noise, choice_noise = noise(index)
        tokens = jnp.where(asked, sampling.draw(filtered, token_noise), ids)
        if order in ("random", "raster"):
            again = unknown & ~asked
        else:
            source = filtered if order == "filtered_confidence" else found
            scores = found.max(axis=-1) if order == "highest_logit" else log_probability(source, tokens)
            scores = scores + choice_temperatures[index] * choice_noise
            again = lowest(jnp.where(unknown, scores, jnp.inf), keep_hidden)
        return (jnp.where(again, hidden, tokens).astype(jnp.int32), again, carry), (tokens, again)

    state = (ids, unknown, carry)
    if unroll:
        records = []
        for index in range(steps):
            state, record = step(state, index)
            records.append(record)
        history, still = (jnp.stack(parts) for parts in zip(*records))
    else:
        state, (history, still) = jax.lax.scan(step, state, jnp.arange(steps))
    return Decoded(state[0], history, still, state[2])


def log_probability(logits: Float[Array, "*shape codes"], tokens: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Of each token; of one that is no code (a class token among the ids) that of the nearest one."""
    tokens = jnp.clip(tokens, 0, logits.shape[-1] - 1)
    return jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), tokens[..., None], axis=-1)[..., 0]


def _left_after(schedule: Any, steps: int, total: Int[Array, " batch"], num_tokens: int) -> Int[Array, "steps batch"]:
    """Tokens of every sample that shall stay hidden after each step, before the bounds of the loop."""
    if isinstance(schedule, str):
        shares = shares_after(steps, schedule, num_tokens)
        return jnp.floor(shares[:, None] * total).astype(jnp.int32)
    counts = np.asarray(schedule)
    if counts.shape != (steps,):
        raise ValueError(f"the schedule has {counts.size} numbers, but there are {steps} steps")
    return jnp.broadcast_to(jnp.asarray(counts, jnp.int32)[:, None], (steps, total.shape[0]))


def decode_levels(
    logits: Callable[[Array, Step, int], Any],
    ids: Int[Array, "batch levels *places"],
    unknown: Bool[Array, "batch levels *places"],
    key: Key[Array, ""],
    *,
    hidden: int,
    steps: Sequence[int],
    **options: Any,
) -> Int[Array, "batch levels *places"]:
    """Decodes codebook after codebook, each with its own number of steps (MAGNeT, MaskGCT).

    Args:
        logits: (all ids, step, level) to the logits of one level; the step's masks are those of this level.
        ids: the known tokens.
        unknown: which places to fill; levels that are not reached yet show `hidden`.
        key: of all draws.
        hidden: the mask token.
        steps: one number a level.
        **options: see `decode_masked`.
    """
    if len(steps) != ids.shape[1]:
        raise ValueError(f"{len(steps)} numbers of steps for {ids.shape[1]} levels")
    ids = jnp.where(unknown, hidden, ids).astype(jnp.int32)
    for level, count in enumerate(steps):

        def one(row: Array, step: Step, level: int = level, ids: Array = ids) -> Any:
            return logits(ids.at[:, level].set(row), step, level)

        level_key = jax.random.fold_in(key, level)
        found = decode_masked(one, ids[:, level], unknown[:, level], level_key, hidden=hidden, steps=count, **options)
        ids = ids.at[:, level].set(found.ids)
    return ids


def extend_frames(
    decode: Callable[[Array, Array, Array, int], Array],
    ids: Int[Array, "batch frames *places"],
    key: Key[Array, ""],
    *,
    chunks: int,
    keep: int,
    remember: Callable[[Array], Array] | None = None,
) -> list[Int[Array, "batch frames *places"]]:
    """Continues a clip chunk by chunk (Villegas et al. 2023, arXiv 2210.02399, section 2.3).

    Args:
        decode: (ids, unknown, key, number of the chunk) to ids, all of the shape of the first chunk.
        ids: the first chunk.
        key: of all draws.
        chunks: how many more.
        keep: frames of tokens at the head of a chunk that are the end of the one before and stay as they are.
        remember: the chunk before to its last `keep` frames; by default those tokens themselves, in Phenaki the
            decoded pixels encoded again.

    Returns:
        All chunks, the first included; each later one begins with the frames that it kept.

    Raises:
        ValueError: keep is no number of frames between 0 and those of a chunk.
    """
    frames = ids.shape[1]
    if not 0 < keep < frames:
        raise ValueError(f"keep is {keep}, but must be at least 1 and below the {frames} frames of a chunk")
    found = [ids]
    unknown = jnp.broadcast_to((jnp.arange(frames) >= keep).reshape((1, -1) + (1,) * (ids.ndim - 2)), ids.shape)
    for number in range(1, chunks + 1):
        kept = found[-1][:, -keep:] if remember is None else remember(found[-1])
        start = jnp.concatenate([kept, jnp.zeros_like(ids[:, keep:])], axis=1)
        found.append(decode(start, unknown, jax.random.fold_in(key, number), number))
    return found
