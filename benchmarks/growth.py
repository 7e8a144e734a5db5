"""How a training step grows with tokens, width, depth, devices: python -m benchmarks.growth [--by tokens,width,depth].

A ViT's step is timed on the device at hand (median of five) and its memory read from the compiled program; what is not
varied stays at 64 tokens, width 192, depth 6 and 8 images. `devices` plans ViT-L/16 at 16 images a chip for slices of 4
to 512 TPU v5p (`pip install -e '.[plan]'`; nothing is run). Writes results/growth/BY.json and BY.png.
"""

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import step
from transformer_zoo import naming, zoo
from transformer_zoo.training import command, sharding
from transformer_zoo.training.config import load_config
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.planner.compiled import lower_step
from transformer_zoo.training.planner.plan import plan
from transformer_zoo.training.planner.settings import make_setting
from transformer_zoo.training.state import create_state

BASE = {
    "batch_size": 8,
    "model.image_size": (128, 128),
    "model.patch_size": (16, 16),
    "model.channels": 3,
    "model.width": 192,
    "model.depth": 6,
    "model.unroll": 6,
}
Row = dict[str, float]
# What varies, as {value: fields}.
VARIED: dict[str, dict[int, Mapping[str, Any]]] = {
    "tokens": {side * side: {"model.image_size": (16 * side, 16 * side)} for side in (4, 8, 16, 32)},
    "width": {width: {"model.width": width} for width in (96, 192, 384, 768)},
    "depth": {depth: {"model.depth": depth, "model.unroll": depth} for depth in (3, 6, 12, 24)},
}
SLICES = {4: "v5p:2x2x1", 16: "v5p:2x2x4", 64: "v5p:4x4x4", 256: "v5p:4x8x8", 512: "v5p:8x8x8"}


def measured(fields: Mapping[str, Any]) -> Row:
    """Milliseconds and MiB of one step on the device at hand."""
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    setting = make_setting(
        load_config("configs/vit.py", {**BASE, **fields, "dtype": dtype}), zoo.build_task, jax.devices()[:1]
    )
    with jax.set_mesh(setting.mesh):
        compiled = lower_step(setting).compile()
        state = create_state(setting.task, setting.optimizers, setting.state, seed=0)
        images = step.random_batch(setting.task, setting.config.batch_size)
        batch = jax.device_put(images, sharding.batch_sharding(setting.mesh))

        def train() -> None:
            nonlocal state
            state, _ = step.finished(compiled, state, batch)

        seconds = step.measure([train])[0]
    stats = compiled.memory_analysis()
    return {
        "milliseconds": 1000 * seconds,
        "mebibytes": (stats.argument_size_in_bytes + stats.temp_size_in_bytes) / 2**20,
    }


def planned(devices: int) -> Row:
    """Milliseconds at least, and MiB a chip, of ViT-L/16's step on a slice."""
    fsdp = min(16, devices)
    fields = {"batch_size": 16 * devices, "mesh.fsdp": fsdp, "mesh.data": devices // fsdp}

    def load(more: Mapping[str, Any]) -> Any:
        return load_config("configs/vit.py:L16", {**fields, **more})

    made, _ = plan(load, SLICES[devices], zoo.build_task)
    return {"milliseconds": 1000 * made.step_seconds, "mebibytes": sum(made.memory.values()) / 2**20} | {
        f"milliseconds_{name}": 1000 * seconds for name, seconds in made.times.items()
    }


def draw(by: str, rows: Mapping[str, Row], device: str, path: Path) -> None:
    """Time and memory against what varied, with dashed lines in proportion to it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    values = [int(value) for value in rows]
    for axis, unit, label in zip(
        figure.subplots(1, 2), ("milliseconds", "mebibytes"), ("step, ms", "memory a device, MiB")
    ):
        names = [name for name in next(iter(rows.values())) if name.startswith(unit)]
        for name in names:
            heights = [row[name] for row in rows.values()]
            part = name.removeprefix(unit).strip("_")
            axis.plot(values, heights, marker="o", markersize=4, label=part or "all", alpha=0.6 if part else 1.0)
        first = rows[str(values[0])][unit]
        if by != "devices":
            straight = [first * value / values[0] for value in values]
            axis.plot(values, straight, "--", color="grey", label="in proportion")
            axis.set_yscale("log", base=2)
            axis.yaxis.set_major_formatter("{x:g}")
        else:
            axis.set_ylim(0)
        axis.set_xscale("log", base=2)
        axis.set_xticks(values, [str(value) for value in values])
        axis.minorticks_off()
        axis.set(xlabel=by, ylabel=label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(f"A training step against {by}; {device}", fontsize=10)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str]) -> None:
    """Measures or plans, and draws."""
    parser = argparse.ArgumentParser("python -m benchmarks.growth", description="How a training step grows.")
    parser.add_argument("--by", default=",".join(VARIED), help=f"some of {','.join((*VARIED, 'devices'))}")
    parser.add_argument("--output", type=Path, default=Path("results/growth"))
    flags = parser.parse_args(arguments)
    choices = flags.by.split(",")
    for by in choices:
        if by not in (*VARIED, "devices"):
            raise UserError(str(naming.unknown("quantity", by, (*VARIED, "devices"))))
    flags.output.mkdir(parents=True, exist_ok=True)
    for by in choices:
        if by == "devices":
            device, points = "TPU v5p, planned", {size: functools.partial(planned, size) for size in SLICES}
        else:
            device = f"{jax.devices()[0].device_kind}, {step.num_threads()} threads"
            points = {value: functools.partial(measured, fields) for value, fields in VARIED[by].items()}
        rows = {}
        for value, point in points.items():
            rows[str(value)] = point()
            row = rows[str(value)]
            print(f"{by} {value}: {row['milliseconds']:.1f} ms, {row['mebibytes']:.1f} MiB", flush=True)
        (flags.output / f"{by}.json").write_text(json.dumps({"device": device, "rows": rows}, indent=1) + "\n")
        draw(by, rows, device, flags.output / f"{by}.png")
    print(flags.output)


if __name__ == "__main__":
    command.main(main)
