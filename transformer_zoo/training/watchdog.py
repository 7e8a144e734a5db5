"""Stops a run that hangs: a lost device or process leaves a step that never ends, and no error."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator

STALLED = 75  # exit status; EX_TEMPFAIL of sysexits.h: the same command may work again


class Watchdog:
    """Prints the stacks of all threads and ends the process once `beat` was not called for so many seconds.

    Args:
        seconds: longest time between two beats; 0 never barks.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = time.monotonic()
        self._resting = 0
        self._done = threading.Event()

    def beat(self) -> None:
        """A step has ended."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Around what may take long: compiling, evaluating, saving."""
        self._resting += 1
        try:
            yield
        finally:
            self.beat()
            self._resting -= 1

    def start(self) -> None:
        """Begins to watch."""
        self.beat()
        if self._seconds:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def stop(self) -> None:
        """Watches no more."""
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(min(self._seconds / 4, 10.0)):
            if not self._resting and time.monotonic() - self._last > self._seconds:
                print(
                    f"error: no step ended for {self._seconds:g} s (config.log.stall_seconds). The newest checkpoint "
                    "is kept; every thread stands here:",
                    file=sys.stderr,
                )
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                sys.stderr.flush()
                os._exit(STALLED)
