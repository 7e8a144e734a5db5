"""Hiding tokens of any grid: exactly so many of every sample, those of the lowest scores."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from transformer_zoo.masking.schedules import hidden_share


def lowest(scores: Float[Array, "batch *places"], counts: Int[Array, "#batch"] | int) -> Bool[Array, "batch *places"]:
    """True at the `counts` places of lowest score of every sample; of equal scores the earlier place is lower."""
    flat = scores.reshape(scores.shape[0], -1)
    order = jnp.argsort(flat, axis=1, stable=True)
    rank = jnp.argsort(order, axis=1, stable=True)
    return (rank < jnp.reshape(jnp.asarray(counts), (-1, 1))).reshape(scores.shape)


def hide_random(
    key: Key[Array, ""], shape: tuple[int, ...], schedule: str = "cosine", shared: bool = False
) -> Bool[Array, "batch *places"]:
    """Which tokens to hide in a training step: a share drawn by `schedule`, uniform places, at least one a sample.

    Args:
        key: of this step.
        shape: (batch, *places).
        schedule: see `hidden_share`; its progress is uniform in [0, 1).
        shared: one share for the whole batch instead of one a sample.
    """
    ratio_key, place_key = jax.random.split(key)
    num_tokens = 1
    for side in shape[1:]:
        num_tokens *= side
    progress = jax.random.uniform(ratio_key, (1 if shared else shape[0],))
    counts = jnp.ceil(hidden_share(progress, schedule, num_tokens) * num_tokens).astype(jnp.int32)
    return lowest(jax.random.uniform(place_key, shape), counts)
