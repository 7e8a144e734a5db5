"""Detection of objects as boxes, as FCOS learns it (Tian et al. 2019, arXiv 1904.01355): see `layers.detection`."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from transformer_zoo.data.pictures import boxed, to_uint8
from transformer_zoo.layers.detection import (
    Detected,
    DetectionMaps,
    PlaceTargets,
    boxes_around,
    detect,
    generalised_overlap,
    place_centres,
    place_targets,
)
from transformer_zoo.task import Aux, Batch, Context, Evaluator, Result, Task, Tree, Variables
from transformer_zoo.tasks.average_precision import average_precision, blind_boxes
from transformer_zoo.tasks.networks import apply_network, init_network

SHOWN_SCORE = 0.5  # of boxes that are drawn


@dataclasses.dataclass(frozen=True)
class Detection(Task):
    """Focal loss of classes, GIoU loss of boxes weighed by true centre-ness, and cross-entropy of centre-ness.

    Each is a sum over the whole batch by the number of places with an object (of boxes, by the sum of their
    centre-ness), so accumulation over parts of a batch is not exact.

    Attributes:
        network: gives (DetectionMaps, aux) of images; has image_size, channels, num_classes and layer_numbers.
        max_boxes: rows of the batch's `boxes` float [batch, max_boxes, 4], y0, x0, y1, x1 in pixels, and of its
            `classes` int [batch, max_boxes]; a row without area is none.
        reach: strides of the map that a box's places lie from its middle at most; `inf` takes all places inside.
        focal_alpha, focal_gamma: of the focal loss (Lin et al. 2017, arXiv 1708.02002).
        most, candidates, overlap_limit: of found boxes, see `detect`.
    """

    network: nn.Module
    max_boxes: int = 100
    reach: float = 1.5
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    most: int = 100
    candidates: int = 1000
    overlap_limit: float = 0.6

    def __post_init__(self) -> None:
        for name in ("max_boxes", "most", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"task.{name} is {getattr(self, name)}, but must be at least 1")
        for name in ("focal_alpha", "overlap_limit"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"task.{name} is {getattr(self, name)}, but must lie between 0 and 1")
        if self.reach <= 0:
            raise ValueError(f"task.reach is {self.reach}, but must be above 0")
        if self.focal_gamma < 0:
            raise ValueError(f"task.focal_gamma is {self.focal_gamma}, but must be at least 0 (0: cross-entropy)")

    def spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        size, channels = self.network.image_size, self.network.channels
        return {
            "image": jax.ShapeDtypeStruct((batch_size, *size, channels), jnp.float32),
            "boxes": jax.ShapeDtypeStruct((batch_size, self.max_boxes, 4), jnp.float32),
            "classes": jax.ShapeDtypeStruct((batch_size, self.max_boxes), jnp.int32),
        }

    def init(self, key: Key[Array, ""]) -> Variables:
        params, state = init_network(self.network, key, jnp.zeros(self.spec()["image"].shape))
        return Variables(params={"model": params}, state={"model": state} if state else {})

    def check(self, batch: Batch) -> None:
        if "boxes" not in batch or "classes" not in batch:
            return
        there, classes = has_area(np.asarray(batch["boxes"])), np.asarray(batch["classes"])
        wrong = classes[there & ((classes < 0) | (classes >= self.network.num_classes))]
        if len(wrong):
            raise ValueError(
                f"classes has {wrong[0]}, but model.num_classes is {self.network.num_classes}: classes of boxes are 0 "
                f"to {self.network.num_classes - 1}"
            )

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], Aux]:
        maps, _, state = apply_network(self.network, variables, batch["image"], key=ctx.key, train=ctx.train)
        losses = self.losses(maps, jnp.asarray(batch["boxes"]), jnp.asarray(batch["classes"]))
        return sum(losses.values(), jnp.zeros(())), Aux(metrics=losses, state=state)

    def losses(self, maps: DetectionMaps, boxes: Float[Array, "batch objects 4"], classes: Array) -> dict[str, Array]:
        """'class_loss', 'box_loss' and 'centreness_loss' of what the network says."""
        batch, rows, columns, num_classes = maps.classes.shape
        centres = place_centres((rows, columns), self.network.image_size)
        wanted = self.targets(maps, boxes, classes)
        there = wanted.classes >= 0
        count = jnp.maximum(there.sum(), 1)
        kinds = jax.nn.one_hot(wanted.classes, num_classes)  # of -1 all zero
        logits = maps.classes.reshape(batch, -1, num_classes)
        focal = optax.losses.sigmoid_focal_loss(logits, kinds, alpha=self.focal_alpha, gamma=self.focal_gamma)
        # Where there is no object any box will do that has an area.
        distances = jnp.where(there[..., None], wanted.distances, 1.0)
        found = boxes_around(centres, maps.distances.reshape(batch, -1, 4))
        apart = 1 - generalised_overlap(found, boxes_around(centres, distances))
        near = optax.sigmoid_binary_cross_entropy(maps.centreness.reshape(batch, -1), wanted.centreness)
        return {
            "class_loss": focal.sum() / count,
            "box_loss": (wanted.centreness * apart).sum() / jnp.maximum(wanted.centreness.sum(), 1e-6),
            "centreness_loss": jnp.where(there, near, 0.0).sum() / count,
        }

    def targets(self, maps: DetectionMaps, boxes: Float[Array, "batch objects 4"], classes: Array) -> PlaceTargets:
        """What the network should say."""
        (rows, columns), size = maps.centreness.shape[1:], self.network.image_size
        reach = self.reach * jnp.asarray([side / count for side, count in zip(size, (rows, columns))], jnp.float32)
        return place_targets(boxes, classes, place_centres((rows, columns), size), reach)

    def detections(self, variables: Variables, images: Float[Array, "batch height width channels"]) -> Detected:
        """Boxes found in images."""
        maps = apply_network(self.network, variables, images)[0]
        return detect(
            maps,
            self.network.image_size,
            most=self.most,
            candidates=self.candidates,
            overlap_limit=self.overlap_limit,
        )

    def evaluators(self) -> dict[str, Evaluator]:
        return {"": AveragePrecision(task=self)}

    def depths(self, params: Tree) -> Tree:
        return self.network.layer_numbers(params)


def has_area(boxes: np.ndarray) -> np.ndarray:
    """Which rows of boxes [..., 4] hold one."""
    return np.all(boxes[..., 2:] > boxes[..., :2], axis=-1)


@dataclasses.dataclass(frozen=True)
class AveragePrecision(Evaluator):
    """`ap50` at an overlap of one half and `ap`, the mean over 0.5, 0.55, ... 0.95, of the classes that occur (COCO).

    Beside them `_any_class`, where the class does not matter, and `_marginal`, what the best guess that does not look
    reaches: the boxes and classes that cover most of the training split's, see `blind_boxes`.

    Attributes:
        splits: to learn the blind guess from, to judge.
        num_pictures: that are shown: true boxes above those found whose score is `SHOWN_SCORE` or more.
    """

    splits: tuple[str, ...] = ("train", "test")
    batches: int = 8
    task: Detection | None = None
    num_pictures: int = 16

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        assert self.task is not None
        return self.task.detections(variables, batch["image"])._asdict()

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        rows = np.flatnonzero(batch["weight"])
        new = {name: np.asarray(values)[rows] for name, values in arrays.items()}
        new["true_boxes"] = np.asarray(batch["boxes"])[rows]
        new["true_classes"] = np.where(has_area(new["true_boxes"]), np.asarray(batch["classes"])[rows], -1)
        new["images"] = to_uint8(np.asarray(batch["image"])[rows[: self.num_pictures]])
        return new if state is None else self.merge(state, new)

    def merge(self, first: dict, second: dict) -> dict:
        """Records one after the other; of pictures only the first few."""
        both = {name: np.concatenate([first[name], second[name]]) for name in first}
        return both | {"images": both["images"][: self.num_pictures]}

    def result(self, training: dict, state: dict) -> Result:
        assert self.task is not None
        true = state["true_boxes"], state["true_classes"]
        found = state["boxes"], state["scores"], state["classes"]
        seen = training["true_classes"] >= 0
        if not seen.any() or not (true[1] >= 0).any():
            raise ValueError(f"no box in a whole split: one of {', '.join(self.splits)} has nothing to find")
        blind = blind_boxes(training["true_boxes"][seen], training["true_classes"][seen], self.task.most)
        said, sure, kinds = (np.broadcast_to(one, (len(true[0]), *one.shape)) for one in blind)
        figures = {
            "": average_precision(*found, *true),
            "_any_class": average_precision(*found[:2], np.minimum(found[2], 0), true[0], np.minimum(true[1], 0)),
            "_marginal": average_precision(said, sure, kinds, *true),
        }
        metrics = {f"ap50{name}": float(table[:, 0].mean()) for name, table in figures.items()}
        metrics |= {f"ap{name}": float(table.mean()) for name, table in figures.items()}
        return Result(metrics, images={"boxes": self.pictures(state)})

    def pictures(self, state: dict) -> np.ndarray:
        """True boxes above those found, uint8 [count, height, width, 3]."""
        assert self.task is not None
        images = state["images"]
        kept = [state["true_classes"][: len(images)] >= 0, state["scores"][: len(images)] >= SHOWN_SCORE]
        drawn = []
        for name, shown in zip(("true_", ""), kept):
            boxes, classes = (
                [values[row] for values, row in zip(state[f"{name}{field}"], shown)] for field in ("boxes", "classes")
            )
            drawn.append(boxed(images, boxes, classes, self.task.network.num_classes))
        gap = np.full((len(images), 2, *drawn[0].shape[2:]), 255, np.uint8)
        return np.concatenate([drawn[0], gap, drawn[1]], axis=1)
