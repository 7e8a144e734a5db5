"""Pixels to another size, as the networks that measure distances expect it."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def corner_matrix(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Rows of weights that take `old` samples to `new`: sample i lies at i * old / new, linear in between.

    TensorFlow 1's bilinear resize: the first samples are aligned instead of the centres, nothing is smoothed when
    shrinking, and samples past the end are the last one.
    """
    places = np.arange(new) * (old / new)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, old - 1)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new), low), 1 - (places - low))
    np.add.at(matrix, (np.arange(new), high), places - low)
    return matrix.astype(np.float32)


def resize_from_corner(
    pixels: Float[Array, "*lead height width channels"], size: Sequence[int]
) -> Float[Array, "*lead rows columns channels"]:
    """Pictures or clips of another (height, width), as the networks of FID and FVD were fed (`corner_matrix`)."""
    rows, columns = (corner_matrix(old, new) for old, new in zip(pixels.shape[-3:-1], size))
    return jnp.einsum("rh,...hwc,sw->...rsc", rows, pixels, columns, precision="highest")
