"""Networks that judge pictures and clips: their unusual parts against loops, and their published sizes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.convert.layout import abstract_variables
from transformer_zoo.layers.resizing import resize_from_corner
from transformer_zoo.models.features import i3d, inception_v3
from transformer_zoo.models.features.vgg16 import LPIPS, SCALE, SHIFT, VGG16
from transformer_zoo.zoo.index import create, networks, sizes

RNG = np.random.default_rng(0)


def filled(network, *inputs):
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(size=leaf.shape) * 0.4, jnp.float32), shapes)


@pytest.mark.parametrize("key", networks())
def test_parameters_are_the_published_ones(key):
    for size, entry in sizes(key).items():
        params = abstract_variables(key, create(key, size))["params"]
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
        assert count == entry["parameters"] == entry["published_parameters"]


@pytest.mark.parametrize("new", [(3, 4), (9, 7), (5, 6)])
def test_samples_lie_at_multiples_from_the_corner(new):
    pixels = RNG.random((2, 5, 6, 3)).astype(np.float32)
    expected = np.zeros((2, *new, 3))
    for row in range(new[0]):
        for column in range(new[1]):
            y, x = row * 5 / new[0], column * 6 / new[1]
            top, left = int(y), int(x)
            bottom, right = min(top + 1, 4), min(left + 1, 5)
            upper = pixels[:, top, left] * (1 - x + left) + pixels[:, top, right] * (x - left)
            lower = pixels[:, bottom, left] * (1 - x + left) + pixels[:, bottom, right] * (x - left)
            expected[:, row, column] = upper * (1 - y + top) + lower * (y - top)
    np.testing.assert_allclose(resize_from_corner(jnp.asarray(pixels), new), expected, atol=1e-6)
    clip = resize_from_corner(jnp.asarray(pixels)[None], new)
    np.testing.assert_allclose(clip[0], expected, atol=1e-6)


def test_means_and_largest_values_leave_out_what_lies_outside():
    x = RNG.normal(size=(1, 4, 5, 2)).astype(np.float32) - 3  # all negative: a zero from outside would be the largest
    mean, largest = (np.zeros_like(x) for _ in range(2))
    for row in range(4):
        for column in range(5):
            near = x[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            mean[:, row, column], largest[:, row, column] = near.mean(axis=(1, 2)), near.max(axis=(1, 2))
    np.testing.assert_allclose(inception_v3.pool(jnp.asarray(x), inception_v3.MEAN), mean, atol=1e-6)
    np.testing.assert_allclose(inception_v3.pool(jnp.asarray(x), inception_v3.LARGEST), largest, atol=1e-6)
    assert inception_v3.pool(jnp.asarray(x), inception_v3.LARGEST_HALF).shape == (1, 1, 2, 2)
    assert [block[-1][0] for block in inception_v3.BLOCKS.values() if len(block) == 4] == ["mean"] * 8 + ["largest"]


def test_largest_values_over_time_pad_as_tensorflow_does():
    x = RNG.random((1, 5, 7, 4, 2)).astype(np.float32)
    found = i3d.largest(jnp.asarray(x), (3, 3, 3), (2, 2, 2))
    for place in np.ndindex(3, 4, 2):
        slices = []
        for index, size in zip(place, (5, 7, 4)):
            before = (max((-(-size // 2) - 1) * 2 + 3 - size, 0)) // 2
            slices.append(slice(max(2 * index - before, 0), 2 * index - before + 3))
        expected = x[(0, *slices)].max(axis=(0, 1, 2))
        np.testing.assert_array_equal(found[(0, *place)], expected)


def test_lpips_is_the_weighted_distance_of_unit_features():
    network = LPIPS((2, 3, 4, 5, 6))
    first, second = RNG.random((2, 2, 16, 16, 1)).astype(np.float32)
    variables = filled(network, jnp.asarray(first))
    vgg = {"params": variables["params"]["vgg"]}

    def levels(one):
        pixels = (2 * np.repeat(one, 3, axis=-1) - 1 - np.array(SHIFT, np.float32)) / np.array(SCALE, np.float32)
        found = jax.jit(VGG16(network.widths).apply)(vgg, pixels)[1]["levels"]
        assert [level.shape[1:] for level in found] == [(16 >> n, 16 >> n, 2 + n) for n in range(5)]
        return [np.asarray(level, np.float64) for level in found]

    expected = np.zeros(2)
    for number, (x, y) in enumerate(zip(levels(first), levels(second)), start=1):
        x, y = (one / (np.sqrt((one**2).sum(-1, keepdims=True)) + 1e-10) for one in (x, y))
        weights = np.asarray(variables["params"][f"head{number}"], np.float64)
        expected += ((x - y) ** 2 @ weights).mean(axis=(1, 2))
    distance = jax.jit(lambda v, x, y: network.apply(v, x, y, method="distance"))
    np.testing.assert_allclose(distance(variables, first, second), expected, rtol=1e-4)
    np.testing.assert_allclose(distance(variables, first, first), 0, atol=1e-7)


def test_places_without_any_feature_have_a_gradient():
    network = LPIPS((2, 2, 2, 2, 2))
    pixels = jnp.asarray(RNG.random((1, 16, 16, 3)), jnp.float32)
    variables = jax.tree.map(lambda leaf: -jnp.abs(leaf), filled(network, pixels))  # ReLUs that are off everywhere
    gradient = jax.jit(jax.grad(lambda x: network.apply(variables, pixels, x, method="distance").sum()))(pixels + 0.1)
    assert np.isfinite(gradient).all()


def test_fvd_reads_logits_unless_told_otherwise():
    assert create("i3d", "kinetics400").extractor == "i3d_logits400"
    network = create("i3d", feature="pooled", resize=32)
    assert network.extractor == "i3d_pooled1024"
    assert create("inception_v3").extractor == "inception_v3_pool3"
    with pytest.raises(ValueError, match="'pool' is unknown; did you mean 'pooled'"):
        jax.eval_shape(create("i3d", feature="pool").init, jax.random.key(0), jnp.zeros((1, 9, 8, 8, 3)))
