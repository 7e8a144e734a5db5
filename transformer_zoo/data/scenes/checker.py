"""The judge: what a picture shows, read from its pixels by exact rules, and whether that is what a caption states.

`parse` inverts the generator: saturated pixels are objects, a colour's connected pixels are one, and the sprite whose
mask fits best is its shape and size. It is exact on what is generated and not hidden; under noise and blur it errs, so
print its score on ground truth beside every score of a model (`python -m benchmarks.checker`), and as chance the score
of pictures with the captions of others.
"""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from transformer_zoo.data.scenes import fields, grammar, palette, shapes

UNSEEN = -1
SATURATION, BRIGHTNESS = 0.42, 70  # over both a pixel is an object's
MIN_IOU = 0.5
SLOPE = 0.1  # of brightness from a ball's middle to its rim: below this the light is from the front
MAX_MATCHED = 6  # largest objects of a picture that captions are matched with

DIRECTIONS = palette.COLOUR_RGB / np.linalg.norm(palette.COLOUR_RGB, axis=1, keepdims=True)
_LIT_ROUND = tuple(map(palette.SHAPES.index, ("ball", "cone")))


class Found(NamedTuple):
    """One object as read from a picture: ids, centre of its sprite, overlap with the sprite's mask, seen pixels."""

    shape: int
    size: int
    colour: int
    row: int
    column: int
    iou: float
    area: int


class Parsed(NamedTuple):
    """What a picture shows, objects from the largest to the smallest; `UNSEEN` is what cannot be told."""

    objects: tuple[Found, ...]
    sky: int
    ground: int
    light: int
    horizon: int


class _Bank(NamedTuple):
    """Masks of all sprites, each moved by -1, 0, 1 in both axes, in windows around the middle of their boxes."""

    masks: np.ndarray  # float32 [sprites * 9, window * window]
    area: np.ndarray  # [sprites * 9]
    centre: np.ndarray  # [sprites * 9, 2], of the sprite, from the window's middle
    extent: np.ndarray  # [sprites * 9], 2 R + 1


