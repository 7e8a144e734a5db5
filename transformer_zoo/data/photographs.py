"""Colour photographs that come with scikit-image and scikit-learn, cut into patches.

Everyday scenes only; the packages' telescope, microscope and grey pictures are left out. Every photograph is cut
across its width into three bands: the left 70 % is train, the next 15 % val, the right 15 % test; a patch lies within
one band, so no pixel is in two splits.
"""

import dataclasses
import functools
from typing import ClassVar

import numpy as np

SHARES = {"train": (0.0, 0.7), "val": (0.7, 0.85), "test": (0.85, 1.0)}

# Names and licences as their packages give them; the position is the label.
PHOTOGRAPHS = (
    ("astronaut", "public domain (NASA)"),
    ("chelsea", "CC0 (Stefan van der Walt)"),
    ("coffee", "CC0 (Rachel Michetti)"),
    ("rocket", "public domain (SpaceX)"),
    ("china.jpg", "CC BY 2.0 (danielbuechele)"),
    ("flower.jpg", "CC BY 2.0 (vultilion)"),
)


@functools.cache
def _photographs() -> tuple[np.ndarray, ...]:
    from skimage import data
    from sklearn.datasets import load_sample_image

    return tuple(load_sample_image(name) if name.endswith(".jpg") else getattr(data, name)() for name, _ in PHOTOGRAPHS)


@dataclasses.dataclass(frozen=True)
class Photographs:
    """Fields: `image` uint8 [side, side, 3] and `label` int32, which photograph it was cut from.

    Attributes:
        split: 'train', 'val' or 'test'.
        side: of a patch in pixels.
        stride: pixels from one patch to the next; less than `side` makes patches of one split overlap.
    """

    about: ClassVar[str] = (
        f"Real: patches of {len(PHOTOGRAPHS)} colour photographs that come with scikit-image and scikit-learn. "
        f"Licences: {'; '.join(f'{name} {licence}' for name, licence in PHOTOGRAPHS)}."
    )

    split: str = "train"
    side: int = 32
    stride: int = 16

    def __post_init__(self) -> None:
        if self.split not in SHARES:
            raise ValueError(f"photographs have no split {self.split!r}; there are {', '.join(SHARES)}")
        for field in ("side", "stride"):
            if getattr(self, field) < 1:
                raise ValueError(f"data.options.{field} is {getattr(self, field)}, but must be at least 1")
        largest = min(min(right - left, len(image)) for image in _photographs() for left, right in _bands(image))
        if self.side > largest:
            raise ValueError(f"data.options.side is {self.side}, but some part of a photograph is only {largest} wide")

    @functools.cached_property
    def corners(self) -> np.ndarray:
        """int64 [count, 3]: which photograph, and the top and left pixel of each patch."""
        grids = []
        for number, image in enumerate(_photographs()):
            left, right = _bands(image)[list(SHARES).index(self.split)]
            rows = np.arange(0, len(image) - self.side + 1, self.stride)
            columns = np.arange(left, right - self.side + 1, self.stride)
            grids.append(np.stack(np.meshgrid([number], rows, columns, indexing="ij"), axis=-1).reshape(-1, 3))
        return np.concatenate(grids)

    def __len__(self) -> int:
        return len(self.corners)

    def read(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        """Patches at `indices` [batch]; nothing is random."""
        images, side, chosen = _photographs(), self.side, self.corners[indices]
        patches = [images[number][top : top + side, left : left + side] for number, top, left in chosen]
        return {"image": np.stack(patches), "label": chosen[:, 0].astype(np.int32)}


def _bands(image: np.ndarray) -> list[tuple[int, int]]:
    """First and last column, exclusive, of each split's part of an image [height, width, 3]."""
    return [(round(low * image.shape[1]), round(high * image.shape[1])) for low, high in SHARES.values()]
