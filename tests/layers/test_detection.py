"""Boxes against brute force over pixels and over places, and detection of what perfect maps say."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.layers.detection import (
    DetectionHead,
    DetectionMaps,
    boxes_around,
    detect,
    generalised_overlap,
    overlap,
    place_centres,
    place_targets,
    suppress,
)


def boxes_of(rng, *shape, side=12):
    corners = np.sort(rng.integers(0, side + 1, (*shape, 2, 2)), axis=-2)
    return corners.reshape(*shape, 4).astype(np.float32)


def test_overlaps_are_those_of_counted_pixels():
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:12, :12]

    def pixels(box):
        return (rows >= box[0]) & (rows < box[2]) & (columns >= box[1]) & (columns < box[3])

    first, second = boxes_of(rng, 30), boxes_of(rng, 30)
    pair = jnp.asarray(first), jnp.asarray(second)
    plain, general = np.asarray(overlap(*pair)), np.asarray(generalised_overlap(*pair))
    for number, (a, b) in enumerate(zip(first, second)):
        both, either = (pixels(a) & pixels(b)).sum(), (pixels(a) | pixels(b)).sum()
        hull = np.prod(np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2]))
        assert plain[number] == pytest.approx(both / max(either, 1), abs=1e-6)
        assert general[number] == pytest.approx(both / max(either, 1) - (hull - either) / max(hull, 1), abs=1e-6)
    apart = generalised_overlap(jnp.asarray([0.0, 0, 1, 1]), jnp.asarray([0.0, 9, 1, 10]))
    assert float(apart) == pytest.approx(-0.8)


@pytest.mark.parametrize("reach", [3.0, np.inf])
def test_a_place_belongs_to_the_smallest_box_near_whose_middle_it_lies(reach):
    rng, grid, size = np.random.default_rng(1), (4, 6), (12, 12)
    boxes, classes = boxes_of(rng, 5, 4), rng.integers(0, 3, (5, 4)).astype(np.int32)
    boxes[:, 3] = -1  # no box
    centres = place_centres(grid, size)
    found = place_targets(jnp.asarray(boxes), jnp.asarray(classes), centres, jnp.full(2, reach))
    again = np.asarray(boxes_around(centres, found.distances))
    found = jax.device_get(found)
    some = 0
    for image, (row, column) in itertools.product(range(5), np.ndindex(grid)):
        y, x = (row + 0.5) * 3, (column + 0.5) * 2
        best = None
        for box, kind in zip(boxes[image], classes[image]):
            top, left, bottom, right = y - box[0], x - box[1], box[2] - y, box[3] - x
            near = max(abs(y - (box[0] + box[2]) / 2), abs(x - (box[1] + box[3]) / 2)) < reach
            size_of = (box[2] - box[0]) * (box[3] - box[1])
            if min(top, left, bottom, right) > 0 and near and (best is None or size_of < best[0]):
                middle = min(top, bottom) / max(top, bottom) * min(left, right) / max(left, right)
                best = size_of, kind, (top, left, bottom, right), middle**0.5, box
        place = 6 * row + column
        if best is None:
            assert found.classes[image, place] == -1 and found.centreness[image, place] == 0
            continue
        some += 1
        assert found.classes[image, place] == best[1]
        assert np.allclose(found.distances[image, place], best[2])
        assert found.centreness[image, place] == pytest.approx(best[3], abs=1e-6)
        assert np.allclose(again[image, place], best[4])
    assert some > 10


def test_perfect_maps_give_every_box_once_and_nothing_else():
    boxes = [[[2, 1, 9, 8], [4, 6, 12, 16], [-1, -1, -1, -1]], [[0, 0, 16, 16], [6, 6, 8, 10], [0, 9, 6, 15]]]
    boxes, classes, grid, size = np.array(boxes, np.float32), np.array([[1, 1, -1], [0, 2, 0]]), (8, 8), (16, 16)
    wanted = place_targets(jnp.asarray(boxes), jnp.asarray(classes), place_centres(grid, size), jnp.full(2, 3.0))
    logits = 20.0 * jax.nn.one_hot(wanted.classes, 3) - 10
    sure = jax.scipy.special.logit(jnp.clip(wanted.centreness, 1e-4, 1 - 1e-4))
    maps = DetectionMaps(logits.reshape(2, 8, 8, 3), wanted.distances.reshape(2, 8, 8, 4), sure.reshape(2, 8, 8))
    found = jax.jit(lambda maps: detect(maps, size, most=6, candidates=50))(maps)
    assert found.boxes.shape == (2, 6, 4) and (np.diff(found.scores) <= 0).all()
    for image in range(2):
        kept = found.scores[image] > 0.1
        said = np.column_stack([found.boxes[image][kept], found.classes[image][kept]])
        true = np.column_stack([boxes[image], classes[image]])[classes[image] >= 0]
        assert len(said) == len(true)
        assert np.allclose(said[np.lexsort(said.T)], true[np.lexsort(true.T)], atol=1e-4)


def test_suppression_spares_other_classes_and_boxes_apart():
    boxes = jnp.asarray([[0.0, 0, 8, 8], [0, 0, 8, 7], [0, 0, 8, 7], [0, 8, 8, 16], [0, 0, 8, 3]])
    found = suppress(
        boxes, jnp.asarray([0.9, 0.8, 0.7, 0.6, 0.5]), jnp.asarray([0, 0, 1, 0, 0]), most=5, overlap_limit=0.6
    )
    assert np.allclose(found.scores, [0.9, 0.7, 0.6, 0.5, 0.0])


def test_a_fresh_head_says_boxes_of_a_stride_and_hardly_any_object():
    head = DetectionHead(3, tower_depth=1)
    x = jnp.zeros((1, 4, 4, 8))
    maps = head.apply(head.init(jax.random.key(0), x, (8, 16)), x, (8, 16))
    assert np.allclose(maps.distances, [2, 4, 2, 4]) and np.allclose(jax.nn.sigmoid(maps.classes), 0.01)
    assert maps.centreness.shape == (1, 4, 4)
