"""What every quantizer gives and takes, and the arithmetic that they share."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Latents = Float[Array, "*places width"]
Ids = Int[Array, "*places"]
Weights = Float[Array, "*places"]


class Quantized(flax.struct.PyTreeNode):
    """A quantizer's result.

    Attributes:
        values: the codes, float32 in the latents' shape; their gradient goes to the latents as if nothing had happened.
        ids: int32 in the shape of the places; product and residual codes have one more axis.
        losses: scalars by name, already weighted: a task adds them up.
        metrics: scalars by name, to be logged.
    """

    values: Any
    ids: Any
    losses: dict[str, Any] = flax.struct.field(default_factory=dict)
    metrics: dict[str, Any] = flax.struct.field(default_factory=dict)


def straight_through(z: Latents, values: Latents) -> Latents:
    """Exactly `values`, with the gradient of the identity to `z` (Bengio et al. 2013, arXiv 1308.3432)."""
    return jax.lax.stop_gradient(values) + (z - jax.lax.stop_gradient(z))


def mean_where(x: Float[Array, "*places"], weights: Weights | None) -> Float[Array, ""]:
    """The mean over places, weighted; 0 where all weights are 0."""
    if weights is None:
        return x.mean()
    return (x * weights).sum() / jnp.maximum(weights.sum(), jnp.finfo(jnp.float32).tiny)


def squared_error(x: Latents, y: Latents, weights: Weights | None) -> Float[Array, ""]:
    """Mean squared difference over channels and places."""
    return mean_where(jnp.square(x - y).mean(axis=-1), weights)


def unit(x: Latents) -> Latents:
    """Vectors of length one; a vector of length zero stays."""
    norm = jnp.sqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24))
    return x / norm


def code_usage(ids: Ids, num_codes: int, weights: Weights | None = None) -> dict[str, Float[Array, ""]]:
    """How a batch uses a codebook; ids below 0 do not count.

    Returns:
        'perplexity', exp of the entropy of the codes' shares: `num_codes` where all are used evenly, 1 after a
        collapse; and 'usage', the share of codes that occur at all.
    """
    weights = jnp.ones(ids.shape, jnp.float32) if weights is None else weights
    weights = jnp.where(ids < 0, 0.0, weights)
    counts = jnp.zeros(num_codes, jnp.float32).at[jnp.maximum(ids, 0).ravel()].add(weights.ravel())
    shares = counts / jnp.maximum(counts.sum(), 1e-9)
    entropy = -(shares * jnp.log(jnp.where(shares > 0, shares, 1.0))).sum()
    return {"perplexity": jnp.exp(entropy), "usage": (counts > 0).mean()}
