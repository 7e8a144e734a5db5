"""Evaluates what a run has saved: one checkpoint, a grid of settings, or a folder of runs."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from transformer_zoo.evaluation.run import Judge, prefixed
from transformer_zoo.evaluation.sweeps import write_sweep
from transformer_zoo.task import Context
from transformer_zoo.training import checkpoints as store
from transformer_zoo.training import sharding
from transformer_zoo.training.config import override
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.loop import evaluation_variables, make_optimizers, player_configs
from transformer_zoo.training.reporting import append_line, write_samples
from transformer_zoo.training.start import as_list, restore_frozen
from transformer_zoo.training.state import abstract_state
from transformer_zoo.training.weights import required_config

Build = Callable[..., Any]


def runs_below(workdir: Path) -> list[Path]:
    """The workdir itself if it is a run, else the runs in it (stages, members of a grid), in alphabetical order.

    Raises:
        UserError: there is no run.
    """
    if (workdir / "config.json").exists() and any((workdir / "checkpoints").glob("[0-9]*")):
        return [workdir]
    found = sorted(path.parent for path in workdir.glob("*/config.json"))
    if not found:
        raise UserError(f"{workdir} holds no run and no folder of runs; train one first: python train.py --config=...")
    return found


def evaluate(config: Any, workdir: Path, build: Build, step: int | None = None, label: str = "") -> dict[str, float]:
    """All figures of one checkpoint; pictures go to WORKDIR/samples, a line to WORKDIR/metrics.jsonl.

    Args:
        config: what to build; its training fields must be those of the run.
        workdir: the run.
        build: `zoo.build`.
        step: which checkpoint; None is the newest intact one.
        label: goes into the names of pictures, to tell points of a sweep apart.

    Raises:
        UserError: no such checkpoint, or one that does not fit the config.
    """
    path = store.newest_intact(workdir / "checkpoints", step)
    meta = store.read_meta(path)
    try:
        built = build(config, {name: required_config(spec) for name, spec in config.get("requires", {}).items()})
    except ValueError as error:
        raise UserError(f"config: {error}") from error
    task = built.task
    mesh = sharding.make_mesh(config.mesh)
    optimizers = make_optimizers(task, player_configs(config, task), config.total_steps)
    with jax.set_mesh(mesh):
        abstract = abstract_state(task, optimizers, "ema" in config, mesh)
        stored, wanted = store.stored_shapes(path), abstract.replace(frozen={})
        for keys, leaf in jax.tree_util.tree_leaves_with_path(wanted.params):
            name = "params/" + sharding.path_of(keys)
            if name not in stored or stored[name].shape != leaf.shape:
                there = f"shape {tuple(stored[name].shape)}" if name in stored else "no such array"
                raise UserError(f"{path} does not fit the config: {name} {tuple(leaf.shape)}, but it holds {there}")
        sources = [dict(source) for source in as_list(config.get("init_from", ()))]
        frozen = restore_frozen(abstract.frozen, sources, meta["frozen"])
        state = store.restore(path, wanted).replace(frozen=frozen)
        judge = Judge({**task.evaluators(), **built.evaluators})
        ctx = Context(jax.random.key(config.seed), state.step, state.ema, train=False)
        variables, placed = evaluation_variables(state, optimizers), sharding.batch_sharding(mesh)
        figures: dict[str, float] = {}
        for name in judge.evaluators:
            split, result = judge.run(name, variables, ctx, built.data.evaluate, lambda _: placed)
            figures |= prefixed(name, split, result.metrics)
            write_samples(workdir, int(state.step), "_".join(filter(None, [label, name or "evaluation"])), result)
    append_line(workdir, {"step": int(state.step), "split": "eval", **figures})
    return figures


def sweep(
    config: Any,
    workdir: Path,
    build: Build,
    points: Sequence[Mapping[str, Any]],
    step: int | None = None,
    overrides: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Evaluates every point of a grid on every run below `workdir`; writes sweep.csv, sweep.json and plots there."""
    runs = runs_below(workdir)
    rows = []
    for run in runs:
        for point in points:
            chosen = config.copy_and_resolve_references() if run == workdir else run_config(run, overrides)
            with chosen.unlocked():
                override(chosen, point)
            start = time.time()
            label = "_".join(f"{key.rpartition('.')[2]}{value}" for key, value in point.items())
            figures = evaluate(chosen, run, build, step, label)
            setting = dict(point) if point and len(runs) == 1 else {"run": run.name} | dict(point)
            row = setting | figures | {"seconds": round(time.time() - start, 2)}
            rows.append(row)
            shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
            print("  ".join(f"{key} {value}" for key, value in shown.items()), flush=True)
    write_sweep(workdir, rows, list(setting))
    return rows


def run_config(run: Path, overrides: Sequence[str]) -> ConfigDict:
    """The config that a run was trained with, from its config.json."""
    config = ConfigDict(json.loads((run / "config.json").read_text()), convert_dict=True)
    override(config, overrides)
    return config
