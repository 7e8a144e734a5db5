"""How many tokens each of several groups gets: Dirichlet budgets (4M, arXiv 2312.06647, section 2.2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

SMALLEST = 1e-9  # of a concentration: a group that should get nothing
TRIES = 8  # of rejection sampling; one fails less often than 1 time in 20


def log_gamma(key: Key[Array, ""], concentration: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Logarithms of gamma draws, right for the smallest concentrations, where the draws themselves are 0 in float32.

    A draw of concentration a + 1 (Marsaglia and Tsang 2000, tried a fixed number of times at once, which a CPU does
    hundreds of times faster than a loop an element) times uniform^(1 / a).
    """
    a = jnp.maximum(concentration, SMALLEST)
    d = a + 2 / 3
    normal_key, accept_key, boost_key = jax.random.split(key, 3)
    x = jax.random.normal(normal_key, (TRIES, *a.shape))
    v = (1 + x / jnp.sqrt(9 * d)) ** 3
    log_v = jnp.log(jnp.where(v > 0, v, 1.0))
    log_uniform = jnp.log1p(-jax.random.uniform(accept_key, x.shape))
    accepted = (v > 0) & (log_uniform < 0.5 * x**2 + d * (1 - v + log_v))
    first = jnp.argmax(accepted, axis=0)
    chosen = jnp.take_along_axis(log_v, first[None], axis=0)[0]
    return jnp.log(d) + chosen + jnp.log1p(-jax.random.uniform(boost_key, a.shape)) / a


def dirichlet_budgets(
    key: Key[Array, ""],
    concentration: Float[Array, "batch groups"],
    total: Int[Array, "batch"],
    most: Int[Array, "#batch groups"],
) -> Int[Array, "batch groups"]:
    """Tokens for each group: floor(share * total) with Dirichlet shares, none above `most`.

    Each token that rounding leaves over goes to the group of the largest share in a draw of its own, so that groups of
    concentration 0 get none.
    """
    batch, groups = concentration.shape
    draws = log_gamma(key, jnp.broadcast_to(concentration[:, None], (batch, 1 + groups, groups)))
    budget = jnp.floor(jax.nn.softmax(draws[:, 0]) * total[:, None]).astype(jnp.int32)
    left = total - budget.sum(axis=1)
    extra = jax.nn.one_hot(jnp.argmax(draws[:, 1:], axis=-1), groups, dtype=jnp.int32)
    counted = jnp.arange(groups) < left[:, None]
    return jnp.minimum(budget + (extra * counted[..., None]).sum(axis=1), most)


def disjoint_masks(
    key: Key[Array, ""], places: int, inputs: Int[Array, "batch"], targets: Int[Array, "batch"]
) -> tuple[Bool[Array, "batch places"], Bool[Array, "batch places"]]:
    """Random places of which the first `inputs` are shown and the next `targets` are asked for, True where so."""
    order = jnp.argsort(jax.random.uniform(key, (inputs.shape[0], places)), axis=1)
    rank = jnp.argsort(order, axis=1)
    shown = rank < inputs[:, None]
    return shown, ~shown & (rank < (inputs + targets)[:, None])
