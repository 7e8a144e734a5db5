"""How many tokens are hidden: shares that fall from one to zero while a clip or picture is filled in.

The same functions draw mask ratios in training, at a uniformly random progress, and lead a decoder from step to step
(Chang et al. 2022, arXiv 2202.04200, section 3.3).
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo import naming

SMALLEST = 1e-6  # no schedule falls below, as in the reference

# (progress in [0, 1], number of tokens) to the share of them that stays hidden.
SCHEDULES: dict[str, Callable[[Array, int], Array]] = {
    "cosine": lambda progress, num_tokens: jnp.cos(math.pi / 2 * progress),
    "linear": lambda progress, num_tokens: 1 - progress,
    "square": lambda progress, num_tokens: 1 - progress**2.0,
    "cubic": lambda progress, num_tokens: 1 - progress**3.0,
    "square_root": lambda progress, num_tokens: 1 - progress**0.5,
    "arccos": lambda progress, num_tokens: jnp.arccos(progress) / (math.pi / 2),
    "logarithmic": lambda progress, num_tokens: -jnp.log2(progress) / math.log2(num_tokens),
    "exponential": lambda progress, num_tokens: 1 - jnp.exp2(-math.log2(num_tokens) * (1 - progress)),
}


def hidden_share(progress: Float[Array, "*shape"], schedule: str, num_tokens: int) -> Float[Array, "*shape"]:
    """The share of tokens that is hidden after `progress` of the way, in [1e-6, 1].

    Args:
        progress: from 0, all hidden, to 1.
        schedule: a key of `SCHEDULES`, or 'powerK' for 1 - progress^K with any K, such as 'power2.5'.
        num_tokens: of a sample; read by 'logarithmic' and 'exponential' only.

    Raises:
        ValueError: an unknown schedule.
    """
    progress = jnp.asarray(progress, jnp.float32)
    exponent = schedule.removeprefix("power")
    if schedule.startswith("power") and exponent.replace(".", "", 1).isdigit():
        share = 1 - progress ** float(exponent)
    elif schedule in SCHEDULES:
        share = SCHEDULES[schedule](progress, num_tokens)
    else:
        raise naming.unknown("mask schedule", schedule, SCHEDULES)
    return jnp.clip(share, SMALLEST, 1.0)
