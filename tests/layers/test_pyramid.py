"""Streaming averages: the positions of layers, the greedy best mean, ids back, places that no layer has reached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.layers.quantizers.pyramid import PyramidQuantizer, num_tokens, sampled_positions

TABLE = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
LAYERS = (1, 2, 4, 4)
QUANTIZER = PyramidQuantizer(LAYERS, lambda: TABLE, 40, 5)
VARIABLES = {"vocabulary": {"embedding": jnp.asarray(TABLE)}}
Z = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 5)), jnp.float32)


def test_positions_are_spread_evenly():
    expected = {1: [8], 2: [4, 12], 4: [2, 6, 10, 14], 8: list(range(1, 16, 2)), 16: list(range(16))}
    assert {grid: sampled_positions(grid, 16).tolist() for grid in expected} == expected
    assert (num_tokens((1, 2, 4, 8, 16, 16)), num_tokens((1, 2, 4, 8, 16, 16, 16, 16))) == (597, 1109)


@pytest.mark.parametrize("residual", [False, True])
def test_every_code_is_the_greedy_best_at_its_place(residual):
    quantizer = QUANTIZER.clone(residual=residual)
    found, asked = jax.jit(lambda z: quantizer.apply(VARIABLES, z, method="quantize"))(Z)
    assert [one.shape for one in asked] == [(2, grid, grid, 5) for grid in LAYERS]
    ids, first = np.asarray(found.ids), 0
    codes = {place: [] for place in np.ndindex(2, 4, 4)}
    losses = []
    for grid in LAYERS:
        rows = sampled_positions(grid, 4)
        layer = ids[:, first : first + grid**2].reshape(2, grid, grid)
        for image, row, column in np.ndindex(2, grid, grid):
            place = (image, int(rows[row]), int(rows[column]))
            sums = np.sum(codes[place], axis=0) + TABLE
            values = sums if residual else sums / (len(codes[place]) + 1)
            assert layer[image, row, column] == np.square(values - Z[place]).sum(axis=1).argmin()
            codes[place].append(TABLE[layer[image, row, column]])
        means = {place: (np.sum if residual else np.mean)(listed, axis=0) for place, listed in codes.items() if listed}
        values = np.zeros(Z.shape)
        for image, row, column in np.ndindex(2, 4, 4):
            nearest = (image, *(int(rows[np.abs(rows - side).argmin()]) for side in (row, column)))
            values[image, row, column] = means.get((image, row, column), means[nearest])
        losses.append(np.square(values - Z).mean())
        first += grid**2
    np.testing.assert_allclose(found.values, values, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.losses["commitment"], 0.33 * sum(losses), rtol=1e-5)


def test_ids_of_all_layers_or_of_the_first_ones_give_values_back():
    def both(z):
        found = QUANTIZER.apply(VARIABLES, z)
        lookups = [QUANTIZER.apply(VARIABLES, found.ids[:, :n], 4, method="lookup") for n in (1, 5, 37)]
        return found, lookups

    found, (one, two, whole) = jax.jit(both)(Z)
    np.testing.assert_allclose(whole, found.values, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(one, np.broadcast_to(TABLE[found.ids[:, 0]][:, None, None], Z.shape), rtol=1e-6)
    assert not np.allclose(one, two)


def test_the_gradient_passes_to_the_latents_and_the_table_stays():
    gradient = jax.jit(jax.grad(lambda z: QUANTIZER.apply(VARIABLES, z).values.sum()))(Z)
    np.testing.assert_array_equal(gradient, np.ones(Z.shape))
