"""The discrete process of DDPM (Ho et al. 2020, arXiv 2006.11239) and the deterministic steps of DDIM (2010.02502).

`signal` [steps] is the share of the variance that is signal at each time, alpha bar in the papers.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transformer_zoo import naming

PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = ("trailing", "leading", "linspace")
SCHEDULES = ("linear", "squaredcos_cap_v2", "shifted_cosine")

Signal = Float[np.ndarray, "steps"]
Sample = Float[Array, "batch *shape"]


def signal_shares(schedule: str = "linear", steps: int = 1000, zero_terminal: bool = False) -> Signal:
    """The share of signal at every time.

    Args:
        schedule: 'linear' (betas from 1e-4 to 0.02), 'squaredcos_cap_v2' (arXiv 2102.09672), or 'shifted_cosine:SHIFT'
            (arXiv 2305.18231; below 1 is less noisy), which ends in zero anyway.
        steps: times.
        zero_terminal: moves the square roots so that nothing of the signal is left at the last time (2305.08891).

    Raises:
        ValueError: an unknown schedule.
    """
    name, _, shift = schedule.partition(":")
    if name not in SCHEDULES:
        raise naming.unknown("noise schedule:", name, SCHEDULES)
    if name == "shifted_cosine":
        with np.errstate(divide="ignore"):
            angle = np.tan(np.pi * np.linspace(0, 1, steps) / 2)
            log_ratio = np.clip(-2 * (np.log(angle) + math.log(float(shift))), -15, 15)
        return np.append((1 / (1 + np.exp(-log_ratio)))[:-1], 0.0)
    if name == "linear":
        betas = np.linspace(1e-4, 0.02, steps)
    else:
        cosine = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - cosine[1:] / cosine[:-1], 0.999)
    shares = np.cumprod(1 - betas)
    if not zero_terminal:
        return shares
    root = np.sqrt(shares)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def sampling_times(steps: int, spacing: str = "trailing", total: int = 1000) -> Int[np.ndarray, "times"]:
    """Times of a sampler, from noise to signal; 'trailing' begins with the last (2305.08891, table 2).

    Where `steps` does not divide `total`, 'trailing' takes one step more.

    Raises:
        ValueError: an unknown spacing.
    """
    if spacing not in SPACINGS:
        raise naming.unknown("spacing of times:", spacing, SPACINGS)
    if spacing == "trailing":
        return np.arange(total, 0, -(total // steps)) - 1
    if spacing == "leading":
        return (np.arange(steps) * (total // steps))[::-1].copy()
    return np.linspace(total, 1, steps).round().astype(int) - 1


def add_noise(sample: Sample, noise: Sample, times: Int[Array, "batch"], signal: Signal) -> Sample:
    """sqrt(signal) sample + sqrt(1 - signal) noise, at a time for each sample."""
    shares = jnp.asarray(signal, jnp.float32)[times].reshape(-1, *(1,) * (sample.ndim - 1))
    return jnp.sqrt(shares) * sample + jnp.sqrt(1 - shares) * noise


def clean_and_noise(
    output: Sample, sample: Sample, share: Float[Array, ""] | float, prediction: str
) -> tuple[Sample, Sample]:
    """Clean sample and noise that a network's output means at a time with this share of signal.

    Raises:
        ValueError: an unknown kind of prediction.
    """
    if prediction not in PREDICTIONS:
        raise naming.unknown("prediction:", prediction, PREDICTIONS)
    a, b = jnp.sqrt(jnp.asarray(share)), jnp.sqrt(1 - jnp.asarray(share))
    if prediction == "epsilon":
        return (sample - b * output) / a, output
    if prediction == "sample":
        return output, (sample - a * output) / b
    return a * sample - b * output, a * output + b * sample


def ddim_step(
    output: Sample,
    sample: Sample,
    share: Float[Array, ""] | float,
    next_share: Float[Array, ""] | float,
    prediction: str = "sample",
    clip: float = 0.0,
) -> Sample:
    """One step without fresh noise, from a time with signal `share` to one with `next_share`.

    Args:
        output: of the network.
        sample: at the first time.
        share: of signal there.
        next_share: of signal at the next time, 1 at the end.
        prediction: what the network predicts, one of `PREDICTIONS`.
        clip: bounds of the clean sample, in both directions; 0 leaves it as it is.
    """
    clean, noise = clean_and_noise(output, sample, share, prediction)
    clean = jnp.clip(clean, -clip, clip) if clip else clean
    return jnp.sqrt(jnp.asarray(next_share)) * clean + jnp.sqrt(1 - jnp.asarray(next_share)) * noise
