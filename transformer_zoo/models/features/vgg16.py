"""VGG16 and LPIPS: what two pictures have in common to a person's eye, as distances of a classifier's features.

VGG16 (Simonyan and Zisserman 2014, arXiv 1409.1556, configuration D) without its dense layers gives a map at each of
five scales. LPIPS (Zhang et al. 2018, arXiv 1801.03924, equation 1) takes two pictures' maps, makes every place's
features a vector of length one, weighs the squares of their differences channel by channel, and adds up the means over
places. Weights come from torchvision (`vgg16`) and from the `lpips` package (version 0.1).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo.layers.norms import unit_length

Images = Float[Array, "batch height width channels"]

DEPTHS = (2, 2, 3, 3, 3)  # convolutions at each scale
# What LPIPS subtracts from pixels in [-1, 1], and divides by.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class VGG16(nn.Module):
    """The convolutions of VGG16, each followed by a ReLU; maps are halved by their largest values between scales.

    Attributes:
        widths: channels at each of the five scales.
        image_size: pixels that pictures are resized to by those who call it; None takes them as they come.
        dtype: of the computation.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    image_size: tuple[int, int] | None = None
    dtype: Any = None

    extractor = "vgg16"  # in the names of figures

    @nn.compact
    def __call__(
        self, images: Images, *, train: bool = False
    ) -> tuple[Float[Array, "batch rows columns features"], dict[str, Any]]:
        """The last map, halved once more, and 'levels', the five maps before they are halved.

        Args:
            images: three channels less ImageNet's mean by its deviation; one channel counts as three.
            train: unused.
        """
        x = jnp.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
        levels = []
        for scale, (depth, width) in enumerate(zip(DEPTHS, self.widths, strict=True), start=1):
            for number in range(1, depth + 1):
                x = jax.nn.relu(nn.Conv(width, (3, 3), dtype=self.dtype, name=f"conv{scale}_{number}")(x))
            levels.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        return x, {"levels": levels}


class LPIPS(nn.Module):
    """The distance of two pictures by VGG16's features.

    Attributes:
        widths: see `VGG16`.
        image_size: likewise.
        dtype: of the convolutions; the distance itself is float32.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    image_size: tuple[int, int] | None = None
    dtype: Any = None

    extractor = "lpips_vgg16"  # in the names of figures

    def setup(self) -> None:
        self.vgg = VGG16(self.widths, dtype=self.dtype)
        self.heads = [
            self.param(f"head{scale}", nn.initializers.constant(1 / width), (width,))
            for scale, width in enumerate(self.widths, start=1)
        ]

    def __call__(self, images: Images, *, train: bool = False) -> tuple[Array, dict[str, Any]]:
        """VGG16's last map of pixels in [0, 1], and 'levels', whose places' features have length one."""
        pixels = (2 * images - 1 - jnp.asarray(SHIFT)) / jnp.asarray(SCALE)
        last, aux = self.vgg(pixels)
        return last, {"levels": [unit_length(level.astype(jnp.float32), 1e-10) for level in aux["levels"]]}

    def distance(self, first: Images, second: Images) -> Float[Array, " batch"]:
        """Of each picture from its counterpart; pixels in [0, 1], one or three channels."""
        total = jnp.zeros(len(first))
        pairs = zip(self(first)[1]["levels"], self(second)[1]["levels"])
        for head, (x, y) in zip(self.heads, pairs):
            total += jnp.square(x - y).mean(axis=(1, 2)) @ head
        return total
