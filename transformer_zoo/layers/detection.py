"""Objects as boxes without anchors: FCOS (Tian et al. 2019, arXiv 1904.01355) on one map of places.

Every place says by how much it lies below the top, right of the left, above the bottom and left of the right side of
the box that it belongs to, of which class that is, and how near its middle it lies. A place belongs to the smallest box
that it lies in, near the box's middle. What several places say of one object is made one by suppression. The paper
shares boxes out by size among five maps; here there is one, for networks whose map is fine enough for all.

Boxes are y0, x0, y1, x1 in pixels: those of rows y0 <= y < y1 and columns x0 <= x < x1.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

PRIOR = 0.01  # share of places that are taken for an object of a class at the start (section 4 of RetinaNet)

Size = tuple[int, int]


class DetectionMaps(NamedTuple):
    """What a network says at every place.

    Attributes:
        classes: logits [batch, rows, columns, num_classes], one binary decision a class.
        distances: pixels to the top, left, bottom and right side of the box [batch, rows, columns, 4], above 0.
        centreness: logits [batch, rows, columns].
    """

    classes: Array
    distances: Array
    centreness: Array


class PlaceTargets(NamedTuple):
    """What a network should say at every place.

    Attributes:
        classes: int [batch, places], -1 where there is no object.
        distances: pixels [batch, places, 4].
        centreness: [batch, places], 1 in the middle of a box and 0 where there is none.
    """

    classes: Array
    distances: Array
    centreness: Array


class Detected(NamedTuple):
    """Boxes that are found, the surest first.

    Attributes:
        boxes: [batch, most, 4].
        scores: [batch, most] in [0, 1]; 0 where there is no further one.
        classes: int [batch, most].
    """

    boxes: Array
    scores: Array
    classes: Array


class DetectionHead(nn.Module):
    """Two towers of 3 x 3 convolutions, for classes and for boxes (section 3, and GroupNorm as in its section 4).

    Centre-ness stands on the tower of boxes, as in the paper's later version.

    Attributes:
        num_classes: of objects.
        tower_depth: convolutions of each tower.
        dtype: of the towers; what is said is float32.
    """

    num_classes: int
    tower_depth: int = 4
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch rows columns width"], size: Size) -> DetectionMaps:
        """What every place of a map, whose width is a multiple of 8, says of an image of `size` pixels."""
        by_class, by_box = (self.tower(x, name) for name in ("class_tower", "box_tower"))
        stride = jnp.asarray([size[0] / x.shape[1], size[1] / x.shape[2]] * 2, jnp.float32)
        classes = self.convolution(self.num_classes, "classes", -math.log(1 / PRIOR - 1))(by_class)
        distances = self.convolution(4, "distances")(by_box).astype(jnp.float32)
        scale = self.param("scale", nn.initializers.ones, ())
        centreness = self.convolution(1, "centreness")(by_box)[..., 0]
        return DetectionMaps(
            classes.astype(jnp.float32), stride * jnp.exp(scale * distances), centreness.astype(jnp.float32)
        )

    def tower(self, x: Float[Array, "batch rows columns width"], name: str) -> Float[Array, "batch rows columns width"]:
        """Convolutions with GroupNorm, 8 channels a group as the paper's 256 channels in 32."""
        for number in range(self.tower_depth):
            x = self.convolution(x.shape[-1], f"{name}{number}")(x)
            norm = nn.GroupNorm(
                None, 8, epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name=f"{name}{number}_norm"
            )
            x = nn.relu(norm(x))
        return x

    def convolution(self, width: int, name: str, bias: float = 0.0) -> nn.Conv:
        """A 3 x 3 convolution to `width` channels."""
        normal, constant = nn.initializers.normal(0.01), nn.initializers.constant(bias)
        return nn.Conv(width, (3, 3), kernel_init=normal, bias_init=constant, dtype=self.dtype, name=name)


