"""Classification of images: cross-entropy on labels."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from transformer_zoo.data import mixing
from transformer_zoo.task import Aux, Batch, Context, Evaluator, Result, Task, Tree, Variables
from transformer_zoo.tasks.networks import apply_network, init_network


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """Softmax or sigmoid cross-entropy.

    Attributes:
        network: gives (logits [batch, num_classes], aux) of images; has image_size, channels and layer_numbers.
        loss_kind: 'softmax', or 'sigmoid' for one binary decision a class (Beyer et al. 2020, arXiv 2006.07159).
        label_smoothing: share of the target spread evenly over all classes.
        mixup_alpha: of the beta distribution of mixup's shares in training; 0 is off (`data.mixing`).
        cutmix_alpha: the same for cutmix.
        switch_probability: of cutmix instead of mixup in a step, where both are on.
    """

    network: nn.Module
    loss_kind: str = "softmax"
    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    switch_probability: float = 0.5

    def __post_init__(self) -> None:
        if self.loss_kind not in ("softmax", "sigmoid"):
            raise ValueError(f"task.loss_kind is {self.loss_kind!r}, but must be 'softmax' or 'sigmoid'")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"task.label_smoothing is {self.label_smoothing}, but must be at least 0 and below 1")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if getattr(self, name) < 0:
                raise ValueError(f"task.{name} is {getattr(self, name)}, but must be at least 0 (0: off)")
        if not 0 <= self.switch_probability <= 1:
            raise ValueError(f"task.switch_probability is {self.switch_probability}, but must lie between 0 and 1")

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
        images, targets = batch["image"], self.targets(batch["label"])
        if ctx.train:
            key = jax.random.fold_in(ctx.key, 1)
            images, targets = mixing.mix(
                key, images, targets, self.mixup_alpha, self.cutmix_alpha, self.switch_probability
            )
        inputs = images, *self.network_inputs(ctx)
        logits, _, state = apply_network(self.network, variables, *inputs, key=ctx.key, train=ctx.train)
        accuracy = (logits.argmax(axis=-1) == targets.argmax(axis=-1)).mean()
        return self.losses(logits, targets).mean(), Aux(metrics={"accuracy": accuracy}, state=state)

    def network_inputs(self, ctx: Context) -> tuple[Any, ...]:
        """What the network is given beside images, for papers whose network changes with the step."""
        return ()

    def check(self, batch: Batch) -> None:
        labels, count = np.asarray(batch.get("label", ())), self.network.num_classes
        wrong = np.flatnonzero((labels < 0) | (labels >= count))
        if len(wrong):
            where = f"record {batch['record'][wrong[0]]}" if "record" in batch else f"row {wrong[0]} of a batch"
            label = labels[wrong[0]]
            raise ValueError(
                f"{where} has label {label}, but model.num_classes is {count}: labels are 0 to {count - 1}"
            )

    def evaluators(self) -> dict[str, Evaluator]:
        return {"": Accuracy(task=self)}

    def features(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        _, aux, _ = apply_network(self.network, variables, batch["image"])
        return {"pooled": aux["pooled"], "levels": aux["levels"]}

    def depths(self, params: Tree) -> Tree:
        return self.network.layer_numbers(params)

    def targets(self, labels: Array) -> Float[Array, "batch classes"]:
        """Smoothed one-hot labels."""
        return optax.smooth_labels(jax.nn.one_hot(labels, self.network.num_classes), self.label_smoothing)

    def losses(self, logits: Float[Array, "batch classes"], targets: Array) -> Float[Array, " batch"]:
        """Cross-entropy of every image."""
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
            "loss": self.task.losses(logits, self.task.targets(batch["label"])),
        }

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        weight = batch["weight"]
        sums = {name: (values * weight).sum() for name, values in arrays.items()} | {"count": weight.sum()}
        return sums if state is None else self.merge(state, sums)

    def result(self, state: dict) -> Result:
        return Result({name: float(state[name] / state["count"]) for name in ("accuracy", "loss")})
