import jax.numpy as jnp
import numpy as np

from transformer_zoo.tasks.adversarial import non_saturating, r1_penalty


def test_each_player_lowers_the_logarithm_of_its_own_mistake():
    real, fake = jnp.array([2.0, -1.0]), jnp.array([0.5, 3.0, -2.0])
    right = 1 / (1 + np.exp(-np.asarray(real)))
    fooled = 1 / (1 + np.exp(-np.asarray(fake)))
    generator, discriminator = non_saturating(real, fake)
    np.testing.assert_allclose(generator, -np.log(fooled).mean(), rtol=1e-5)
    np.testing.assert_allclose(discriminator, -np.log(right).mean() - np.log(1 - fooled).mean(), rtol=1e-5)


def test_the_penalty_is_the_mean_squared_slope_of_a_samples_logit():
    weights = jnp.array([1.0, -2.0, 3.0])
    real = jnp.array([[1.0, 2, 3], [4, 5, 6]])
    found = r1_penalty(lambda x: jnp.square(x) @ weights / 2, real)
    np.testing.assert_allclose(found, np.square(real * weights).sum(1).mean(), rtol=1e-6)
