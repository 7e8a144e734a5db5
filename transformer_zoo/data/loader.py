"""Batches for training (shuffled, endless, resumable by count) and for evaluation (in order, each record once)."""

import collections
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from transformer_zoo.data import draws
from transformer_zoo.data.checks import CORRUPT, CorruptRecords, DataError, check_dense, is_text
from transformer_zoo.data.sources import STREAMS, Source
from transformer_zoo.data.timing import PREPARING, Timing
from transformer_zoo.data.transforms import Step

PREFETCH = 4  # batches that threads of this process keep ready
WORKER_BUFFER = 2  # batches that each worker process keeps ready
ENDLESS = 2**40  # batches


class Delivery(NamedTuple):
    """A batch on its way from where it was made, and what is to be known of its making.

    Attributes:
        fields: the batch.
        seconds: that reading and each transform took.
        corrupt: 'record: what is wrong' of the records that were replaced.
        member: whose batch it is, in a mixture.
    """

    fields: dict[str, Any]
    seconds: dict[str, float]
    corrupt: list[str]
    member: str = ""


Read = Callable[[int], Delivery]


def read_batch(source: Source, steps: Sequence[Step], indices: np.ndarray, seeds: np.ndarray) -> Delivery:
    """The records at `indices` [batch], transformed with `seeds` uint64 [batch].

    Raises:
        DataError: what the source or a transform refuses, or records of different sizes after the last transform.
    """
    seconds: dict[str, float] = {}
    batch: dict[str, np.ndarray] = {}
    first: Step = ("read", lambda _, seeds: source.read(indices, seeds))
    try:
        for name, step in (first, *steps):
            start = time.perf_counter()
            with jax.profiler.TraceAnnotation(PREPARING + name):
                batch = step(batch, seeds)
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
        check_dense(batch)
    except ValueError as error:
        raise error if isinstance(error, DataError) else DataError(str(error)) from error
    return Delivery(batch, seconds, [text for text in batch.get(CORRUPT, ()) if text])


def read_training(
    source: Source, steps: Sequence[Step], batch_size: int, seed: int, part: slice, number: int
) -> Delivery:
    """A process's part of training batch `number`: a function of (seed, number) alone."""
    records = np.arange(number * batch_size, (number + 1) * batch_size)[part]
    epochs, positions = np.divmod(records, len(source))
    indices = draws.permute(positions, len(source), draws.record_seeds(seed, STREAMS["shuffle"], epochs))
    found = read_batch(source, steps, indices, draws.record_seeds(seed, STREAMS["train"], records))
    return found._replace(fields={name: values for name, values in found.fields.items() if name != CORRUPT})


def read_evaluation(
    source: Source, steps: Sequence[Step], batch_size: int, split: str, part: slice, number: int
) -> Delivery:
    """A process's part of evaluation batch `number`, with a `weight` of 0 for rows that fill it up or are corrupt."""
    stream = STREAMS.get(split, sum(map(ord, split)) + 2**16)
    numbers = np.arange(number * batch_size, (number + 1) * batch_size)[part]
    indices = np.minimum(numbers, len(source) - 1)
    found = read_batch(source, steps, indices, draws.record_seeds(0, stream, indices))
    fields = dict(found.fields)
    good = fields.pop(CORRUPT, np.full(len(numbers), "", object)) == ""
    return found._replace(fields=fields | {"weight": ((numbers < len(source)) & good).astype(np.float32)})


def training_batches(
    read: Read,
    corrupt: Mapping[str, CorruptRecords],
    *,
    start: int = 0,
    workers: int = 0,
    timing: Timing | None = None,
) -> Generator[dict[str, Any], None, None]:
    """Batches `read(start)`, `read(start + 1)` and so on for ever.

    Because each is a function of its number, the position of the data is the number of batches consumed and nothing
    else need be stored, and batches are the same whatever the number of workers.

    Args:
        read: gives the batch of a number; with workers it must survive pickling.
        corrupt: by member of a mixture ('' where there is none), counts corrupt records.
        start: number of the first batch.
        workers: processes that make batches; 0 is a thread of this process.
        timing: told what each batch cost.
    """
    with contextlib.closing(deliveries(read, range(start, start + ENDLESS), workers, threads=1)) as found:
        yield from accepted(found, corrupt, timing)


