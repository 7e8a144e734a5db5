"""One self-contained page about a run: figures, samples, curves, config, hardware; nothing is loaded from elsewhere."""

import base64
import html
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformer_zoo.training.reporting import read_metrics, write_file

Number = int | float
Series = tuple[list[int], list[Number | None]]  # steps and values; None where a value was not finite

_MAX_POINTS = 500
_SPEED = {"examples_per_second": "examples per second", "step_seconds": "seconds per step", "mfu": "MFU"}
_OPTIMISATION = re.compile(r"learning_rate|(grad|gradient|param|update)_norm")
_LINEAR = re.compile(r"learning_rate|accuracy|mfu|per_second")  # never on a log scale
_MEDIA = {"png": "image/png", "gif": "image/gif", "wav": "audio/wav", "txt": "text/plain"}  # in order of appearance
_COLORS = 6

_STYLE = """
:root { color-scheme: light dark;
  --page: #fbfbfa; --card: #fff; --ink: #1c2024; --quiet: #687076; --line: #e4e6e8; --wash: #f1f3f5; --warn: #b42318;
  --s0: #2b6cb0; --s1: #d9730d; --s2: #2f855a; --s3: #9f46b5; --s4: #c53030; --s5: #6b7280 }
@media (prefers-color-scheme: dark) { :root {
  --page: #121416; --card: #1a1d20; --ink: #e8eaec; --quiet: #9aa3ab; --line: #2c3135; --wash: #22272b; --warn: #ff8a7a;
  --s0: #6cb2f7; --s1: #f6a350; --s2: #63d296; --s3: #d191e6; --s4: #ff8f8f; --s5: #a9b1b8 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font-variant-numeric: tabular-nums;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 64px }
h1 { font-size: 28px; line-height: 1.2; letter-spacing: -.015em; margin: 0 }
h2 { font-size: 19px; letter-spacing: -.01em; margin: 44px 0 14px }
h3 { font-size: 14px; font-weight: 600; margin: 0; overflow-wrap: anywhere }
.stage { border-top: 1px solid var(--line); margin-top: 56px; padding-top: 28px }
.stage > h2 { font-size: 23px; margin-top: 0 }
.stage > section > h2 { font-size: 17px; margin-top: 32px }
.quiet { color: var(--quiet) }
.warn { color: var(--warn); font-size: 12px }
.lead { margin: 6px 0 0; color: var(--quiet) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; margin-top: 24px }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px }
.tile { padding: 12px 16px }
.tile b { display: block; font-size: 20px; font-weight: 600; letter-spacing: -.01em; overflow-wrap: anywhere }
.tile span { color: var(--quiet); font-size: 12.5px }
.card { padding: 14px 16px; min-width: 0 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100% }
th { text-align: left; font-weight: 500; color: var(--quiet); font-size: 12.5px }
th, td { padding: 7px 18px 7px 0; border-bottom: 1px solid var(--line); white-space: nowrap }
tr:last-child td { border-bottom: 0 }
td.wrap { white-space: normal }
td.strong { font-weight: 650 }
.figure { text-align: right }
a { color: var(--s0); text-decoration: none }
a:hover { text-decoration: underline }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)); gap: 14px }
.legend { display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 12.5px; color: var(--quiet); min-height: 19px }
.legend b { color: var(--ink); font-weight: 600 }
.legend i { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 5px }
svg { display: block; width: 100%; height: auto; margin-top: 6px }
svg text { fill: var(--quiet); font-size: 11px }
svg path { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round }
svg .faint { stroke-width: 1; opacity: .3 }
svg .grid { stroke: var(--line); stroke-width: 1 }
.samples { display: grid; align-items: start; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(520px, 100%), 1fr)) }
.pair { display: flex; flex-wrap: wrap; gap: 16px; margin-top: 10px; align-items: flex-start }
figure { margin: 0; min-width: 0 }
figure.latest { flex: 2 1 300px }
figure.first { flex: 1 1 150px }
figcaption { font-size: 12.5px; color: var(--quiet); margin-bottom: 5px }
figure img { display: block; max-width: 100%; height: auto; border-radius: 4px }
figure.latest img { min-width: min(100%, 300px) }
audio { width: 100%; height: 36px }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 380px; overflow-y: auto;
  background: var(--wash); border-radius: 6px; padding: 10px 12px }
pre, details { font: 12.5px/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
details details, .leaf { margin-left: 18px }
summary { cursor: pointer }
.leaf { overflow-wrap: anywhere }
.leaf span { color: var(--quiet) }
"""


def write_report(workdir: Path) -> Path:
    """Writes WORKDIR/report.html from config.json, run.json, metrics.jsonl and samples/ (any may be absent)."""
    workdir = Path(workdir)
    run = _read_json(workdir / "run.json")
    title = str(run.get("title") or workdir.resolve().name)
    head = f"<header><h1>{html.escape(title)}</h1><p class=lead>{_progress(read_metrics(workdir), run)}</p></header>"
    return write_page(workdir, title, head + _run_body(workdir, run))


