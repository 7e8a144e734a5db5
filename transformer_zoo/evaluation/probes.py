"""Probes: how much a simple classifier on frozen features can tell."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from transformer_zoo.task import Batch, Context, Evaluator, Result, Task, Tree, Variables


def logistic_accuracy(
    train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> dict[str, float]:
    """Accuracy of multinomial logistic regression on standardised features.

    The strength of its regularisation is the one that is best on `val`; `test` is read once, with that one.

    Args:
        train: features [count, width] and labels [count] to fit.
        val: the same, to choose the regularisation.
        test: the same, to judge.
    """
    from sklearn.linear_model import LogisticRegression  # a second to import: only where a probe is fitted

    mean, deviation = train[0].mean(axis=0), train[0].std(axis=0) + 1e-6
    sets = {name: ((x - mean) / deviation, y) for name, (x, y) in (("train", train), ("val", val), ("test", test))}
    fitted = [LogisticRegression(C=c, max_iter=3000).fit(*sets["train"]) for c in (1e-3, 1e-2, 1e-1, 1.0)]
    best = max(fitted, key=lambda model: model.score(*sets["val"]))
    return {"accuracy": float(best.score(*sets["test"]))}


@dataclasses.dataclass(frozen=True)
class LinearProbe(Evaluator):
    """Logistic regression on a task's features, the backbone frozen.

    Attributes:
        task: whose `features` are probed.
        feature: which of them; 'levels' are no vectors and cannot be.
        untrained: probe the same network freshly initialised instead, as the baseline.
    """

    splits: tuple[str, ...] = ("train", "val", "test")
    every: int = -1
    task: Task | None = None
    feature: str = "pooled"
    untrained: bool = False

    def prepare(self, variables: Variables, ctx: Context) -> Variables:
        assert self.task is not None
        return variables.replace(params=self.task.init(ctx.key).params) if self.untrained else variables

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        assert self.task is not None
        return {"features": self.task.features(variables, batch, ctx)[self.feature]}

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        real = np.asarray(batch["weight"]) > 0
        new = {
            "features": np.asarray(arrays["features"], np.float32)[real].reshape(real.sum(), -1),
            "label": np.asarray(batch["label"])[real],
        }
        return new if state is None else self.merge(state, new)

    def merge(self, first: dict, second: dict) -> dict:
        return {name: np.concatenate([first[name], second[name]]) for name in first}

    def result(self, *states: Any) -> Result:
        return Result(logistic_accuracy(*((state["features"], state["label"]) for state in states)))


@dataclasses.dataclass(frozen=True)
class PixelBaseline(LinearProbe):
    """The same logistic regression on raw pixels: what a representation must beat."""

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        return {"features": jax.numpy.reshape(batch["image"], (batch["image"].shape[0], -1))}
