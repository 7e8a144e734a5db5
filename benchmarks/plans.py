"""Plans of large runs for slices of 256 and 512 chips: python -m benchmarks.plans [--only vit_L16].

Compiles the very training step of each config ahead of time (`pip install -e '.[plan]'`), a minute or more a plan, and
writes results/plans/NAME_SLICE.json and the table in results/plans/README.md.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from transformer_zoo import naming, zoo
from transformer_zoo.training import command
from transformer_zoo.training.config import load_config
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.planner.plan import plan


class Run(NamedTuple):
    """A config and the fields that it needs at this scale."""

    config: str
    fields: Mapping[str, Any] = {}


RUNS = {
    "vit_L16": Run("configs/vit.py:L16"),
    "mae_H14": Run("configs/mae.py:H14"),
    "magvit_L": Run("configs/magvit.py:L", {"batch_size": 512}),  # the paper's 256 leaves half of 512 chips idle
    "fourm_XL": Run("configs/fourm.py:XL"),
}
MESHES = {"v5e:16x16": {"mesh.data": 16, "mesh.fsdp": 16}, "v5p:8x8x8": {"mesh.data": 32, "mesh.fsdp": 16}}


def make(run: Run, target: str) -> dict[str, Any]:
    """The record of one plan, with what was run."""
    fields = {**run.fields, **MESHES[target]}

    def load(more: Mapping[str, Any]) -> Any:
        return load_config(run.config, [f"{name}={value}" for name, value in {**fields, **more}.items()])

    made, _ = plan(load, target, zoo.build_task)
    overrides = " ".join(f"--config.{name}={value}" for name, value in fields.items())
    return {"command": f"python train.py --config={run.config} {overrides} --plan={target}", **made.record()}


def table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The records as a page of Markdown, a row a plan."""
    lines = [
        "# Planned runs",
        "",
        "Written by `python -m benchmarks.plans`: each step compiled ahead of time for the slice, none run. A step",
        "takes at least the longest of three times at peak rates; the bound of MFU belongs to it. Memory is the",
        "compiler's own figure.",
        "",
        "| run | chips | batch | memory a chip, GiB | compute, ms | memory, ms | network, ms | MFU at most | steps | "
        "days at least |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, record in records.items():
        used, limit = (record["memory"][key] / 2**30 for key in ("total", "limit"))
        times = " | ".join(f"{1000 * record['seconds'][part]:.1f}" for part in ("compute", "memory", "network"))
        lines.append(
            f"| {name.rpartition('@')[0]} | {record['devices']} {record['device']} | {record['batch_size']} "
            f"| {used:.1f} of {limit:.1f} | {times} | {100 * record['mfu_bound']:.0f} % | {record['total_steps']:,} "
            f"| {record['days']:.2f} |"
        )
    lines += ["", *(f"- {name.rpartition('@')[0]}: `{record['command']}`" for name, record in records.items())]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Plans what is asked for and writes the table of all plans."""
    parser = argparse.ArgumentParser("python -m benchmarks.plans", description="Plans large runs.")
    parser.add_argument("--only", default=",".join(RUNS), help=f"some of {','.join(RUNS)}")
    parser.add_argument("--on", default=",".join(MESHES), help=f"some of {','.join(MESHES)}")
    parser.add_argument("--output", type=Path, default=Path("results/plans"))
    flags = parser.parse_args(arguments)
    names, targets = flags.only.split(","), flags.on.split(",")
    for kind, given, known in (("run", names, RUNS), ("slice", targets, MESHES)):
        for name in given:
            if name not in known:
                raise UserError(str(naming.unknown(kind, name, known)))
    jax.config.update("jax_platforms", "cpu")  # the machine that is planned for is not this one
    flags.output.mkdir(parents=True, exist_ok=True)
    for name in names:
        for target in targets:
            record = make(RUNS[name], target)
            file_of(flags.output, name, target).write_text(json.dumps(record, indent=1) + "\n")
            print(f"{name} on {target}: at least {1000 * record['step_seconds']:.1f} ms a step", flush=True)
    files = {f"{name}@{target}": file_of(flags.output, name, target) for name in RUNS for target in MESHES}
    records = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    (flags.output / "README.md").write_text(table(records))
    print(flags.output / "README.md")


def file_of(folder: Path, name: str, target: str) -> Path:
    """Where a plan is kept."""
    return folder / f"{name}_{target.replace(':', '_')}.json"


if __name__ == "__main__":
    command.main(main)
