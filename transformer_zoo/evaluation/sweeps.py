"""Grids of settings for one checkpoint (steps, guidance, temperature) and what they gave, as a table and a picture."""

import ast
import csv
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Number = int | float

# What a figure costs: the x axis of the trade-off, never a metric of its own.
_COSTS = ("seconds", "calls", "flops", "parameters", "bytes")
# Judged by the words of a name; all other metrics are better the higher they are. Axis labels show the direction.
# fmt: off
_LOWER_IS_BETTER = {
    "bits", "bpd", "cost", "distance", "divergence", "error", "fad", "fd", "fid", "fvd", "kl", "loss", "lpips", "mae",
    "mse", "nll", "perplexity", "rfid", "rmse",
}
# fmt: on


def parse_sweep(text: str) -> list[dict[str, Any]]:
    """The grid of 'sampling.steps=4,8,16;sampling.guidance_scale=1,3' as overrides, the last field fastest.

    Values are JSON or Python literals ([1,2], true, "a, b", 1e-3); a bare word is a string.

    Raises:
        ValueError: names the part that is not 'field=value,value'.
    """
    grid: dict[str, list[Any]] = {}
    for part in _split(text, ";"):
        field, equals, values = part.partition("=")
        field = field.strip()
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", field):
            raise ValueError(f"sweep part {part!r} is not of the form field=value,value")
        if field in grid:
            raise ValueError(f"sweep names field {field!r} twice")
        grid[field] = [_parse_value(value, part) for value in _split(values, ",")]
    return [dict(zip(grid, combination)) for combination in itertools.product(*grid.values())]


