"""Figures of scenes that are predicted: sums that add up over batches, and what they mean."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int, UInt8

from transformer_zoo.data.pictures import to_uint8
from transformer_zoo.data.scenes import checker, grammar
from transformer_zoo.models.multimodal.fourm.modalities import Modality
from transformer_zoo.tasks.average_precision import overlap

Sums = dict[str, np.ndarray]
Truth = Mapping[str, np.ndarray]
ATTRIBUTES = ("colour", "shape", "size", "row", "column")
REGIONS = 3  # sky, ground, objects


def program_of(ids: Int[np.ndarray, "length"]) -> Int[np.ndarray, "16 4"]:
    """What a caption states; nothing where it is no caption."""
    try:
        return grammar.read(ids)
    except ValueError:
        return np.zeros((grammar.PROGRAM_LENGTH, 4), np.int16)


def spoken_ids(spoken: Int[np.ndarray, "length"], modality: Modality) -> Int[np.ndarray, "rest"]:
    """Ids between the first and the closing sentinel of what was read on."""
    sentinel = (spoken >= modality.first_sentinel) & (spoken < modality.first_sentinel + modality.num_sentinels)
    sentinel[0] = False
    end = np.flatnonzero(sentinel | (spoken == 0))
    return spoken[1 : end[0]] if len(end) else spoken[1:]


def semseg(predicted: np.ndarray, ceiling: np.ndarray, truth: Truth, modality: Modality) -> Sums:
    """Intersections and unions of sky, ground and objects; how often each place is each, for the best blind guess."""
    wanted = np.minimum(truth["semseg"], REGIONS - 1)
    found = {"semseg_counts": np.stack([(wanted == region).sum(axis=0) for region in range(REGIONS)])}
    for name, guess in (("predicted", predicted), ("ceiling", ceiling)):
        guess = np.minimum(guess, REGIONS - 1)
        both = [((guess == region) & (wanted == region)).sum() for region in range(REGIONS)]
        either = [((guess == region) | (wanted == region)).sum() for region in range(REGIONS)]
        found[f"semseg_{name}"] = np.array([both, either], float)
    return found


def depth(predicted: np.ndarray, ceiling: np.ndarray, truth: Truth, modality: Modality) -> Sums:
    """Squared errors, and what the deviation from each place's mean needs."""
    wanted = truth["depth"].astype(np.float64)
    found = {"depth_sum": wanted.sum(axis=0), "depth_squares": np.square(wanted).sum(axis=0)}
    for name, guess in (("predicted", predicted), ("ceiling", ceiling)):
        found[f"depth_{name}"] = np.array([np.square(guess - wanted).sum(), wanted.size])
    return found | {"depth_scenes": np.array(float(len(wanted)))}


