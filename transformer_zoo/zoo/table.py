"""The index as a table, for terminals and for the README."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer_zoo.training.errors import UserError
from transformer_zoo.zoo.index import papers

BEGIN, END = "<!-- papers -->", "<!-- /papers -->"
FIELDS = ("key", "title", "arxiv", "year", "family")


def records() -> list[dict[str, Any]]:
    """The index as plain data, one record a paper."""
    found = []
    for entry in papers().values():
        found.append(
            {name: entry[name] for name in FIELDS}
            | {
                "module": entry["network"],
                "config": entry["config"],
                "sizes": {name: _size(size) for name, size in entry["sizes"].items()},
                "reference": entry["reference"],
                "licence": entry["licence"],
                "peer": entry["peer"],
                "claims": [
                    {name: claim[name] for name in ("claim", "metric", "better", "method_name", "baseline_name")}
                    for claim in entry.get("claims", ())
                ],
                "status": entry["status"],
            }
        )
    return found


def _size(size: Mapping[str, Any]) -> dict[str, Any]:
    expected = ("parameters", "published_parameters", "macs", "published_macs", "note")
    others = {name: value for name, value in size.items() if name not in (*expected, "arguments")}
    return {name: size.get(name) for name in expected} | others


def text_table() -> str:
    """A line a size under a line a paper: parameters and multiply-accumulates, with what was published beside them."""
    lines = []
    for record in records():
        lines.append(f"{record['key']}  {record['title']} (arXiv {record['arxiv']}, {record['year']})")
        lines.append(f"  {record['family']}, {record['status']}, {record['config']}, {len(record['claims'])} claims")
        lines.append(f"  {'size':18}{'parameters':>15}{'published':>15}{'MACs':>11}{'published':>11}")
        for name, size in record["sizes"].items():
            counts = [f"{size[field]:,}" if size[field] else "-" for field in ("parameters", "published_parameters")]
            macs = [f"{size[field] / 1e9:.2f} G" if size[field] else "-" for field in ("macs", "published_macs")]
            line = f"  {name:18}{counts[0]:>15}{counts[1]:>15}{macs[0]:>11}{macs[1]:>11}  {size['note'] or ''}"
            lines.append(line.rstrip())
        lines.append("")
    return "\n".join(lines)


def markdown_table(results: Path = Path("results/claims")) -> str:
    """A row a paper: sizes with their parameters, status, and how its claims came out in `results`."""
    lines = ["| paper | config | sizes | status | claims |", "|---|---|---|---|---|"]
    for record in records():
        shown = ", ".join(f"{name} {_short(size['parameters'])}" for name, size in record["sizes"].items())
        paper = f"[{record['title']}](https://arxiv.org/abs/{record['arxiv']})"
        config = f"[{Path(record['config']).stem}]({record['config']})"
        lines.append(f"| {paper} | {config} | {shown} | {record['status']} | {_verdicts(record, results)} |")
    return "\n".join(lines)


def write_readme(file: Path, results: Path = Path("results/claims")) -> None:
    """Puts `markdown_table` between the two markers of a README.

    Raises:
        UserError: there is no such file, or it lacks the markers.
    """
    if not file.is_file():
        raise UserError(f"there is no {file} to write the table of papers to")
    before, begin, rest = file.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{file} lacks the lines {BEGIN} and {END}, between which the table of papers goes")
    file.write_text(f"{before}{BEGIN}\n{markdown_table(results)}\n{END}{after}")


def _short(count: int | None) -> str:
    """5.7M for 5,717,416."""
    if count is None:
        return "?"
    unit, name = next((pair for pair in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if count >= pair[0]), (1, ""))
    return f"{count / unit:.3g}{name}"


def _verdicts(record: Mapping[str, Any], results: Path) -> str:
    """'2 hold, 1 unclear' of the paper's claims; those that have not been run are 'not run'."""
    file = results / f"{record['key']}.json"
    results_of = json.loads(file.read_text())["claims"] if file.exists() else []
    judged = {claim["claim"]: claim["verdict"] for claim in results_of}
    verdicts = [judged.get(claim["claim"], "not run") for claim in record["claims"]]
    words = {"holds": "hold", "does not hold": "do not hold"}
    counts = [(verdicts.count(verdict), words.get(verdict, verdict)) for verdict in dict.fromkeys(verdicts)]
    return ", ".join(f"{count} {word}" for count, word in counts)
