"""Dense prediction with a network of images, such as 4M's encoder with its dense head: classes, or one value a pixel.

Segmentation learns by cross-entropy, depth by smooth L1 (4M, arXiv 2312.06647, section 4.1).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from transformer_zoo import naming
from transformer_zoo.task import Aux, Batch, Context, Evaluator, Result, Task, Tree, Variables
from transformer_zoo.tasks.networks import apply_network, init_network

KINDS = ("classes", "values")


@dataclasses.dataclass(frozen=True)
class DensePrediction(Task):
    """Predicts a field of every pixel from the image.

    Attributes:
        network: gives (map [batch, height, width, channels], aux) of images; has image_size, channels, num_classes and
            layer_numbers. Of values it writes one channel.
        field: of the batch that is predicted, [batch, height, width].
        kind: 'classes' or 'values'.
        ignored: a class whose pixels do not count; below 0 for none.
    """

    network: nn.Module
    field: str = "semseg"
    kind: str = "classes"
    ignored: int = -1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise naming.unknown("task.kind", self.kind, KINDS)
        if self.kind == "values" and self.network.num_classes != 1:
            raise ValueError(f"model.num_classes is {self.network.num_classes}, but task.kind 'values' needs 1")

    def spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        size, dtype = self.network.image_size, jnp.int32 if self.kind == "classes" else jnp.float32
        return {
            "image": jax.ShapeDtypeStruct((batch_size, *size, self.network.channels), jnp.float32),
            self.field: jax.ShapeDtypeStruct((batch_size, *size), dtype),
        }

    def init(self, key: Key[Array, ""]) -> Variables:
        params, state = init_network(self.network, key, jnp.zeros(self.spec()["image"].shape))
        return Variables(params={"model": params}, state={"model": state} if state else {})

    def check(self, batch: Batch) -> None:
        if self.kind == "classes" and np.max(batch[self.field]) >= self.network.num_classes:
            raise ValueError(
                f"{self.field} has class {int(np.max(batch[self.field]))}, but model.num_classes is "
                f"{self.network.num_classes}"
            )

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], Aux]:
        found, _, state = apply_network(self.network, variables, batch["image"], key=ctx.key, train=ctx.train)
        wanted = jnp.asarray(batch[self.field])
        if self.kind == "values":
            return optax.losses.huber_loss(found[..., 0], wanted).mean(), Aux(state=state)
        counts = (wanted != self.ignored).astype(jnp.float32)
        errors = optax.softmax_cross_entropy_with_integer_labels(found, jnp.maximum(wanted.astype(jnp.int32), 0))
        return (errors * counts).sum() / jnp.maximum(counts.sum(), 1.0), Aux(state=state)

    def evaluators(self) -> dict[str, Evaluator]:
        return {"": DenseFigures(task=self)}

    def depths(self, params: Tree) -> Tree:
        return self.network.layer_numbers(params)


@dataclasses.dataclass(frozen=True)
class DenseFigures(Evaluator):
    """Of classes `miou` over those that occur, of values `rmse` and `delta1`; beside them what a blind guess reaches.

    The blind guess is each pixel's most frequent class (`miou_marginal`) or mean (`rmse_marginal`). `delta1` is the
    share of pixels less than a quarter off, as a ratio (Eigen et al. 2014, arXiv 1406.2283).
    """

    task: DensePrediction | None = None

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> Array:
        assert self.task is not None
        found = apply_network(self.task.network, variables, batch["image"])[0]
        return found[..., 0] if self.task.kind == "values" else jnp.argmax(found, axis=-1)

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        assert self.task is not None
        rows = batch["weight"] > 0
        found, wanted = np.asarray(arrays)[rows], np.asarray(batch[self.task.field])[rows]
        if self.task.kind == "values":
            wanted, ratio = wanted.astype(float), np.maximum(found, 1e-6) / np.maximum(wanted, 1e-6)
            new = {"error": np.square(found - wanted).sum(), "near": (np.maximum(ratio, 1 / ratio) < 1.25).sum()}
            new |= {"sum": wanted.sum(axis=0), "squares": np.square(wanted).sum(), "samples": len(wanted)}
        else:
            classes = range(self.task.network.num_classes)
            wanted = np.where(wanted == self.task.ignored, -1, wanted.astype(int))
            pairs = wanted * len(classes) + found
            confusion = np.bincount(pairs[wanted >= 0], minlength=len(classes) ** 2).reshape(len(classes), -1)
            new = {"confusion": confusion, "places": np.stack([(wanted == one).sum(axis=0) for one in classes])}
        return new if state is None else self.merge(state, new)

    def result(self, state: dict) -> Result:
        if "confusion" in state:
            places = state["places"]
            guess = places.argmax(axis=0)
            blind = np.stack([places[:, guess == one].sum(axis=1) for one in range(len(places))], axis=1)
            return Result({"miou": mean_overlap(state["confusion"]), "miou_marginal": mean_overlap(blind)})
        pixels = state["samples"] * state["sum"].size
        spread = state["squares"] - (np.square(state["sum"]) / state["samples"]).sum()
        metrics = {"rmse": np.sqrt(state["error"] / pixels), "delta1": state["near"] / pixels}
        metrics["rmse_marginal"] = np.sqrt(max(spread, 0.0) / pixels)
        return Result({name: float(value) for name, value in metrics.items()})


def mean_overlap(confusion: np.ndarray) -> float:
    """Mean intersection over union from counts [true class, predicted class], of the classes that occur."""
    both, either = np.diag(confusion), confusion.sum(axis=0) + confusion.sum(axis=1) - np.diag(confusion)
    there = confusion.sum(axis=1) > 0
    return float((both[there] / either[there]).mean())