def write_stages_report(workdir: Path, stages: Sequence[tuple[str, Path]]) -> Path:
    """Writes WORKDIR/report.html of a run of several stages: a summary table, then every stage's own page."""
    workdir = Path(workdir)
    title = workdir.resolve().name
    rows, bodies = [], []
    for index, (name, folder) in enumerate(stages):
        run = _read_json(Path(folder) / "run.json")
        lines = read_metrics(folder)
        progress = _progress(lines, run)
        figures = ", ".join(f"{key} <b>{number(values[-1])}</b>" for key, (_, values) in _held_out(lines).items())
        rows.append(
            f"<tr><td><a href='#stage{index}'>{html.escape(name)}</a></td><td>{progress}</td>"
            f"<td class=figure>{_duration(run.get('train_seconds'))}</td>"
            f"<td class=wrap>{figures or '<span class=quiet>none</span>'}</td></tr>"
        )
        bodies.append(
            f"<section class=stage id=stage{index}><h2>{html.escape(name)}</h2>"
            f"<p class=lead>{progress}</p>{_run_body(Path(folder), run)}</section>"
        )
    names = " → ".join(html.escape(name) for name, _ in stages)
    head = f"<header><h1>{html.escape(title)}</h1><p class=lead>{names}</p></header>"
    columns = "<tr><th>Stage<th>Progress<th class=figure>Training time<th>Held-out figures</tr>"
    table = f"<section><h2>Stages</h2><div class='card scroll'><table>{columns}{''.join(rows)}</table></div></section>"
    return write_page(workdir, title, head + table + "".join(bodies))


def write_page(workdir: Path, title: str, body: str, file: str = "report.html") -> Path:
    """Writes one self-contained page with the project's style."""
    page = (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )
    path = workdir / file
    write_file(path, page.encode())
    return path


def _run_body(workdir: Path, run: Mapping[str, Any]) -> str:
    lines = read_metrics(workdir)
    panels = _panels(lines)
    speed = [name for name in panels if name in _SPEED]
    optimisation = [name for name in panels if _OPTIMISATION.search(name)]
    learning = [name for name in panels if name not in speed and name not in optimisation]
    learning.sort(key=lambda name: (name != "loss", "loss" not in name))
    config = _read_json(workdir / "config.json")
    return "".join(
        [
            _tiles(run, panels),
            section("Held-out figures", _final_table(_held_out(lines))),
            section("Samples", _samples(workdir / "samples")),
            section("Learning", _curves(panels, learning)),
            section("Optimisation", _curves(panels, optimisation)),
            section("Throughput", _curves(panels, speed)),
            section("Config", card(_tree("config.json", config, opened=False)) if config else ""),
            section("Hardware", _hardware(run)),
        ]
    )


def section(title: str, body: str) -> str:
    """A heading and what is below it; nothing where there is nothing below."""
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def card(body: str) -> str:
    """A framed part of a page."""
    return f"<div class='card scroll'>{body}</div>"


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _panels(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Series]]:
    """Metric name to split to series: a metric of several splits becomes one picture.

    Figures are the bare names of training lines and 'split/name' of the others; a summary line is neither.
    """
    panels: dict[str, dict[str, Series]] = {}
    for line in lines:
        split = line.get("split", "")
        for key, value in line.items():
            named = key.startswith(f"{split}/") or (split == "train" and key not in ("step", "split"))
            if named and isinstance(value, (int, float, type(None))):
                steps, values = panels.setdefault(key.removeprefix(f"{split}/"), {}).setdefault(split, ([], []))
                steps.append(line.get("step", 0))
                values.append(value)
    return panels


