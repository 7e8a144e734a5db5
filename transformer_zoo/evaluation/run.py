"""Runs evaluators over held-out batches."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from transformer_zoo.data.loader import to_device
from transformer_zoo.evaluation.gathering import whole
from transformer_zoo.task import Context, Evaluator, Result, Variables

Open = Callable[[str, int], Iterator[dict[str, Any]]]  # (split, limit) to batches


class Judge:
    """Evaluators with their compiled functions, so that each compiles once a run."""

    def __init__(self, evaluators: Mapping[str, Evaluator]) -> None:
        self.evaluators = dict(evaluators)
        self._prepare = {name: jax.jit(judge.prepare) for name, judge in evaluators.items()}
        self._compute = {name: jax.jit(judge.compute) for name, judge in evaluators.items()}

    def due(self, step: int, total_steps: int, default_every: int) -> list[str]:
        """Names of the evaluators that run at `step`; at the last step all do."""
        names = []
        for name, judge in self.evaluators.items():
            every = judge.every or default_every
            if step == total_steps or (every > 0 and step > 0 and step % every == 0):
                names.append(name)
        return names

    def check(self, variables: Variables, ctx: Context, spec: Mapping[str, Any]) -> None:
        """Traces every evaluator on shapes, so that one which would fail at the end stops the run at its start.

        Args:
            variables: arrays or what stands for them.
            ctx: likewise.
            spec: the task's batch; a field that only held-out batches have leaves its evaluator unchecked.

        Raises:
            ValueError: what the evaluator itself raises, with its name.
        """
        for name, judge in self.evaluators.items():
            for split in judge.splits:
                fields = spec.get(split.partition("/")[0], spec)
                leaves = jax.tree.leaves(fields)
                weight = jax.ShapeDtypeStruct(leaves[0].shape[:1], np.float32)
                try:
                    prepared = jax.eval_shape(judge.prepare, judge.equip(variables), ctx)
                    jax.eval_shape(judge.compute, prepared, {**fields, "weight": weight}, ctx)
                except KeyError:
                    continue
                except ValueError as error:
                    raise ValueError(f"evaluator {name!r}: {error}") from error
                break  # the splits of an evaluator have one shape

    def run(
        self, name: str, variables: Variables, ctx: Context, batches: Open, sharding: Callable[[np.ndarray], Any]
    ) -> tuple[str, Result]:
        """Result of one evaluator and the split that its figures belong to, the last one it reads.

        Raises:
            ValueError: a split without a single batch.
        """
        judge = self.evaluators[name]
        variables = self._prepare[name](judge.equip(variables), ctx)
        states = []
        for split in judge.splits:
            state = None
            for number, (host, batch) in enumerate(to_device(batches(split, judge.batches), sharding)):
                batch_ctx = ctx.replace(key=jax.random.fold_in(ctx.key, number))
                arrays, rows = whole(self._compute[name](variables, batch, batch_ctx), host)
                state = judge.update(state, arrays, {**rows, "split": split})
            if state is None:
                raise ValueError(f"evaluator {name!r}: the split {split!r} gave no batch")
            states.append(state)
        return judge.splits[-1], judge.result(*states)


def prefixed(name: str, split: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under the names they are logged with: 'split/name_metric', or 'split/metric' where the name is ''."""
    return {f"{split}/{name}_{metric}" if name else f"{split}/{metric}": value for metric, value in metrics.items()}
