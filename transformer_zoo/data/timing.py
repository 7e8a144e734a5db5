"""Where the time of data goes: which stage makes a step wait, and for how long."""

import collections
import contextlib
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

PREPARING = "batch: "  # begins the name of what makes or moves a batch in a profiler's trace


class Timing:
    """Adds up what the consumed batches cost, and how long the devices stood idle for want of the next one.

    A loop takes batches within `waiting()` and hands what each step returned to `dispatched()`. A wait counts from the
    moment when the devices had finished the step before: while they still compute, nothing is lost.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._finished: Future[float] | None = None  # when the devices finish the latest step
        self.reset()

    def reset(self) -> None:
        """Forgets what was added up so far."""
        self._stages: collections.Counter[str] = collections.Counter()  # seconds of reading and transforms
        self._queue = self._transfer = 0.0  # seconds that the loop's thread waited for a batch, and moved it
        self._waits: list[tuple[float, float, Future[float] | None]] = []

    def add_stages(self, seconds: Mapping[str, float]) -> None:
        """Seconds that one batch cost, by stage, wherever it was made."""
        self._stages.update(seconds)

    @contextlib.contextmanager
    def in_queue(self) -> Iterator[None]:
        """Around taking a batch from whoever makes it."""
        start = time.perf_counter()
        yield
        self._queue += time.perf_counter() - start

    @contextlib.contextmanager
    def in_transfer(self) -> Iterator[None]:
        """Around moving a batch to the devices."""
        start = time.perf_counter()
        with jax.profiler.TraceAnnotation(f"{PREPARING}transfer"):
            yield
        self._transfer += time.perf_counter() - start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what the loop does to get its next batch."""
        start = time.perf_counter()
        yield
        self._waits.append((start, time.perf_counter(), self._finished))

    def dispatched(self, results: Any) -> None:
        """Takes the arrays that a step will compute; another thread notes when they are there."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="step-end")
        self._finished = self._executor.submit(_time_of, results)

    def waited(self) -> dict[str, float]:
        """Seconds that devices stood idle since the last call, by the stage to blame.

        What the loop's thread spent on moving batches counts for 'transfer'; what it waited for batches is split over
        'read' and the transforms as their work is. Waits after a step that has not finished are left out.
        """
        idle = 0.0
        for start, end, finished in self._waits:
            if finished is None or finished.done():
                idle += max(0.0, end - max(start, finished.result() if finished else start))
        work, thread = self._stages.total(), self._queue + self._transfer
        found = {"transfer": idle * self._transfer / thread if thread else 0.0}
        stages = self._stages if work else {"read": 1.0}
        for name, seconds in stages.items():
            found[name] = (idle - found["transfer"]) * seconds / (work or 1.0)
        self.reset()
        return found


def _time_of(results: Any) -> float:
    with contextlib.suppress(Exception):  # an error of the step is told by whoever reads its results
        jax.block_until_ready(results)
    return time.perf_counter()
