import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.diffusion import ddpm

SAMPLE = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
NOISE = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2", "shifted_cosine:0.5"])
def test_signal_falls_and_ends_in_nothing_where_that_is_asked(schedule):
    plain, zero = ddpm.signal_shares(schedule), ddpm.signal_shares(schedule, zero_terminal=True)
    assert (np.diff(zero) < 0).all() and zero[-1] == 0 and zero[0] == pytest.approx(plain[0])


@pytest.mark.parametrize("prediction", ddpm.PREDICTIONS)
def test_what_a_network_predicts_means_the_same_clean_sample_and_noise(prediction):
    share = 0.3
    a, b = np.sqrt(share), np.sqrt(1 - share)
    noised = a * SAMPLE + b * NOISE
    output = {"epsilon": NOISE, "sample": SAMPLE, "v_prediction": a * NOISE - b * SAMPLE}[prediction]
    clean, noise = ddpm.clean_and_noise(jnp.asarray(output), jnp.asarray(noised), share, prediction)
    assert np.allclose(clean, SAMPLE, atol=1e-5) and np.allclose(noise, NOISE, atol=1e-5)
    after = ddpm.ddim_step(jnp.asarray(output), jnp.asarray(noised), share, 0.8, prediction)
    assert np.allclose(after, np.sqrt(0.8) * SAMPLE + np.sqrt(0.2) * NOISE, atol=1e-5)


def test_an_oracle_leads_from_noise_to_the_sample():
    signal, times = ddpm.signal_shares(zero_terminal=True), ddpm.sampling_times(7)
    assert times[0] == 999 and len(times) == 8
    sample, shares = jnp.asarray(NOISE), np.append(signal[times], 1.0)
    for here, after in itertools.pairwise(shares):
        sample = ddpm.ddim_step(jnp.asarray(SAMPLE), sample, float(here), float(after))
    assert np.allclose(sample, SAMPLE, atol=1e-6)


def test_noise_is_added_at_each_samples_own_time():
    signal = ddpm.signal_shares(zero_terminal=True)
    found = ddpm.add_noise(jnp.asarray(SAMPLE), jnp.asarray(NOISE), jnp.asarray([0, 999]), signal)
    assert np.allclose(found[1], NOISE[1]) and np.allclose(found[0], SAMPLE[0], atol=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ddpm.signal_shares("liner"), "did you mean 'linear'"),
        (lambda: ddpm.sampling_times(5, "trailling"), "did you mean 'trailing'"),
        (lambda: ddpm.clean_and_noise(jnp.zeros(1), jnp.zeros(1), 0.5, "eps"), "did you mean 'epsilon'"),
    ],
)
def test_unknown_names_give_the_nearest(call, message):
    with pytest.raises(ValueError, match=message):
        call()
