"""Fields that are functions of a painted picture: edges, boxes, palette, detections as words, metadata, caption.

Exact definitions where names leave room:
    canny_edge  luminance (77 R + 150 G + 29 B) >> 8, Sobel on edge-padded integers, magnitude over 40, and at least its
                neighbour ahead and more than its neighbour behind along the nearest of four directions
    sam_edge    1 where the instance differs from the right or the lower neighbour
    palette7    mean colours, rounded half up, of the classes of `semseg` in order of area, then of id
    det_seq     boxes by x0, then number: shape word, then y0, x0, y1, x1 as bins of 1/64 of the side; y1 and x1 are the
                last bins that a box touches; then `<eos>`
    meta        objects; eighth of the horizon's range; mean luminance, mean saturation ((max - min) / max) and ground's
                share, each in eighths of their range; edge pixels of `canny_edge` a side length, at most 7; hidden
                share of the most hidden object, in quarters; light
    palette_seq `palette7` as words: how many colours there are, then red, green and blue of each in bins of 4; `<eos>`
    meta_seq    `meta` as words: for each number a letter, from A on, and the number as a bin; `<eos>`
"""

import functools

import numpy as np
from jaxtyping import Int, UInt8

from transformer_zoo.data.scenes import canvas, grammar, palette, shapes

NOT_SEEN = -1


