"""Groups and positions by hand, who can see whom in each network, and where time and earlier latents enter."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.models.backbones.fit import (
    FIT,
    FITAR,
    FITDenoiser,
    Read,
    chunk_causal_mask,
    group_patches,
    parse_layers,
    shift_groups,
    sincos_positions,
)
from transformer_zoo.training.flops import macs

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = dict(latents_per_group=2, width=8, num_heads=2, latent_width=16, latent_num_heads=4, mlp_ratio=1.5)
IMAGE = dict(image_size=(8, 12), group_size=(4, 4), patch_size=(2, 2), channels=1, num_classes=3)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def filled(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5, jnp.float32), shapes)


def test_layers_are_read_as_pairs():
    assert parse_layers("(2)4(1)2(3)") == ((2, 4), (1, 2), (3, 0))
    assert parse_layers("(2)4") == ((2, 4),) and parse_layers("(5)") == ((5, 0),)
    for wrong, message in (("2(4)", "must be pairs"), ("", "must be pairs"), ("(1)(2)3", "every pair but the last")):
        with pytest.raises(ValueError, match=message):
            parse_layers(wrong)


def test_groups_are_sub_images_and_tokens_their_patches():
    images = normal(0, 2, 8, 12, 3)
    found = group_patches(images, (4, 6), (2, 3))
    for group in range(4):
        for token in range(4):
            top, left = 4 * (group // 2) + 2 * (token // 2), 6 * (group % 2) + 3 * (token % 2)
            patch = images[:, top : top + 2, left : left + 3]
            np.testing.assert_array_equal(found[:, group, token], patch.reshape(2, -1))
    stored = np.load(GOLDEN / "fit.npz")
    np.testing.assert_array_equal(group_patches(jnp.asarray(stored["in/images"]), (12, 12), (4, 4)), stored["in/x"])


def test_sincos_positions_run_to_a_thousand_on_every_axis():
    found = sincos_positions((3, 2), 8)
    for row in range(3):
        for column in range(2):
            for half, place in enumerate([1000 * row / 2, 1000.0 * column]):
                angles = place * np.array([1.0, 1e-2])
                expected = np.concatenate([np.sin(angles), np.cos(angles)])
                np.testing.assert_allclose(found[2 * row + column, 4 * half : 4 * half + 4], expected, atol=1e-5)


def reaches(network, variables, x):
    """[output group, input group]: whether any output of a group moves with any input of a group."""
    found = np.zeros((x.shape[1], x.shape[1]), bool)
    run = jax.jit(lambda x: network.apply(variables, x, method="encode")[0])
    before = run(x)
    for group in range(x.shape[1]):
        moved = np.abs(run(x.at[:, group, 0].add(1.0)) - before).max((0, 2, 3))
        found[:, group] = moved > 1e-5
    return found


def test_groups_meet_through_latents_alone():
    x = normal(1, 1, 6, 4, 4)
    for layers, together in (("(1)1(1)", True), ("(2)", False)):
        network = FIT(**SMALL, **IMAGE, layers=layers)
        found = reaches(network, filled(network, jnp.zeros((1, 8, 12, 1))), x)
        np.testing.assert_array_equal(found, np.ones((6, 6)) if together else np.eye(6))


def test_what_is_pooled_are_latents_where_layers_end_with_them_and_else_tokens():
    images = normal(2, 1, 8, 12, 1)
    for layers, tokens, width in (("(1)1", 12, 16), ("(1)1(1)", 24, 8)):
        network = FIT(**SMALL, **IMAGE, layers=layers)
        (_, shapes), _ = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
        assert shapes["tokens"].shape == (1, tokens, width) and shapes["pooled"].shape == (1, width)
        numbers = network.layer_numbers(jax.eval_shape(network.init, jax.random.key(0), images)["params"])
        assert numbers["local0_blocks"]["mlp"]["up"]["bias"].tolist() == [1]
        assert numbers["read0"]["norm1"]["scale"] == 2 and numbers["stem"]["bias"] == 0
        last = "norm" if tokens == 24 else "latent_norm"
        assert numbers["head"]["bias"] == numbers[last]["scale"] == (4 if tokens == 24 else 3)
        assert tokens == 12 or numbers["write0"]["norm1"]["scale"] == 3


def test_attention_costs_what_groups_and_latents_do():
    network = FIT(**SMALL, **IMAGE, layers="(2)3(1)")
    images = jnp.zeros((1, 8, 12, 1))
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    t, n, m, x, d, ratio = 6, 4, 2, 8, 16, 1.5
    k = min(x, d)
    local = t * n * (4 + 2 * ratio) * x**2 + 2 * t * n**2 * x
    shared = t * m * (4 + 2 * ratio) * d**2 + 2 * (t * m) ** 2 * d
    read = 2 * t * m * d * k + 2 * t * n * x * k + 2 * t * n * m * k
    write = 2 * t * n * x * k + 2 * t * m * d * k + 2 * t * n * m * k
    expected = t * n * 4 * x + 3 * local + 3 * shared + read + write + x * 3
    assert macs(network.apply, shapes, images) == expected


def test_reading_attends_to_the_normalised_context_with_heads_of_a_given_width():
    x, context = normal(3, 1, 2, 4), normal(4, 1, 3, 6)
    module = Read(num_heads=2, head_dim=3)
    variables = filled(module, x, context)
    p = jax.tree.map(np.asarray, variables["params"])

    def norm(x, p):
        x = np.asarray(x)[0]
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    asked, seen = norm(x, p["norm1"]), norm(context, p["context_norm"])
    attention = p["attention"]
    query = np.einsum("nc,chd->nhd", asked, attention["q"]["kernel"][:, 0]) + attention["q"]["bias"][0]
    key, value = np.einsum("nc,cphd->pnhd", seen, attention["kv"]["kernel"]) + attention["kv"]["bias"][:, None]
    logits = np.einsum("nhd,mhd->hnm", query, key) / np.sqrt(3)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    y = np.einsum("hnm,mhd->nhd", weights, value)
    expected = x[0] + np.einsum("nhd,hdc->nc", y, attention["out"]["kernel"]) + attention["out"]["bias"]
    np.testing.assert_allclose(module.apply(variables, x, context)[0], expected, rtol=1e-4, atol=1e-4)


def test_latents_see_their_group_and_earlier_ones():
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    np.testing.assert_array_equal(chunk_causal_mask(2, 2)[0, 0], expected)
    x = normal(5, 1, 3, 2, 4)
    np.testing.assert_array_equal(shift_groups(x), jnp.concatenate([jnp.zeros((1, 1, 2, 4)), x[:, :2]], axis=1))


def test_a_logit_depends_on_its_own_and_earlier_tokens_of_all_groups_and_on_no_later_one():
    network = FITAR(**SMALL, layers="(1)1(1)1(1)", groups=3, tokens=3, vocabulary=5)
    tokens = jnp.asarray(np.random.default_rng(6).integers(0, 5, (1, 3, 3)))
    variables = filled(network, tokens)
    run = jax.jit(lambda tokens: network.apply(variables, tokens)[0].reshape(9, 5))
    before = run(tokens)
    moved = np.zeros((9, 9), bool)
    for place in range(9):
        other = tokens.reshape(9).at[place].add(1) % 5
        moved[:, place] = np.abs(run(other.reshape(1, 3, 3)) - before).max(-1) > 1e-6
    np.testing.assert_array_equal(moved, np.tri(9, dtype=bool))


DENOISER = FITDenoiser(**SMALL, layers="(1)1(1)", groups=3, tokens=4, in_width=5, out_width=5, num_classes=2)


def test_time_and_class_change_nothing_before_the_first_latents_do():
    x, time, condition = normal(7, 2, 3, 4, 5), jnp.asarray([0.1, 0.7]), jnp.eye(2)
    variables = filled(DENOISER, x, time, condition)
    run = jax.jit(lambda *given: DENOISER.apply(variables, *given))
    (one, aux), (other, other_aux) = run(x, time, condition), run(x, time + 0.2, condition)
    np.testing.assert_array_equal(aux["local"][0], other_aux["local"][0])
    np.testing.assert_array_equal(aux["read"][0], other_aux["read"][0])
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(run(x, time, condition[::-1])[0] - one).max() > 1e-3


def test_earlier_latents_change_nothing_until_their_norm_was_trained():
    x, time, condition, previous = normal(8, 1, 3, 4, 5), jnp.asarray([0.4]), jnp.eye(2)[:1], normal(9, 1, 3, 2, 16)
    variables = filled(DENOISER, x, time, condition)
    scale = variables["params"]["previous_norm"]
    with_zeros = variables["params"] | {"previous_norm": jax.tree.map(jnp.zeros_like, scale)}
    run = jax.jit(lambda params, *given: DENOISER.apply({"params": params}, *given)[0])
    first, later = (run(with_zeros, x, time, condition, *rest) for rest in ((), (previous,)))
    np.testing.assert_array_equal(first, later)
    assert np.abs(run(variables["params"], x, time, condition, previous) - first).max() > 1e-3
    fresh = DENOISER.clone(layers="(0)").init(jax.random.key(0), x, time)["params"]["previous_norm"]
    assert np.abs(fresh["scale"]).max() == 0


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(positions="cosine"), "positions 'cosine' is none of learned, sincos"),
        (dict(positions="sincos_2d", group_size=(4, 6)), "6 tokens are no square"),
        (dict(group_size=(3, 4)), r"\(8, 12\) is not a multiple of .*\(3, 4\)"),
    ],
)
def test_fields_are_checked(options, message):
    network = FIT(**SMALL, **IMAGE | options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 12, 1)))
