"""Learning rates over steps. All begin with a linear warm-up from 0 and count completed updates, so the first is 0."""

import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "cosine", "linear", "rsqrt", "warmup_stable_decay")


def make_schedule(
    name: str,
    learning_rate: float,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    decay_steps: int = 0,
    final_learning_rate_ratio: float = 0.0,
) -> optax.Schedule:
    """A function from the number of completed updates to the learning rate.

    After the warm-up, with p the fraction of the remaining steps that are done and r the final ratio:
        constant: 1.
        cosine: r + (1 - r) (1 + cos(pi p)) / 2 (Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5).
        linear: 1 - (1 - r) p.
        rsqrt: (warmup_steps / step)^0.5 (Vaswani et al. 2017, arXiv 1706.03762, equation 3, scaled to peak at
            `learning_rate`), times a linear fall to r over the last `decay_steps`, if any (Zhai et al. 2022,
            arXiv 2106.04560, section 3.5).
        warmup_stable_decay: 1, then a linear fall to r over the last `decay_steps` (Hu et al. 2024, arXiv 2404.06395,
            section 4, with the linear fall of Hägele et al. 2024, arXiv 2405.18392).

    Args:
        name: one of `SCHEDULES`.
        learning_rate: the peak, reached at step `warmup_steps`.
        total_steps: updates in the whole run.
        warmup_steps: length of the warm-up.
        decay_steps: length of the fall at the end; of rsqrt and warmup_stable_decay alone.
        final_learning_rate_ratio: r, the last learning rate over the peak; constant has none.

    Raises:
        ValueError: the steps do not fit into each other.
    """
    if warmup_steps > total_steps:
        raise ValueError(
            f"optimizer.warmup_steps is {warmup_steps}, more than total_steps; it can be at most {total_steps}"
        )
    if decay_steps > total_steps - warmup_steps:
        raise ValueError(
            f"optimizer.decay_steps is {decay_steps}; after {warmup_steps} warm-up steps of {total_steps} it can be "
            f"at most {total_steps - warmup_steps}"
        )
    if name == "warmup_stable_decay" and not decay_steps:
        raise ValueError("optimizer.decay_steps is 0; the schedule 'warmup_stable_decay' needs at least 1")
    if name == "rsqrt" and not warmup_steps:
        raise ValueError("optimizer.warmup_steps is 0; the schedule 'rsqrt' falls from its end and needs at least 1")

    remaining = total_steps - warmup_steps  # schedules below count from the end of the warm-up
    final = learning_rate * final_learning_rate_ratio
    fall = optax.linear_schedule(1.0, final_learning_rate_ratio, decay_steps, remaining - decay_steps)
    after_warmup = {
        "constant": optax.constant_schedule(learning_rate),
        "cosine": optax.cosine_decay_schedule(learning_rate, max(remaining, 1), final_learning_rate_ratio),
        "linear": optax.linear_schedule(learning_rate, final, remaining),
        "rsqrt": lambda step: learning_rate * fall(step) * (1 + jnp.maximum(step, 0) / warmup_steps) ** -0.5,
        "warmup_stable_decay": lambda step: learning_rate * fall(step),
    }[name]
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup_steps), after_warmup], [warmup_steps])
