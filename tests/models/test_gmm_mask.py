"""The mask against its formula, and what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.layers.distances import grid_distances
from transformer_zoo.models.backbones.gmm_mask import GaussianMixtureMask, GMMViT

SMALL = dict(num_classes=5, image_size=(8, 12), patch_size=(4, 4), depth=2, width=16, num_heads=2)


def test_the_mask_is_its_formula_symmetric_and_a_function_of_the_offset_alone():
    module = GaussianMixtureMask(num_heads=2, num_kernels=3)
    squared = jnp.asarray(grid_distances((3, 4), "squared"))
    rng = np.random.default_rng(0)
    sigma, alpha = rng.normal(size=(2, 3, 2)).astype(np.float32)
    mask = np.asarray(module.apply({"params": {"sigma": sigma, "alpha": alpha}}, squared))
    expected = np.zeros((2, 12, 12))
    for head, one, other in np.ndindex(expected.shape):
        apart = (one // 4 - other // 4) ** 2 + (one % 4 - other % 4) ** 2
        terms = alpha[:, head] * np.exp(-apart / (2 * (sigma[:, head].astype(float) ** 2 + 1e-5)))
        expected[head, one, other] = terms.sum()
    np.testing.assert_allclose(mask, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mask, mask.transpose(0, 2, 1))
    np.testing.assert_allclose(mask[:, 0, 0], alpha.sum(axis=0), rtol=1e-5)


def test_a_mask_costs_two_numbers_a_kernel_head_and_block():
    def count(**options):
        network = GMMViT(**SMALL, **options)
        shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 12, 3)))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    assert count() - count(mask="none") == 2 * 5 * 2 * 2
    assert count(mask="slm") - count(mask="none") == 6 * 6 * 2


def test_a_free_mask_starts_from_even_attention():
    network = GMMViT(**SMALL, mask="slm")
    images = jnp.asarray(np.random.default_rng(1).normal(size=(1, 8, 12, 3)), jnp.float32)
    variables = network.init(jax.random.key(0), images)
    _, aux = network.apply(variables, images)
    np.testing.assert_allclose(aux["attended"][0], np.broadcast_to(aux["attended"][0][:, :1], (1, 6, 16)), atol=1e-6)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="mask 'gauss' is none of gmm, slm, none"):
        GMMViT(**SMALL, mask="gauss").init(jax.random.key(0), jnp.zeros((1, 8, 12, 3)))
    with pytest.raises(ValueError, match="a class token has none; leave one out"):
        GMMViT(**SMALL, class_token=True).init(jax.random.key(0), jnp.zeros((1, 8, 12, 3)))
