"""The one loop. Papers reach it as a `Task`; data as two functions; everything else is the config.

The order within a step is fixed: evaluate the old state; save state, data position, timer and config together; take
the next batch; step; log the figures of earlier steps, which the devices have finished by then. So nothing waits for
the host inside a step, and a run killed anywhere resumes as if it had not been.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from transformer_zoo.data.loader import to_device
from transformer_zoo.data.pipeline import Data
from transformer_zoo.evaluation.run import Judge, prefixed
from transformer_zoo.task import Context, Evaluator, Task, Variables
from transformer_zoo.training import checkpoints as store
from transformer_zoo.training import sharding
from transformer_zoo.training.devices import total_peak_flops
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.flops import count_flops
from transformer_zoo.training.optimizer import Optimizer, make_optimizer
from transformer_zoo.training.processes import is_primary, tell
from transformer_zoo.training.reporting import Reporter, truncate_metrics
from transformer_zoo.training.start import start_state
from transformer_zoo.training.state import TrainState, abstract_state, abstract_variables
from transformer_zoo.training.step import Step, host_metrics, make_step
from transformer_zoo.training.tree import combine, partition
from transformer_zoo.training.watchdog import Watchdog
from transformer_zoo.training.workdir import claimed, stop_on_signal


class Stopped(SystemExit):
    """Raised with code 0 after SIGTERM, once the state is saved."""


def train(
    config: Any,
    task: Task,
    evaluators: Mapping[str, Evaluator],
    data: Data,
    workdir: Path,
    title: str = "",
    watch: Callable[[int, TrainState], None] | None = None,
) -> dict[str, float]:
    """Trains `task` to `config.total_steps`, from the newest intact checkpoint in `workdir` where there is one.

    `watch` is called before every step with its number and the state, which the devices may still be computing.

    Returns:
        The figures of the last evaluation.

    Raises:
        UserError: what the user can mend: a config that does not fit, another run's workdir, a full disk, a loss that
            is not finite.
        Stopped: after SIGTERM.
    """
    mesh = sharding.make_mesh(config.mesh)
    accumulate = config.accumulate_steps
    sharding.check_batch_size(mesh, config.batch_size, accumulate)
    players = player_configs(config, task)
    optimizers = make_optimizers(task, players, config.total_steps)
    ema_decay = config.ema.decay if "ema" in config else 0.0
    verify(data)
    with claimed(workdir, config), stop_on_signal() as stop, jax.set_mesh(mesh):
        abstract = abstract_state(task, optimizers, ema_decay > 0, mesh)
        sharding.check_sharded(abstract.params, jax.tree.map(lambda leaf: leaf.sharding, abstract.params), mesh)
        checkpoints = store.Checkpoints(
            workdir / "checkpoints", config.checkpoint.keep, config.checkpoint.get("best", "")
        )
        state, meta = start_state(config, task, optimizers, abstract, checkpoints)
        first = int(state.step)
        make = functools.partial(
            make_step,
            optimizers=optimizers,
            seed=config.seed,
            every={name: players[name].get("every", 1) for name in task.players},
            accumulate_steps=accumulate,
            ema_decay=ema_decay,
        )
        compiled = jax.jit(
            make(task),
            static_argnums=2,
            donate_argnums=0,
            out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, abstract), None),
        )
        judge = Judge({**task.evaluators(), **evaluators})
        check_evaluators(judge, task, state, config)
        if is_primary():
            truncate_metrics(workdir, first)
        reporter = Reporter(
            workdir,
            total_steps=config.total_steps,
            batch_size=config.batch_size,
            first_step=first,
            flops_per_step=count_step_flops(make(without_remat(task)), task, abstract, config.batch_size),
            train_seconds=meta.get("train_seconds", 0.0),
            primary=is_primary(),
            title=title,
            wandb_project=config.log.get("wandb_project", ""),
        )
        batch_sharding = sharding.batch_sharding(mesh)
        batches = device_batches(data, first, batch_sharding)
        figures = dict(meta.get("metrics", {}))
        pending: list[tuple[int, Any]] = []
        watchdog = Watchdog(config.log.get("stall_seconds", 0.0))

        @contextlib.contextmanager
        def pause() -> Generator[None, None, None]:
            with reporter.pause(), watchdog.resting():
                yield

        watchdog.start()
        try:
            for step in range(first, config.total_steps + 1):
                ends = stop.at(step) or step == config.total_steps
                due = judge.due(step, config.total_steps, config.eval.every_steps) if step > first else []
                if ends or due:
                    log_pending(pending, reporter, config, checkpoints, data)
                if due:
                    with pause():
                        ctx = Context(jax.random.key(config.seed), state.step, state.ema, train=False)
                        variables = evaluation_variables(state, optimizers)
                        found = judge_all(judge, due, variables, ctx, data, batch_sharding, reporter, step)
                        figures |= found
                if step > first and (ends or step % config.checkpoint.every_steps == 0):
                    with pause():
                        raise_if_not_finite(pending, config, checkpoints)
                        meta |= {
                            "step": step,
                            "batches": step,
                            "train_seconds": reporter.train_seconds,
                            "metrics": figures,
                        }
                        checkpoints.save(step, state.replace(frozen={}), meta)
                if ends:
                    break
                if watch is not None:
                    watch(step, state)
                with pause() if step == first else contextlib.nullcontext():  # workers start, XLA compiles
                    with data.timing.waiting():
                        batch = next(batches)
                    state, metrics = compiled(state, batch, task.phase(step))
                    data.timing.dispatched(metrics)
                if step == first:
                    data.timing.reset()
                pending.append((step + 1, metrics))
                reporter.advance(step + 1)
                watchdog.beat()
                if step > first and step % config.log.every_steps == 0:
                    log_pending(pending, reporter, config, checkpoints, data, leave=1)
            checkpoints.wait()
        finally:
            watchdog.stop()
            batches.close()
            close_quietly(checkpoints)
            reporter.finish()
        if stop.requested and step < config.total_steps:
            tell(f"stopped by a signal at step {step}; saved. Run the same command to resume")
            raise Stopped(0)
    return figures


def player_configs(config: Any, task: Task) -> dict[str, Any]:
    """The optimizer's group of each player; one group serves them all where the players have none of their own."""
    return {name: config.optimizer.get(name, config.optimizer) for name in task.players}


