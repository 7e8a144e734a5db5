"""Products of tokens and kernels."""

import math
from typing import Any

import jax
from jaxtyping import Array, Float

from transformer_zoo.layers.devices import on_one_cpu


def multiply(
    x: Float[Array, "*batch_and_width"], kernel: Float[Array, "*width_and_features"], dimensions: Any, **options: Any
) -> Float[Array, "*batch_and_features"]:
    """The product over the last axes of x and the first of the kernel, called as `jax.lax.dot_general`.

    On one CPU it is a product of two matrices, all batch axes in one and all features in another: for more axes XLA's
    CPU compiler writes the output's gradient once more with rows and columns swapped. Axes that a mesh splits stay
    apart.

    Args:
        x: tokens.
        kernel: of a dense layer.
        dimensions: which axes are summed over, those mentioned above.
        options: of `jax.lax.dot_general`.
    """
    if not on_one_cpu():
        return jax.lax.dot_general(x, kernel, dimensions, **options)
    (summed, _), _ = dimensions
    batch, features = x.shape[: x.ndim - len(summed)], kernel.shape[len(summed) :]
    width = math.prod(kernel.shape[: len(summed)])
    rows, columns = x.reshape(math.prod(batch), width), kernel.reshape(width, math.prod(features))
    return jax.lax.dot_general(rows, columns, (((1,), (0,)), ((), ())), **options).reshape(*batch, *features)
