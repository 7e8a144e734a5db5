"""Average precision of found boxes as COCO defines it, and the best guess of boxes that does not look.

A found box is right where it overlaps a true one of its class that no surer one has taken. Precision at a recall is the
best at that recall or more; its mean over 101 recalls is the average precision of a class at a threshold of overlap.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

THRESHOLDS = 0.5 + 0.05 * np.arange(10)
RECALLS = np.linspace(0, 1, 101)


def overlap(
    first: Float[np.ndarray, "*#shape 4"], second: Float[np.ndarray, "*#shape 4"]
) -> Float[np.ndarray, "*shape"]:
    """Intersection over union of boxes y0, x0, y1, x1; on the host."""
    low, high = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=-1)
    areas = [np.prod(np.clip(one[..., 2:] - one[..., :2], 0, None), axis=-1) for one in (first, second)]
    return both / np.maximum(areas[0] + areas[1] - both, 1e-9)


def average_precision(
    boxes: Float[np.ndarray, "images found 4"],
    scores: Float[np.ndarray, "images found"],
    classes: Int[np.ndarray, "images found"],
    true_boxes: Float[np.ndarray, "images objects 4"],
    true_classes: Int[np.ndarray, "images objects"],
) -> Float[np.ndarray, "present thresholds"]:
    """Average precision of every class that occurs, at each of `THRESHOLDS`.

    Args:
        boxes: found.
        scores: of the found boxes; 0 and less where there is none.
        classes: of the found boxes.
        true_boxes: the true ones.
        true_classes: theirs, below 0 where there is none.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    scores, classes = np.take_along_axis(scores, order, 1), np.take_along_axis(classes, order, 1)
    boxes = np.take_along_axis(boxes, order[..., None], 1).astype(float)
    pairs = overlap(boxes[:, :, None], true_boxes[:, None].astype(float))
    pairs = np.where(classes[:, :, None] == true_classes[:, None], pairs, -1.0)
    images, found, objects = pairs.shape
    right = np.zeros((images, found, len(THRESHOLDS)), bool)
    taken = np.zeros((images, len(THRESHOLDS), objects), bool)
    for rank in range(found):  # of all images at once
        free = np.where(taken, -1.0, pairs[:, rank, None])
        best = free.argmax(axis=-1)[..., None]
        hit = np.take_along_axis(free, best, -1) >= THRESHOLDS[:, None] - 1e-9
        right[:, rank] = hit[..., 0]
        np.put_along_axis(taken, best, np.take_along_axis(taken, best, -1) | hit, -1)
    figures = []
    for number in np.unique(true_classes[true_classes >= 0]):
        mine = (classes == number) & (scores > 0)
        ranked = right[mine][np.argsort(-scores[mine], kind="stable")]
        figures.append([mean_precision(column, (true_classes == number).sum()) for column in ranked.T])
    return np.array(figures, float).reshape(-1, len(THRESHOLDS))


def mean_precision(right: Bool[np.ndarray, "found"], objects: int | np.integer) -> float:
    """Mean over `RECALLS` of the best precision at that recall or more, 0 where it is never reached.

    Args:
        right: whether each found box is, the surest first.
        objects: true boxes.
    """
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(best[np.searchsorted(hits / objects, RECALLS)].mean())


def blind_boxes(
    boxes: Float[np.ndarray, "boxes 4"], classes: Int[np.ndarray, "boxes"], most: int
) -> tuple[Float[np.ndarray, "said 4"], Float[np.ndarray, "said"], Int[np.ndarray, "said"]]:
    """Boxes, scores and classes to say of every picture without looking, the likeliest first.

    For each class the box, among those given, that overlaps most of them by half, then the one that overlaps most of
    those left, and so on; its score is their share of all.

    Args:
        boxes: of pictures to learn from, each with an area.
        classes: theirs.
        most: boxes that may be said.
    """
    said = []
    for number in np.unique(classes):
        own = boxes[classes == number].astype(float)
        alike = overlap(own[:, None], own) >= 0.5
        left = np.ones(len(own), bool)
        for _ in range(min(most, len(own))):
            counts = (alike & left).sum(axis=1)
            best = counts.argmax()
            said.append((counts[best] / len(boxes), number, own[best]))
            left &= ~alike[best]
            if not left.any():
                break
    said.sort(key=lambda one: -one[0])
    scores, numbers, found = zip(*said[:most])
    return np.array(found), np.array(scores), np.array(numbers)
