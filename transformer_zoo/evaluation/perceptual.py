"""How far reconstructions lie from their originals by a network that was made to tell (LPIPS), with weights by path."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from transformer_zoo.evaluation.frechet import EXTRACTOR
from transformer_zoo.task import Batch, Context, Evaluator, Result, Tree, Variables


@dataclasses.dataclass(frozen=True)
class PerceptualDistance(Evaluator):
    """The mean distance of a task's reconstructions, frame by frame, at their own size.

    `of_mean_colour_...` is that of pictures of their own mean colour; the task has `field`, `reconstruct` and `unit`.

    Attributes:
        network: has `distance` and `extractor`.
        weights: its variables.
    """

    task: Any = None
    network: Any = None
    weights: Any = dataclasses.field(default=None, compare=False, repr=False)

    def equip(self, variables: Variables) -> Variables:
        return variables.replace(frozen={**variables.frozen, EXTRACTOR: self.weights})

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        pixels = batch[self.task.field]
        reconstruction, _ = self.task.reconstruct(variables, pixels, ctx)
        original, found = self.task.unit(pixels), self.task.unit(reconstruction)
        flat = jnp.broadcast_to(original.mean(axis=tuple(range(1, original.ndim - 1)), keepdims=True), original.shape)

        def distances(other: Array) -> Array:
            frames = [one.reshape(-1, *one.shape[-3:]) for one in (original, other)]
            apart = self.network.apply(variables.frozen[EXTRACTOR], *frames, method="distance")
            return apart.reshape(len(original), -1).mean(axis=1)

        return {"reconstruction": distances(found), "mean_colour": distances(flat)}

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        new = {name: (values * batch["weight"]).sum() for name, values in arrays.items()}
        new |= {"count": batch["weight"].sum(), "name": self._title(batch[self.task.field].shape[1:])}
        return new if state is None else self.merge(state, new)

    def merge(self, first: dict, second: dict) -> dict:
        return {name: first[name] + second[name] for name in first if name != "name"} | {"name": first["name"]}

    def result(self, state: dict) -> Result:
        name, count = state["name"], max(state["count"], 1)
        return Result(
            {
                name: float(state["reconstruction"] / count),
                f"of_mean_colour_{name}": float(state["mean_colour"] / count),
            }
        )

    def _title(self, shape: tuple[int, ...]) -> str:
        frames = f"_{shape[0]}f" if len(shape) == 4 else ""
        return f"{self.network.extractor}_{'x'.join(map(str, dict.fromkeys(shape[-3:-1])))}px{frames}"
