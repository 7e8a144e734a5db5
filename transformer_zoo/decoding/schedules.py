"""What changes from step to step of a decoder: how much is hidden, temperatures, the weight of guidance."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transformer_zoo import naming
from transformer_zoo.masking.schedules import hidden_share

RAMPS = ("constant", "falling", "rising", "rising_from_zero")


def shares_after(steps: int, schedule: str, num_tokens: int) -> Float[Array, " steps"]:
    """The share of tokens that is still hidden after each step, see `hidden_share`; the last step hides none."""
    progress = jnp.arange(1, steps + 1, dtype=jnp.float32) / steps
    return hidden_share(progress, schedule, num_tokens)


def hidden_after(steps: int, schedule: str, num_tokens: int) -> Int[np.ndarray, " steps"]:
    """Tokens still hidden after each step where all `num_tokens` are at first (MaskGIT section 3.3).

    Every step reveals at least one token and leaves at least one for the next, as far as there are enough; the last
    one reveals all that is left.
    """
    left: list[int] = []
    now = num_tokens
    with jax.ensure_compile_time_eval():  # numbers also while a caller is traced
        wanted = np.floor(np.asarray(num_tokens * shares_after(steps, schedule, num_tokens)))
    for count in wanted.astype(int).tolist():
        now = max(min(count, now - 1), 1) if len(left) < steps - 1 else 0
        left.append(now)
    return np.array(left)


def even_counts(steps: int, num_tokens: int) -> Int[np.ndarray, " steps"]:
    """Tokens still hidden after each step where every step reveals equally many, earlier ones more of what is over."""
    revealed = np.diff(np.linspace(0, num_tokens, steps + 1).astype(int))
    return num_tokens - np.cumsum(np.sort(revealed)[::-1])


def ramp(kind: str, value: float | Sequence[float], steps: int) -> Float[np.ndarray, " steps"]:
    """A number a step: temperatures, guidance scales.

    Args:
        kind: 'constant'; 'falling' to 0 at the last step, value * (1 - (i + 1) / steps); 'rising' to `value`, value *
            (i + 1) / steps; 'rising_from_zero', value * i / steps.
        value: the number, or one for each step, which `kind` then does not change.
        steps: how many.

    Raises:
        ValueError: an unknown kind, or another number of values than of steps.
    """
    if kind not in RAMPS:
        raise naming.unknown("ramp", kind, RAMPS)
    if not isinstance(value, int | float):
        values = np.asarray(value, np.float32)
        if values.shape != (steps,):
            raise ValueError(f"{len(values)} values for {steps} steps")
        return values
    index = np.arange(steps, dtype=np.float32)
    shapes: dict[str, np.ndarray] = {
        "constant": np.ones(steps, np.float32),
        "falling": 1 - (index + 1) / steps,
        "rising": (index + 1) / steps,
        "rising_from_zero": index / steps,
    }
    return (value * shapes[kind]).astype(np.float32)