def make_optimizers(task: Task, configs: Mapping[str, Any], total_steps: int) -> dict[str, Optimizer]:
    """One optimizer a player, from its table in the config; its schedule counts the player's own updates.

    Raises:
        UserError: a table that does not fit the parameters, or a field that does not fit the optimizer.
    """
    made = {}
    try:
        params = abstract_variables(task).params
        for player in task.players:
            options = configs[player]
            updates = -(-total_steps // options.get("every", 1))
            depths = task.depths(params[player]) if options.get("layer_decay", 1.0) != 1.0 else None
            made[player] = make_optimizer(options, params[player], total_steps=updates, depths=depths)
    except ValueError as error:
        raise UserError(f"config: {error}") from error
    return made


def check_evaluators(judge: Judge, task: Task, state: TrainState, config: Any) -> None:
    """Raises UserError for an evaluator that cannot work on what this task gives it."""
    spec = task.spec(config.eval.get("batch_size", 0) or config.batch_size)
    ctx = Context(jax.random.key(config.seed), state.step, state.ema, train=False)
    try:
        judge.check(state.variables, ctx, spec)
    except ValueError as error:
        raise UserError(f"config: {error}") from error


def evaluation_variables(state: TrainState, optimizers: Mapping[str, Optimizer]) -> Variables:
    """What is judged: the averaged parameters where the run keeps them, else the optimizer's evaluation parameters."""
    if state.ema is not None:
        return state.variables.replace(params=state.ema)
    params = {}
    for player, tree in state.params.items():
        trainable, rest = partition(tree, optimizers[player].trainable)
        params[player] = combine(optimizers[player].evaluation_params(state.optimizer[player], trainable), rest)
    return state.variables.replace(params=params)


def verify(data: Data) -> None:
    """Raises UserError where the first records do not fit the task, before anything is compiled."""
    try:
        data.verify()
    except ValueError as error:
        raise UserError(f"config: {error}") from error


def device_batches(data: Data, start: int, placed: Any) -> Generator[Any, None, None]:
    """Training batches on the devices, from batch number `start` on."""
    for _, batch in to_device(data.train(start), lambda _: placed, timing=data.timing):
        yield batch


def count_step_flops(step: Step, task: Task, abstract: TrainState, batch_size: int) -> float | None:
    """Matrix and convolution FLOPs of one step with scanned blocks multiplied out; None where they cannot be told.

    They serve only the share of the devices' peak rate, so where that is unknown nothing is counted.
    """
    if total_peak_flops([device.device_kind for device in jax.devices()]) is None:
        return None
    try:
        counted = count_flops(lambda state, batch: step(state, batch, task.phase(0)), abstract, task.spec(batch_size))
    except (TypeError, KeyError, ValueError) as error:  # a mixture's spec holds all members, of which a batch is one
        logging.info("FLOPs are not counted: %s", error)
        return None
    return None if counted.unknown_loops or counted.opaque else float(counted.total)


def without_remat(task: Task) -> Task:
    """The task with networks that recompute nothing: recomputation is no useful work, so it is not counted."""
    networks = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    plain = {name: net.clone(remat="none") for name, net in networks.items() if hasattr(net, "remat")}
    return dataclasses.replace(task, **plain)


def judge_all(
    judge: Judge,
    names: list[str],
    variables: Variables,
    ctx: Context,
    data: Data,
    batch_sharding: Any,
    reporter: Reporter,
    step: int,
) -> dict[str, float]:
    """Runs the evaluators named, writes one line a split and what there is to look at, and returns all figures."""
    by_split: dict[str, dict[str, float]] = {}
    for name in names:
        split, result = judge.run(name, variables, ctx, data.evaluate, lambda _: batch_sharding)
        by_split.setdefault(split, {}).update(prefixed(name, split, result.metrics))
        reporter.write_result(step, name or "evaluation", result)
    for split, found in by_split.items():
        reporter.log_evaluation(step, split, {key.removeprefix(f"{split}/"): value for key, value in found.items()})
    return {key: value for found in by_split.values() for key, value in found.items()}


def log_pending(
    pending: list, reporter: Reporter, config: Any, checkpoints: store.Checkpoints, data: Data, leave: int = 0
) -> None:
    """Logs the mean figures of all steps but the last `leave`, which the devices may still be busy with."""
    done, pending[:] = pending[: len(pending) - leave], pending[len(pending) - leave :]
    if not done:
        return
    fetched = raise_if_not_finite(done, config, checkpoints)
    sums: dict[str, list[float]] = {}
    for metrics in fetched:
        for name, value in host_metrics(metrics).items():
            sums.setdefault(name, []).append(value)
    means = {name: float(np.mean(values)) for name, values in sums.items()}
    reporter.log_training(done[-1][0], means, data.timing.waited())


def raise_if_not_finite(pending: list, config: Any, checkpoints: store.Checkpoints) -> list[dict[str, Any]]:
    """Host figures of the pending steps; stops (or, where config.nan is 'skip', warns) if an update was not finite."""
    fetched = jax.device_get([metrics for _, metrics in pending])
    for (step, _), metrics in zip(pending, fetched):
        bad = [name for name, value in metrics.items() if name.endswith("finite") and not value]
        if not bad:
            continue
        shown = ", ".join(f"{k} {v:.4g}" for k, v in host_metrics(metrics).items() if "loss" in k or "norm" in k)
        if config.nan == "skip":
            logging.warning("step %d was skipped: not finite (%s)", step, shown)
            print(f"step {step} was skipped: not finite ({shown})", flush=True)
            continue
        close_quietly(checkpoints)
        saved = checkpoints.steps()
        last = f"the last good checkpoint is step {saved[-1]} in {checkpoints.folder}" if saved else "nothing was saved"
        raise UserError(
            f"not finite at step {step}: {shown}; {last}. Lower optimizer.learning_rate or set optimizer.clip_norm; "
            "config.nan='skip' leaves such steps out"
        )
    if config.nan == "skip":
        return [{name: value for name, value in metrics.items() if math.isfinite(float(value))} for metrics in fetched]
    return fetched


def close_quietly(checkpoints: store.Checkpoints) -> None:
    """Finishes what is being written; an error there must not hide the one that is already on its way."""
    with contextlib.suppress(Exception):
        checkpoints.close()
