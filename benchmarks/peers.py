"""Speed beside other libraries, all in one table: python -m benchmarks.peers --json [--only vit_s16,decoding].

On a GPU: benchmarks/gpu.sh, which brings what a machine without a package index lacks and measures in bfloat16.

Each comparison runs in a process of its own, as `benchmarks.step`, `.backbones`, `.decoding` and `.fourm` describe, so
that one that fails or runs out of memory costs no other. Writes results/speed/DEVICE.json after each, where rows that
were not measured again stay, and the table in README.md.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import backbones, step
from transformer_zoo import naming
from transformer_zoo.training import command
from transformer_zoo.training.errors import UserError

# Of each comparison: the module, its arguments, and images a batch on a CPU and on an accelerator.
COMPARISONS: dict[str, tuple[str, tuple[str, ...], int, int]] = {
    "vit_s16": ("step", ("--models", "vit_s16"), 8, 256),
    "mae_b16": ("step", ("--models", "mae_b16"), 8, 256),
    **{name: ("backbones", ("--models", name), 8, 256) for name in backbones.MODELS},
    "decoding": ("decoding", (), 4, 32),
    "vit_b16": ("step", ("--models", "vit_b16"), 8, 256),
    "fourm_b": ("fourm", (), 4, 128),
    "vit_l16": ("step", ("--models", "vit_l16"), 2, 128),
    "magvit_tokenizer": ("step", ("--models", "magvit_tokenizer"), 1, 16),
}
BEGIN, END = "<!-- speed -->", "<!-- /speed -->"


def compare(name: str, dtype: str, accelerated: bool, reference: str) -> list[dict[str, Any]]:
    """Rows of one comparison, measured in a process of its own.

    Raises:
        UserError: it failed; the message ends with what it said last.
    """
    module, arguments, *batches = COMPARISONS[name]
    arguments = (*arguments, "--reference", reference) if module == "fourm" and reference else arguments
    line = ["-m", f"benchmarks.{module}", "--json", "--dtype", dtype, "--batch", str(batches[accelerated]), *arguments]
    ended = subprocess.run([sys.executable, *line], capture_output=True, text=True)
    if ended.returncode:
        said = (ended.stderr.strip() or ended.stdout.strip() or "nothing").splitlines()[-1]
        raise UserError(f"{name}: 'python {' '.join(line)}' ended with {ended.returncode} and said: {said}")
    found: list[dict[str, Any]] = json.loads(ended.stdout)
    return found


def table(files: Sequence[Path]) -> str:
    """All measured rows as Markdown, a section a device."""
    lines = []
    for file in files:
        rows = json.loads(file.read_text())
        lines += [
            f"{rows[0]['device']}, {rows[0]['threads']} threads, {rows[0]['dtype']}:",
            "",
            "| | batch | ours | of the matmul rate | MFU | memory, MiB | peer | ratio |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            peer = f"{row['peer']:.3g} {row['peer_name']}" if row["peer"] else ""
            cells = [
                row["name"],
                str(row["batch"]),
                f"{row['ours']:.3g} {row['unit']}",
                f"{100 * row['share_of_matmul_rate']:.0f} %",
                f"{100 * row['mfu']:.0f} %" if row.get("mfu") else "",
                f"{row['memory']:,.0f}" if row.get("memory") else "",
                peer,
                f"{row['ratio']:.2f}" if row["ratio"] else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def write_table(readme: Path, folder: Path) -> None:
    """Puts the table between the two markers of a README.

    Raises:
        UserError: it lacks the markers.
    """
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{readme} lacks the lines {BEGIN} and {END}, between which the table of speeds goes")
    readme.write_text(f"{before}{BEGIN}\n{table(sorted(folder.glob('*.json')))}\n{END}{after}")


def merged(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of `new` in place of those that compared the same, the others as they were."""
    rows = {(row["name"], row["peer_name"]): row for row in (*old, *new)}
    return list(rows.values())


def main(arguments: Sequence[str]) -> None:
    """Measures and writes; ends with an error if any comparison failed."""
    parser = argparse.ArgumentParser("python -m benchmarks.peers", description="Speed beside other libraries.")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--only", default=",".join(COMPARISONS), help=f"some of {','.join(COMPARISONS)}")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--reference", default="", help="a checkout of apple/ml-4m, for fourm_b")
    parser.add_argument("--output", type=Path, default=Path("results/speed"))
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    flags = parser.parse_args(arguments)
    names = flags.only.split(",")
    for name in names:
        if name not in COMPARISONS:
            raise UserError(str(naming.unknown("comparison", name, COMPARISONS)))
    kind = jax.devices()[0].device_kind
    device = f"{kind}_{step.num_threads()}_threads" if kind == "cpu" else kind
    file = flags.output / f"{re.sub(r'[^A-Za-z0-9]+', '_', device).lower()}.json"
    flags.output.mkdir(parents=True, exist_ok=True)
    rows: list[Mapping[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    failed = []
    for name in names:
        try:
            found = compare(name, flags.dtype, jax.default_backend() != "cpu", flags.reference)
        except UserError as error:
            failed.append(str(error))
            print(error, file=sys.stderr, flush=True)
            continue
        rows = merged(rows, found)
        file.write_text(json.dumps(rows, indent=1) + "\n")
        for row in found if not flags.json else ():
            beside = f"{row['ratio']:.2f} of {row['peer_name']}" if row["peer"] else "no peer"
            print(f"{row['name']}: {row['ours']:.3g} {row['unit']}, {beside}", flush=True)
    if flags.json:
        print(json.dumps(rows, indent=1))
    write_table(flags.readme, flags.output)
    if failed:
        raise UserError(f"{len(failed)} of {len(names)} comparisons failed: {'; '.join(failed)}")


if __name__ == "__main__":
    command.main(main)