def evaluation_batches(
    read: Read, corrupt: CorruptRecords, count: int, *, workers: int = 0
) -> Generator[dict[str, Any], None, None]:
    """Batches 0 .. count - 1.

    They are made by as many threads as there are workers in training: processes would take seconds to start.
    """
    with contextlib.closing(deliveries(read, range(count), 0, threads=max(1, workers))) as found:
        yield from accepted(found, {"": corrupt}, None)


def accepted(
    found: Iterable[Delivery], corrupt: Mapping[str, CorruptRecords], timing: Timing | None
) -> Iterator[dict[str, Any]]:
    """The batches alone, once what came with them is noted."""
    for delivery in found:
        corrupt[delivery.member].add(delivery.corrupt)
        if timing is not None:
            timing.add_stages(delivery.seconds)
        yield delivery.fields


def deliveries(read: Read, numbers: range, workers: int, threads: int) -> Generator[Delivery, None, None]:
    """`read` of every number, in order and some ahead, in worker processes or in threads of this process."""
    import grain  # half a second to import: only where data is loaded
    from absl import flags

    dataset = grain.MapDataset.range(numbers.start, numbers.stop).map(read)
    if workers:
        if not flags.FLAGS.is_parsed():  # grain's workers read flags of absl, and this program takes its own
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=WORKER_BUFFER)
        in_worker = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        batches = iter(in_worker.mp_prefetch(options, worker_init_fn=start_worker))
    else:
        batches = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=PREFETCH)))
    with contextlib.closing(batches):
        yield from batches


def start_worker(index: int, count: int) -> None:
    """Prepares a worker process: it leaves Ctrl-C and SIGTERM to its parent, and does not outlive it.

    A scheduler signals all processes of a job, and the parent needs batches until it has saved.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)


def process_part(batch_size: int) -> slice:
    """Which rows of a batch this process reads."""
    count, index = jax.process_count(), jax.process_index()
    return slice(index * batch_size // count, (index + 1) * batch_size // count)


def to_device(
    batches: Iterable[Any], sharding: Callable[[np.ndarray], Any], ahead: int = 2, timing: Timing | None = None
) -> Iterator[Any]:
    """Moves batches to the devices `ahead` steps before they are asked for; gives (host batch, device batch).

    Text stays on the host.
    """
    timing = timing or Timing()
    batches = iter(batches)
    on_cpu = jax.default_backend() == "cpu"

    def put(x: np.ndarray) -> jax.Array:
        # On a CPU jax computes on the array's own memory, and a worker's shared memory must not be in use at the end.
        x = np.array(x) if on_cpu and type(x) is not np.ndarray else x
        return jax.make_array_from_process_local_data(sharding(x), x)

    def fetched(count: int) -> Iterator[tuple[Any, Any]]:
        for _ in range(count):
            with timing.in_queue():
                batch = next(batches, None)
            if batch is None:
                return
            with timing.in_transfer():
                on_device = jax.tree.map(put, without_text(batch))
            yield batch, on_device

    queue = collections.deque(fetched(ahead))
    while queue:
        yield queue.popleft()
        queue.extend(fetched(1))


def without_text(batch: Any) -> Any:
    """A batch without the fields that hold strings."""
    if isinstance(batch, Mapping):
        return {name: without_text(value) for name, value in batch.items() if not _is_text_field(value)}
    return batch


def _is_text_field(value: Any) -> bool:
    return isinstance(value, np.ndarray) and is_text(value)
