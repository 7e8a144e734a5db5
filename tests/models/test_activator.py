"""The gated unit against its formula, and what a network that mixes no tokens cannot see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.models.backbones.activator import Activator
from transformer_zoo.models.backbones.vit import ViT

SMALL = dict(num_classes=5, image_size=(8, 8), patch_size=(4, 4), channels=1, depth=2, width=8, hidden=12)
IMAGES = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 1)), jnp.float32)


def filled(module):
    shapes = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


def normed(x, p):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


GATES = {"gelu": lambda x: jax.nn.gelu(x, approximate=False), "silu": jax.nn.silu, "relu": jax.nn.relu}


@pytest.mark.parametrize("use_mlp, activation", [(True, "gelu"), (False, "gelu"), (False, "silu"), (False, "relu")])
def test_the_network_is_its_formula(use_mlp, activation):
    network = Activator(**SMALL, use_mlp=use_mlp, activation=activation)
    variables = filled(network)
    p = variables["params"]
    patches = IMAGES.reshape(2, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(2, 4, 16)
    x = dense(patches, p["patch_embed"]["projection"])
    for index in range(2):
        block = jax.tree.map(lambda leaf, index=index: leaf[index], p["blocks"])
        unit, y = block["unit"], normed(x, block["norm"])
        u = normed(GATES[activation](dense(y, unit["gate"])), unit["norm"])
        x = x + dense(u * normed(dense(y, unit["up"]), unit["norm"]), unit["down"])
        if use_mlp:
            hidden = GATES["gelu"](dense(normed(x, block["norm"]), block["mlp"]["up"]))
            x = x + dense(hidden, block["mlp"]["down"])
    expected = dense(x.mean(1), p["head"])
    np.testing.assert_allclose(network.apply(variables, IMAGES)[0], expected, rtol=2e-4, atol=2e-4)


def test_the_order_of_patches_makes_no_difference_but_it_does_to_a_vit():
    moved = jnp.concatenate([IMAGES[:, 4:], IMAGES[:, :4]], axis=1)
    bag = Activator(**SMALL)
    variables = filled(bag)
    np.testing.assert_allclose(bag.apply(variables, IMAGES)[0], bag.apply(variables, moved)[0], rtol=1e-4, atol=1e-4)
    vit = ViT(**{name: value for name, value in SMALL.items() if name != "hidden"}, num_heads=2)
    variables = filled(vit)
    assert np.abs(vit.apply(variables, IMAGES)[0] - vit.apply(variables, moved)[0]).max() > 0.01


def test_dropout_is_in_the_mlp_alone():
    def outputs(use_mlp):
        network = Activator(**SMALL, use_mlp=use_mlp)
        variables = filled(network)
        keys = [{"dropout": jax.random.key(seed)} for seed in (1, 2)]
        return [network.apply(variables, IMAGES, train=True, rngs=rngs)[0] for rngs in keys]

    assert np.abs(np.subtract(*outputs(True))).max() > 0.01
    np.testing.assert_array_equal(*outputs(False))
