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


def hinge(real: Float[Array, "*real"], fake: Float[Array, "*fake"]) -> tuple[Scalar, Scalar]:
    """Losses of the generator and of the discriminator (Lim and Ye 2017, arXiv 1705.02894, section 3)."""
    return -fake.mean(), jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()


LOSSES = {"non_saturating": non_saturating, "hinge": hinge}


def lecam_penalty(
    real: Float[Array, "*real"], fake: Float[Array, "*fake"], real_average: Scalar, fake_average: Scalar
) -> Scalar:
    """LeCAM regularisation (Tseng et al. 2021, arXiv 2104.03310, equation 4, one-sided as its code has it).

    `real_average` and `fake_average` are moving averages of the discriminator's mean logits.
    """
    return jnp.square(jax.nn.relu(real - fake_average)).mean() + jnp.square(jax.nn.relu(real_average - fake)).mean()
