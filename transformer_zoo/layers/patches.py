"""Images to patches and back, and the linear patch embedding."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float


def grid_of(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches; raises ValueError where the patches do not tile the image."""
    rows, columns = image_size[0] // patch_size[0], image_size[1] // patch_size[1]
    if (rows * patch_size[0], columns * patch_size[1]) != tuple(image_size):
        raise ValueError(f"image_size {tuple(image_size)} is not a multiple of patch_size {tuple(patch_size)}")
    return rows, columns


def patchify(
    images: Float[Array, "batch height width channels"], patch_size: tuple[int, int]
) -> Float[Array, "batch tokens pixels"]:
    """Non-overlapping patches, row-major; pixels inside a patch in (row, column, channel) order."""
    batch, height, width, channels = images.shape
    (rows, columns), (p, q) = grid_of((height, width), patch_size), patch_size
    patches = images.reshape(batch, rows, p, columns, q, channels).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(batch, rows * columns, p * q * channels)


def unpatchify(
    patches: Float[Array, "batch tokens pixels"], grid: tuple[int, int], patch_size: tuple[int, int]
) -> Float[Array, "batch height width channels"]:
    """The inverse of `patchify` for a grid of (rows, columns) patches."""
    (rows, columns), (p, q) = grid, patch_size
    batch, channels = patches.shape[0], patches.shape[2] // (p * q)
    images = patches.reshape(batch, rows, columns, p, q, channels).transpose(0, 1, 3, 2, 4, 5)
    return images.reshape(batch, rows * p, columns * q, channels)


class PatchEmbed(nn.Module):
    """A linear map of every patch: a convolution with kernel = stride = patch_size, as one matrix product."""

    width: int
    patch_size: tuple[int, int]
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch tokens dim"]:
        return nn.Dense(
            self.width,
            use_bias=self.use_bias,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            name="projection",
        )(patchify(images, self.patch_size))
