"""The contract between a paper and the loop.

A paper brings a `Task`: what it initialises, what it minimises, how it is judged. The loop in `training/` brings
everything else and knows papers through this file alone, so nothing here imports anything of ours.
"""

import abc
import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

import flax.struct
import jax
import numpy as np
from jaxtyping import Array, Float, Key

Tree = Any  # a nested dict of arrays, or of what stands for them: shapes, shardings, tracers
Batch = Mapping[str, Any]  # field name to array [batch, ...]; a mixture nests one such dict under its dataset's name


class Context(flax.struct.PyTreeNode):
    """What a loss or an evaluator may know beside the variables and the batch.

    Attributes:
        key: a random key that belongs to this step (and player) alone.
        step: number of completed steps, a traced int32.
        ema: averaged parameters by player, or None where the config asks for none.
        player: whose loss is asked for; static.
        phase: the task's `phase(step)`; static, a new value compiles once more.
        train: whether dropout, drop path and masking of training apply; static.
    """

    key: Tree
    step: Tree
    ema: Tree = None
    player: str = flax.struct.field(pytree_node=False, default="model")
    phase: Hashable = flax.struct.field(pytree_node=False, default=None)
    train: bool = flax.struct.field(pytree_node=False, default=True)


class Variables(flax.struct.PyTreeNode):
    """All arrays a task computes with.

    Attributes:
        params: trained arrays by player, {'model': tree} for most papers.
        state: arrays a loss replaces itself: codebooks, batch statistics, EMA teachers.
        frozen: arrays of other runs: teachers, tokenizers. Abstract (ShapeDtypeStruct) after `Task.init`; the loop
            fills them from `config.init_from` and a checkpoint stores only where they came from and their hash.
    """

    params: dict[str, Tree]
    state: Tree = flax.struct.field(default_factory=dict)
    frozen: Tree = flax.struct.field(default_factory=dict)


class Aux(flax.struct.PyTreeNode):
    """What a loss gives beside its value: scalar metrics to log, and the new `state` (None: unchanged)."""

    metrics: dict[str, Any] = flax.struct.field(default_factory=dict)
    state: Tree = None


@dataclasses.dataclass
class Result:
    """What an evaluator found: floats, and what a person would rather look at, listen to or read.

    Attributes:
        metrics: name to float.
        images: name to uint8 [count, height, width, 3], or one image without the first axis.
        clips: name to uint8 [count, frames, height, width, 3].
        sounds: name to (sample rate in Hz, float [count, samples] in [-1, 1]).
        texts: name to a list of strings.
    """

    metrics: dict[str, float]
    images: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    clips: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    sounds: dict[str, tuple[int, np.ndarray]] = dataclasses.field(default_factory=dict)
    texts: dict[str, list[str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Evaluator(abc.ABC):
    """Judges variables on held-out data: device work in `compute`, host sums in `update`, figures in `result`.

    Attributes:
        splits: the splits it reads, each once and in order; `result` receives one state a split.
        every: evaluate at multiples of this many steps; 0 follows `config.eval.every_steps`, -1 only at the end.
        batches: at most this many batches a split; 0 means all of it.
    """

    splits: tuple[str, ...] = ("test",)
    every: int = 0
    batches: int = 0

    def equip(self, variables: Variables) -> Variables:
        """Adds arrays of the evaluator's own, outside of jit and before `prepare`. The default adds none."""
        return variables

    def prepare(self, variables: Variables, ctx: Context) -> Variables:
        """Runs once under jit before the first batch, for what all batches share. The default changes nothing."""
        return variables

    @abc.abstractmethod
    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> Tree:
        """Arrays for `update`, under jit. `batch['weight']` [batch] is 0 for rows that only pad the last batch."""

    @abc.abstractmethod
    def update(self, state: Any, arrays: Tree, batch: Batch) -> Any:
        """Adds one batch (numpy; its `split` names the split) to the state, which is None for the split's first."""

    @abc.abstractmethod
    def result(self, *states: Any) -> Result:
        """Figures from the states, one a split, in the order of `splits`."""

    def merge(self, first: Any, second: Any) -> Any:
        """The state of two processes' batches together; by default states are trees that add up."""
        return jax.tree.map(np.add, first, second)


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """One paper's objective. A frozen dataclass whose fields are networks and numbers; every method is pure."""

    @property
    def players(self) -> tuple[str, ...]:
        """Keys of `Variables.params`, in the order of their updates; a later player sees the earlier one's update."""
        return ("model",)

    def phase(self, step: int) -> Hashable:
        """A static part of the step: where it changes, shapes may change and one compilation follows."""
        return None

    @abc.abstractmethod
    def spec(self, batch_size: int = 1) -> Tree:
        """The training batch as ShapeDtypeStructs, so that a task can be built, counted and planned with no data."""

    @abc.abstractmethod
    def init(self, key: Key[Array, ""]) -> Variables:
        """Fresh variables; called under jit, so that they are created where they will live."""

    @abc.abstractmethod
    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], Aux]:
        """The scalar that `ctx.player` minimises. Plain means over the batch, or accumulation is not exact."""

    def check(self, batch: Batch) -> None:  # noqa: B027, most tasks have nothing to check
        """Raises ValueError for values that no batch may have; sees every batch on the host, text fields included."""

    def evaluators(self) -> dict[str, Evaluator]:
        """Judges by name; their metrics are logged as `split/name_metric`, or `split/metric` for the name ''."""
        return {}

    def features(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        """Named representations [batch, ..., width] for probes: 'pooled' and, where there are levels, 'levels'."""
        raise ValueError(f"{type(self).__name__} offers no features, so no probe can be run on it")

    def depths(self, params: Tree) -> Tree:
        """Layer number of every parameter for layer-wise decay; for stacked leaves an array over the first axis."""
        raise ValueError(f"{type(self).__name__} gives its parameters no depth, so layer_decay must stay 1")
