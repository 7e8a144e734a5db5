"""Judges generators: samples by what they shall show, beside the best and the least that one could expect.

Beside every figure stand what the tokenizer's own reconstructions of true samples reach, which no generator on top of
it can pass (`ceiling`), and what the same samples reach with the conditions of others (`chance`).
"""

import abc
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from transformer_zoo.data.pictures import captioned
from transformer_zoo.task import Batch, Context, Evaluator, Result, Tree, Variables

Sums = dict[str, np.ndarray]  # figure to (sum, count)


def to_bytes(pixels: Float[Array, "*shape"], low: float, high: float) -> UInt8[Array, "*shape"]:
    """Pixels between `low` and `high` as uint8."""
    return jnp.clip(jnp.round((pixels - low) / (high - low) * 255), 0, 255).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True)
class Samples(Evaluator):
    """Samples for held-out conditions.

    Attributes:
        task: has `generate` and `reconstruct`, (variables, batch, key) and (variables, batch) to pixels in
            `pixel_range`, and `calls`, the passes of the network that a sample takes.
        num_pictures: samples that are shown.
    """

    batches: int = 2
    task: Any = None
    num_pictures: int = 16

    @abc.abstractmethod
    def truth(self, batch: Batch) -> np.ndarray:
        """What the samples are asked to show, [batch, ...], from the field that the task is conditioned on."""

    @abc.abstractmethod
    def judge(self, pixels: UInt8[np.ndarray, "batch *sides 3"], truth: np.ndarray) -> list[dict[str, float]]:
        """Scores of every sample."""

    @abc.abstractmethod
    def texts(self, truth: np.ndarray) -> list[str]:
        """What stands below the samples."""

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        made = {
            "samples": self.task.generate(variables, batch, ctx.key),
            "reconstructions": self.task.reconstruct(variables, batch),
        }
        pictures = {name: to_bytes(pixels, *self.task.pixel_range) for name, pixels in made.items()}
        return {name: jnp.broadcast_to(one, (*one.shape[:-1], 3)) for name, one in pictures.items()}

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        rows = np.flatnonzero(batch["weight"])
        truth = np.asarray(self.truth(batch))[rows]
        judged = {
            "": (arrays["samples"][rows], truth),
            "ceiling_": (arrays["reconstructions"][rows], truth),
            "chance_": (arrays["samples"][rows], np.roll(truth, 1, axis=0)),
        }
        sums: Sums = {}
        for prefix, (pixels, wanted) in judged.items():
            for score in self.judge(pixels, wanted):
                for kind, value in score.items():
                    sums[prefix + kind] = sums.get(prefix + kind, np.zeros(2)) + (value, 1)
        if state is not None:
            return self.merge(state, {"sums": sums})
        shown = slice(0, self.num_pictures)
        return {
            "sums": sums,
            "samples": arrays["samples"][rows][shown],
            "reconstructions": arrays["reconstructions"][rows][shown],
            "captions": self.texts(truth[shown]),
        }

    def merge(self, first: dict, second: dict) -> dict:
        sums = {
            name: first["sums"].get(name, np.zeros(2)) + second["sums"].get(name, np.zeros(2))
            for name in {*first["sums"], *second["sums"]}
        }
        return first | {"sums": sums}

    def result(self, state: dict) -> Result:
        metrics = {name: float(total / count) for name, (total, count) in sorted(state["sums"].items())}
        metrics |= {"calls": float(self.task.calls)}
        views = {name: state[name] for name in ("samples", "reconstructions")}
        captions = {"captions": state["captions"]}
        if state["samples"].ndim == 5:
            return Result(metrics, clips=views, texts=captions)
        pictures = {name: captioned(view, state["captions"]) for name, view in views.items()}
        return Result(metrics, images=pictures, texts=captions)