def _split(text: str, separator: str) -> list[str]:
    """Splits outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == separator and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _parse_value(text: str, part: str) -> Any:
    text = text.strip()
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError):
            continue
    if re.fullmatch(r"[A-Za-z_][\w./:+-]*", text):
        return text
    raise ValueError(f"value {text!r} in sweep part {part!r} is neither a number, a literal nor a word")


def write_sweep(folder: Path, rows: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> None:
    """Writes sweep.csv, sweep.json and sweep.png.

    The picture has one panel a metric, a line over the first field for every combination of the others, and where there
    is a cost ('calls', 'seconds', ...) or a second metric a panel of the trade-off with its Pareto front.

    Args:
        folder: created if missing.
        rows: one flat dict a setting: overrides and figures. A figure that is missing or not finite leaves a gap.
        fields: the overrides among the keys, the first one becomes the x axis; all other keys are figures.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys([*fields, *(key for row in rows for key in row)]))
    table = [{key: _plain(row.get(key)) for key in columns} for row in rows]
    (folder / "sweep.json").write_text(json.dumps(table, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    with (folder / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(
            {key: json.dumps(value) if isinstance(value, (list, dict)) else value for key, value in row.items()}
            for row in table
        )
    _plot(folder / "sweep.png", table, list(fields), [key for key in columns if key not in fields])


def _plain(value: Any) -> Any:
    """A value JSON knows: numpy scalars as Python's, numbers that are not finite as None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z]+", name.lower()))


def _direction(name: str) -> int:
    """1 where higher is better, -1 where lower is."""
    return -1 if _words(name) & {*_LOWER_IS_BETTER, *_COSTS} else 1


def _labelled(name: str) -> str:
    return f"{name} {'↑' if _direction(name) > 0 else '↓'}"


def pareto_front(points: Sequence[tuple[Number, Number]], directions: tuple[int, int]) -> list[int]:
    """Indices of the points that no other one beats in both coordinates, in order of the first one.

    Directions: 1 where higher is better, -1 where lower is.
    """
    order = sorted(range(len(points)), key=lambda i: (-directions[0] * points[i][0], -directions[1] * points[i][1]))
    front: list[int] = []
    for index in order:
        if not front or directions[1] * points[index][1] > directions[1] * points[front[-1]][1]:
            front.append(index)
    return sorted(front, key=lambda i: points[i][0])


def _plot(path: Path, rows: list[dict[str, Any]], fields: list[str], figures: list[str]) -> None:
    from matplotlib.figure import Figure

    numeric = [name for name in figures if any(_is_number(row[name]) for row in rows)]
    costs = [name for name in numeric if _words(name) & set(_COSTS)]
    metrics = [name for name in numeric if name not in costs] or costs
    if costs and metrics != costs:
        trades = [(costs[0], metric) for metric in metrics]
    else:
        trades = [(metrics[0], metrics[1])] if len(metrics) > 1 else []
    if not metrics:
        raise ValueError(f"a sweep needs a numeric figure beside its fields {fields}, but its columns are {figures}")
    width = min(len(metrics), 3)
    metric_rows, trade_rows = -(-len(metrics) // width), -(-len(trades) // width)
    figure = Figure(figsize=(4.6 * width, 3.5 * (metric_rows + trade_rows) + 0.4), layout="constrained")
    axes = figure.subplots(metric_rows + trade_rows, width, squeeze=False)
    for axis in axes.ravel():
        axis.set_visible(False)
    for axis, metric in zip(axes[:metric_rows].ravel(), metrics):
        _plot_metric(_prepared(axis), rows, fields, metric)
    for axis, (cost, metric) in zip(axes[metric_rows:].ravel(), trades):
        _plot_trade(_prepared(axis), rows, fields, cost, metric)
    if len(fields) > 1:
        lines, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside lower center", ncols=width, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130, bbox_inches="tight")


def _prepared(axis: Any) -> Any:
    axis.set_visible(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    return axis


def _doubling_scale(axis: Any, values: Sequence[Number]) -> None:
    """A log scale with plain numbers where positive values span three doublings or more."""
    if values and min(values) > 0 and max(values) >= 8 * min(values):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()


def _plot_metric(axis: Any, rows: list[dict[str, Any]], fields: list[str], metric: str) -> None:
    x_field, *others = fields
    values = [row[x_field] for row in rows]
    continuous = all(_is_number(value) for value in values)
    names = list(dict.fromkeys(map(str, values)))
    lines: dict[str, list[tuple[Number, Number]]] = {}
    for row, value in zip(rows, values):
        label = ", ".join(f"{other.rpartition('.')[2]}={row[other]}" for other in others)
        x = value if continuous else names.index(str(value))
        lines.setdefault(label, []).append((x, row[metric] if _is_number(row[metric]) else math.nan))
    for label, points in lines.items():
        axis.plot(*zip(*sorted(points, key=lambda point: point[0])), marker="o", markersize=4, label=label)
    if continuous:
        _doubling_scale(axis, values)
    else:
        axis.set_xticks(range(len(names)), names)
    axis.set_xlabel(x_field)
    axis.set_ylabel(_labelled(metric))


def _plot_trade(axis: Any, rows: list[dict[str, Any]], fields: list[str], cost: str, metric: str) -> None:
    rows = [row for row in rows if _is_number(row[cost]) and _is_number(row[metric])]
    points = [(row[cost], row[metric]) for row in rows]
    front = pareto_front(points, (_direction(cost), _direction(metric)))
    axis.plot([x for x, _ in points], [y for _, y in points], "o", color="0.65", markersize=4)
    axis.plot([points[i][0] for i in front], [points[i][1] for i in front], "o-", color="C3", markersize=5)
    below = _direction(metric) > 0  # the front rises to the right there, so labels stand clear of it below
    for index in front:
        label = ", ".join(str(rows[index][field]) for field in fields)
        axis.annotate(label, points[index], (6, -10 if below else 4), textcoords="offset points", fontsize=7)
    _doubling_scale(axis, [x for x, _ in points])
    axis.margins(x=0.12)
    axis.set_title("Pareto front", fontsize=9, color="C3")
    axis.set_xlabel(_labelled(cost))
    axis.set_ylabel(_labelled(metric))
