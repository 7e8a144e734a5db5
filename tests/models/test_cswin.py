"""CSWin's formulas one by one: what a block sees, its positions inside stripes, its cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.layers.mlp import mlp_width
from transformer_zoo.models.backbones.cswin import CSWin, CSWinBlock, LePEAttention
from transformer_zoo.training.flops import macs


def filled(module, *inputs, scale=0.4):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * scale, jnp.float32), shapes)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def by_hand(query, key, value, window, kernel, bias):
    """Every window on its own, in loops; the map padded with zeros."""
    batch, height, width, heads, dim = query.shape
    rows, columns = window
    pad = ((0, 0), (0, -height % rows), (0, -width % columns), (0, 0), (0, 0))
    query, key, value = (np.pad(x, pad) for x in (query, key, value))
    out = np.zeros((*value.shape[:3], heads * dim))
    for sample, top, left in np.ndindex(batch, value.shape[1] // rows, value.shape[2] // columns):
        place = (sample, slice(top * rows, (top + 1) * rows), slice(left * columns, (left + 1) * columns))
        q, k, v = (x[place].reshape(rows * columns, heads, dim) for x in (query, key, value))
        logits = np.exp(np.einsum("qhd,khd->hqk", q, k) * dim**-0.5)
        attended = np.einsum("hqk,khd->qhd", logits / logits.sum(-1, keepdims=True), v)
        channels = v.reshape(rows, columns, heads * dim)
        around = np.pad(channels, ((1, 1), (1, 1), (0, 0)))
        taps = sum(around[i : i + rows, j : j + columns] * kernel[i, j, 0] for i in range(3) for j in range(3))
        out[place] = attended.reshape(channels.shape) + taps + bias
    return out[:, :height, :width]


@pytest.mark.parametrize("window", [(4, 1), (3, 4)])
def test_positions_stop_at_the_border_of_a_stripe_and_padding_takes_part(window):
    query, key, value = (normal(seed, 2, 4, 6, 2, 3) for seed in range(3))
    module = LePEAttention(window)
    variables = filled(module, query, key, value)
    lepe = variables["params"]["lepe"]
    with jax.default_matmul_precision("highest"):
        found = module.apply(variables, query, key, value)
    expected = by_hand(query, key, value, window, np.asarray(lepe["kernel"]), np.asarray(lepe["bias"]))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def touched_from(block, variables, x, row, column):
    """Which places of the block's output one place of the map moves."""
    before, after = (block.apply(variables, y, 0.0)[0] for y in (x, x.at[0, row, column].add(jnp.arange(4.0))))
    return np.abs(before - after)[0].max(-1) > 0


def test_one_block_sees_exactly_a_cross():
    x = normal(0, 1, 6, 8, 4)
    block = CSWinBlock(2, 2)
    variables = filled(block, x, 0.0)
    cross = np.zeros((6, 8), bool)
    cross[2:4] = cross[:, 4:6] = True  # the stripes of width 2 that hold (3, 5)
    np.testing.assert_array_equal(touched_from(block, variables, x, 3, 5), cross)
    vertical = jax.tree.map(jnp.copy, variables)
    vertical["params"]["out"]["kernel"] = vertical["params"]["out"]["kernel"].at[2:].set(0)
    cross[2:4] = False
    cross[2:4, 4:6] = True
    np.testing.assert_array_equal(touched_from(block, vertical, x, 3, 5), cross)  # the first half of the heads


def test_the_ablation_sees_a_square_of_the_same_area():
    x = normal(0, 1, 8, 8, 4)
    block = CSWinBlock(2, 2, cross=False)
    square = np.zeros((8, 8), bool)
    square[0:4, 4:8] = True
    np.testing.assert_array_equal(touched_from(block, filled(block, x, 0.0), x, 3, 5), square)


def test_without_lepe_a_window_does_not_know_where_its_tokens_are():
    x = normal(0, 1, 2, 3, 8)
    block = CSWinBlock(2, 0, lepe=False)
    variables = filled(block, x, 0.0)
    order = np.random.default_rng(1).permutation(6)
    shuffled = x.reshape(1, 6, 8)[:, order].reshape(x.shape)
    plain, moved = (np.asarray(block.apply(variables, y, 0.0)[0]).reshape(6, 8) for y in (x, shuffled))
    np.testing.assert_allclose(plain[order], moved, atol=1e-5)


@pytest.mark.parametrize("cross", [True, False])
def test_a_block_costs_what_the_paper_says(cross):
    height, width, channels, stripe = 8, 8, 16, 2
    block = CSWinBlock(4, stripe, cross=cross)
    x = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    variables = jax.eval_shape(block.init, jax.random.key(0), x, 0.0)
    attention = height * width * channels * (4 * channels + stripe * height + stripe * width)
    lepe, mlp = height * width * 9 * channels, height * width * 8 * channels**2
    assert macs(lambda variables, x: block.apply(variables, x, 0.0)[0], variables, x) == attention + lepe + mlp


def test_stages_with_one_window_are_the_last_and_those_as_small_as_their_stripes():
    assert [CSWin().stripes(stage) for stage in range(4)] == [1, 2, 7, 0]
    small = CSWin(image_size=(112, 112), stripe_widths=(1, 2, 7, 7))
    assert [small.stripes(stage) for stage in range(4)] == [1, 2, 0, 0]
    assert CSWin(image_size=(112, 224)).stripes(2) == 7
    assert CSWin(image_size=(28, 28), stride=2, stripe_widths=(1, 7, 7, 7)).stripes(1) == 0


def test_layer_numbers_start_at_the_stem_and_count_through_the_stages():
    network = CSWin(image_size=(32, 32), depths=(1, 2), width=4, num_heads=(2, 2), stripe_widths=(2, 2))
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    numbers = network.layer_numbers(params)
    assert numbers["stem"]["norm"]["scale"] == 0 and numbers["stage1_merge"]["norm"]["bias"] == 2
    np.testing.assert_array_equal(numbers["stage1_blocks"]["branch0"]["lepe"]["kernel"], [2, 3])
    assert numbers["head"]["kernel"] == 4


def test_hidden_widths_cut_fractions_off_but_not_rounding():
    assert mlp_width(16, 3.3) == 52 and mlp_width(12, 50 / 12) == 50 and mlp_width(49, 1 / 49) == 1


@pytest.mark.parametrize("key", ["depths", "num_heads"])
def test_stages_that_do_not_fit_are_named(key):
    network = CSWin(**{"depths": (1, 1), "num_heads": (2, 2), "stripe_widths": (1, 1), "width": 4} | {key: (3,)})
    with pytest.raises(ValueError, match=f"{key} \\(3,\\)"):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_heads_that_cannot_be_halved_are_named():
    network = CSWin(depths=(1, 1), num_heads=(3, 2), stripe_widths=(2, 1), width=12)
    with pytest.raises(ValueError, match="num_heads 3 must divide the width 12 and share out in two halves"):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
