"""T2T-ViT's formulas one by one: token blocks, random features, splits, positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.layers.patches import patchify
from transformer_zoo.models.backbones.t2t import (
    T2TViT,
    TokenBlock,
    TokensToToken,
    performer_attention,
    softmax_features,
)
from transformer_zoo.task import Variables
from transformer_zoo.tasks.networks import apply_network

SMALL = dict(num_classes=5, image_size=(8, 8), depth=1, width=12, num_heads=2, mlp_ratio=1.0, token_width=8)
SMALL |= dict(kernel_sizes=(3, 3), strides=(2, 2))


def filled(module, *inputs):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32), shapes)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def normed(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * params["scale"] + params["bias"]


def block_by_hand(x, params, value, attended):
    y = value + attended @ params["out"]["kernel"] + params["out"]["bias"]
    hidden = normed(y, params["norm2"]) @ params["mlp"]["up"]["kernel"] + params["mlp"]["up"]["bias"]
    return y + jax.nn.gelu(hidden, approximate=False) @ params["mlp"]["down"]["kernel"] + params["mlp"]["down"]["bias"]


def test_a_token_block_skips_from_its_values_and_scales_by_its_inputs_width():
    x, block = normal(0, 2, 5, 20), TokenBlock(8, "transformer")
    variables = filled(block, x)
    params = jax.tree.map(np.asarray, variables["params"])
    query, key, value = (
        normed(np.asarray(x), params["norm1"]) @ params["projections"]["kernel"][:, i, 0] for i in (0, 1, 2)
    )
    weights = np.exp(np.einsum("bqd,bkd->bqk", query, key) * 20**-0.5)
    attended = weights / weights.sum(-1, keepdims=True) @ value
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(block.apply(variables, x), block_by_hand(x, params, value, attended), atol=2e-5)


def test_a_performers_token_block_has_keys_first_and_estimates_unscaled_exponentials():
    x, block = normal(0, 2, 5, 20), TokenBlock(8)
    variables = filled(block, x)
    params = jax.tree.map(np.asarray, variables["params"])
    rows = np.asarray(variables["random_features"]["rows"])
    assert rows.shape == (4, 8)
    projections, y = params["projections"], normed(np.asarray(x), params["norm1"])
    key, query, value = (y @ projections["kernel"][:, i, 0] + projections["bias"][i, 0] for i in (0, 1, 2))
    weights = np.zeros((2, 5, 5))
    for sample, q, k in np.ndindex(weights.shape):
        a, b = query[sample, q], key[sample, k]
        weights[sample, q, k] = np.mean([np.exp(w @ (a + b) - (a @ a + b @ b) / 2) for w in rows])
    attended = weights / (weights.sum(-1, keepdims=True) + 1e-8) @ value
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(block.apply(variables, x), block_by_hand(x, params, value, attended), atol=2e-5)


def test_more_random_features_come_nearer_to_softmax_attention():
    query, key, value = (normal(seed, 1, 24, 8) * scale for seed, scale in enumerate((0.25, 0.25, 1.0)))
    exact = jax.nn.softmax(query @ key.mT, axis=-1) @ value
    errors = [
        np.mean(
            [np.abs(performer_attention(query, key, value, normal(9 + seed, m, 8)) - exact).mean() for seed in range(4)]
        )
        for m in (8, 64, 4096)
    ]
    assert errors[0] > 2 * errors[1] > 8 * errors[2] > 0


def test_features_stay_float32_where_the_rest_is_not():
    x, rows = normal(0, 1, 4, 8).astype(jnp.bfloat16), normal(1, 4, 8)
    found = softmax_features(x, rows)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, softmax_features(x.astype(jnp.float32), rows))


def test_random_features_are_orthogonal_and_no_parameters():
    variables = TokenBlock(8).init(jax.random.key(0), normal(0, 2, 5, 20))
    rows = variables["random_features"]["rows"]
    np.testing.assert_allclose(rows @ rows.T, 4 * np.eye(4), atol=1e-5)
    assert "rows" not in variables["params"]


def test_random_features_are_not_drawn_again_while_training():
    network, images = T2TViT(**SMALL), normal(0, 2, 8, 8, 3)
    variables = filled(network, images)
    state = {"random_features": variables["random_features"]}
    task_variables = Variables({"model": variables["params"]}, {"model": state})
    _, _, after = apply_network(network, task_variables, images, key=jax.random.key(1), train=True)
    jax.tree.map(np.testing.assert_array_equal, after["model"], state)


def test_a_performer_drops_out_while_training_and_exact_attention_does_not():
    x = normal(0, 2, 5, 20)
    for kind, equal in (("performer", False), ("transformer", True)):
        block = TokenBlock(8, kind)
        variables = filled(block, x)
        training = TokenBlock(8, kind, train=True).apply(variables, x, rngs={"dropout": jax.random.key(0)})
        assert np.allclose(training, block.apply(variables, x), atol=1e-6) == equal


def test_one_split_without_overlap_is_hard_patches():
    images, split = normal(0, 2, 8, 8, 3), TokensToToken(6, (4,), (4,), 8, "performer")
    variables = filled(split, images)
    assert set(variables) == {"params"} and set(variables["params"]) == {"projection"}
    kernel = variables["params"]["projection"]["kernel"].reshape(3, 4, 4, 6).transpose(1, 2, 0, 3).reshape(48, 6)
    expected = patchify(images, (4, 4)) @ kernel + variables["params"]["projection"]["bias"]
    np.testing.assert_allclose(split.apply(variables, images)[0], expected, atol=1e-5)


@pytest.mark.parametrize("size, grid", [((224, 224), (14, 14)), ((34, 50), (2, 3)), ((48, 64), (3, 4))])
def test_the_grid_is_that_of_the_tokens(size, grid):
    network = T2TViT(image_size=size, depth=1, token_width=8, width=12)
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    (_, aux), _ = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    assert network.grid == grid and aux["patches"].shape[1] == grid[0] * grid[1]
    if size == (224, 224):
        assert [block.shape[1] for block in aux["token_blocks"]] == [3136, 784]


def test_positions_are_interleaved_sines_and_cosines_that_start_at_the_class_token():
    network, images = T2TViT(**SMALL), normal(0, 1, 8, 8, 3)
    variables = filled(network, images)
    table = np.zeros((5, 12))
    for position, channel in np.ndindex(table.shape):
        angle = position / 10000 ** (2 * (channel // 2) / 12)
        table[position, channel] = np.cos(angle) if channel % 2 else np.sin(angle)
    default, _ = network.apply(variables, images)
    given, _ = network.apply(variables, images, jnp.asarray(table, jnp.float32))
    moved, _ = network.apply(variables, images, jnp.asarray(np.roll(table, -1, axis=0), jnp.float32))
    np.testing.assert_allclose(default, given, atol=1e-5)
    assert np.abs(default - moved).max() > 1e-3


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"token_attention": "linear"}, "token_attention 'linear' is none of performer, transformer"),
        ({"strides": (4, 2)}, r"kernel_sizes \(3, 3, 3\) and strides \(4, 2\)"),
    ],
)
def test_unknown_options_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        network = T2TViT(**SMALL | {"kernel_sizes": (3, 3, 3), "strides": (2, 2, 2)} | wrong)
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
