"""Where the time of a step goes: a trace of some steps for Perfetto, and one page that sums it up.

    python train.py --config=configs/vit.py --profile

Operations are counted by their own time (what runs inside of them is theirs no more), summed over the devices and
threads that run them, and grouped by pass and by the part of the network that asked for them, which the compiler notes
beside each operation. Beside them stands how much of the work on batches was done while the devices computed: what is
left is time they may have waited. Batches made by worker processes show up by their way to the devices alone.
"""

import collections
import contextlib
import dataclasses
import html
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from transformer_zoo.data.timing import PREPARING
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.planner.page import table
from transformer_zoo.training.planner.programs import read_program
from transformer_zoo.training.report_page import card, section, tiles, write_page

WARM, MEASURED = 10, 10  # steps before the trace, and in it
SHOWN = 25
_WRAPPERS = re.compile(
    r"jit\(.*\)|while|body|cond|closed_call|checkpoint|remat\w*|rematted_computation|branch_\d+_fun|pjit"
)


class Measured(Exception):
    """Ends training when the trace is written."""


@dataclasses.dataclass
class Profiler:
    """Traces steps `WARM` to `WARM + MEASURED` of a run that starts at step 0.

    Attributes:
        folder: of the trace.
        seconds: wall time of the traced steps, once they are done.
    """

    folder: Path
    seconds: float = 0.0
    _begun: float = 0.0

    def at(self, step: int, state: Any) -> None:
        """Called by the loop before each step, with the state that the step before computes."""
        if step == WARM:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self.folder), create_perfetto_trace=True)
            self._begun = time.perf_counter()
        elif step == WARM + MEASURED:
            jax.block_until_ready(state)
            self.seconds = time.perf_counter() - self._begun
            jax.profiler.stop_trace()
            raise Measured


def profile(train: Callable[[Profiler], Any], program: Callable[[], str], workdir: Path, title: str) -> Path:
    """Runs `train` until it is measured, and writes WORKDIR/profile.html.

    Args:
        train: trains with a profiler; its run lies below `workdir`.
        program: the text of the compiled step.
        workdir: where the page and the trace go.
        title: of the page.

    Raises:
        UserError: the run ended before enough steps were done.
    """
    folder = workdir / "trace"
    shutil.rmtree(folder, ignore_errors=True)
    profiler = Profiler(folder)
    with contextlib.suppress(Measured):
        train(profiler)
    if not profiler.seconds:
        raise UserError(f"--profile takes {WARM + MEASURED} steps, but the run has fewer: raise config.total_steps")
    (file,) = folder.rglob("*.xplane.pb")
    trace = jax.profiler.ProfileData.from_file(str(file))
    (perfetto,) = folder.rglob("perfetto_trace.json.gz")
    return write(
        own_times(trace), overlap(trace), places(program()), profiler.seconds / MEASURED, perfetto, workdir, title
    )


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Seconds a step, each moment counted once however many threads or devices share it.

    Attributes:
        computing: in which a device computed.
        preparing: in which batches were made or moved.
        hidden: in which both happened.
    """

    computing: float
    preparing: float
    hidden: float


def overlap(data: Any) -> Overlap:
    """How far preparing batches hides behind the devices' work."""
    computing, preparing = [], []
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                span = (event.start_ns, event.start_ns + event.duration_ns)
                if event.name.startswith(PREPARING):
                    preparing.append(span)
                elif any(name == "hlo_op" for name, _ in event.stats):
                    computing.append(span)
    return overlap_of(computing, preparing)


def overlap_of(computing: Iterable[tuple[float, float]], preparing: Iterable[tuple[float, float]]) -> Overlap:
    """`overlap` of spans (begin, end) in nanoseconds."""
    first, second = merged(computing), merged(preparing)
    lengths = [sum(end - begin for begin, end in spans) for spans in (first, second, merged(first + second))]
    computed, prepared, either = (length / 1e9 / MEASURED for length in lengths)
    return Overlap(computed, prepared, computed + prepared - either)


