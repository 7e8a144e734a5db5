"""How like each other pictures are: PSNR and SSIM, of pixels in [0, 1]."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Pictures = Float[Array, "batch *frames height width channels"]
LEAST_ERROR = 1e-10  # of a mean square, so that equal pictures have a finite PSNR: 100 dB


def psnr(squared_error: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Peak signal-to-noise ratio in dB of a mean squared error, where the peak is 1."""
    return -10 * jnp.log10(jnp.maximum(squared_error, LEAST_ERROR))


def ssim(first: Pictures, second: Pictures) -> Float[Array, "batch"]:
    """Structural similarity (Wang et al. 2004, equation 13), the mean over places, channels and frames.

    Gaussian windows of 11 x 11 pixels and deviation 1.5 that lie inside of the picture, smaller in smaller pictures.
    """
    size = min(11, *(side - 1 + side % 2 for side in first.shape[-3:-1]))
    offsets = np.arange(size) - size // 2
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = (window / window.sum()).astype(np.float32)
    batch = first.shape[0]
    x, y = (jnp.moveaxis(one.astype(jnp.float32), -1, 1) for one in (first, second))
    x, y = (one.reshape(-1, 1, *first.shape[-3:-1]) for one in (x, y))  # every channel of every frame on its own

    def smooth(z: Array) -> Array:
        for kernel in (window[None, None, :, None], window[None, None, None, :]):
            z = jax.lax.conv(z, jnp.asarray(kernel), (1, 1), "VALID")
        return z

    x_mean, y_mean = smooth(x), smooth(y)
    x_variance, y_variance = smooth(x * x) - x_mean**2, smooth(y * y) - y_mean**2
    covariance = smooth(x * y) - x_mean * y_mean
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * x_mean * y_mean + c1) * (2 * covariance + c2)
    found = found / ((x_mean**2 + y_mean**2 + c1) * (x_variance + y_variance + c2))
    return found.reshape(batch, -1).mean(axis=1)
