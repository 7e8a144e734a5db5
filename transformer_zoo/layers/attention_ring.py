"""Attention over tokens that are split over devices: keys and values travel around a ring (Liu et al. 2023, Ring
Attention with Blockwise Transformers, arXiv 2310.01889, section 3).

Every device keeps its queries. At each turn it attends to the block of keys and values that it holds, and hands the
block on to its neighbour while it does so; after as many turns as there are devices every query has met every key. The
softmax is summed up as blocks arrive (Milakov & Gimelshein 2018, arXiv 1805.02867): the result is `plain`'s, for every
hook. The backward pass turns the ring once more, with the gradients of keys and values beside them, and computes the
logits again; so a device never holds more than its own tokens and one block.

With queries and keys of another number than the devices divide, padded keys are left out and padded queries cut off.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from transformer_zoo.layers.attention_kernels import (
    HEAD_AXES,
    Key,
    Logits,
    Mask,
    Output,
    Query,
    Value,
    Window,
    visible,
)
from transformer_zoo.layers.constraints import BATCH_AXES, SEQUENCE_AXIS, dividing_axes


def ring(
    query: Query,
    key: Key,
    value: Value,
    *,
    scale: float,
    chunk_size: int,
    bias: Logits | None = None,
    mask: Mask | None = None,
    causal: bool = False,
    window: Window | None = None,
    logit_multiplier: Logits | None = None,
    probability_mask: Logits | None = None,
) -> Output:
    """`plain` on a mesh whose `sequence` axis splits the tokens; a device has queries x `chunk_size` logits at once.

    Bias, mask and the like are split by queries, not by keys.
    """
    mesh = jax.sharding.get_abstract_mesh()
    size = mesh.shape[SEQUENCE_AXIS]
    queries, keys = query.shape[1], key.shape[1]
    own_queries = -(-queries // size)
    chunks = -(-keys // (size * chunk_size))
    chunk = -(-keys // (size * chunks))

    def pad(x: Array, axis: int, length: int) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, length - x.shape[axis])
        return jnp.pad(x, widths)

    def pad_pairs(x: Array) -> Array:
        x = pad(x, 2, size * own_queries) if x.shape[2] > 1 else x
        return pad(x, 3, size * chunks * chunk) if x.shape[3] > 1 else x

    given = dict(bias=bias, mask=mask, logit_multiplier=logit_multiplier, probability_mask=probability_mask)
    hooks = {name: pad_pairs(x) for name, x in given.items() if x is not None}
    samples, heads = dividing_axes(BATCH_AXES, query.shape[0]), dividing_axes(HEAD_AXES, query.shape[2])
    tokens = PartitionSpec(samples, SEQUENCE_AXIS, heads)
    of_hooks = {
        name: PartitionSpec(
            samples if x.shape[0] > 1 else None,
            heads if x.shape[1] > 1 else None,
            SEQUENCE_AXIS if x.shape[2] > 1 else None,
        )
        for name, x in hooks.items()
    }

    def on_device(query: Array, key: Array, value: Array, hooks: dict[str, Array]) -> Array:
        def cut(x: Array) -> Array:  # [batch, keys, ...] -> [chunks, batch, chunk, ...]
            return jnp.moveaxis(x.reshape(x.shape[0], chunks, chunk, *x.shape[2:]), 1, 0)

        positions = jax.lax.axis_index(SEQUENCE_AXIS) * own_queries + jnp.arange(own_queries) + keys - queries
        shown = {"mask": hooks["mask"]} if "mask" in hooks else {}
        learned = {name: x for name, x in hooks.items() if name != "mask"}
        options = (scale, keys, causal, window, size)
        return _attend(options, query, (cut(key), cut(value)), learned, (shown, positions))

    return jax.shard_map(
        on_device,
        in_specs=(tokens, tokens, tokens, of_hooks),
        out_specs=tokens,
        axis_names=set(mesh.auto_axes),
        check_vma=False,
    )(
        pad(query, 1, size * own_queries),
        pad(key, 1, size * chunks * chunk),
        pad(value, 1, size * chunks * chunk),
        hooks,
    )[:, :queries]


def _logits(options: tuple, query: Array, key: Array, learned: dict, fixed: tuple, first: Array) -> tuple[Array, Any]:
    """Logits [batch, heads, queries, chunk] of the keys from position `first` on, and their probability mask or 1."""
    scale, keys, causal, window, _ = options
    shown, positions = fixed
    chunk = key.shape[1]

    def cut(x: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, first, chunk, 3) if x.shape[3] > 1 else x

    of_chunk = {name: cut(x) for name, x in learned.items()}
    places = first + jnp.arange(chunk)
    seen = visible(positions, places, causal, window)
    if "mask" in shown:
        seen = seen & cut(shown["mask"])
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32) * scale
    logits = logits * of_chunk.get("logit_multiplier", 1.0) + of_chunk.get("bias", 0.0)
    logits = jnp.where(seen, logits, jnp.finfo(jnp.float32).min)
    return jnp.where(places < keys, logits, -jnp.inf), of_chunk.get("probability_mask", 1.0)


def _turn(options: tuple, use: Any, carry: Any, block: Any, travels: bool = False) -> tuple[Any, Any]:
    """Goes around the ring once: carry, new = use(carry, block, the position of its first key) on every block.

    `use` gives the block's gradients, which travel with it and come home, where `travels`; else nothing.
    """
    size = options[-1]
    around = [(i, (i + 1) % size) for i in range(size)]
    me = jax.lax.axis_index(SEQUENCE_AXIS)
    own_keys = block[0].shape[0] * block[0].shape[2]

    def hand_on(x: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, SEQUENCE_AXIS, around), x)

    def turn(state: tuple, number: Array | int) -> tuple[tuple, None]:
        carry, block, sums = state
        coming = hand_on(block)  # travels while this one is used
        carry, new = use(carry, block, (me - number) % size * own_keys)
        return (carry, coming, hand_on(jax.tree.map(jnp.add, sums, new))), None

    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), block) if travels else ()
    (carry, block, sums), _ = jax.lax.scan(turn, (carry, block, sums), jnp.arange(size - 1))
    carry, new = use(carry, block, (me - size + 1) % size * own_keys)
    return carry, hand_on(jax.tree.map(jnp.add, sums, new))


def _forward(options: tuple, query: Array, block: Any, learned: dict, fixed: tuple) -> tuple[Array, Any]:
    batch, queries, heads, _ = query.shape
    chunk, value_dim = block[0].shape[2], block[1].shape[-1]

    def use(state: Any, block: Any, first: Array) -> tuple[Any, Any]:
        def absorb(state: Any, part: Any) -> tuple[Any, None]:
            (largest, total, sums), (key, value, number) = state, part
            logits, kept = _logits(options, query, key, learned, fixed, first + number * chunk)
            new = jnp.maximum(largest, logits.max(-1, keepdims=True))
            shrink, weights = jnp.exp(largest - new), jnp.exp(logits - new)
            total = total * shrink + weights.sum(-1, keepdims=True)
            found = jnp.einsum("bhqk,bkhd->bhqd", (weights * kept).astype(value.dtype), value)
            return (new, total, sums * shrink + found), None

        return jax.lax.scan(absorb, state, (*block, jnp.arange(block[0].shape[0])))[0], ()

    one = jnp.zeros((batch, heads, queries, 1), jnp.float32)
    # The least number that a masked logit has: where all are masked all count alike, and padding not at all.
    start = (one + jnp.finfo(jnp.float32).min, one, jnp.zeros((batch, heads, queries, value_dim), jnp.float32))
    (largest, total, sums), _ = _turn(options, use, start, block)
    output = (sums / total).astype(block[1].dtype).transpose(0, 2, 1, 3)
    return output, (query, block, learned, fixed, output, largest, total)


def _backward(options: tuple, kept: Any, grad: Array) -> tuple[Any, ...]:
    query, block, learned, fixed, output, largest, total = kept
    chunk = block[0].shape[2]
    mean = (grad.astype(jnp.float32) * output.astype(jnp.float32)).sum(-1).transpose(0, 2, 1)[..., None]

    def surrogate(query: Array, learned: dict, key: Array, value: Array, first: Array) -> Array:
        """Has, with the softmax's maximum and sum held fixed, the gradients of (grad * output).sum()."""
        logits, kept = _logits(options, query, key, learned, fixed, first)
        weights = jnp.exp(logits - largest) / total
        pulled = jnp.einsum("bqhd,bkhd->bhqk", grad, value).astype(jnp.float32)
        return (weights * (pulled * kept - mean)).sum()

    def use(sums: Any, block: Any, first: Array) -> tuple[Any, Any]:
        def one(sums: Any, part: Any) -> tuple[Any, Any]:
            key, value, number = part
            *shared, of_key, of_value = jax.grad(surrogate, (0, 1, 2, 3))(
                query, learned, key, value, first + number * chunk
            )
            return jax.tree.map(jnp.add, sums, tuple(shared)), (of_key, of_value)

        return jax.lax.scan(one, sums, (*block, jnp.arange(block[0].shape[0])))

    start = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (query, learned))
    (of_query, of_learned), of_block = _turn(options, use, start, block, travels=True)
    given = (query, block, learned)
    found = jax.tree.map(lambda g, x: g.astype(x.dtype), (of_query, of_block, of_learned), given)
    return (*found, None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(options: tuple, query: Array, block: Any, learned: dict, fixed: tuple) -> Array:
    return _forward(options, query, block, learned, fixed)[0]


_attend.defvjp(_forward, _backward)
