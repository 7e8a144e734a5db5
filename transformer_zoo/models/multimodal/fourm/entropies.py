"""Cross-entropy of targets of many modalities, each against its own vocabulary alone, in static shapes.

How many targets of a batch belong to which modality depends on the masks, so the plain way with static shapes is to
multiply all targets with all vocabularies. Here targets are sorted by modality and cut into tiles of one modality each;
how many tiles there are at most is known beforehand. Every tile meets one window of all vocabularies in a row, as wide
as the widest. The backward pass computes a tile's logits again, so that no more than one tile's are ever there.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from transformer_zoo.layers.constraints import batch_shards, constrain_batch

TILE = 128  # targets
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
    if not tiles_pay(targets, [len(table) for table in tables]):
        return _all_vocabularies(x, ids, group, tables)

    def one(x: Array, ids: Array, group: Array) -> Array:
        return tiled_entropies(x, ids, group, tables)

    # Every shard of the batch sorts its own targets, so that none travels.
    parts = (constrain_batch(part.reshape(shards, targets, *part.shape[2:])) for part in (x, ids, group))
    return jax.vmap(one)(*parts).reshape(ids.shape)


def tiles_pay(targets: int, vocabularies: Sequence[int]) -> bool:
    """Whether tiles save a third of the work at least; they compute logits twice, and round up to tiles and windows."""
    work = num_tiles(targets, len(vocabularies)) * TILE * max(vocabularies)
    return 2 * work <= targets * sum(vocabularies)


def num_tiles(targets: int, groups: int) -> int:
    """The most tiles that so many targets fill: each group may leave one that is not full."""
    return targets // TILE + groups


def _all_vocabularies(x: Array, ids: Array, group: Array, tables: Sequence[Array]) -> Array:
    total = jnp.zeros(ids.shape)
    for number, table in enumerate(tables):
        mine = group == number
        logits = (x @ table.T).astype(jnp.float32)
        found = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(mine, ids, 0))
        total = jnp.where(mine, found, total)
    return total


def tiled_entropies(
    x: Float[Array, "targets width"],
    ids: Int[Array, "targets"],
    group: Int[Array, "targets"],
    tables: Sequence[Table],
) -> Float[Array, "targets"]:
    """`entropies` of one row of targets, by tiles."""
    sizes = np.array([len(table) for table in tables])
    widest = int(sizes.max())
    room = jnp.zeros((widest - sizes[-1], x.shape[1]), x.dtype)  # the last window fits as well
    rows = jnp.concatenate([*(table.astype(x.dtype) for table in tables), room])
    source, owner = _tiles(group, len(tables))
    start, size = jnp.asarray(np.cumsum(sizes) - sizes)[owner], jnp.asarray(sizes)[owner]
    x, ids = (jnp.concatenate([part, jnp.zeros_like(part[:1])]) for part in (x, ids))  # what empty places read
    found = _tile_entropies(widest, x[source], rows, ids[source], start, size)
    return jnp.zeros(len(ids)).at[source].set(found)[:-1]


def _tiles(group: Array, groups: int) -> tuple[Int[Array, "tiles tile"], Int[Array, "tiles"]]:
    """Which target stands where, the number of targets where none does; and the group of each tile."""
    targets = len(group)
    tiles = num_tiles(targets, groups)
    label = jnp.where(group < 0, groups, group)
    order = jnp.argsort(label, stable=True)
    counts = (label[:, None] == jnp.arange(groups + 1)).sum(axis=0)
    full = (counts[:groups] + TILE - 1) // TILE
    first_tile = jnp.append(jnp.cumsum(full) - full, 0)
    rank = jnp.arange(targets) - (jnp.cumsum(counts) - counts)[label[order]]
    place = jnp.where(label[order] < groups, first_tile[label[order]] * TILE + rank, tiles * TILE)
    source = jnp.full(tiles * TILE, targets).at[place].set(order, mode="drop").reshape(tiles, TILE)
    owner = jnp.searchsorted(jnp.cumsum(full), jnp.arange(tiles), side="right")
    return source, jnp.minimum(owner, groups - 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tile_entropies(widest: int, x: Array, rows: Array, ids: Array, start: Array, size: Array) -> Array:
    return _forward(widest, x, rows, ids, start, size)[0]


def _forward(widest: int, x: Array, rows: Array, ids: Array, start: Array, size: Array) -> tuple[Array, Any]:
    def one(tile: tuple[Array, ...]) -> tuple[Array, Array]:
        x, ids, start, size = tile
        logits = _logits(x, jax.lax.dynamic_slice_in_dim(rows, start, widest), size)
        total = jax.nn.logsumexp(logits, axis=-1)
        return total - jnp.take_along_axis(logits, ids[:, None], axis=-1)[:, 0], total

    found, totals = jax.lax.map(one, (x, ids, start, size))
    return found, (x, rows, ids, start, size, totals)


def _backward(widest: int, kept: Any, gradient: Array) -> tuple[Any, ...]:
    x, rows, *others = kept

    def one(to_rows: Array, tile: tuple[Array, ...]) -> tuple[Array, Array]:
        x, ids, start, size, total, gradient = tile
        window = jax.lax.dynamic_slice_in_dim(rows, start, widest)
        shares = jnp.exp(_logits(x, window, size) - total[:, None])
        wrong = (shares - jax.nn.one_hot(ids, widest)) * gradient[:, None]
        here = jax.lax.dynamic_slice_in_dim(to_rows, start, widest) + wrong.T @ x.astype(jnp.float32)
        to_x = (wrong.astype(x.dtype) @ window).astype(x.dtype)
        return jax.lax.dynamic_update_slice_in_dim(to_rows, here, start, 0), to_x

    to_rows, to_x = jax.lax.scan(one, jnp.zeros(rows.shape), (x, *others, gradient))
    return to_x, to_rows.astype(rows.dtype), None, None, None


def _logits(x: Array, window: Array, size: Array) -> Array:
    """Logits of a window's first `size` ids; the others belong to another vocabulary."""
    return jnp.where(jnp.arange(len(window)) < size, (x @ window.T).astype(jnp.float32), -jnp.inf)


_tile_entropies.defvjp(_forward, _backward)
