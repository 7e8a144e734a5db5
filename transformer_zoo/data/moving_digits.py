"""Clips of real handwritten digits that move in straight lines, with captions that say which digit goes where.

After Moving MNIST (Srivastava, Mansimov and Salakhutdinov 2015, arXiv 1502.04681), with scikit-learn's 8x8 digits. The
digits are split as in `digits`, so a digit held out there is held out in clips too.
"""

import dataclasses
import functools
from typing import ClassVar

import numpy as np

from transformer_zoo.data import digits, draws
from transformer_zoo.data.vocabulary import EOS, SPECIALS

DIGIT = 8  # pixels
# Down and right pixels a step, in units of `speed`.
DIRECTIONS = {
    "left": (0, -1),
    "right": (0, 1),
    "up": (-1, 0),
    "down": (1, 0),
    "up left": (-1, -1),
    "up right": (-1, 1),
    "down left": (1, -1),
    "down right": (1, 1),
}
WORDS = (*SPECIALS, "the", "digit", "moves", "and", "left", "right", "up", "down", *map(str, range(10)))
WORDS_A_DIGIT = 7  # 'and the digit 3 moves up left'; the first digit's 'and' makes room for the end token
SLOTS_A_DIGIT = 4  # random draws: which digit, direction, row, column


@dataclasses.dataclass(frozen=True)
class MovingDigits:
    """Fields: `video` uint8 [frames, side, side, 1], `label`, `direction`, `caption` and `text`.

    `label` int32 is the first digit and `direction` int32 the number of its first direction in `DIRECTIONS`. `text` is
    'the digit 3 moves up left and ...'; `caption` int32 [7 * num_digits] the same in the fixed vocabulary `WORDS`,
    with an end token, padded with 0. In `train` a digit takes another path at each reading, else always the same.

    Attributes:
        split: 'train', 'val' or 'test'.
        frames: of a clip.
        side: of the canvas in pixels, a multiple of `scale` and more than a digit has, which is 8 times `scale`.
        num_digits: on one canvas; where they overlap the brighter pixel shows.
        speed: pixels of a digit a frame, along both axes where it moves diagonally.
        bounce: whether digits turn at the walls, in the second half of a clip where the canvas allows; if not, they
            start where the whole way lies on the canvas.
        scale: pixels a side of each of a digit's 8 x 8; paths are enlarged with it, so that a clip is one of
            `side` / `scale` pixels a side with each pixel repeated.
    """

    about: ClassVar[str] = (
        "Real: the handwritten digits of scikit-learn (UCI ML, CC BY 4.0). Generated: their paths and captions."
    )

    split: str = "train"
    frames: int = 8
    side: int = 24
    num_digits: int = 1
    speed: int = 2
    bounce: bool = True
    scale: int = 1

    def __post_init__(self) -> None:
        least_of = {"frames": 1, "scale": 1, "side": DIGIT * self.scale + 1, "num_digits": 1, "speed": 0}
        for field, least in least_of.items():
            if getattr(self, field) < least:
                raise ValueError(f"data.options.{field} is {getattr(self, field)}, but must be at least {least}")
        if self.side % self.scale:
            nearest = self.side - self.side % self.scale
            raise ValueError(
                f"data.options.side is {self.side}, but must be a multiple of data.options.scale {self.scale}: "
                f"{nearest} or {nearest + self.scale}"
            )
        room, steps = self.cells - DIGIT, self.frames - 1
        if not self.bounce and self.speed * steps > room:
            raise ValueError(
                f"data.options.speed {self.speed} over {self.frames} frames goes {self.speed * steps} pixels of a "
                f"digit, but a canvas of side {self.side} leaves {room}: choose at most {room // steps}, or bounce"
            )
        digits.Digits(self.split)  # checks the split

    @property
    def cells(self) -> int:
        """Pixels of a digit along a side of the canvas."""
        return self.side // self.scale

    @property
    def digits(self) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [count, 8, 8] and labels int32 [count] of this split."""
        return digits.Digits(self.split).records

    def __len__(self) -> int:
        return len(self.digits[1])

    def read(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        """Clips whose first digits are those at `indices` [batch]; `seeds` decide the others and all paths."""
        images, labels = self.digits
        indices = np.asarray(indices)
        batch, side = len(indices), self.cells
        video = np.zeros((batch, self.frames, side * side), np.uint8)
        shown, going = np.empty((2, batch, self.num_digits), np.int64)
        clip, frame = np.arange(batch)[:, None, None], np.arange(self.frames)[:, None]
        for number in range(self.num_digits):
            slot = SLOTS_A_DIGIT * number
            chosen = indices if number == 0 else draws.integers(seeds, slot, len(labels))
            going[:, number] = draws.integers(seeds, slot + 1, len(DIRECTIONS))
            tops, lefts = self._path(going[:, number], seeds, slot + 2)  # each [batch, frames]
            within = (np.arange(DIGIT)[:, None] * side + np.arange(DIGIT)).ravel()
            pixels = (tops * side + lefts)[:, :, None] + within
            ink = images[chosen].reshape(batch, 1, -1)
            video[clip, frame, pixels] = np.maximum(video[clip, frame, pixels], ink)
            shown[:, number] = labels[chosen]
        captions, texts = _captions()
        numbers = shown * len(DIRECTIONS) + going
        small = video.reshape(batch, self.frames, side, side)
        enlarged = small.repeat(self.scale, axis=2).repeat(self.scale, axis=3)
        return {
            "video": enlarged.reshape(batch, self.frames, self.side, self.side, 1),
            "label": shown[:, 0].astype(np.int32),
            "direction": going[:, 0].astype(np.int32),
            "caption": _join(captions[numbers]),
            "text": np.array([" and ".join(row) for row in texts[numbers]], object),
        }

    def _path(self, going: np.ndarray, seeds: np.ndarray, slot: int) -> tuple[np.ndarray, np.ndarray]:
        """Top and left [batch, frames] of one digit that sets out in the directions `going`, in pixels of a digit."""
        room, steps = self.cells - DIGIT, np.arange(self.frames)
        # Before a wall comes at least half of the clip, where the canvas allows: else captions would not tell true.
        way = min(room, self.speed * (self.frames // 2 if self.bounce else self.frames - 1))
        places = []
        for axis in (0, 1):
            signs = np.array(list(DIRECTIONS.values()))[going, axis]
            free = np.where(signs == 0, room, room - way)
            start = (draws.uniforms(seeds, slot + axis) * (free + 1)).astype(np.int64) + way * (signs < 0)
            unfolded = (start[:, None] + signs[:, None] * self.speed * steps) % (2 * room)
            places.append(np.minimum(unfolded, 2 * room - unfolded))
        return places[0], places[1]


@functools.cache
def _captions() -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32 [80, 6], padded with 0, and texts [80] of every digit in every direction."""
    texts = [f"the digit {digit} moves {way}" for digit in range(10) for way in DIRECTIONS]
    ids = np.zeros((len(texts), WORDS_A_DIGIT - 1), np.int32)
    for row, text in zip(ids, texts):
        words = text.split()
        row[: len(words)] = [WORDS.index(word) for word in words]
    return ids, np.array(texts, object)


def _join(clauses: np.ndarray) -> np.ndarray:
    """Captions int32 [batch, 7 * digits] of clauses [batch, digits, 6]: joined by 'and', closed by the end token."""
    batch, number, _ = clauses.shape
    joints = np.full((batch, number, 1), WORDS.index("and"), np.int32)
    joints[:, -1] = EOS
    loose = np.concatenate([clauses, joints], axis=2).reshape(batch, -1)
    order = np.argsort(loose == 0, axis=1, kind="stable")  # padding moves to the end
    return np.take_along_axis(loose, order, axis=1)
