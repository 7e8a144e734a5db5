"""A plan for people: lines on the screen, and one self-contained page."""

import html
from collections.abc import Sequence
from pathlib import Path

from transformer_zoo.training.planner.plans import Plan
from transformer_zoo.training.report_page import card, number, section, tiles, write_page

SHOWN = 12  # settings of a search


def describe(made: Plan) -> str:
    """What a plan says, in lines."""
    total = sum(made.memory.values())
    lines = [
        f"{made.devices} x {made.target.chip.kind}, mesh {shown_mesh(made)}, batch {made.batch_size}, {made.method}",
        f"memory     {gib(total)} of {gib(made.memory_limit)} GiB a device: "
        + ", ".join(f"{name} {gib(size)}" for name, size in made.memory.items() if size),
        f"work       {made.model_flops:.4g} useful FLOPs a step, {made.executed_flops:.4g} with what is recomputed; "
        f"{gib(made.memory_traffic)} GiB a device through memory",
        "links      " + ("; ".join(shown_collectives(made)) or "nothing"),
        "roofline   " + ", ".join(f"{name} {1e3 * seconds:.4g} ms" for name, seconds in made.times.items()),
        f"step       at least {1e3 * made.step_seconds:.4g} ms, bound by {made.bound_by}; at most "
        f"{made.batch_size / made.step_seconds:,.0f} examples/s; MFU at most {100 * made.mfu_bound:.0f} %",
        f"budget     {made.total_steps:,} steps take at least {duration(made.days)}",
    ]
    if made.replicated:
        lines.append(f"replicated {', '.join(made.replicated)}")
    if made.fields:
        lines.append("recommended " + " ".join(f"--config.{name}={value}" for name, value in made.fields.items()))
    return "\n".join(lines)


def write(made: Plan, others: Sequence[Plan], title: str, workdir: Path) -> Path:
    """Writes WORKDIR/plan.html."""
    facts = {
        "of a step, at least": f"{1e3 * made.step_seconds:.4g} ms",
        f"to {made.total_steps:,} steps, at least": duration(made.days),
        "MFU, at most": f"{100 * made.mfu_bound:.0f} %",
        "memory a device": f"{gib(sum(made.memory.values()))} of {gib(made.memory_limit)} GiB",
        f"{made.target.chip.kind}, {made.method}": f"{made.devices} devices",
        "mesh": shown_mesh(made),
    }
    memory = table(("Memory a device", "GiB"), [(name, gib(size)) for name, size in made.memory.items()])
    times = table(("Limit of a step", "ms"), [(name, f"{1e3 * value:.4g}") for name, value in made.times.items()])
    links = table(("Communication a step", ""), [tuple(line.split(": ", 1)) for line in shown_collectives(made)])
    body = (
        f"<header><h1>{html.escape(title)}</h1><p class=lead>plan for {html.escape(made.target.name)}</p></header>"
        + tiles(facts.items())
        + section("Where the time goes", card(times))
        + section("Where the memory goes", card(memory))
        + section("What travels", card(links) if made.collectives else "")
        + section("Large parameters that stay whole", card("<br>".join(map(html.escape, made.replicated))))
        * bool(made.replicated)
        + section("Settings tried, by shapes", card(tried(others)) if others else "")
    )
    return write_page(workdir, title, body, "plan.html")


def tried(others: Sequence[Plan]) -> str:
    """A table of the best settings of a search."""
    rows = [
        (
            " ".join(f"{name}={value}" for name, value in other.fields.items()),
            f"{1e3 * other.step_seconds:.4g}",
            other.bound_by,
            gib(sum(other.memory.values())) + ("" if other.fits else " (too much)"),
        )
        for other in others[:SHOWN]
    ]
    return table(("Setting", "ms a step", "bound by", "GiB a device"), rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table, figures on the right."""

    def line(cells: Sequence[str], kind: str) -> str:
        first, *rest = (html.escape(cell) for cell in cells)
        return f"<tr><{kind}>{first}" + "".join(f"<{kind} class=figure>{cell}" for cell in rest) + "</tr>"

    return "<table>" + line(head, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def shown_mesh(made: Plan) -> str:
    """'data 2 x fsdp 8'."""
    return " x ".join(f"{axis} {size}" for axis, size in made.mesh.items())


def shown_collectives(made: Plan) -> list[str]:
    """A line a kind and group size, what sends most in front."""
    sums: dict[tuple[str, int], list[float]] = {}
    for found in made.collectives:
        entry = sums.setdefault((found.kind, found.devices), [0.0, 0.0])
        entry[0] += found.times
        entry[1] += found.sent
    ordered = sorted(sums.items(), key=lambda item: -item[1][1])
    return [
        f"{kind} among {devices}: {times:,.0f} times, {number(sent / 2**20)} MiB sent a device"
        for (kind, devices), (times, sent) in ordered
    ]


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f"{size / 2**30:,.2f}"


def duration(days: float) -> str:
    """Days, or hours and minutes where there are few."""
    if days >= 2:
        return f"{days:,.1f} days"
    hours = days * 24
    return f"{hours:.1f} hours" if hours >= 2 else f"{hours * 60:.1f} minutes"
