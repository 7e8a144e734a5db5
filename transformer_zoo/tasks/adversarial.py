"""Losses of adversarial training: what the generator and the discriminator minimise, and what keeps the latter tame."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Scalar = Float[Array, ""]


def non_saturating(real: Float[Array, "*real"], fake: Float[Array, "*fake"]) -> tuple[Scalar, Scalar]:
    """Losses of the generator and of the discriminator (Goodfellow et al. 2014, arXiv 1406.2661, section 3)."""
    generator = jax.nn.softplus(-fake).mean()
    return generator, jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()


def r1_penalty(discriminator: Callable[[Array], Array], real: Float[Array, "batch *rest"]) -> Scalar:
    """Mean squared length of the logit's gradient at real data (Mescheder et al. 2018, arXiv 1801.04406, equation 9).

    `discriminator` maps a batch to a logit each, and no sample's logit may depend on another's.
    """
    gradient = jax.grad(lambda pixels: discriminator(pixels).sum())(real)
    return jnp.square(gradient).reshape(real.shape[0], -1).sum(axis=-1).mean()
