"""Training of 4M's tokenizers: images, one-valued maps, classes and features, each with the error that suits it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from transformer_zoo.task import Aux, Batch, Context, Evaluator, Result, Tree, Variables
from transformer_zoo.tasks.networks import apply_network, init_network
from transformer_zoo.tasks.tokenization import Tokenization, codebook_usage


@dataclasses.dataclass(frozen=True)
class FourMTokenization(Tokenization):
    """Trains a `FourMTokenizer`: squared or absolute error of pixels, smooth L1 of maps and features, cross-entropy."""

    def spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        one = self.network.field
        return {self.field: jax.ShapeDtypeStruct((batch_size, *one.shape[1:]), one.dtype)}

    def init(self, key: Key[Array, ""]) -> Variables:
        values = jnp.zeros(self.network.field.shape, self.network.field.dtype)
        params, state = init_network(self.network, key, self.network.channels_of(values))
        return Variables(params={"model": params}, state={"model": state})

    def check(self, batch: Batch) -> None:
        if self.network.reads == "pixels":
            super().check(batch)
        elif self.network.reads == "classes" and np.max(batch[self.field]) >= self.network.channels:
            found, most = int(np.max(batch[self.field])), self.network.channels
            raise ValueError(
                f"{self.field} has class {found}, but model.channels is {most}: classes are 0 to {most - 1}"
            )

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], Aux]:
        return super().loss(variables, {self.field: self.network.channels_of(batch[self.field])}, ctx)

    def pixel_errors(self, pixels: Array, reconstruction: Array) -> Array:
        if self.network.reads == "pixels":
            return super().pixel_errors(pixels, reconstruction)
        if self.network.reads == "classes":
            return optax.softmax_cross_entropy(reconstruction, pixels)
        return optax.losses.huber_loss(reconstruction, pixels)

    def evaluators(self) -> dict[str, Evaluator]:
        if self.network.reads == "pixels":
            return super().evaluators()
        return {"reconstruction": MapReconstruction(task=self)}


@dataclasses.dataclass(frozen=True)
class MapReconstruction(Evaluator):
    """How much of maps survives, beside the best guess that looks at nothing, and how the codes are used.

    Of classes 'accuracy' and 'most_frequent_accuracy'; else 'rmse' and 'mean_rmse', the deviation from each place's
    mean.
    """

    task: FourMTokenization | None = None

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        assert self.task is not None
        network, values = self.task.network, batch[self.task.field]
        written, aux, _ = apply_network(network, variables, network.channels_of(values))
        return {"ids": aux["ids"], "found": network.values_of(written), "values": values}

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        assert self.task is not None
        network, kept = self.task.network, batch["weight"] > 0
        found, values = arrays["found"][kept], np.asarray(arrays["values"])[kept]
        new: dict[str, Any] = {"codes": np.bincount(arrays["ids"][kept].ravel(), minlength=network.codebook_size)}
        if network.reads == "classes":
            new |= {"right": (found == values).sum(), "count": values.size}
            new["classes"] = np.bincount(values.ravel(), minlength=network.channels)
        else:
            new |= {"error": np.square(found - values).sum(), "count": values.size, "samples": len(values)}
            new |= {"sum": values.sum(axis=0), "squares": np.square(values.astype(np.float64)).sum()}
        return new if state is None else self.merge(state, new)

    def result(self, state: dict) -> Result:
        metrics = codebook_usage(state["codes"][None])
        count = state["count"]
        if "right" in state:
            metrics["accuracy"] = float(state["right"] / count)
            metrics["most_frequent_accuracy"] = float(state["classes"].max() / count)
            return Result(metrics)
        spread = state["squares"] - np.square(state["sum"]).sum() / state["samples"]
        metrics["rmse"] = float(np.sqrt(state["error"] / count))
        metrics["mean_rmse"] = float(np.sqrt(max(spread, 0.0) / count))
        return Result(metrics)
