"""The losses of 4M: cross-entropy of every modality's targets, and three ways to make one number of them."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

Scalar = Float[Array, ""]
Weigh = Callable[[Array, int], Array]

# What a modality's mean weighs, given its targets in the batch and its vocabulary.
WEIGHTS: dict[str, Weigh] = {
    "modality": lambda count, vocabulary: jnp.ones(()),  # all alike, those without a target as 0 (the paper's)
    "token": lambda count, vocabulary: count,
    "logit": lambda count, vocabulary: count * vocabulary,  # what the reference calls 'token'
}


def modality_losses(
    logits: Mapping[str, Float[Array, "batch targets _"]],
    ids: Int[Array, "batch targets"],
    asked: Mapping[str, Bool[Array, "batch targets"]],
) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
    """Mean cross-entropy of each modality's targets in the batch, 0 where it has none, and how many it has.

    Args:
        logits: of all targets, by modality.
        ids: what the targets are.
        asked: which targets are a modality's.
    """
    losses, counts = {}, {}
    for name, values in logits.items():
        mine = asked[name].astype(jnp.float32)
        entropy = optax.softmax_cross_entropy_with_integer_labels(values, jnp.where(asked[name], ids, 0))
        counts[name] = mine.sum()
        losses[name] = (entropy * mine).sum() / jnp.maximum(counts[name], 1.0)
    return losses, counts


def total_loss(
    losses: Mapping[str, Scalar], counts: Mapping[str, Scalar], vocabularies: Mapping[str, int], kind: str
) -> Scalar:
    """The weighted mean of the modalities' losses, with a key of `WEIGHTS`."""
    weights = {name: WEIGHTS[kind](counts[name], vocabularies[name]) for name in losses}
    total = sum(losses[name] * weights[name] for name in losses)
    return jnp.asarray(total / jnp.maximum(sum(weights.values()), 1.0))