@functools.cache
def _bank(side: int) -> _Bank:
    halves = palette.half_widths(side)
    window = 2 * int(halves[-1]) + 7
    middle = window // 2
    masks, centres, extents = [], [], []
    for half, shape in itertools.product(map(int, halves), palette.SHAPES):
        mask = shapes.sprite(shape, half).mask
        rows, columns = np.nonzero(mask)
        box = np.array([(rows.min() + rows.max() + 1) // 2, (columns.min() + columns.max() + 1) // 2])
        for move in sorted(itertools.product((-1, 0, 1), repeat=2), key=lambda move: np.abs(move).sum()):
            moved = np.zeros((window, window), np.float32)
            top, left = middle - box + move
            moved[top + rows, left + columns] = 1
            masks.append(moved.reshape(-1))
            centres.append(half - box + move)
            extents.append(2 * half + 1)
    stacked = np.stack(masks)
    return _Bank(stacked, stacked.sum(axis=1), np.array(centres), np.array(extents))


def parse(image: UInt8[np.ndarray, "height width 3"], side: int = 0) -> Parsed:
    """What one picture shows, see `parse_batch`."""
    return parse_batch(image[None], side)[0]


def parse_batch(images: UInt8[np.ndarray, "batch height width 3"], side: int = 0) -> list[Parsed]:
    """What each picture shows.

    Args:
        images: pixels.
        side: of the world, which fixes the sizes of sprites; 0 is the height of the images.

    Returns:
        One `Parsed` a picture.
    """
    found = zip(images, ~is_object(images), find_objects(images, side or images.shape[1]))
    return [
        Parsed(objects, *sky_and_ground(image, background), light, _horizon(image, background))
        for image, background, (objects, light) in found
    ]


def is_object(images: UInt8[np.ndarray, "*shape 3"]) -> Bool[np.ndarray, "*shape"]:
    """Which pixels are saturated and bright as only objects are."""
    highest, lowest = fields.extremes(images)
    return (highest > BRIGHTNESS) & (highest - lowest > SATURATION * highest)


def sky_and_ground(image: np.ndarray, background: np.ndarray) -> tuple[int, int]:
    """Sky and ground, nearest to the median of the background in the top and in the bottom quarter."""
    quarter = len(image) // 4
    ids = []
    for part, table in ((slice(quarter), palette.SKY_RGB), (slice(-quarter, None), palette.GROUND_RGB)):
        seen = image[part][background[part]]
        distance = ((table - np.median(seen, axis=0)) ** 2).sum(axis=1) if len(seen) else None
        ids.append(UNSEEN if distance is None else int(distance.argmin()))
    return ids[0], ids[1]


def _horizon(image: np.ndarray, background: np.ndarray) -> int:
    """The row, from 3/8 to 1/2 of the height, that parts rows like the top one from rows like the bottom one best."""
    height = len(image)
    weight = background.sum(axis=1)
    rows = np.where(background[..., None], image, 0).sum(axis=1) / np.maximum(weight, 1)[:, None]
    seen = np.flatnonzero(weight)
    if not len(seen):
        return UNSEEN
    upper, lower = (np.median(rows[part], axis=0) for part in (seen[: height // 4], seen[-(height // 4) :]))
    gain = np.where(weight > 0, abs(rows - lower).sum(axis=1) - abs(rows - upper).sum(axis=1), 0)
    above = np.concatenate([[0], np.cumsum(gain)])  # of calling the rows before this one sky
    first = 3 * height // 8
    return first + int(above[first : height // 2].argmax())


class _Patches(NamedTuple):
    """4-connected patches of one colour, numbered from 0 over all pictures."""

    labels: np.ndarray  # [batch, height, width], -1 where there is none
    picture: np.ndarray  # [patches]
    colour: np.ndarray  # [patches]
    area: np.ndarray  # [patches]
    box: np.ndarray  # [patches, 2, 2], first and last + 1 of rows and of columns


def _patches(colour: np.ndarray) -> _Patches:
    from scipy.sparse import coo_array  # a third of a second to import: only where pictures are judged
    from scipy.sparse.csgraph import connected_components

    inside = colour >= 0
    node = np.full(colour.shape, UNSEEN)
    node[inside] = np.arange(inside.sum())
    beside = inside[:, :, 1:] & (colour[:, :, 1:] == colour[:, :, :-1])
    below = inside[:, 1:] & (colour[:, 1:] == colour[:, :-1])
    start = np.concatenate([node[:, :, :-1][beside], node[:, :-1][below]])
    end = np.concatenate([node[:, :, 1:][beside], node[:, 1:][below]])
    nodes = int(inside.sum())
    label = np.zeros(0, int)
    if nodes:
        graph = coo_array((np.ones(len(start), np.int8), (start, end)), shape=(nodes, nodes))
        label = connected_components(graph, directed=False)[1]
    labels = np.full(colour.shape, UNSEEN)
    labels[inside] = label
    picture, row, column = np.nonzero(inside)
    number = label.max(initial=-1) + 1
    of_patch = np.zeros((2, number), int)
    of_patch[:, label] = picture, colour[inside]
    box = np.zeros((number, 2, 2), int)
    for axis, place in enumerate((row, column)):
        box[:, axis, 0] = max(colour.shape)
        np.minimum.at(box[:, axis, 0], label, place)
        np.maximum.at(box[:, axis, 1], label, place + 1)
    return _Patches(labels, of_patch[0], of_patch[1], np.bincount(label, minlength=number), box)


@functools.cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def find_objects(images: UInt8[np.ndarray, "batch height width 3"], side: int) -> list[tuple[tuple[Found, ...], int]]:
    """Of each picture its objects, the largest first, and its light as balls and cones show it."""
    with _blas().limit(limits=1):  # the products are small: threads would wait for each other longer than they work
        return _find_objects(images, side)


def _find_objects(images: np.ndarray, side: int) -> list[tuple[tuple[Found, ...], int]]:
    bank = _bank(side)
    inside = is_object(images)
    colour = np.full(inside.shape, UNSEEN)
    colour[inside] = (images[inside].astype(np.float32) @ DIRECTIONS.T.astype(np.float32)).argmax(axis=1)
    patches = _patches(colour)
    large = np.flatnonzero(patches.area >= max(8, 0.004 * side**2))
    window = int(np.sqrt(bank.masks.shape[1]))
    reach = window // 2
    padded = np.pad(patches.labels, ((0, 0), (reach, reach), (reach, reach)), constant_values=UNSEEN)
    middle = patches.box.sum(axis=2)[large] // 2
    rows, columns = (middle[:, axis, None] + np.arange(window) for axis in range(2))
    crops = padded[patches.picture[large, None, None], rows[:, :, None], columns[:, None]] == large[:, None, None]
    both = crops.reshape(len(large), window**2).astype(np.float32) @ bank.masks.T
    iou = both / (patches.area[large, None] + bank.area - both)
    extent = np.diff(patches.box, axis=2)[large].max(axis=1)
    iou[abs(bank.extent - extent) > np.maximum(3, 0.25 * bank.extent)] = 0
    found: list[list[Found]] = [[] for _ in images]
    slopes: list[list[float]] = [[] for _ in images]
    for k, (patch, fit) in enumerate(zip(large, iou.argmax(axis=1))):
        if iou[k, fit] <= MIN_IOU:
            continue
        size, shape = divmod(int(fit) // 9, len(palette.SHAPES))
        row, column = map(int, middle[k] + bank.centre[fit])
        picture, area = patches.picture[patch], int(patches.area[patch])
        found[picture].append(Found(shape, size, int(patches.colour[patch]), row, column, float(iou[k, fit]), area))
        if shape in _LIT_ROUND:
            y, x = np.nonzero(crops[k])
            values = fields.extremes(images[picture, y + middle[k, 0] - reach, x + middle[k, 1] - reach])[0]
            spread = x - x.mean()
            slope = (spread * values).sum() / (spread**2).sum() / values.mean()
            slopes[picture].append(area * slope * palette.half_widths(side)[size])
    return [
        (tuple(sorted(objects, key=lambda one: -one.area)), _light(objects, sum(weighted, 0.0)))
        for objects, weighted in zip(found, slopes)
    ]


def _light(objects: Sequence[Found], slope: float) -> int:
    """From the slopes of brightness across balls and cones, added up by area."""
    total = sum(one.area for one in objects if one.shape in _LIT_ROUND)
    return 1 - int(slope < -SLOPE * total) + int(slope > SLOPE * total) if total else UNSEEN


def score(image: UInt8[np.ndarray, "height width 3"], program: np.ndarray, side: int = 0) -> dict[str, float]:
    """How much of a program a picture shows.

    Objects of the program are matched with objects of the picture, each with another one, such that most clauses are
    true, then most attributes.

    Args:
        image: pixels.
        program: clauses int [16, 4], see `grammar`.
        side: of the world; 0 is the height of the image.

    Returns:
        `adherence`, the share of true clauses, of those that can be judged: light needs a ball or a cone. `exact`, 1
        where all are true and the picture shows as many objects as the program. And of what the program states, the
        right share of `colour`, `shape`, `size`, `position`, `relation`, `count`, `env`.
    """
    return judge(parse(image, side), program, side or len(image))


def judge(parsed: Parsed, program: np.ndarray, side: int) -> dict[str, float]:
    """`score` of a parsed picture."""
    clauses = [tuple(map(int, clause)) for clause in program if clause[0] > 0]
    truths, match = best_match(parsed, clauses, side)
    stated = sum(clause[1] for clause in clauses if clause[0] == grammar.COUNT) or len(match)
    complete = all(truths["clause"]) and (not stated or len(parsed.objects) == stated)
    return summary(truths, complete)


def summary(truths: Mapping[str, Sequence[bool]], complete: bool) -> dict[str, float]:
    """`adherence`, `exact` and the right share of each kind that is stated."""
    shares = {kind: float(np.mean(values)) for kind, values in truths.items() if kind != "clause" and values}
    clauses = truths["clause"]
    return {"adherence": float(np.mean(clauses)) if clauses else 1.0, "exact": float(complete)} | shares


def best_match(
    parsed: Parsed, clauses: Sequence[tuple[int, ...]], side: int
) -> tuple[dict[str, list[bool]], tuple[Found | None, ...]]:
    """The truths of `judge_matched` for the assignment of objects that makes most true, and that assignment."""
    number = sum(clause[0] == grammar.OBJECT for clause in clauses)
    seen: list[Found | None] = [*parsed.objects[:MAX_MATCHED]]
    seen += [None] * (number - len(seen))
    trials = [(judge_matched(parsed, clauses, match, side), match) for match in itertools.permutations(seen, number)]
    return max(trials, key=lambda trial: (sum(trial[0]["clause"]), sum(map(sum, trial[0].values()))))


KINDS = ("colour", "shape", "size", "position", "relation", "count", "env")


def judge_matched(
    parsed: Parsed, clauses: Sequence[tuple[int, ...]], match: Sequence[Found | None], side: int
) -> dict[str, list[bool]]:
    """Truths of each kind, and of each clause, where the k-th object of a program is `match[k]`, None if missing."""
    truths: dict[str, list[bool]] = {kind: [] for kind in ("clause", *KINDS)}
    number = 0
    for kind, a, b, c in clauses:
        if kind == grammar.OBJECT:
            one = match[number]
            number += 1
            right = {"colour": one is not None and one.colour == b, "shape": one is not None and one.shape == c}
            if a >= 0:
                right["size"] = one is not None and one.size == a
            for name, value in right.items():
                truths[name].append(value)
            truths["clause"].append(all(right.values()))
        elif kind == grammar.AT:
            one = match[a]
            at = one is not None and (3 * one.row // side, 3 * one.column // side) == (b, c)
            truths["position"].append(at)
            truths["clause"].append(at)
        elif kind == grammar.RELATION:
            first, second = match[a], match[c]
            holds = first is not None and second is not None and related(first, second, b, side)
            truths["relation"].append(holds)
            truths["clause"].append(holds)
        elif kind == grammar.COUNT:
            right_count = sum((one.size, one.shape) == (b, c) for one in parsed.objects) == a
            truths["count"].append(right_count)
            truths["clause"].append(right_count)
        elif kind == grammar.ENV:
            seen = (parsed.sky, parsed.ground, parsed.light)[a]
            if a == grammar.ENV_LIGHT and seen == UNSEEN:
                continue
            truths["env"].append(seen == b)
            truths["clause"].append(seen == b)
    return truths


def related(first: Found, second: Found, relation: int, side: int) -> bool:
    """Whether `first` is left of, right of, above, below, in front of or behind `second`, by any distance."""
    halves = palette.half_widths(side)
    bottoms = first.row + halves[first.size], second.row + halves[second.size]
    gap = (second.column - first.column, second.row - first.row, bottoms[0] - bottoms[1])[relation // 2]
    return bool(gap > 0 if relation % 2 == 0 else gap < 0)


def mean_scores(scores: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over the pictures that have it."""
    listed: dict[str, list[float]] = {}
    for one in scores:
        for kind, value in one.items():
            listed.setdefault(kind, []).append(value)
    return {kind: float(np.mean(values)) for kind, values in listed.items()}


def evaluate(images: np.ndarray, programs: grammar.Programs, side: int = 0) -> dict[str, float]:
    """Mean scores of pictures uint8 [batch, height, width, 3] by their programs."""
    parsed = parse_batch(images, side)
    return mean_scores(judge(one, program, side or images.shape[1]) for one, program in zip(parsed, programs))