def caption(predicted: np.ndarray, ceiling: np.ndarray, truth: Truth, modality: Modality) -> Sums:
    """Whether what captions state of their first object is so, the share that state it, and the blind guess's luck.

    The object meant is the one of its colour, and of a colour that is not there the first. A blind guess of a colour is
    right where any object has it.
    """
    objects, side = truth["obj"].astype(int), truth["semseg"].shape[1]
    stated, chosen = np.full((len(objects), 5), -1), np.zeros(len(objects), int)
    for row, spoken in enumerate(predicted):
        for kind, a, b, c in program_of(spoken_ids(spoken, modality)):
            if kind == grammar.OBJECT and stated[row, 0] < 0:
                stated[row, :3] = b, c, a
                chosen[row] = (objects[row, :, 1] == b).argmax()  # colours of a scene differ
            elif kind == grammar.AT and a == 0:
                stated[row, 3:] = b, c
    mine = objects[np.arange(len(objects)), chosen]
    true = np.stack([mine[:, 1], mine[:, 0], mine[:, 2], 3 * mine[:, 3] // side, 3 * mine[:, 4] // side], 1)
    said = stated >= 0
    said[:, 0] = True  # a caption without a colour is wrong
    right = said & (stated == true)
    sizes = (8, 6, 3, 3, 3)
    counts = np.stack([np.bincount(column, minlength=8)[:8] for column in true.T])
    counts[0] = [(objects[..., 1] == colour).any(axis=1).sum() for colour in range(8)]
    assert all(column[size:].sum() == 0 for column, size in zip(counts, sizes))
    sums = np.stack([right.sum(axis=0), said.sum(axis=0), np.full(5, len(true))])
    return {"caption_stated": sums.astype(float), "caption_counts": counts}


def det_seq(predicted: np.ndarray, ceiling: np.ndarray, truth: Truth, modality: Modality) -> Sums:
    """Overlaps of the true boxes with those read, and how many pass one half; likewise of blind ones and of true words.

    A blind guess knows how many boxes there are, and takes the mean of the batch's first, second, ... from the left.
    """
    side = truth["semseg"].shape[1]
    seen = [boxes[boxes[:, 0] >= 0] for boxes in truth["boxes"].astype(float)]
    ordered = [boxes[np.argsort(boxes[:, 1], kind="stable")] for boxes in seen]
    most = max(len(boxes) for boxes in ordered)
    blind = [np.mean([boxes[rank] for boxes in ordered if len(boxes) > rank], axis=0) for rank in range(most)]
    sums = np.zeros((3, 3))
    for row, true in enumerate(ordered):
        read = boxes_of(spoken_ids(predicted[row], modality), side)
        words = boxes_of(truth["det_seq"][row], side)
        for number, guess in enumerate((read, np.array(blind[: len(true)]), words)):
            matched = matches(guess, true)
            sums[number] += matched.sum(), (matched >= 0.5).sum(), len(true)
    return {"boxes": sums}


def boxes_of(words: Int[np.ndarray, "length"], side: int) -> Float[np.ndarray, "boxes 4"]:
    """Boxes y0, x0, y1, x1 in pixels of words as the field `det_seq` has them, up to the first that is none."""
    found = []
    for start in range(0, len(words) - 4, 5):
        bins = words[start + 1 : start + 5].astype(int) - grammar.COORDINATE
        if bins.min() < 0 or bins.max() >= 64:
            break
        found.append(bins * side / 64 + (0, 0, side / 64, side / 64))
    return np.array(found, float).reshape(-1, 4)


def matches(found: Float[np.ndarray, "n 4"], true: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "m"]:
    """Of each true box the overlap with the box found that is its own, 0 without one; the largest overlaps first."""
    pairs = overlap(np.repeat(found, len(true), 0), np.tile(true, (len(found), 1))).reshape(len(found), len(true))
    best = np.zeros(len(true))
    for _ in range(min(pairs.shape)):
        row, column = np.unravel_index(pairs.argmax(), pairs.shape)
        best[column] = max(pairs[row, column], 0.0)
        pairs[row], pairs[:, column] = -1, -1
    return best


def normal(predicted: np.ndarray, ceiling: np.ndarray, truth: Truth, modality: Modality) -> Sums:
    """Angles in degrees to the true normals, of all pixels and of those of objects; blind is the mean of each pixel."""
    true, inside = directions(truth["normal"]), truth["semseg"] >= 2
    blind = np.broadcast_to(true.mean(axis=0), true.shape)
    blind = blind / np.maximum(np.linalg.norm(blind, axis=-1, keepdims=True), 1e-9)
    sums = np.zeros((3, 2, 2))
    for number, guess in enumerate((directions(predicted), blind, directions(ceiling))):
        angles = np.degrees(np.arccos(np.clip((guess * true).sum(axis=-1), -1, 1)))
        sums[number] = (angles.sum(), angles.size), (angles[inside].sum(), inside.sum())
    return {"normals": sums}


def directions(values: np.ndarray) -> Float[np.ndarray, "*shape 3"]:
    """Unit vectors of normals in bytes."""
    vectors = values.astype(float) / 127.5 - 1
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def meta_seq(predicted: np.ndarray, ceiling: np.ndarray, truth: Truth, modality: Modality) -> Sums:
    """How many numbers of the metadata are read right, and how often each has each value, for the best blind guess."""
    true = truth["meta_seq"][:, 1:-1:2].astype(int) - grammar.COORDINATE
    found = np.full(true.shape, -1)
    for row, spoken in enumerate(predicted):
        words = spoken_ids(spoken, modality).astype(int)
        for key, value in zip(words[:-1:2] - grammar.LETTER, words[1::2] - grammar.COORDINATE):
            if 0 <= key < true.shape[1]:
                found[row, key] = value
    counts = np.stack([np.bincount(column, minlength=64) for column in true.T])
    return {"metadata": np.array([(found == true).sum(), true.size]), "metadata_counts": counts}


FIGURES: dict[str, Callable[..., Sums]] = {
    "semseg": semseg,
    "depth": depth,
    "normal": normal,
    "caption": caption,
    "det_seq": det_seq,
    "meta_seq": meta_seq,
}


def pictures(name: str, pixels: Float[np.ndarray, "n side side 3"], programs: np.ndarray) -> Sums:
    """Whether pictures show an object in the stated cell, of the stated colour, and one object at all.

    Beside these sums stand those of the same pictures with the captions of others, which count what is right by chance.

    Args:
        name: whose pictures.
        pixels: in [-1, 1].
        programs: what their captions state.
    """
    images: UInt8[np.ndarray, "..."] = to_uint8(pixels)
    found, side = checker.parse_batch(images), images.shape[1]
    return {
        f"picture_{name}": _agreements(found, programs, side),
        f"picture_{name}_shuffled": _agreements(found, np.roll(programs, 1, axis=0), side),
    }


def _agreements(found: list[checker.Parsed], programs: np.ndarray, side: int) -> Float[np.ndarray, "3 2"]:
    """How often cell, colour and number are right, and of how many."""
    sums = np.zeros((3, 2))
    for parsed, program in zip(found, programs):
        shown = parsed.objects[:1]  # the largest
        sums[2] += (len(parsed.objects) == 1, 1)
        for kind, a, b, c in program:
            if kind == grammar.AT and a == 0:
                sums[0] += (any((3 * one.row // side, 3 * one.column // side) == (b, c) for one in shown), 1)
            elif kind == grammar.OBJECT:
                sums[1] += (any(one.colour == b for one in shown), 1)
    return sums


def figures(sums: Sums) -> dict[str, float]:
    """What the sums mean."""
    found: dict[str, float] = {}
    if "semseg_counts" in sums:
        counts = sums["semseg_counts"]
        guess = counts.argmax(axis=0)
        both = np.array([counts[region][guess == region].sum() for region in range(REGIONS)])
        either = np.array(
            [counts[region].sum() + counts.sum(axis=0)[guess == region].sum() for region in range(REGIONS)]
        )
        found["rgb_to_semseg_miou_marginal"] = float((both / np.maximum(either - both, 1)).mean())
        for name, suffix in (("predicted", ""), ("ceiling", "_ceiling")):
            both, either = sums[f"semseg_{name}"]
            found[f"rgb_to_semseg_miou{suffix}"] = float((both / np.maximum(either, 1)).mean())
    if "depth_sum" in sums:
        scenes = sums["depth_scenes"]
        spread = sums["depth_squares"] - np.square(sums["depth_sum"]) / scenes
        found["rgb_to_depth_rmse_marginal"] = float(np.sqrt(np.maximum(spread, 0).sum() / (scenes * spread.size)))
        for name, suffix in (("predicted", ""), ("ceiling", "_ceiling")):
            found[f"rgb_to_depth_rmse{suffix}"] = float(np.sqrt(np.divide(*sums[f"depth_{name}"])))
    if "caption_stated" in sums:
        right, said, total = sums["caption_stated"]
        for index, name in enumerate(ATTRIBUTES):
            found[f"rgb_to_caption_{name}"] = float(right[index] / max(said[index], 1))
            found[f"rgb_to_caption_{name}_stated"] = float(said[index] / total[index])
            found[f"rgb_to_caption_{name}_marginal"] = float(sums["caption_counts"][index].max() / total[index])
    for number, suffix in enumerate(("", "_marginal", "_ceiling")):
        if "boxes" in sums:
            overlaps, halves, count = sums["boxes"][number]
            found[f"rgb_to_box_iou{suffix}"] = float(overlaps / count)
            found[f"rgb_to_box_recall{suffix}"] = float(halves / count)
        if "normals" in sums:
            for whose, (angle, count) in zip(("", "_object"), sums["normals"][number]):
                found[f"rgb_to_normal{whose}_angle{suffix}"] = float(angle / max(count, 1))
    if "metadata" in sums:
        found["rgb_to_metadata_accuracy"] = float(np.divide(*sums["metadata"]))
        found["rgb_to_metadata_accuracy_marginal"] = float(
            sums["metadata_counts"].max(axis=1).sum() / sums["metadata"][1]
        )
    for name in (key for key in sums if key.startswith("picture_")):
        whose = name.removeprefix("picture_")
        label = whose.replace("caption", "caption_to_rgb", 1)
        for index, kind in enumerate(("cell", "colour", "one_object")):
            right, count = sums[name][index]
            found[f"{label}_{kind}"] = float(right / max(count, 1))
    return found


def table(metrics: Mapping[str, float]) -> list[str]:
    """Lines for a person: each figure beside the blind guess and the tokenizers' ceiling, where there are such."""
    lines = [f"{'from pixels, in one step':34} {'model':>8} {'marginal':>9} {'ceiling':>8}"]
    for name, value in metrics.items():
        if not name.startswith("rgb_to_") or name.endswith(("_marginal", "_ceiling", "_stated")):
            continue
        beside = [metrics.get(f"{name}{suffix}") for suffix in ("_marginal", "_ceiling")]
        shown = [f"{other:.3f}" if other is not None else "" for other in beside]
        lines.append(f"{name:34} {value:8.3f} {shown[0]:>9} {shown[1]:>8}")
    lines.append(f"{'pictures from captions':34} {'cell':>8} {'colour':>9} {'one':>8}")
    for name in (key.removesuffix("_cell") for key in metrics if key.endswith("_cell")):
        shown = [f"{metrics[f'{name}_{kind}']:.3f}" for kind in ("cell", "colour", "one_object")]
        lines.append(f"{name:34} {shown[0]:>8} {shown[1]:>9} {shown[2]:>8}")
    return lines
