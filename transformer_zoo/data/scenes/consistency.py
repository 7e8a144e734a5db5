"""Whether a picture keeps to a control: what is parsed from it is painted again and compared with the control."""

import numpy as np
from jaxtyping import Float, UInt8

from transformer_zoo.data.scenes import canvas, checker, fields, palette, slots

Image = UInt8[np.ndarray, "side side 3"]


def repaint(parsed: checker.Parsed, side: int) -> canvas.Pictures:
    """One picture of what was parsed.

    Surroundings that were not seen are the first of their list; objects that would not fit are moved inside.
    """
    objects = parsed.objects or (checker.Found(0, 0, 0, 0, 0, 0.0, 0),)
    table = np.array([one[:5] for one in objects])
    shape, size, colour, row, column = table.T[:, None]
    half = palette.half_widths(side)[size]
    row, column = np.clip(row, half, side - 1 - half), np.clip(column, half, side - 1 - half)
    sprite = np.where(len(parsed.objects) > 0, len(palette.SHAPES) * size + shape, -1)
    sky, ground, light, horizon = (
        np.array([max(low, seen)])
        for low, seen in ((0, parsed.sky), (0, parsed.ground), (0, parsed.light), (3 * side // 8, parsed.horizon))
    )
    buffer = canvas.empty(1, side, side)
    canvas.paint(buffer, side, sprite, row, column, row + half)
    return canvas.Pictures(side, buffer, slots.Environment(sky, ground, light, horizon), colour, row + half)


def segmentation_iou(image: Image, semseg: UInt8[np.ndarray, "side side"]) -> float:
    """Mean intersection over union with the control, of the classes that either shows."""
    found = repaint(checker.parse(image), len(image)).semseg[0]
    classes = np.union1d(found, semseg)
    return float(
        np.mean([((found == c) & (semseg == c)).sum() / ((found == c) | (semseg == c)).sum() for c in classes])
    )


def depth_error(image: Image, depth: Float[np.ndarray, "side side"], inst: UInt8[np.ndarray, "side side"]) -> float:
    """Root mean square of depth errors where picture and control both show an object; nan where they share no pixel."""
    pictures = repaint(checker.parse(image), len(image))
    both = (pictures.instance[0] > 0) & (inst > 0)
    return float(np.sqrt(np.mean((pictures.depth[0] - depth)[both] ** 2))) if both.any() else float("nan")


def edge_f1(image: Image, edges: UInt8[np.ndarray, "side side"]) -> float:
    """F1 of `canny_edge` of the picture against the control, where an edge one pixel away counts as found."""
    found, wanted = fields.canny(image[None])[0] > 0, edges > 0
    precision = (found & _grown(wanted)).sum() / max(1, found.sum())
    recall = (wanted & _grown(found)).sum() / max(1, wanted.sum())
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def _grown(mask: np.ndarray) -> np.ndarray:
    """A mask and its eight neighbours."""
    return np.asarray(np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1), (3, 3)).any(axis=(2, 3)))
