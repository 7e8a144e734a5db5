"""The folder of a run: one process at a time, one config for good; and the wish to stop."""

import contextlib
import fcntl
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from transformer_zoo.training.config import FREE_FIELDS, differences, to_json
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.processes import is_primary, stop_agreed


@contextlib.contextmanager
def claimed(workdir: Path, config: Any) -> Iterator[None]:
    """Holds a workdir for this process and writes config.json.

    Raises:
        UserError: another process holds it, or it belongs to a run with another config.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if not is_primary():
        yield
        return
    with (workdir / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "(unknown)"
            raise UserError(f"{workdir} is in use by process {holder}; wait or choose another --workdir") from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        write_config(workdir, config)
        yield


def write_config(workdir: Path, config: Any) -> None:
    """Writes config.json, or raises UserError where the workdir belongs to a run with another config."""
    file, new = workdir / "config.json", to_json(config)
    if file.exists():
        old = json.loads(file.read_text())
        changed = differences(old, new)
        fixed = [text for text in changed if not {(path := text.split(":")[0]), path.split(".")[0]} & set(FREE_FIELDS)]
        if fixed:
            raise UserError(
                f"{workdir} holds a run with another config ({'; '.join(fixed[:6])}); choose another --workdir, or "
                "start from it with config.init_from"
            )
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(new, indent=1))
    temporary.rename(file)


class StopRequest:
    """Set by SIGTERM; read by the loop between steps."""

    requested = False

    def at(self, step: int) -> bool:
        """Whether the run stops at this step; asked at every step. Several processes stop at the same one."""
        self.requested = stop_agreed(step) if jax.process_count() > 1 else self.requested
        return self.requested


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """SIGTERM asks the loop to save and leave at the next step."""
    stop = StopRequest()
    if jax.process_count() > 1:  # the processes tell each other, and listen for the signal themselves
        yield stop
        return

    def handle(signum: int, frame: Any) -> None:
        stop.requested = True

    try:
        before = signal.signal(signal.SIGTERM, handle)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
