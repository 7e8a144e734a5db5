"""Runs that claims compare: trained once a seed, kept in folders, with what they cost."""

import dataclasses
import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from transformer_zoo import zoo
from transformer_zoo.task import Context, Task, Variables
from transformer_zoo.training import checkpoints, stages
from transformer_zoo.training.config import config_hash, load_config, to_json
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.flops import count_flops
from transformer_zoo.training.state import abstract_variables
from transformer_zoo.zoo.build import build_task
from transformer_zoo.zoo.counts import num_parameters

Pair = tuple[float, float]  # of the method, of the baseline


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        config: what was trained.
        folder: its workdir, which holds its checkpoint.
        figures: its held-out figures, 'test/accuracy' and so on.
        parameters: trained ones.
        flops: of training it, and of training what it takes arrays from.
        seconds: wall time, likewise.
    """

    config: Any
    folder: Path
    figures: Mapping[str, float]
    parameters: int
    flops: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one seed says of one claim; a claim's function gives it, from (seed, {name: Run}).

    Attributes:
        values: the metric of method and baseline.
        parameters: that they have.
        flops: that they cost.
    """

    values: Pair
    parameters: Pair
    flops: Pair


def train_runs(runs: Mapping[str, Any], seed: int, workdir: Path, commit: str) -> dict[str, Run]:
    """All runs of one seed, in order, each in a folder named by what decides its outcome."""
    found: dict[str, Run] = {}
    for name, described in runs.items():
        config = load_config(described["config"], described.get("overrides", {}) | {"seed": seed})
        earlier = None
        if "take" in described:
            taken = described["take"]["run"]
            if taken not in found:
                raise UserError(f"run {name!r} takes from {taken!r}, which is not before it")
            earlier = found[taken]
            with config.unlocked():
                table = tuple(map(tuple, described["take"]["table"]))
                config.init_from = {"workdir": str(earlier.folder), "table": table}
        folder = workdir / f"{name}-seed{seed}-{config_hash({'config': to_json(config), 'commit': commit})}"
        finished = folder / "finished.json"
        if not finished.exists():
            print(f"\n== {name}, seed {seed}: {folder}", flush=True)
            start = time.perf_counter()
            figures = stages.run(config, folder, zoo.build, title=name)
            seconds = round(time.perf_counter() - start, 1)
            finished.write_text(json.dumps({"figures": figures, "seconds": seconds}))
        record = json.loads(finished.read_text())
        task = task_of(config, folder)
        variables = abstract_variables(task)
        found[name] = Run(
            config=config,
            folder=folder,
            figures=record["figures"],
            parameters=num_parameters(variables),
            flops=training_flops(task, variables, config) + (earlier.flops if earlier else 0),
            seconds=record["seconds"] + (earlier.seconds if earlier else 0),
        )
    return found


def task_of(config: Any, folder: Path) -> Task:
    """The task of a run, with the networks of the runs that it requires."""
    _, required = stages.with_requirements(config, folder, zoo.build)
    return build_task(config, {name: other for name, (other, _) in required.items()})


def trained_variables(run: Run) -> Variables:
    """What a run's newest checkpoint is judged by: averaged parameters where it keeps them, and its model state."""
    abstract = abstract_variables(task_of(run.config, run.folder))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {"ema" if "ema" in run.config else "params": abstract.params} | (
        {"state": abstract.state} if jax.tree.leaves(abstract.state) else {}
    )
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), wanted)
    restored = checkpoints.restore(checkpoints.newest_intact(run.folder / "checkpoints"), wanted, partial=True)
    return Variables(restored.get("ema") or restored["params"], restored.get("state", {}))


def training_flops(task: Task, variables: Variables, config: Any) -> float:
    """FLOPs of loss and gradient over all steps of a run; what the optimizer does is not counted."""
    total = 0.0
    for player in task.players:
        abstract = jax.eval_shape(
            lambda player=player: Context(jax.random.key(0), jnp.int32(0), player=player, phase=task.phase(0))
        )

        def loss(params: Any, variables: Any, batch: Any, ctx: Context, player: str = player) -> Any:
            return task.loss(variables.replace(params={**variables.params, player: params}), batch, ctx)[0]

        arguments = (variables.params[player], variables, task.spec(config.batch_size), abstract)
        every = config.optimizer.get(player, config.optimizer).get("every", 1)
        total += count_flops(jax.value_and_grad(loss), *arguments).total * (config.total_steps // every)
    return total


def current_commit() -> str:
    """The commit that runs now, with '-dirty' where tracked files differ from it; 'unknown' outside of git.

    What earlier benchmarks wrote under results/ is no difference.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True).stdout.strip()

    commit = git("describe", "--always", "--exclude=*")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results")
    return f"{commit}-dirty" if commit and changed else commit or "unknown"
