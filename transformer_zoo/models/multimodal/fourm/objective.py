"""The losses of 4M: cross-entropy of every modality's targets, and three ways to make one number of them."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Scalar = Float[Array, ""]
Weigh = Callable[[Array, int], Array]

# What a modality's mean weighs, given its targets in the batch and its vocabulary.
WEIGHTS: dict[str, Weigh] = {
    "modality": lambda count, vocabulary: jnp.ones(()),  # all alike, those without a target as 0 (the paper's)
    "token": lambda count, vocabulary: count,
    "logit": lambda count, vocabulary: count * vocabulary,  # what the reference calls 'token'
}


def modality_losses(
    entropies: Float[Array, "batch targets"], asked: Mapping[str, Bool[Array, "batch targets"]]
) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
    """Mean cross-entropy of each modality's targets in the batch, 0 where it has none, and how many it has.

    Args:
        entropies: of all targets.
        asked: which targets are a modality's.
    """
    losses, counts = {}, {}
    for name, mine in asked.items():
        counts[name] = mine.astype(jnp.float32).sum()
        losses[name] = jnp.where(mine, entropies, 0.0).sum() / jnp.maximum(counts[name], 1.0)
    return losses, counts


def total_loss(
    losses: Mapping[str, Scalar], counts: Mapping[str, Scalar], vocabularies: Mapping[str, int], kind: str
) -> Scalar:
    """The weighted mean of the modalities' losses, with a key of `WEIGHTS`."""
    weights = {name: WEIGHTS[kind](counts[name], vocabularies[name]) for name in losses}
    total = sum(losses[name] * weights[name] for name in losses)
    return jnp.asarray(total / jnp.maximum(sum(weights.values()), 1.0))
