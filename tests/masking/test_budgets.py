import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.masking import budgets


def draws(concentration, count=20_000, seed=0):
    shape = (count, len(concentration))
    logs = budgets.log_gamma(jax.random.key(seed), jnp.broadcast_to(jnp.asarray(concentration, jnp.float32), shape))
    return np.asarray(logs, np.float64)


def test_log_gamma_has_the_moments_of_gamma_draws():
    concentration = np.array([0.1, 0.5, 1.0, 5.0, 1000.0])
    found = np.exp(draws(concentration))
    assert np.allclose(found.mean(axis=0) / concentration, 1, atol=0.06)
    assert np.allclose(found.var(axis=0) / concentration, 1, atol=0.12)


def test_shares_have_the_moments_of_a_dirichlet_distribution():
    concentration = np.array([0.2, 0.5, 2.0])
    shares = np.asarray(jax.nn.softmax(draws(concentration)))
    mean = concentration / concentration.sum()
    assert np.allclose(shares.mean(axis=0), mean, atol=0.01)
    assert np.allclose(shares.var(axis=0), mean * (1 - mean) / (concentration.sum() + 1), atol=0.01)


def test_small_concentrations_give_all_to_one_group_each_as_often():
    shares = np.asarray(jax.nn.softmax(draws([0.001] * 4)))
    assert (shares.max(axis=1) > 0.99).mean() > 0.98
    assert np.allclose(np.bincount(shares.argmax(axis=1)) / len(shares), 0.25, atol=0.02)


def drawn(concentration, total, most, count=2000):
    tables = jnp.broadcast_to(jnp.asarray(concentration, jnp.float32), (count, len(concentration)))
    totals = jnp.full((count,), total)
    return np.asarray(budgets.dirichlet_budgets(jax.random.key(1), tables, totals, jnp.asarray([most])))


def test_budgets_spend_everything_and_give_nothing_where_nothing_is_due():
    found = drawn([0.5, 0.0, 0.5, 1000.0], 37, [37] * 4)
    assert (found.sum(axis=1) == 37).all() and (found[:, 1] == 0).all()
    assert abs(found[:, 3].mean() - 37 * 1000 / 1001) < 0.5  # what rounding leaves over goes to the large one as well


def test_no_group_gets_more_than_it_has_room_for():
    found = drawn([1000.0, 1.0], 20, [5, 20])
    assert found[:, 0].max() == 5 and found.sum(axis=1).max() <= 20


def test_what_rounding_leaves_over_is_shared_out_by_further_draws():
    found = drawn([1.0, 1.0, 1.0], 1, [1] * 3)
    assert (found.sum(axis=1) == 1).all()
    assert np.allclose(found.mean(axis=0), 1 / 3, atol=0.04)


def test_shown_and_asked_places_are_disjoint_random_and_as_many_as_asked_for():
    inputs, targets = jnp.repeat(jnp.asarray([0, 3, 6]), 500), jnp.repeat(jnp.asarray([6, 2, 4]), 500)
    shown, asked = map(np.asarray, budgets.disjoint_masks(jax.random.key(0), 6, inputs, targets))
    assert (shown.sum(axis=1) == inputs).all() and not (shown & asked).any()
    assert (asked.sum(axis=1) == np.minimum(targets, 6 - inputs)).all()
    assert np.allclose(shown[500:1000].mean(axis=0), 0.5, atol=0.08)
