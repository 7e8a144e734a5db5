"""Batches for training (shuffled, endless, resumable by count) and for evaluation (in order, each record once)."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from transformer_zoo.data import draws
from transformer_zoo.data.sources import STREAMS, Source

Transform = Callable[[dict[str, np.ndarray], np.ndarray], dict[str, np.ndarray]]


def training_batches(
    source: Source, transform: Transform, batch_size: int, *, seed: int, start: int = 0, prefetch: int = 4
) -> Iterator[dict[str, np.ndarray]]:
    """This process's part of every training batch, beginning with batch number `start`.

    Which records a batch holds, and every random choice made in reading it, is a function of (seed, batch number)
    alone; so the position of the data is the number of batches consumed, and nothing else need be stored.
    """
    import grain  # half a second to import: only where data is loaded

    count, index = jax.process_count(), jax.process_index()
    part = slice(index * batch_size // count, (index + 1) * batch_size // count)

    def read(number: int) -> dict[str, np.ndarray]:
        records = np.arange(number * batch_size, (number + 1) * batch_size)[part]
        epochs, positions = np.divmod(records, len(source))
        indices = draws.permute(positions, len(source), draws.record_seeds(seed, STREAMS["shuffle"], epochs))
        seeds = draws.record_seeds(seed, STREAMS["train"], records)
        return transform(source.read(indices, seeds), seeds)

    dataset = grain.MapDataset.range(start, start + 2**40).map(read)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)))


def evaluation_batches(
    source: Source, transform: Transform, batch_size: int, *, split: str, limit: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Every record once, in order; the last batch is filled up with rows of `weight` 0, all others have weight 1.

    Args:
        source: the split to read.
        transform: applied to each batch.
        batch_size: rows a batch, over all processes.
        split: names the stream of random choices, which are the same at every evaluation.
        limit: at most this many batches; 0 means all.
    """
    count, index = jax.process_count(), jax.process_index()
    part = slice(index * batch_size // count, (index + 1) * batch_size // count)
    stream = STREAMS.get(split, sum(map(ord, split)) + 2**16)
    total = len(source)
    number = -(-total // batch_size)
    for start in range(0, (min(number, limit) if limit else number) * batch_size, batch_size):
        numbers = np.arange(start, start + batch_size)[part]
        seeds = draws.record_seeds(0, stream, np.minimum(numbers, total - 1))
        batch = transform(source.read(np.minimum(numbers, total - 1), seeds), seeds)
        yield batch | {"weight": (numbers < total).astype(np.float32)}


def to_device(batches: Iterable[Any], sharding: Callable[[np.ndarray], Any], ahead: int = 2) -> Iterator[Any]:
    """Moves batches to the devices `ahead` steps before they are asked for; gives (host batch, device batch)."""

    def put(batch: Any) -> tuple[Any, Any]:
        return batch, jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding(x), x), batch)

    batches = iter(batches)
    queue = collections.deque(put(batch) for batch in itertools.islice(batches, ahead))
    while queue:
        yield queue.popleft()
        queue.extend(put(batch) for batch in itertools.islice(batches, 1))
