"""Window attention against full attention with an explicit mask and an explicit table of offsets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.layers.attention import Attention
from transformer_zoo.layers.windows import (
    WindowAttention,
    fit_window,
    merge,
    pad_to_windows,
    partition,
    relative_position_index,
    shift_mask,
)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_windows_are_blocks_of_the_map_in_row_major_order_and_merge_again():
    x = normal(0, 2, 6, 8, 3)
    windows = partition(jnp.asarray(x), (3, 4))
    np.testing.assert_array_equal(windows[2 * 2 * 1 + 2 * 1 + 0].reshape(3, 4, 3), x[1, 3:6, 0:4])
    np.testing.assert_array_equal(merge(windows, (3, 4), (6, 8)), x)
    with pytest.raises(ValueError, match="6 x 8 tokens is not tiled by windows of 4 x 4"):
        partition(jnp.asarray(x), (4, 4))


def full_attention(variables, x, window, shift, heads):
    """What `WindowAttention` is, as one attention over all tokens: a pair sees each other within a window of the
    shifted grid, whose lines do not wrap around the edges; the bias goes by the offset in rows and columns."""
    height, width = x.shape[1:3]
    rows, columns = (axis.ravel() for axis in np.meshgrid(np.arange(height), np.arange(width), indexing="ij"))
    cell = [np.floor((place - step) / side) for place, step, side in zip((rows, columns), shift, window)]
    together = (cell[0][:, None] == cell[0]) & (cell[1][:, None] == cell[1])
    table = np.asarray(variables["params"]["relative_bias"]["table"])
    bias = np.zeros((heads, len(rows), len(rows)), np.float32)
    for query, key in zip(*np.nonzero(together)):
        down, right = rows[query] - rows[key], columns[query] - columns[key]
        row = (down + window[0] - 1) * (2 * window[1] - 1) + right + window[1] - 1
        bias[:, query, key] = table[row]
    tokens = x.reshape(x.shape[0], -1, x.shape[-1])
    y = Attention(heads).apply(
        {"params": variables["params"]["attention"]},
        tokens,
        bias=jnp.asarray(bias)[None],
        mask=jnp.asarray(together)[None, None],
    )
    return y.reshape(x.shape)


@pytest.mark.parametrize("shifted", [False, True, "traced"])
@pytest.mark.parametrize("size, window", [((8, 8), (4, 4)), ((6, 8), (3, 2)), ((4, 9), (4, 3))])
def test_window_attention_is_full_attention_under_an_explicit_mask(size, window, shifted):
    heads = 2
    module = WindowAttention(heads, window)
    x = jnp.asarray(normal(1, 2, *size, 8))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: jnp.asarray(normal(leaf.size, *leaf.shape)), shapes)
    given = jnp.bool_(True) if shifted == "traced" else shifted
    shift = fit_window(window, size)[1] if shifted else (0, 0)
    ours = module.apply(variables, x, given)
    np.testing.assert_allclose(ours, full_attention(variables, x, window, shift, heads), rtol=1e-4, atol=1e-5)


def test_an_axis_that_one_window_covers_is_not_shifted():
    assert fit_window((7, 7), (14, 28)) == ((7, 7), (3, 3))
    assert fit_window((7, 7), (7, 14)) == ((7, 7), (0, 3))
    assert fit_window((7, 7), (4, 7)) == ((4, 7), (0, 0))


def test_a_smaller_map_reads_the_middle_of_the_table():
    whole = relative_position_index((4, 4), (4, 4), (7, 7)).reshape(4, 4, 4, 4)
    part = relative_position_index((2, 3), (2, 3), (7, 7)).reshape(2, 3, 2, 3)
    np.testing.assert_array_equal(part, whole[:2, :3, :2, :3])
    larger_keys = relative_position_index((2, 2), (4, 4), (5, 5)).reshape(2, 2, 4, 4)
    assert larger_keys[0, 0, 1, 1] == 12  # the first query lies on the second key of both axes: offset 0, the middle
    assert larger_keys.min() == 0 and larger_keys.max() == 24


def test_padding_takes_part_and_is_cropped():
    module = WindowAttention(1, (4, 4))
    x = jnp.asarray(normal(2, 1, 6, 7, 4))
    variables = module.init(jax.random.key(0), x)
    padded = pad_to_windows(x, (4, 4))
    assert padded.shape == (1, 8, 8, 4)
    for shifted in (False, True):
        np.testing.assert_allclose(
            module.apply(variables, x, shifted), module.apply(variables, padded, shifted)[:, :6, :7], atol=1e-6
        )


def test_the_mask_hides_what_only_the_roll_brought_together():
    mask = shift_mask((28, 28), (7, 7), (3, 3))
    assert mask[:-4].reshape(16 - 4, -1)[:3].all()  # inside the first row of windows only the last one is cut
    assert not mask[3].all() and not mask[12].all()
    corner = mask[15].reshape(7, 7, 7, 7)
    assert corner[0, 0].sum() == 16 and corner[6, 6].sum() == 9 and corner[0, 6].sum() == 12
