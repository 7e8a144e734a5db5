"""Probes: how much a simple classifier on frozen features can tell, on any task that offers `features`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from transformer_zoo import naming
from transformer_zoo.evaluation import classifiers
from transformer_zoo.task import Batch, Context, Evaluator, Result, Task, Tree, Variables

METHODS = ("logistic", "ridge", "sgd")
POOLS = ("mean", "first")


def select_feature(
    features: Mapping[str, Any], feature: str = "pooled", level: int = -1, pool: str = "mean"
) -> Float[Array, "batch width"]:
    """One vector a record out of what `Task.features` offers.

    Args:
        features: by name; 'levels' holds one representation a level along its first axis, or as a sequence.
        feature: which of them.
        level: which of the levels, counted from 0, or from the end with -1.
        pool: what becomes of axes between batch and width: 'mean' over all tokens, class token and registers included,
            or the 'first' token, which is the class token where there is one.

    Raises:
        ValueError: no such feature, level or pool.
    """
    if feature not in features:
        raise naming.unknown("feature", feature, features)
    chosen = features[feature]
    if feature == "levels":
        count = len(chosen)
        if not -count <= level < count:
            raise ValueError(f"level {level} is none of the {count} levels; choose from {-count} to {count - 1}")
        chosen = chosen[level]
    if chosen.ndim == 2:
        return chosen
    tokens = chosen.reshape(chosen.shape[0], -1, chosen.shape[-1])
    if pool not in POOLS:
        raise naming.unknown("pool", pool, POOLS)
    return tokens.mean(axis=1) if pool == "mean" else tokens[:, 0]


@dataclasses.dataclass(frozen=True)
class Probe(Evaluator):
    """What all probes share: vectors of a task's features, gathered with their labels.

    Attributes:
        splits: to fit, to choose hyper-parameters, to judge.
        task: whose `features` are probed, the backbone frozen.
        feature, level, pool: which of them and how they become vectors, see `select_feature`.
        untrained: probe the same network freshly initialised instead, as the baseline.
    """

    splits: tuple[str, ...] = ("train", "val", "test")
    every: int = -1
    task: Task | None = None
    feature: str = "pooled"
    level: int = -1
    pool: str = "mean"
    untrained: bool = False

    def __post_init__(self) -> None:
        usual = type(self).splits
        if len(self.splits) != len(usual):
            raise ValueError(f"splits is {self.splits}, but must name {len(usual)} splits, such as {usual}")
        if self.pool not in POOLS:
            raise naming.unknown("pool", self.pool, POOLS)

    def prepare(self, variables: Variables, ctx: Context) -> Variables:
        assert self.task is not None
        if not self.untrained:
            return variables
        return dataclasses.replace(variables, params=self.task.init(ctx.key).params)

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        assert self.task is not None
        features = self.task.features(variables, batch, ctx)
        return {"features": select_feature(features, self.feature, self.level, self.pool).astype(jnp.float32)}

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        # Lists, because appending a batch to an array copies all batches before it.
        new = {name: [values] for name, values in zip(("features", "label"), real_records(arrays, batch))}
        return new if state is None else self.merge(state, new)

    def merge(self, first: dict, second: dict) -> dict:
        return {name: first[name] + second[name] for name in first}


def real_records(arrays: Tree, batch: Batch) -> classifiers.Records:
    """Features and labels of a batch without the rows that only pad it.

    Raises:
        ValueError: labels that are not one class number a record.
    """
    if "label" not in batch:
        raise ValueError(f"a probe needs the field 'label', but the data has {', '.join(batch)}")
    real = np.asarray(batch["weight"]) > 0
    labels = np.asarray(batch["label"])
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or labels[real].min(initial=0) < 0:
        raise ValueError(
            "a probe needs one class number of 0 or more as the 'label' of every record, but the labels are "
            f"{labels.dtype} {list(labels.shape)}, the smallest {labels.min()}"
        )
    return np.asarray(arrays["features"])[real], labels[real]


def records_of(state: dict) -> classifiers.Records:
    """All records of a split."""
    return np.concatenate(state["features"]), np.concatenate(state["label"])


@dataclasses.dataclass(frozen=True)
class LinearProbe(Probe):
    """A linear classifier on a task's features; `val` chooses its regularisation or learning rate.

    Attributes:
        method: 'logistic' (`classifiers.logistic`), 'ridge' (`classifiers.ridge`: a closed form that needs only sums
            over the training records) or 'sgd' (`classifiers.softmax_sgd`: on the accelerator, for many records).
    """

    method: str = "logistic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise naming.unknown("method", self.method, METHODS)

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        if self.method != "ridge":
            return super().update(state, arrays, batch)
        features, labels = real_records(arrays, batch)
        summed = classifiers.moments((features, labels))
        # Of a batch that tells it is for training the records themselves are not needed.
        training, *others = self.splits
        kept = slice(0) if batch.get("split") == training and training not in others else slice(None)
        new = {"features": [features[kept]], "label": [labels[kept]], "moments": summed}
        return new if state is None else self.merge(state, new)

    def merge(self, first: dict, second: dict) -> dict:
        merged = super().merge(first, second)
        if self.method == "ridge":
            merged["moments"] = classifiers.add_moments(first["moments"], second["moments"])
        return merged

    def result(self, *states: Any) -> Result:
        train, val, test = states
        if self.method == "ridge":
            candidates = classifiers.ridge(train["moments"])
        else:
            fit = {"logistic": classifiers.logistic, "sgd": classifiers.softmax_sgd}[self.method]
            candidates = fit(records_of(train))
        accuracy = classifiers.chosen_accuracy(candidates, records_of(val), records_of(test))
        return Result({"accuracy": accuracy})


@dataclasses.dataclass(frozen=True)
class PixelBaseline(LinearProbe):
    """The same classifier on raw pixels: what a representation must beat."""

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        return {"features": batch["image"].reshape(batch["image"].shape[0], -1).astype(jnp.float32)}


@dataclasses.dataclass(frozen=True)
class NearestNeighbours(Probe):
    """The weighted vote of the nearest training records, see `classifiers.nearest_neighbours`; fits nothing.

    Attributes:
        k: how many vote.
        temperature: of their weights.
    """

    splits: tuple[str, ...] = ("train", "test")
    k: int = 20
    temperature: float = 0.07

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ValueError(f"k is {self.k}, but must be at least 1")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}, but must be above 0, such as 0.07")

    def result(self, *states: Any) -> Result:
        train, test = (records_of(state) for state in states)
        predict = classifiers.nearest_neighbours(train, self.k, self.temperature)
        return Result({"accuracy": classifiers.accuracy(predict, test)})


@dataclasses.dataclass(frozen=True)
class FewShot(Probe):
    """Ridge regression on a few random training records of each class: `accuracy_1_shot`, `accuracy_5_shot`, ...

    Attributes:
        shots: records a class, a figure each.
        seeds: random choices of records that a figure is the mean of.
    """

    shots: tuple[int, ...] = (1, 5, 10)
    seeds: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shots or min(self.shots) < 1:
            raise ValueError(f"shots is {self.shots}, but must name numbers of at least 1, such as (1, 5, 10)")
        if self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds}, but must be at least 1")

    def result(self, *states: Any) -> Result:
        train, val, test = (records_of(state) for state in states)
        figures = {}
        for shots in self.shots:
            accuracy = classifiers.few_shot_accuracy(train, val, test, shots, self.seeds)
            figures[f"accuracy_{shots}_shot"] = accuracy
        return Result(figures)