def merged(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The moments that lie in any of the spans, as spans that do not meet."""
    found: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def own_times(data: Any) -> dict[str, float]:
    """Seconds a step of every operation of the compiled program: its own, without what runs inside of it."""
    found: dict[str, float] = collections.defaultdict(float)
    for plane in data.planes:
        for line in plane.lines:
            events = []
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats and not event.name.startswith("end: "):
                    events.append((event.start_ns, event.duration_ns, str(stats["hlo_op"])))
            for name, duration in without_inner(events):
                found[name] += duration / 1e9 / MEASURED
    return dict(found)


def without_inner(events: Iterable[tuple[float, float, str]]) -> Iterator[tuple[str, float]]:
    """(name, own time) of events (start, duration, name) of one thread, some of which lie inside of others."""
    stack: list[list[Any]] = []  # [end, name, own time]
    for start, duration, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while stack and stack[-1][0] <= start:
            yield stack[-1][1], stack.pop()[2]
        if stack:
            stack[-1][2] -= duration
        stack.append([start + duration, name, duration])
    for _, name, own in stack:
        yield name, own


def places(program: str) -> dict[str, tuple[str, str]]:
    """(pass, part of the network) of every operation of a compiled program."""
    computations, _ = read_program(program)
    found = {}
    for instructions in computations.values():
        for instruction in instructions.values():
            noted = re.search(r'op_name="([^"]*)"', instruction.rest)
            found[instruction.name] = place(noted.group(1)) if noted else ("not noted", instruction.operation)
    return found


def place(name: str) -> tuple[str, str]:
    """'jit(step)/transpose(jvp(ViT))/while/body/Block_0/mlp/up/dot_general' is ('backward', 'Block_0/mlp/up')."""
    which = "backward" if "transpose(" in name else "forward" if "jvp(" in name else "update and metrics"
    parts = [part for part in name.split("/")[:-1] if not _WRAPPERS.fullmatch(part)]
    parts = [re.sub(r"^(transpose\()?jvp\(([^()]*)\)+$", r"\2", part) for part in parts]
    inner = [part for part in parts if part]
    return which, "/".join(inner[-3:]) or name.rpartition("/")[2]


def longest(seconds: Mapping[Any, float]) -> list[tuple[Any, float]]:
    """What took longest, in order."""
    return sorted(seconds.items(), key=lambda item: -item[1])[:SHOWN]


def write(
    own: Mapping[str, float],
    both: Overlap,
    where: Mapping[str, tuple[str, str]],
    step_seconds: float,
    perfetto: Path,
    workdir: Path,
    title: str,
) -> Path:
    """Writes WORKDIR/profile.html."""
    total = sum(own.values()) or 1.0
    passes: dict[str, float] = collections.defaultdict(float)
    parts: dict[tuple[str, str], float] = collections.defaultdict(float)
    for name, seconds in own.items():
        which, part = where.get(name, ("not noted", name))
        passes[which] += seconds
        parts[which, part] += seconds

    def row(*cells: str, seconds: float) -> tuple[str, ...]:
        return (*cells, f"{1e3 * seconds:,.3f}", f"{100 * seconds / total:.1f} %")

    lists = {
        "By pass": (("Pass",), [row(name, seconds=s) for name, s in longest(passes)]),
        "By part of the network": (("Part", "pass"), [row(p, w, seconds=s) for (w, p), s in longest(parts)]),
        "By operation": (
            ("Operation", "part", "pass"),
            [row(name, *reversed(where.get(name, ("not noted", ""))), seconds=s) for name, s in longest(own)],
        ),
    }
    facts = [
        ("a step, wall time", f"{1e3 * step_seconds:,.4g} ms"),
        ("in operations, all devices and threads", f"{1e3 * total:,.4g} ms"),
        ("in which a device computed", f"{1e3 * both.computing:,.4g} ms"),
        ("in which batches were prepared", f"{1e3 * both.preparing:,.4g} ms"),
        ("of that, while a device computed", f"{100 * both.hidden / (both.preparing or 1):.3g} %"),
        ("steps traced", str(MEASURED)),
    ]
    body = f"<header><h1>{html.escape(title)}</h1><p class=lead>where the time of a step goes</p></header>" + tiles(
        facts
    )
    for heading, (head, rows) in lists.items():
        body += section(heading, card(table((*head, "ms a step", "share"), rows)))
    where_trace = html.escape(str(perfetto))
    body += section("The trace", card(f"Open <code>{where_trace}</code> in Perfetto's viewer (ui.perfetto.dev)."))
    return write_page(workdir, title, body, "profile.html")
