"""Classification of images: cross-entropy on labels."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from transformer_zoo.task import Aux, Batch, Context, Evaluator, Result, Task, Tree, Variables
from transformer_zoo.tasks.networks import apply_network, init_network


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """Softmax or sigmoid cross-entropy.

    Attributes:
        network: gives (logits [batch, num_classes], aux) of images; has image_size, channels and layer_numbers.
        loss_kind: 'softmax', or 'sigmoid' for one binary decision a class (Beyer et al. 2020, arXiv 2006.07159).
        label_smoothing: share of the target spread evenly over all classes.
    """

    network: nn.Module
    loss_kind: str = "softmax"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.loss_kind not in ("softmax", "sigmoid"):
            raise ValueError(f"task.loss_kind is {self.loss_kind!r}, but must be 'softmax' or 'sigmoid'")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"task.label_smoothing is {self.label_smoothing}, but must be at least 0 and below 1")

    def spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        shape = (batch_size, *self.network.image_size, self.network.channels)
        return {
            "image": jax.ShapeDtypeStruct(shape, jnp.float32),
            "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        }

    def init(self, key: Key[Array, ""]) -> Variables:
        params, state = init_network(self.network, key, jnp.zeros(self.spec()["image"].shape))
        return Variables(params={"model": params}, state={"model": state} if state else {})

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], Aux]:
        inputs = batch["image"], *self.network_inputs(ctx)
        logits, _, state = apply_network(self.network, variables, *inputs, key=ctx.key, train=ctx.train)
        accuracy = (logits.argmax(axis=-1) == batch["label"]).mean()
        return self.losses(logits, batch["label"]).mean(), Aux(metrics={"accuracy": accuracy}, state=state)

    def network_inputs(self, ctx: Context) -> tuple[Any, ...]:
        """What the network is given beside images, for papers whose network changes with the step."""
        return ()

    def evaluators(self) -> dict[str, Evaluator]:
        return {"": Accuracy(task=self)}

    def features(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        _, aux, _ = apply_network(self.network, variables, batch["image"])
        return {"pooled": aux["pooled"], "levels": aux["levels"]}

    def depths(self, params: Tree) -> Tree:
        return self.network.layer_numbers(params)

    def losses(self, logits: Float[Array, "batch classes"], labels: Array) -> Float[Array, " batch"]:
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), self.label_smoothing)
        if self.loss_kind == "sigmoid":
            return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)
        return optax.softmax_cross_entropy(logits, targets)


@dataclasses.dataclass(frozen=True)
class Accuracy(Evaluator):
    """Share of images whose highest logit is their label's, and the mean loss."""

    task: Classification | None = None

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        assert self.task is not None
        logits, _, _ = apply_network(self.task.network, variables, batch["image"])
        return {
            "accuracy": logits.argmax(axis=-1) == batch["label"],
            "loss": self.task.losses(logits, batch["label"]),
        }

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        weight = batch["weight"]
        sums = {name: (values * weight).sum() for name, values in arrays.items()} | {"count": weight.sum()}
        return sums if state is None else self.merge(state, sums)

    def result(self, state: dict) -> Result:
        return Result({name: float(state[name] / state["count"]) for name in ("accuracy", "loss")})
