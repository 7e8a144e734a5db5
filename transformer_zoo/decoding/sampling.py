"""From logits to tokens: filters, guidance, draws."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Logits = Float[Array, "*shape codes"]
MIN_TEMPERATURE = 1e-6  # below it the highest logit is taken


def keep_top_k(logits: Logits, k: int | float) -> Logits:
    """-inf for all but the `k` highest logits; a fraction below 1 is a share of the codes; 0 keeps all.

    Of logits that equal the k-th one, all are kept.

    Raises:
        ValueError: k is negative.
    """
    if k < 0:
        raise ValueError(f"top_k is {k}, but must be at least 0 (0: off)")
    codes = logits.shape[-1]
    k = int(k * codes) if isinstance(k, float) and k < 1 else int(k)
    if not 0 < k < codes:
        return logits
    least = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits < least, -jnp.inf, logits)


def keep_top_p(logits: Logits, p: float) -> Logits:
    """-inf for all but the likeliest codes whose probabilities reach `p` together (Holtzman et al., arXiv 1904.09751).

    The code that crosses `p` is kept, so one always is; 0 and 1 keep all.

    Raises:
        ValueError: p does not lie in [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"top_p is {p}, but must lie between 0 and 1 (0: off)")
    if p in (0, 1):
        return logits
    order = jnp.argsort(-logits, axis=-1, stable=True)
    probabilities = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities  # of all likelier codes
    kept = jnp.take_along_axis(before <= p, jnp.argsort(order, axis=-1, stable=True), axis=-1)
    return jnp.where(kept, logits, -jnp.inf)


def filter_logits(logits: Logits, top_k: int | float = 0, top_p: float = 0.0) -> Logits:
    """`keep_top_k`, then `keep_top_p` of what is left."""
    return keep_top_p(keep_top_k(logits, top_k), top_p)


def temper(logits: Logits, temperature: Float[Array, ""] | float) -> Logits:
    """Logits divided by a temperature of at least 1e-6."""
    return logits / jnp.maximum(jnp.asarray(temperature, jnp.float32), MIN_TEMPERATURE)


def draw(logits: Logits, noise: Logits) -> Int[Array, "*shape"]:
    """A code each, categorical where `noise` is standard Gumbel noise."""
    return jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)


def guide(conditional: Logits, unconditional: Logits, scale: Float[Array, ""] | float) -> Logits:
    """Unconditional + scale * (conditional - unconditional), 1 is no guidance (Ho & Salimans, arXiv 2207.12598)."""
    return unconditional + scale * (conditional - unconditional)


def guide_by_several(
    conditionals: Sequence[Logits], unconditional: Logits, weights: Sequence[float | Float[Array, ""]]
) -> Logits:
    """Unconditional + the weighted sum of what each condition adds; a negative weight leads away from a condition."""
    differences = (weight * (one - unconditional) for one, weight in zip(conditionals, weights, strict=True))
    return unconditional + sum(differences, jnp.zeros_like(unconditional))
