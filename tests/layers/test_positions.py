import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.layers.patches import patchify
from transformer_zoo.layers.positions import (
    LearnedPositions,
    grid_positions,
    resize_patch_kernel,
    resize_positions,
    sincos_1d,
    sincos_2d,
    sincos_nd,
)
from transformer_zoo.layers.rope import Rope, apply_rope, rope_tables


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def near(found, wanted, tolerance=1e-6):
    wanted = np.asarray(wanted)
    assert found.shape == wanted.shape
    return np.abs(np.asarray(found) - wanted).max() <= tolerance * np.abs(wanted).max()


def test_grid_positions_are_row_major_over_any_number_of_axes():
    wanted = [[t, r, c] for t in range(2) for r in range(3) for c in range(4)]
    assert np.array_equal(grid_positions((2, 3, 4)), wanted)


def channel(i, width, layout):
    """Frequency number of channel i and the function of its angle."""
    if layout == "interleaved":
        return i // 2, (math.sin, math.cos)[i % 2]
    functions = (math.sin, math.cos) if layout == "sin_cos" else (math.cos, math.sin)
    return i % (width // 2), functions[i // (width // 2)]


@pytest.mark.parametrize("endpoint", [False, True])
@pytest.mark.parametrize("layout", ["sin_cos", "cos_sin", "interleaved"])
def test_sincos_1d_is_its_formula(layout, endpoint):
    positions, width = np.array([0, 1, 2.5, 700]), 8
    wanted = np.zeros((4, width))
    for n, i in np.ndindex(4, width):
        k, function = channel(i, width, layout)
        wanted[n, i] = function(positions[n] * 100 ** (-k / (width // 2 - endpoint)))
    assert near(sincos_1d(positions, width, theta=100.0, layout=layout, endpoint=endpoint), wanted, 1e-7)


@pytest.mark.parametrize("order", ["mae", "big_vision"])
def test_sincos_2d_is_its_formula_on_a_grid_that_is_not_square(order):
    rows, columns, width = 2, 5, 12
    quarter = width // 4
    wanted = np.zeros((rows * columns, width))
    for y, x, k in np.ndindex(rows, columns, quarter):
        w = 10000 ** (-k / (quarter if order == "mae" else quarter - 1))
        token = wanted[y * columns + x]
        token[k], token[quarter + k] = math.sin(x * w), math.cos(x * w)
        token[2 * quarter + k], token[3 * quarter + k] = math.sin(y * w), math.cos(y * w)
    assert near(sincos_2d((rows, columns), width, order), wanted, 1e-7)


def test_sincos_nd_puts_axes_side_by_side_or_adds_them_up():
    positions = grid_positions((2, 3, 4))
    time, row, column = (positions[:, axis] for axis in range(3))
    side_by_side = [sincos_1d(time, 4), sincos_1d(row, 6), sincos_1d(column, 2)]
    assert near(sincos_nd(positions, 12, axis_widths=(4, 6, 2)), np.concatenate(side_by_side, 1))
    equal = [sincos_1d(time, 4), sincos_1d(row, 4), sincos_1d(column, 4)]
    assert near(sincos_nd(positions, 12), np.concatenate(equal, 1))
    added = [sincos_1d(axis, 12) for axis in (time, row, column)]
    assert near(sincos_nd(positions, 12, combine="sum"), sum(np.asarray(table) for table in added))


@pytest.mark.parametrize(
    "message, make",
    [
        ("width 7 of a sine-cosine table is odd; 8", lambda: sincos_1d(np.arange(3), 7)),
        (
            "layout 'sincos' is none of sin_cos, cos_sin, interleaved",
            lambda: sincos_1d(np.arange(3), 8, layout="sincos"),
        ),
        ("width 10 of a 2-D sine-cosine table is no multiple of 4; 12 is", lambda: sincos_2d((2, 2), 10)),
        ("order 'timm' is none of mae, big_vision", lambda: sincos_2d((2, 2), 8, "timm")),
        ("combine 'add' is none of concat, sum", lambda: sincos_nd(grid_positions((2, 2)), 8, combine="add")),
        (r"axis_widths \(2, 2, 2\) must be 3 numbers .* width 8", lambda: sincos_nd(grid_positions((2, 2, 2)), 8)),
        ("method 'nearest' is none of bilinear", lambda: resize_positions(normal(0, 4, 2), (2, 2), (3, 3), "nearest")),
        (r"5 rows is no grid \(2, 2\) behind 0", lambda: resize_positions(normal(0, 5, 2), (2, 2), (3, 3))),
        (r"axis_widths \(4,\) must name one width for each of 2", lambda: rope_tables(grid_positions((2, 2)), (4,))),
        (r"axis_widths \(4, 3\) must be even", lambda: rope_tables(grid_positions((2, 2)), (4, 3))),
        (
            "rope turns 8 channels, but a head has 6",
            lambda: apply_rope(normal(0, 1, 2, 1, 6), rope_tables(grid_positions((2,)), (8,))),
        ),
        ("13 pixels is no multiple of a patch of 2 x 2", lambda: resize_patch_kernel(normal(0, 13, 2), (2, 2), (3, 3))),
    ],
)
def test_wrong_arguments_are_named(message, make):
    with pytest.raises(ValueError, match=message):
        make()


def kernel(x, method):
    x, a = abs(x), -0.75 if method == "bicubic_torch" else -0.5
    if method.startswith("bilinear"):
        return max(1 - x, 0)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0


def resized(pixels, new, method):
    """[rows, columns] to the grid `new`, output by output, as F.interpolate(align_corners=False) documents it."""
    smooth = not method.endswith("_torch")
    weights = []
    for old_size, new_size in zip(pixels.shape, new):
        ratio = old_size / new_size
        stretch = max(ratio, 1) if smooth else 1
        axis = np.zeros((new_size, old_size))
        for i in range(new_size):
            centre = (i + 0.5) * ratio - 0.5
            for j in range(-20, old_size + 20):
                weight = kernel((j - centre) / stretch, method)
                if 0 <= j < old_size or not smooth:
                    axis[i, min(max(j, 0), old_size - 1)] += weight
            if smooth:
                axis[i] /= axis[i].sum()
        weights.append(axis)
    wanted = np.zeros(new)
    for i, j in np.ndindex(*new):
        for r, c in np.ndindex(*pixels.shape):
            wanted[i, j] += weights[0][i, r] * weights[1][j, c] * pixels[r, c]
    return wanted


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "bilinear_torch", "bicubic_torch"])
@pytest.mark.parametrize("new", [(7, 4), (2, 9)])
def test_resize_positions_weighs_as_torch_does_and_leaves_the_prefix(method, new):
    old, prefix, width = (4, 6), 2, 2
    table = normal(1, prefix + 24, width)
    found = resize_positions(table, old, new, method, prefix)
    assert np.array_equal(found[:prefix], table[:prefix])
    pixels = np.asarray(table[prefix:], np.float64).reshape(*old, width)
    wanted = np.stack([resized(pixels[..., c], new, method) for c in range(width)], -1)
    assert near(found[prefix:], wanted.reshape(-1, width))


def test_resizing_a_video_grid_along_one_axis_is_resizing_its_rows():
    table = normal(2, 2 * 3 * 4, 5)
    found = resize_positions(table, (2, 3, 4), (2, 3, 6), "bicubic_torch")
    frames = [resize_positions(half, (3, 4), (3, 6), "bicubic_torch") for half in np.split(table, 2)]
    assert near(found, np.concatenate(frames))


def test_learned_positions_are_the_table_and_follow_the_grid():
    module = LearnedPositions((2, 3), 512, std=0.3, prefix=1)
    params = jax.jit(module.init, static_argnums=1)(jax.random.key(0), (2, 3))
    table = params["params"]["table"]
    assert np.std(table) == pytest.approx(0.3, rel=0.05)
    assert np.array_equal(module.apply(params, (2, 3)), table)
    assert near(module.apply(params, (3, 2)), resize_positions(table, (2, 3), (3, 2), "bicubic", 1))


def turned(x, angles, interleaved):
    """Channels as complex numbers, multiplied by exp(i angle)."""
    x = np.asarray(x, np.float64)
    pairs = angles.shape[-1]
    y = x.copy()
    first = slice(0, 2 * pairs, 2) if interleaved else slice(0, pairs)
    second = slice(1, 2 * pairs, 2) if interleaved else slice(pairs, 2 * pairs)
    z = (x[..., first] + 1j * x[..., second]) * np.exp(1j * angles[None, :, None])
    y[..., first], y[..., second] = z.real, z.imag
    return y


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_multiplies_complex_numbers_axis_by_axis_behind_a_prefix(interleaved):
    grid, widths, prefix = (2, 3), (4, 6), 2
    angles = np.zeros((prefix + 6, 5))
    for row, column in np.ndindex(*grid):
        angles[prefix + 3 * row + column, :2] = [row * 100 ** (-k / 4) for k in (0, 2)]
        angles[prefix + 3 * row + column, 2:] = [column * 100 ** (-k / 6) for k in (0, 2, 4)]
    rope = rope_tables(grid_positions(grid), widths, theta=100.0, interleaved=interleaved, prefix=prefix)
    x = normal(3, 2, 8, 3, 12)  # two channels of every head stay as they are
    assert near(apply_rope(x, rope), turned(x, angles, interleaved))


@pytest.mark.parametrize("interleaved", [False, True])
def test_logits_depend_on_the_difference_of_positions_along_every_axis(interleaved):
    query, key = normal(4, 1, 1, 1, 8), normal(5, 1, 1, 1, 8)

    def logit(at_query, at_key):
        tables = (rope_tables(np.array([at], float), (4, 4), interleaved=interleaved) for at in (at_query, at_key))
        turned_query, turned_key = (apply_rope(x, rope) for x, rope in zip((query, key), tables))
        return float((turned_query * turned_key).sum())

    here = logit((2, 3), (4, 1))
    assert logit((12, 8), (14, 6)) == pytest.approx(here, abs=1e-5)
    assert logit((2, 3), (3, 1)) != pytest.approx(here, abs=1e-2)
    assert logit((2, 3), (4, 2)) != pytest.approx(here, abs=1e-2)


def test_rope_rows_can_be_chosen_sample_by_sample_and_differ_by_head():
    rope = rope_tables(grid_positions((3, 3)), (4, 4))
    x, kept = np.asarray(normal(6, 2, 9, 2, 8)), np.array([[0, 4, 5], [8, 1, 2]])
    rows = jax.tree.map(lambda table: jnp.take(table, kept, axis=0), rope)
    samples = np.arange(2)[:, None]
    assert near(
        apply_rope(jnp.asarray(x[samples, kept]), rows), np.asarray(apply_rope(jnp.asarray(x), rope))[samples, kept]
    )
    doubled = rope_tables(2 * grid_positions((3, 3)), (4, 4))
    by_head = Rope(*(jnp.concatenate(pair, 1) for pair in ((rope.cos, doubled.cos), (rope.sin, doubled.sin))))
    heads = [np.asarray(apply_rope(jnp.asarray(x), table))[:, :, head] for head, table in enumerate((rope, doubled))]
    assert near(apply_rope(jnp.asarray(x), by_head), np.stack(heads, 2))


def test_rope_turns_bfloat16_in_float32():
    x = normal(7, 1, 5, 1, 4).astype(jnp.bfloat16)
    rope = rope_tables(1000 + grid_positions((5,)), (4,))
    found = apply_rope(x, rope)
    assert found.dtype == jnp.bfloat16
    assert np.array_equal(found, apply_rope(x.astype(jnp.float32), rope).astype(jnp.bfloat16))


def test_a_resized_patch_kernel_gives_resized_patches_the_same_tokens():
    old, new, channels = (3, 4), (5, 6), 2
    patch, weights = normal(8, 1, *old, channels), normal(9, 3 * 4 * channels, 7)
    enlarged = [resized(np.asarray(patch[0, ..., c], np.float64), new, "bilinear_torch") for c in range(channels)]
    tokens = patchify(patch, old)[0] @ weights
    found = patchify(jnp.asarray(np.stack(enlarged, -1)[None], jnp.float32), new)[0] @ resize_patch_kernel(
        weights, old, new
    )
    assert near(found, tokens, 1e-5)
    assert np.array_equal(resize_patch_kernel(weights, old, old), weights)


def test_a_patch_kernel_made_smaller_is_the_pseudo_inverse_of_the_resize():
    old, new = (4, 5), (3, 2)
    weights = normal(10, 20, 3)
    basis = np.eye(20).reshape(20, *old)
    resize = np.stack([resized(image, new, "bilinear_torch").ravel() for image in basis], 1)
    assert near(resize_patch_kernel(weights, old, new), np.linalg.pinv(resize.T) @ np.asarray(weights), 1e-5)