def area(boxes: Float[Array, "*shape 4"]) -> Float[Array, "*shape"]:
    """Of boxes, 0 where a side is not before the other."""
    return jnp.prod(jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def intersection_and_union(
    first: Float[Array, "*#shape 4"], second: Float[Array, "*#shape 4"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Areas that two boxes share and that they cover together."""
    low, high = jnp.maximum(first[..., :2], second[..., :2]), jnp.minimum(first[..., 2:], second[..., 2:])
    both = jnp.prod(jnp.maximum(high - low, 0), axis=-1)
    return both, area(first) + area(second) - both


def overlap(first: Float[Array, "*#shape 4"], second: Float[Array, "*#shape 4"]) -> Float[Array, "*shape"]:
    """Intersection over union of boxes, in [0, 1]."""
    both, either = intersection_and_union(first, second)
    return both / jnp.maximum(either, 1e-9)


def generalised_overlap(first: Float[Array, "*#shape 4"], second: Float[Array, "*#shape 4"]) -> Float[Array, "*shape"]:
    """GIoU in (-1, 1]: the overlap, less the share of the hull that neither covers (Rezatofighi et al. 2019).

    Boxes far apart have a gradient towards each other (arXiv 1902.09630, section 3).
    """
    both, either = intersection_and_union(first, second)
    low, high = jnp.minimum(first[..., :2], second[..., :2]), jnp.maximum(first[..., 2:], second[..., 2:])
    hull = jnp.maximum(jnp.prod(high - low, axis=-1), 1e-9)
    return both / jnp.maximum(either, 1e-9) - (hull - either) / hull


def place_centres(grid: Size, size: Size) -> Float[Array, "places 2"]:
    """Row and column in pixels of the middle of every place, row by row, of a map of an image of `size`."""
    rows, columns = ((jnp.arange(count) + 0.5) * side / count for count, side in zip(grid, size))
    return jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)


def boxes_around(
    centres: Float[Array, "places 2"], distances: Float[Array, "*batch places 4"]
) -> Float[Array, "*batch places 4"]:
    """Boxes of which places know how far their sides are."""
    return jnp.concatenate([centres - distances[..., :2], centres + distances[..., 2:]], axis=-1)


def place_targets(
    boxes: Float[Array, "batch objects 4"],
    classes: Int[Array, "batch objects"],
    centres: Float[Array, "places 2"],
    reach: Float[Array, "2"],
) -> PlaceTargets:
    """What places belong to (section 3.1): the smallest box around them of which they are near the middle.

    Args:
        boxes: true ones; those without area do not count.
        classes: of the boxes.
        centres: of the places, see `place_centres`.
        reach: how many pixels from a box's middle its places lie at most, along rows and along columns.
    """
    low, high = boxes[:, None, :, :2], boxes[:, None, :, 2:]
    middles = centres[None, :, None]
    distances = jnp.concatenate([middles - low, high - middles], axis=-1)  # [batch, places, objects, 4]
    near = (jnp.abs(middles - (low + high) / 2) < reach).all(axis=-1)
    belongs = near & (distances.min(axis=-1) > 0)
    chosen = jnp.where(belongs, area(boxes)[:, None], jnp.inf).argmin(axis=-1)
    there = belongs.any(axis=-1)
    distances = jnp.take_along_axis(distances, chosen[..., None, None], axis=2)[:, :, 0]
    before, after = distances[..., :2], distances[..., 2:]
    shares = jnp.minimum(before, after) / jnp.maximum(jnp.maximum(before, after), 1e-9)
    return PlaceTargets(
        jnp.where(there, jnp.take_along_axis(classes, chosen, axis=1), -1),
        distances,
        jnp.where(there, jnp.sqrt(jnp.prod(jnp.maximum(shares, 0), axis=-1)), 0.0),
    )


def detect(
    maps: DetectionMaps, size: Size, *, most: int = 100, candidates: int = 1000, overlap_limit: float = 0.6
) -> Detected:
    """The surest boxes, each object's once, scored by their class and centre-ness.

    A score is the geometric mean of the two, which ranks as the paper's product does (section 3.2).

    Args:
        maps: what the network says.
        size: of the image in pixels, which no box leaves.
        most: boxes of an image that are given.
        candidates: pairs of place and class that are looked at, the surest.
        overlap_limit: boxes of one class that overlap more than so with a surer one are taken for the same object.
    """
    batch, rows, columns, num_classes = maps.classes.shape
    sure = jnp.sqrt(jax.nn.sigmoid(maps.classes) * jax.nn.sigmoid(maps.centreness)[..., None])
    boxes = boxes_around(place_centres((rows, columns), size), maps.distances.reshape(batch, -1, 4))
    boxes = jnp.clip(boxes, 0, jnp.asarray(size * 2, boxes.dtype))
    sure = sure.reshape(batch, -1)
    scores, numbers = jax.lax.top_k(sure, min(candidates, sure.shape[1]))
    boxes = jnp.take_along_axis(boxes, (numbers // num_classes)[..., None], axis=1)
    one = functools.partial(suppress, most=most, overlap_limit=overlap_limit)
    return jax.vmap(one)(boxes, scores, numbers % num_classes)


def suppress(
    boxes: Float[Array, "candidates 4"],
    scores: Float[Array, "candidates"],
    classes: Int[Array, "candidates"],
    *,
    most: int,
    overlap_limit: float,
) -> Detected:
    """Takes the surest box `most` times, each time striking out those of its class that overlap it too much."""

    def take(left: Array, _: None) -> tuple[Array, Detected]:
        best = left.argmax()
        same = (classes == classes[best]) & (overlap(boxes, boxes[best]) > overlap_limit)
        found = Detected(boxes[best], left[best], classes[best])
        return jnp.where(same, 0.0, left).at[best].set(0.0), found

    return jax.lax.scan(take, scores, None, length=most)[1]
