"""The mixers against their formulas, and the skeleton's ablations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.models.backbones.metaformer import MetaFormer, MetaFormerBlock, pool_difference

SMALL = dict(num_classes=5, image_size=(16, 24), depths=(1, 1), widths=(8, 32), mixers=("pooling", "pooling"))
BLOCK = dict(norm="group", activation="gelu", mlp_ratio=2.0, use_bias=True, layer_scale=0.0, residual_scale=False)
BLOCK |= dict(residual=True, channel_mlp=True, norm_epsilon=1e-5, attention="auto", train=False, dtype=None)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def filled(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5, jnp.float32), shapes)


def test_pooling_leaves_places_outside_the_map_out_of_the_mean():
    x = normal(0, 2, 4, 5, 3)
    found = pool_difference(x)
    for row in range(4):
        for column in range(5):
            around = x[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            np.testing.assert_allclose(found[:, row, column], around.mean((1, 2)) - x[:, row, column], atol=1e-5)
    np.testing.assert_allclose(pool_difference(jnp.full((1, 4, 4, 2), 3.0)), 0, atol=1e-6)


def groupnorm(x):
    return (x - x.mean((1, 2, 3), keepdims=True)) / jnp.sqrt(x.var((1, 2, 3), keepdims=True) + 1e-5)


@pytest.mark.parametrize("mixer", ["pooling", "identity", "spatial"])
def test_a_block_is_its_two_equations(mixer):
    x = normal(1, 2, 3, 4, 6)
    block = MetaFormerBlock(mixer, **BLOCK)
    variables = filled(block, x, 0.0)
    p = variables["params"]
    normed = groupnorm(x) * p["norm1"]["scale"] + p["norm1"]["bias"]
    mixed = normed
    if mixer == "pooling":
        mixed = pool_difference(normed)
    if mixer == "spatial":
        places = normed.reshape(2, 12, 6)
        mixed = jnp.einsum("bpc,pq->bqc", places, p["spatial"]["kernel"]) + p["spatial"]["bias"][:, None]
        mixed = mixed.reshape(x.shape)
    y = x + mixed
    hidden = jax.nn.gelu(
        (groupnorm(y) * p["norm2"]["scale"] + p["norm2"]["bias"]) @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"],
        approximate=False,
    )
    expected = y + hidden @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"]
    np.testing.assert_allclose(block.apply(variables, x, 0.0)[0], expected, rtol=1e-4, atol=1e-4)


def test_without_the_residual_and_the_mlp_a_block_is_its_mixer():
    x = normal(2, 1, 3, 4, 6)
    block = MetaFormerBlock("pooling", **BLOCK | dict(residual=False, channel_mlp=False))
    variables = filled(block, x, 0.0)
    p = variables["params"]["norm1"]
    expected = pool_difference(groupnorm(x) * p["scale"] + p["bias"])
    np.testing.assert_allclose(block.apply(variables, x, 0.0)[0], expected, rtol=1e-4, atol=1e-5)


def test_the_two_heads_norm_before_or_behind_the_mean():
    images = normal(3, 2, 16, 24, 3)
    before, behind = (MetaFormer(**SMALL | dict(num_classes=0), norm_map=norm_map) for norm_map in (True, False))
    variables = filled(before, images)
    scale, bias = (variables["params"]["norm"][name] for name in ("scale", "bias"))
    last = before.apply(variables, images)[1]["levels"][-1]
    mean = last.mean((1, 2))
    np.testing.assert_allclose(
        before.apply(variables, images)[0], groupnorm(last).mean((1, 2)) * scale + bias, rtol=1e-3, atol=1e-4
    )
    normed = (mean - mean.mean(-1, keepdims=True)) / jnp.sqrt(mean.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(behind.apply(variables, images)[0], normed * scale + bias, rtol=1e-3, atol=1e-4)


def test_hybrids_get_positions_once_before_their_first_attention():
    network = MetaFormer(**SMALL | dict(mixers=("pooling", "attention"), positions=True))
    variables = filled(network, normal(4, 1, 16, 24, 3))
    assert variables["params"]["positions"].shape == (2, 3, 32)
    moved = jax.tree.map(lambda leaf: leaf, variables)
    moved["params"]["positions"] = variables["params"]["positions"][::-1]
    one, other = (network.apply(v, normal(4, 1, 16, 24, 3))[0] for v in (variables, moved))
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(mixers=("pool", "pooling")), "mixer 'pool' is none of pooling, identity"),
        (dict(norm="batch"), "norm 'batch' is none of group, layer"),
        (dict(depths=(1, 1, 1)), "differ in length"),
    ],
)
def test_names_and_lengths_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        MetaFormer(**SMALL | options).init(jax.random.key(0), jnp.zeros((1, 16, 24, 3)))