def _held_out(lines: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
    """'split/metric' to series, for all splits but 'train'."""
    evaluations = [line for line in lines if line.get("split", "train") != "train"]
    return {f"{split}/{name}": s for name, splits in _panels(evaluations).items() for split, s in splits.items()}


def _final_table(figures: Mapping[str, Series]) -> str:
    rows = []
    for name, (steps, values) in figures.items():
        finite = [value for value in values if value is not None]
        others = [values[0], min(finite, default=None), max(finite, default=None)] if len(values) > 1 else ["", "", ""]
        cells = "".join(f"<td class='figure quiet'>{number(value)}</td>" for value in others)
        rows.append(
            f"<tr><td>{html.escape(name)}</td><td class='figure strong'>{number(values[-1])}</td>"
            f"<td class='figure quiet'>{steps[-1]:,}</td>{cells}</tr>"
        )
    columns = "".join(f"<th class=figure>{name}" for name in ("Final", "Step", "First", "Lowest", "Highest"))
    return card(f"<table><tr><th>Metric{columns}</tr>{''.join(rows)}</table>") if rows else ""


def _tiles(run: Mapping[str, Any], panels: Mapping[str, Mapping[str, Series]]) -> str:
    facts = []
    if "train_seconds" in run:
        facts.append(("training time", _duration(run["train_seconds"])))
    typical = {}
    for name in _SPEED:
        finite = [value for _, values in panels.get(name, {}).values() for value in values if value is not None]
        if finite:
            typical[name] = statistics.median(finite)
    if "examples_per_second" in typical:
        facts.append(("examples per second", number(typical["examples_per_second"])))
    if "step_seconds" in typical:
        facts.append(("per step", f"{1000 * typical['step_seconds']:,.4g} ms"))
    if "mfu" in typical:
        facts.append(("model FLOPs utilisation", f"{100 * typical['mfu']:.1f} %"))
    if "device_kind" in run:
        facts.append(("devices", f"{run['devices']} × {run['device_kind']}"))
    return tiles(facts)


def tiles(facts: Iterable[tuple[str, str]]) -> str:
    """A row of small frames, each a value above its name."""
    body = "".join(
        f"<div class=tile><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>" for name, value in facts
    )
    return f"<div class=tiles>{body}</div>" if body else ""


def _hardware(run: Mapping[str, Any]) -> str:
    names = {"device_kind": "Device", "devices": "Devices", "processes": "Processes", "cpus": "CPU cores", "jax": "JAX",
             "python": "Python", "batch_size": "Batch size", "flops_per_step": "FLOPs per step",
             "peak_flops": "Peak FLOP/s of all devices (dense bfloat16)"}  # fmt: skip
    rows = "".join(
        f"<tr><td class=quiet>{label}</td><td>{html.escape(number(run[key]))}</td></tr>"
        for key, label in names.items()
        if run.get(key) is not None
    )
    return card(f"<table>{rows}</table>") if rows else ""


def _progress(lines: Sequence[Mapping[str, Any]], run: Mapping[str, Any]) -> str:
    if not lines:
        return "no step logged yet"
    step, total = max(line.get("step", 0) for line in lines), run.get("total_steps")
    return f"step {step:,} of {total:,}" if total else f"step {step:,}"


def _duration(seconds: Number | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def number(value: Any) -> str:
    """A figure as people read it."""
    if value is None:
        return "not finite"
    if not isinstance(value, (int, float)):
        return str(value)
    if abs(value) < 1e9 and (abs(value) >= 1000 or value == int(value)):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _curves(panels: Mapping[str, Mapping[str, Series]], names: Iterable[str]) -> str:
    others = dict.fromkeys(split for splits in panels.values() for split in splits if split != "train")
    colors = {split: f"var(--s{number % _COLORS})" for number, split in enumerate(["train", *others])}
    # A figure that was measured once, at the end, stands in the table and makes no curve.
    names = [name for name in names if "train" in panels[name] or any(len(y) > 1 for _, y in panels[name].values())]
    body = "".join(_panel(name, dict(sorted(panels[name].items(), key=_train_first)), colors) for name in names)
    return f"<div class=curves>{body}</div>" if body else ""


def _train_first(item: tuple[str, Series]) -> bool:
    return item[0] != "train"


def _panel(name: str, splits: Mapping[str, Series], colors: Mapping[str, str]) -> str:
    legend, lost = [], 0
    for split, (_, values) in splits.items():
        lost += values.count(None)
        color = f"<i style='background:{colors[split]}'></i>"
        legend.append(f"<span>{color}{html.escape(split)} <b>{number(values[-1])}</b></span>")
    warning = f"<div class=warn>{lost} not finite (not drawn)</div>" if lost else ""
    heading = f"<h3>{html.escape(_SPEED.get(name, name))}</h3><div class=legend>{''.join(legend)}</div>"
    return f"<div class=card>{heading}{_plot(name, splits, colors)}{warning}</div>"


def _plot(name: str, splits: Mapping[str, Series], colors: Mapping[str, str]) -> str:
    """An inline SVG whose colours follow the page."""
    width, height = 360, 210
    finite = {
        split: [(step, value) for step, value in zip(*series) if value is not None] for split, series in splits.items()
    }
    points = [point for series in finite.values() for point in series]
    if not points:
        return ""
    steps, values = zip(*points)
    log = not _LINEAR.search(name) and min(values) > 0 and max(values) > 100 * min(values)
    left, right, top, bottom = 46, width - 8, 8, height - 22
    x_low, x_high = min(steps), max(steps)
    scale = math.log10 if log else float
    y_low, y_high = scale(min(values)), scale(max(values))
    margin = 0.04 * (y_high - y_low) or 0.1 * abs(y_low) or 1.0
    y_low, y_high = y_low - margin, y_high + margin
    y_ticks = [10.0**tick for tick in _ticks(y_low, y_high) if tick == int(tick)] if log else _ticks(y_low, y_high)

    def x(step: Number) -> float:
        return left + (right - left) * ((step - x_low) / (x_high - x_low) if x_high > x_low else 0.5)

    def y(value: Number) -> float:
        return bottom - (bottom - top) * (scale(value) - y_low) / (y_high - y_low)

    def path(series: Iterable[tuple[Number, Number]]) -> str:
        return "M" + "L".join(f"{x(step):.1f},{y(value):.1f}" for step, value in series)

    parts = [
        f"<path class=grid d='M{left},{y(tick):.1f}H{right}'/>"
        f"<text x={left - 6} y={y(tick) + 4:.1f} text-anchor=end>{_short(tick)}</text>"
        for tick in y_ticks
    ]
    for tick in _ticks(x_low, x_high) if x_high > x_low else [x_low]:
        anchor = "end" if x(tick) > right - 12 else "middle"
        parts.append(f"<text x={x(tick):.1f} y={height - 5} text-anchor={anchor}>{_short(tick)}</text>")
    for split, series in finite.items():
        color = f"stroke='{colors[split]}'"
        smooth = [] if "learning_rate" in name else _smooth(series)
        if smooth:
            parts.append(f"<path class=faint {color} d='{path(downsample(series))}'/>")
        if series:
            parts.append(f"<path {color} d='{path(downsample(smooth or series))}'/>")
        if len(series) <= 30:
            fill = f"fill='{colors[split]}'"
            parts += [f"<circle cx={x(step):.1f} cy={y(value):.1f} r=2.6 {fill} />" for step, value in series]
    return f"<svg viewBox='0 0 {width} {height}' role=img aria-label='{html.escape(name)}'>{''.join(parts)}</svg>"


def downsample(series: Sequence[tuple[Number, Number]], points: int = _MAX_POINTS) -> list[tuple[Number, Number]]:
    """At most `points` of the (step, value) pairs: the ends, and the lowest and highest of equal stretches between."""
    if len(series) <= points:
        return list(series)
    inner = np.arange(1, len(series) - 1)
    values = np.array([value for _, value in series])
    kept = {0, len(series) - 1}
    for stretch in np.array_split(inner, (points - 2) // 2):
        kept |= {int(stretch[values[stretch].argmin()]), int(stretch[values[stretch].argmax()])}
    return [series[index] for index in sorted(kept)]


def _smooth(series: Sequence[tuple[Number, Number]], stretches: int = 100) -> list[tuple[Number, Number]]:
    """Means over equal stretches; empty for short series, which are drawn as they are."""
    if len(series) < stretches:
        return []
    means = [np.mean(stretch, axis=0) for stretch in np.array_split(np.array(series, float), stretches)]
    return [(float(step), float(value)) for step, value in means]


def _ticks(low: Number, high: Number) -> list[float]:
    """Up to five round numbers within [low, high]; low < high."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def _short(value: Number) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    if 0 < abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def _samples(folder: Path) -> str:
    """The latest file of every name, its first one beside it."""
    by_name: dict[tuple[str, str], list[tuple[int, Path]]] = {}
    for path in sorted(folder.glob("step_*")):
        match = re.fullmatch(rf"step_(\d+)_(.+)\.({'|'.join(_MEDIA)})", path.name)
        if match:
            by_name.setdefault((match[2], match[3]), []).append((int(match[1]), path))
    cards = []
    for (name, _), files in sorted(by_name.items(), key=lambda item: list(_MEDIA).index(item[0][1])):
        files.sort()
        figures = _sample("latest", *files[-1]) + (_sample("first", *files[0]) if len(files) > 1 else "")
        cards.append(f"<div class=card><h3>{html.escape(name)}</h3><div class=pair>{figures}</div></div>")
    return f"<div class=samples>{''.join(cards)}</div>" if cards else ""


def _sample(kind: str, step: int, path: Path) -> str:
    suffix = path.suffix[1:]
    if suffix == "txt":
        body = f"<pre>{html.escape(path.read_text(encoding='utf-8').strip())}</pre>"
    else:
        source = f"data:{_MEDIA[suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
        body = f"<audio controls src='{source}'></audio>" if suffix == "wav" else f"<img alt='' src='{source}'>"
    return f"<figure class={kind}><figcaption>step {step:,}</figcaption>{body}</figure>"


def _tree(name: str, value: Any, opened: bool = True) -> str:
    if isinstance(value, dict) and value:
        inner = "".join(_tree(str(key), child) for key, child in value.items())
        return f"<details{' open' if opened else ''}><summary>{html.escape(name)}</summary>{inner}</details>"
    return f"<div class=leaf><span>{html.escape(name)}</span> {html.escape(json.dumps(value))}</div>"
