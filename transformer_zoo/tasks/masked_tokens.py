"""Masked tokens: predict the ids of hidden tokens, and fill a whole grid with the same network."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


def token_loss(
    logits: Float[Array, "batch *grid codes"],
    targets: Int[Array, "batch *grid"],
    weights: Bool[Array, "batch *grid"] | Float[Array, "batch *grid"],
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Cross-entropy of the weighted tokens of every sample, then the mean over samples (MaskGIT's code)."""
    axes = tuple(range(1, targets.ndim))
    smooth = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), label_smoothing)
    weights = weights.astype(jnp.float32)
    losses = optax.softmax_cross_entropy(logits.astype(jnp.float32), smooth) * weights
    return (losses.sum(axis=axes) / jnp.maximum(weights.sum(axis=axes), 1e-8)).mean()
