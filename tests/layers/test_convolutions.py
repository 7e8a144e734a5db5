import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.layers import convolutions
from transformer_zoo.layers.convolutions import PatchMerging, depthwise, map_of, tokens_of, unfold
from transformer_zoo.layers.depths import pyramid_depths
from transformer_zoo.layers.distances import grid_distances, head_decays


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("size", [(3, 3), (5, 3), (7, 7)])
@pytest.mark.parametrize("shared", [False, True])
def test_a_depthwise_convolution_is_the_same_on_every_platform(size, shared):
    x, kernel = jnp.asarray(normal(0, 2, 6, 5, 4)), jnp.asarray(normal(1, *size, 1, 1 if shared else 4))
    cotangent = normal(2, 2, 6, 5, 4)

    def both(function):
        return jax.value_and_grad(lambda x, kernel: (function(x, kernel) * cotangent).sum(), (0, 1))(x, kernel)

    here, elsewhere = both(depthwise), both(convolutions._grouped_convolution)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), here, elsewhere)
    row, column = size[0] // 2, size[1] // 2
    middle = sum(
        x[:, 3 + r - row, 2 + c - column] * kernel[r, c, 0]
        for r in range(size[0])
        for c in range(size[1])
        if 0 <= 3 + r - row < 6 and 0 <= 2 + c - column < 5
    )
    np.testing.assert_allclose(depthwise(x, kernel)[:, 3, 2], middle, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel, stride, padding", [(7, 4, 2), (3, 2, 1), (2, 2, 0)])
def test_unfold_cuts_what_explicit_slices_cut(kernel, stride, padding):
    x = normal(0, 2, 8, 12, 3)
    found = np.asarray(unfold(jnp.asarray(x), kernel, stride, padding))
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    for row in range(found.shape[1]):
        for column in range(found.shape[2]):
            top, left = row * stride, column * stride
            patch = padded[:, top : top + kernel, left : left + kernel]
            np.testing.assert_array_equal(found[:, row, column], patch.transpose(0, 3, 1, 2).reshape(2, -1))


def test_merging_joins_neighbours_rows_first_and_pads_odd_maps():
    x = normal(0, 1, 3, 4, 2)
    module = PatchMerging()
    variables = module.init(jax.random.key(0), jnp.asarray(x))
    found = module.apply(variables, jnp.asarray(x))
    padded = np.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0)))
    joined = np.concatenate([padded[:, 2, 2], padded[:, 3, 2], padded[:, 2, 3], padded[:, 3, 3]], -1)
    joined = (joined - joined.mean(-1, keepdims=True)) / np.sqrt(joined.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(found[:, 1, 1], joined @ variables["params"]["projection"]["kernel"], atol=1e-5)
    assert found.shape == (1, 2, 2, 4)


def test_maps_and_sequences_are_each_others_inverse():
    x = jnp.asarray(normal(0, 2, 3, 4, 5))
    np.testing.assert_array_equal(tokens_of(x)[1, 1 * 4 + 2], x[1, 1, 2])
    np.testing.assert_array_equal(map_of(tokens_of(x), (3, 4)), x)


def test_distances_are_those_between_rows_and_columns():
    for one in range(12):
        for other in range(12):
            rows, columns = abs(one // 4 - other // 4), abs(one % 4 - other % 4)
            assert grid_distances((3, 4))[one, other] == rows + columns
            assert grid_distances((3, 4), "squared")[one, other] == rows**2 + columns**2
    with pytest.raises(ValueError, match="distance 'euclid' is none of manhattan, squared"):
        grid_distances((3, 4), "euclid")
    np.testing.assert_allclose(np.exp(head_decays(4, 2.0, 4.0)), [1 - 2.0**-2, 1 - 2.0**-3, 1 - 2.0**-4, 1 - 2.0**-5])


def test_a_pyramid_counts_its_blocks_through_all_stages():
    params = {
        "patch_embed": {"kernel": 0},
        "stage0_blocks": {"norm": {"scale": np.zeros((2, 3))}},
        "stage1_merging": {"norm": {"scale": 0}},
        "stage1_blocks": {"norm": {"scale": np.zeros((3, 3))}},
        "norm": {"scale": 0},
    }
    found = pyramid_depths(params, (2, 3))
    assert found["patch_embed"]["kernel"] == 0 and found["norm"]["scale"] == 6
    assert found["stage0_blocks"]["norm"]["scale"].tolist() == [1, 2]
    assert found["stage1_merging"]["norm"]["scale"] == 3
    assert found["stage1_blocks"]["norm"]["scale"].tolist() == [3, 4, 5]