class PictureFields:
    """Fields of painted pictures that any family of pictures has.

    Args:
        pictures: painted.
        sprite: int [batch, objects], -1 where there is none; what each object would show if nothing hid it.
        program: what each caption states.
    """

    def __init__(self, pictures: canvas.Pictures, sprite: np.ndarray, program: grammar.Programs) -> None:
        self.pictures, self.sprite, self.program = pictures, sprite, program

    @property
    def depth(self) -> np.ndarray:
        return self.pictures.depth

    @property
    def normal(self) -> np.ndarray:
        return self.pictures.normal

    @property
    def semseg(self) -> np.ndarray:
        return self.pictures.semseg

    @property
    def inst(self) -> np.ndarray:
        return self.pictures.instance

    @functools.cached_property
    def canny_edge(self) -> np.ndarray:
        return canny(self.pictures.rgb)

    @functools.cached_property
    def sam_edge(self) -> np.ndarray:
        return instance_edges(self.inst)

    @functools.cached_property
    def boxes(self) -> np.ndarray:
        return boxes(self.inst, self.sprite.shape[1])

    @functools.cached_property
    def env(self) -> Int[np.ndarray, "batch 4"]:
        env = self.pictures.environment
        return np.stack([env.sky, env.ground, env.light, env.horizon], axis=1).astype(np.int16)

    @functools.cached_property
    def palette7(self) -> np.ndarray:
        return main_colours(self.pictures.rgb, self.semseg)

    @functools.cached_property
    def caption(self) -> grammar.Captions:
        return grammar.write(self.program)

    @property
    def caption_len(self) -> Int[np.ndarray, " batch"]:
        return (self.caption > 0).sum(axis=1).astype(np.int32)

    @property
    def text(self) -> np.ndarray:
        return np.array([grammar.decode(tokens) for tokens in self.caption], object)

    @functools.cached_property
    def det_seq(self) -> np.ndarray:
        return detections(self.boxes, self.sprite % len(palette.SHAPES), self.pictures.side)

    @functools.cached_property
    def meta(self) -> Int[np.ndarray, "batch 8"]:
        pictures, side = self.pictures, self.pictures.side
        highest, lowest = (x.astype(np.int32) for x in extremes(pictures.rgb))
        saturation = (255 * (highest - lowest) // np.maximum(highest, 1)).mean(axis=(1, 2)).astype(int)
        brightness = luminance(pictures.rgb).mean(axis=(1, 2)).astype(int)
        ground = (self.semseg == 1).sum(axis=(1, 2))
        full = np.append(np.diff(shapes.atlas(side).first), 0)[self.sprite]
        hidden = np.where(self.sprite >= 0, 4 * (full - pictures.visible) // np.maximum(full, 1), 0).max(axis=1)
        columns = (
            (self.sprite >= 0).sum(axis=1),
            8 * (pictures.environment.horizon - 3 * side // 8) // (side // 8),
            brightness // 32,
            saturation // 32,
            np.minimum(7, 8 * ground // side**2),
            np.minimum(7, self.canny_edge.sum(axis=(1, 2), dtype=int) // side),
            np.minimum(3, hidden),
            pictures.environment.light,
        )
        return np.stack(columns, axis=1).astype(np.int32)

    @property
    def palette_seq(self) -> Int[np.ndarray, "batch 23"]:
        number = self.palette7.any(axis=-1).sum(axis=1)
        words = grammar.COORDINATE + self.palette7.reshape(len(number), -1).astype(np.int32) // 4
        words = np.where(np.arange(words.shape[1]) < 3 * number[:, None], words, 0)
        sequence = np.concatenate([grammar.DIGIT + number[:, None], words, 0 * number[:, None]], axis=1)
        sequence[np.arange(len(number)), 1 + 3 * number] = grammar.EOS
        return sequence.astype(np.int32)

    @property
    def meta_seq(self) -> Int[np.ndarray, "batch 17"]:
        count, columns = self.meta.shape
        keys = np.broadcast_to(grammar.LETTER + np.arange(columns), self.meta.shape)
        pairs = np.stack([keys, grammar.COORDINATE + self.meta], axis=2).reshape(count, -1)
        return np.pad(pairs, ((0, 0), (0, 1)), constant_values=grammar.EOS).astype(np.int32)


def extremes(rgb: UInt8[np.ndarray, "*shape 3"]) -> tuple[UInt8[np.ndarray, "*shape"], UInt8[np.ndarray, "*shape"]]:
    """The highest and the lowest of each pixel's three values; ten times as fast as reducing an axis of three."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    return np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)


def luminance(rgb: UInt8[np.ndarray, "*shape 3"]) -> Int[np.ndarray, "*shape"]:
    """Whole numbers 0..255."""
    red, green, blue = np.moveaxis(rgb.astype(np.int32), -1, 0)
    return (77 * red + 150 * green + 29 * blue) >> 8


def canny(rgb: UInt8[np.ndarray, "batch height width 3"]) -> UInt8[np.ndarray, "batch height width"]:
    """Thin edges of luminance, 0 or 1, in whole numbers throughout."""
    grey = np.pad(luminance(rgb), ((0, 0), (1, 1), (1, 1)), "edge")
    across = grey[:, :-2] + 2 * grey[:, 1:-1] + grey[:, 2:]
    along = grey[:, :, :-2] + 2 * grey[:, :, 1:-1] + grey[:, :, 2:]
    gx, gy = across[:, :, 2:] - across[:, :, :-2], along[:, 2:] - along[:, :-2]
    strength = gx**2 + gy**2
    padded = np.pad(strength, ((0, 0), (1, 1), (1, 1)))
    height, width = strength.shape[1:]

    def thin(down: int, right: int) -> np.ndarray:
        ahead = padded[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]
        behind = padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]
        return (strength >= ahead) & (strength > behind)

    # tan(22.5 degrees) = 0.4142
    flat, steep = 10000 * abs(gy) <= 4142 * abs(gx), 10000 * abs(gx) < 4142 * abs(gy)
    kept = np.where(flat, thin(0, 1), np.where(steep, thin(1, 0), np.where(gx * gy > 0, thin(1, 1), thin(1, -1))))
    return (kept & (strength > 40**2)).astype(np.uint8)


def instance_edges(inst: UInt8[np.ndarray, "*batch height width"]) -> UInt8[np.ndarray, "*batch height width"]:
    """1 where a pixel's instance differs from that of its right or lower neighbour."""
    edges = np.zeros(inst.shape, bool)
    edges[..., :-1, :] |= inst[..., :-1, :] != inst[..., 1:, :]
    edges[..., :-1] |= inst[..., :-1] != inst[..., 1:]
    return edges.astype(np.uint8)


def boxes(inst: UInt8[np.ndarray, "batch height width"], objects: int) -> Int[np.ndarray, "batch objects 4"]:
    """int16 y0, x0, y1, x1 (exclusive) of the seen pixels of objects 1 .. `objects`; -1 where none is seen."""
    found = []
    for k in range(1, objects + 1):
        mask = inst == k
        sides = []
        for seen in (mask.any(axis=2), mask.any(axis=1)):
            sides.append((seen.argmax(axis=1), seen.shape[1] - seen[:, ::-1].argmax(axis=1)))
        (y0, y1), (x0, x1) = sides
        box = np.stack([y0, x0, y1, x1], axis=1)
        found.append(np.where(mask.any(axis=(1, 2))[:, None], box, NOT_SEEN))
    return np.stack(found, axis=1).astype(np.int16)


def main_colours(rgb: np.ndarray, semseg: np.ndarray) -> UInt8[np.ndarray, "batch 7 3"]:
    """Mean colours of the seven largest classes, in order of area; 0 where there are fewer."""
    count, classes = len(rgb), 2 + len(palette.SHAPES)
    key = (semseg.reshape(count, -1) + classes * np.arange(count)[:, None]).reshape(-1)
    area = np.bincount(key, minlength=count * classes)
    sums = [np.bincount(key, rgb[..., c].reshape(-1), count * classes).astype(np.int64) for c in range(3)]
    means = (2 * np.stack(sums, axis=1) + area[:, None]) // np.maximum(2 * area, 1)[:, None]
    order = np.argsort(-area.reshape(count, classes), axis=1, kind="stable")[:, :7]
    return np.take_along_axis(means.reshape(count, classes, 3), order[..., None], axis=1).astype(np.uint8)


def detections(boxes: np.ndarray, shape: np.ndarray, side: int) -> Int[np.ndarray, "batch 25"]:
    """Boxes int16 [batch, 4, 4] of objects of `shape` [batch, 4] as int32 words, padded with 0."""
    seen = boxes[..., 0] >= 0
    order = np.argsort(np.where(seen, boxes[..., 1], side), axis=1, kind="stable")
    boxes = np.take_along_axis(boxes, order[..., None], axis=1).astype(int)
    shape = np.take_along_axis(shape, order, axis=1)
    bins = boxes * 64 // side
    bins[..., 2:] = (boxes[..., 2:] * 64 - 1) // side
    words = np.concatenate([grammar.IDS["ball"] + shape[..., None], grammar.COORDINATE + bins], axis=-1)
    number = seen.sum(axis=1)
    words = np.where((np.arange(boxes.shape[1]) < number[:, None])[..., None], words, 0).reshape(len(boxes), -1)
    sequence = np.zeros((len(boxes), 25), np.int32)
    sequence[:, : words.shape[1]] = words
    sequence[np.arange(len(boxes)), 5 * number] = grammar.EOS
    return sequence
