"""What is done to an image before a network with given weights sees it."""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float

FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")  # of PIL, in small letters
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # as mean and std: pixels in [-1, 1]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resizing, centre crop and normalisation of an RGB image.

    Attributes:
        size: (height, width) of the result.
        mean, std: of pixels in [0, 1], by channel.
        crop: `size` as a share of the resized image.
        interpolation: one of `FILTERS`.
        keep_aspect: whether the shorter side is resized to size / crop (timm); otherwise both are (transformers).
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop: float = 0.875
    interpolation: str = "bicubic"
    keep_aspect: bool = True

    def __call__(self, image: Any) -> Float[np.ndarray, "height width 3"]:
        """The float32 input of the network, from a PIL image or a uint8 array [height, width, 3] or [height, width].

        Raises:
            ValueError: an array of another dtype, or an unknown interpolation.
        """
        from PIL import Image  # only where images are read

        if self.interpolation not in FILTERS:
            raise ValueError(f"interpolation {self.interpolation!r} is none of {', '.join(FILTERS)}")
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8:
                raise ValueError(f"an image array must be uint8, not {image.dtype}")
            image = Image.fromarray(image)
        image = image.convert("RGB")
        height, width = self.resized((image.height, image.width))
        image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        top, left = round((height - self.size[0]) / 2), round((width - self.size[1]) / 2)
        image = image.crop((left, top, left + self.size[1], top + self.size[0]))
        pixels = np.asarray(image, np.float32) / np.float32(255)
        return (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the whole image before the crop, rounded as torchvision and timm do."""
        height, width = (math.floor(side / self.crop) for side in self.size)
        if not self.keep_aspect:
            return height, width
        if height == width:
            short, long = min(size), max(size)
            other = int(height * long / short)
            return (height, other) if size[0] <= size[1] else (other, height)
        ratio = min(size[0] / height, size[1] / width)
        return round(size[0] / ratio), round(size[1] / ratio)
