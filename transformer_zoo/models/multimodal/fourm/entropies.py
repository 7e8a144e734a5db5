"""Cross-entropy of targets of many modalities, each against its own vocabulary alone, in static shapes.

How many targets of a batch belong to which modality depends on the masks, so the plain way with static shapes is to
multiply all targets with all vocabularies. Here targets are sorted by modality, and each modality's loop takes tile
after tile of its own, for as many turns as this batch asks for. The backward pass computes a tile's logits again, so
that no more than one tile's are ever there.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from transformer_zoo.layers.constraints import batch_shards, constrain_batch, gather_rows
from transformer_zoo.layers.loops import about

Table = Float[Array, "_ width"]


def entropies(
    x: Float[Array, "batch targets width"],
    ids: Int[Array, "batch targets"],
    group: Int[Array, "batch targets"],
    tables: Sequence[Table],
) -> Float[Array, "batch targets"]:
    """Cross-entropy of every target, 0 where it belongs to no group.

    Args:
        x: what the decoder says.
        ids: what the targets are.
        group: the number of each target's table, below 0 for none.
        tables: a row for every id, whose products with `x` are the logits.
    """
    shards = batch_shards() if x.shape[0] % batch_shards() == 0 else 1
    targets = x.shape[0] // shards * x.shape[1]
    if not loops_pay(targets, len(tables)):
        return _all_vocabularies(x, ids, group, tables)
    # Every shard of the batch sorts its own targets, so that none travels.
    rows, *labels = (constrain_batch(part.reshape(shards, targets, *part.shape[2:])) for part in (x, ids, group))
    found = sorted_entropies(rows, labels[0], labels[1], tables, tile_size(targets, len(tables)))
    return found.reshape(ids.shape)


def loops_pay(targets: int, groups: int) -> bool:
    """Whether loops save a third of the work at least; they compute logits twice, and round up to tiles."""
    return 2 * (targets / groups + tile_size(targets, groups) / 2) <= targets


def tile_size(targets: int, groups: int) -> int:
    """Targets a turn, a power of two: few beside those of a group, half a tile of which is empty on average."""
    return 1 << min(max(targets // (4 * groups), 128), 512).bit_length() - 1


def _all_vocabularies(x: Array, ids: Array, group: Array, tables: Sequence[Array]) -> Array:
    total = jnp.zeros(ids.shape)
    for number, table in enumerate(tables):
        mine = group == number
        logits = (x @ table.T).astype(jnp.float32)
        found = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(mine, ids, 0))
        total = jnp.where(mine, found, total)
    return total


def sorted_entropies(
    x: Float[Array, "shards targets width"],
    ids: Int[Array, "shards targets"],
    group: Int[Array, "shards targets"],
    tables: Sequence[Table],
    tile: int,
) -> Float[Array, "shards targets"]:
    """`entropies` of shards that each sort their own targets, by loops over tiles of so many."""
    targets, groups = x.shape[1], len(tables)
    label = jnp.where(group < 0, groups, group)
    order = jnp.argsort(label, axis=1, stable=True)
    counts = (label[..., None] == jnp.arange(groups)).sum(axis=1)
    starts = jnp.cumsum(counts, axis=1) - counts
    room = ((0, 0), (0, tile), (0, 0))  # for the last tile, which may not be full
    x = jnp.pad(jnp.take_along_axis(x, order[..., None], axis=1), room)
    ids = jnp.pad(jnp.take_along_axis(ids, order, axis=1), room[:2])
    found = _loops(tile, x, tuple(map(gather_rows, tables)), ids, starts, counts)[:, :targets]
    return jnp.where(group < 0, 0.0, jnp.take_along_axis(found, jnp.argsort(order, axis=1), axis=1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loops(tile: int, x: Array, tables: tuple[Array, ...], ids: Array, starts: Array, counts: Array) -> Array:
    return _forward(tile, x, tables, ids, starts, counts)[0]


def _forward(
    tile: int, x: Array, tables: tuple[Array, ...], ids: Array, starts: Array, counts: Array
) -> tuple[Array, Any]:
    found = totals = jnp.zeros(ids.shape)
    for group, table in enumerate(tables):

        def turn(place: Array, carry: tuple[Array, Array], group: int = group, table: Array = table) -> Any:
            at = starts[:, group] + place * tile
            logits = _logits(_take(x, at, tile), table)
            total = jax.nn.logsumexp(logits, axis=-1)
            mine = jnp.clip(_take(ids, at, tile), 0, len(table) - 1)  # behind its own, a tile has others' targets
            right = jnp.take_along_axis(logits, mine[..., None], axis=-1)[..., 0]
            return _put(carry[0], total - right, at), _put(carry[1], total, at)

        found, totals = _loop(tile, counts, group, turn, (found, totals))
    return found, (x, tables, ids, starts, counts, totals)


def _backward(tile: int, kept: Any, gradient: Array) -> tuple[Any, ...]:
    x, tables, ids, starts, counts, totals = kept
    to_x, to_tables = jnp.zeros(x.shape, x.dtype), []
    for group, table in enumerate(tables):

        def turn(place: Array, carry: tuple[Array, Array], group: int = group, table: Array = table) -> Any:
            at = starts[:, group] + place * tile
            here, mine = _take(x, at, tile), place * tile + jnp.arange(tile) < counts[:, group, None]
            shares = jnp.exp(_logits(here, table) - _take(totals, at, tile)[..., None])
            wrong = shares - jax.nn.one_hot(_take(ids, at, tile), len(table))
            wrong = jnp.where(mine[..., None], wrong * _take(gradient, at, tile)[..., None], 0).astype(x.dtype)
            more = jnp.einsum("stv,stw->svw", wrong, here, preferred_element_type=jnp.float32)
            return _put(carry[0], wrong @ table, at), carry[1] + more

        # Each shard has its own sum, so that they meet once and not in every turn.
        nothing = constrain_batch(jnp.zeros((len(x), *table.shape)))
        to_x, to_table = _loop(tile, counts, group, turn, (to_x, nothing))
        to_tables.append(to_table.sum(axis=0).astype(table.dtype))
    return to_x, tuple(to_tables), None, None, None


_loops.defvjp(_forward, _backward)


def _loop(tile: int, counts: Array, group: int, turn: Any, carry: Any) -> Any:
    """Turns of a group's loop: tiles enough for the shard that has most of its targets.

    A tile's places behind the group's own are filled with what means nothing, until the groups that own them follow.
    """
    targets, groups = carry[0].shape[1] - tile, counts.shape[1]
    with about(round(targets / groups / tile + 0.5)):
        return jax.lax.fori_loop(0, -(-counts[:, group].max() // tile), turn, carry)


def _logits(x: Array, table: Array) -> Array:
    return (x @ table.T).astype(jnp.float32)


def _take(rows: Array, at: Array, tile: int) -> Array:
    """`tile` rows of every shard, from row `at` of each."""
    return jax.vmap(lambda one, start: jax.lax.dynamic_slice_in_dim(one, start, tile))(rows, at)


def _put(rows: Array, new: Array, at: Array) -> Array:
    """The rows of every shard with new ones from row `at` of each."""
    return jax.vmap(lambda one, part, start: jax.lax.dynamic_update_slice_in_dim(one, part, start, 0))(rows, new, at)
