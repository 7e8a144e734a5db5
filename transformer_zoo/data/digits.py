"""Handwritten digits that come with scikit-learn: 1,797 real 8x8 images of ten classes (UCI ML, CC BY 4.0).

Split once and for all by a fixed shuffle: 70 % train, 10 % val, 20 % test. On the digits as they come logistic
regression on raw pixels is nearly perfect, so representations prove nothing; placed at random on a larger canvas
pixels fail and representations count.
"""

import dataclasses
import functools
from typing import ClassVar

import numpy as np

from transformer_zoo.data import draws

SHARES = {"train": (0.0, 0.7), "val": (0.7, 0.8), "test": (0.8, 1.0)}
NUM_CLASSES = 10


@functools.cache
def _all_digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # takes a second to import, so only where digits are read

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    return images[order], digits.target[order].astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Digits:
    """Fields: `image` uint8 [side, side, 1], ink bright on black, and `label` int32.

    Attributes:
        split: 'train', 'val' or 'test'.
        side: of the canvas in pixels, at least 8. Where it is larger than 8 a digit lies at a random place: another
            one at each reading in `train`, a fixed one in the other splits.
        labels_per_class: if not 0, only that many training images of each class.
        placements: how often each digit is a record, every time at another place.
    """

    about: ClassVar[str] = (
        "Real: the handwritten digits of scikit-learn (UCI ML, CC BY 4.0). Generated: where they lie on the canvas."
    )

    split: str = "train"
    side: int = 8
    labels_per_class: int = 0
    placements: int = 1

    def __post_init__(self) -> None:
        if self.side < 8:
            raise ValueError(f"data.options.side is {self.side}, but a digit is 8 pixels wide: choose at least 8")
        if self.placements < 1:
            raise ValueError(f"data.options.placements is {self.placements}, but must be at least 1")
        if self.split not in SHARES:
            raise ValueError(f"digits have no split {self.split!r}; there are {', '.join(SHARES)}")

    @functools.cached_property
    def records(self) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [count, 8, 8] and labels int32 [count] of this split."""
        images, labels = _all_digits()
        low, high = (round(share * len(images)) for share in SHARES[self.split])
        images, labels = images[low:high], labels[low:high]
        if self.labels_per_class and self.split == "train":
            chosen = np.concatenate([np.flatnonzero(labels == c)[: self.labels_per_class] for c in range(NUM_CLASSES)])
            images, labels = images[chosen], labels[chosen]
        return images, labels

    def __len__(self) -> int:
        return len(self.records[1]) * self.placements

    def read(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        """Records at `indices` [batch]; `seeds` uint64 [batch] decide where each digit lies on the canvas."""
        images, labels = self.records
        indices = np.asarray(indices) % len(labels)
        room = self.side - 8 + 1
        rows, columns = (draws.integers(seeds, slot, room)[:, None, None] for slot in (0, 1))
        canvas = np.zeros((len(indices), self.side, self.side, 1), np.uint8)
        record = np.arange(len(indices))[:, None, None]
        canvas[record, rows + np.arange(8)[:, None], columns + np.arange(8), 0] = images[indices]
        return {"image": canvas, "label": labels[indices]}
