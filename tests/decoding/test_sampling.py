import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.decoding.sampling import draw, filter_logits, guide, guide_by_several, keep_top_k, keep_top_p

LOGITS = jnp.log(jnp.array([0.1, 0.4, 0.05, 0.25, 0.2]))


def kept(logits):
    return np.flatnonzero(np.isfinite(np.asarray(logits))).tolist()


def test_filters_keep_the_likeliest_codes():
    assert kept(keep_top_k(LOGITS, 2)) == [1, 3] and kept(keep_top_k(LOGITS, 0.4)) == [1, 3]
    assert kept(keep_top_k(LOGITS, 0)) == kept(keep_top_k(LOGITS, 9)) == [0, 1, 2, 3, 4]
    assert kept(keep_top_p(LOGITS, 0.3)) == [1] and kept(keep_top_p(LOGITS, 0.6)) == [1, 3]
    assert kept(keep_top_p(LOGITS, 0.7)) == [1, 3, 4] and kept(keep_top_p(LOGITS, 1.0)) == [0, 1, 2, 3, 4]
    assert kept(filter_logits(LOGITS, 2, 0.5)) == [1]  # of the two that are left one has 0.62
    with pytest.raises(ValueError, match=r"top_p is 1\.5"):
        keep_top_p(LOGITS, 1.5)
    with pytest.raises(ValueError, match="top_k is -1"):
        keep_top_k(LOGITS, -1)


def test_draws_follow_the_probabilities():
    noise = jax.random.gumbel(jax.random.key(0), (20000, 5))
    shares = np.bincount(draw(jnp.broadcast_to(LOGITS, noise.shape), noise), minlength=5) / 20000
    assert np.abs(shares - np.exp(LOGITS)).max() < 0.015


def test_guidance_goes_beyond_the_condition():
    conditional, other, unconditional = jnp.array([1.0, 2.0]), jnp.array([3.0, 0.0]), jnp.array([0.0, 1.0])
    assert guide(conditional, unconditional, 1.0).tolist() == [1, 2]
    assert guide(conditional, unconditional, 3.0).tolist() == [3, 4]
    several = guide_by_several([conditional, other], unconditional, [2.0, -1.0])
    assert several.tolist() == [0 + 2 * 1 - 3, 1 + 2 * 1 + 1]
