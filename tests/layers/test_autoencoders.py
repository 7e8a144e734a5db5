"""Blocks of convolutional autoencoders and discriminators, beside explicit formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.layers.autoencoders import (
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    ResidualBlock,
    fold_pixels,
    unfold_pixels,
)
from transformer_zoo.layers.discriminators import DiscriminatorBlock, PatchDiscriminator, StyleGANDiscriminator


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def filled(network, x):
    """Random parameters in every place."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(network.init, jax.random.key(0), x))
    return jax.tree.unflatten(structure, [0.3 * normal(n, *leaf.shape) for n, leaf in enumerate(leaves)])


def without_branch(variables):
    """The same with a last convolution of zeros, so that only the shortcut is left."""
    params = variables["params"]
    return {"params": params | {"conv2": jax.tree.map(jnp.zeros_like, params["conv2"])}}


@pytest.mark.parametrize("sides", [(5, 6), (2, 5, 6)])
def test_a_shortcut_carries_the_input_past_the_branch(sides):
    x = normal(0, 2, *sides, 4)
    same, wider = ResidualBlock(4), ResidualBlock(6)
    np.testing.assert_allclose(same.apply(without_branch(filled(same, x)), x), x)
    variables = without_branch(filled(wider, x))
    kernel = variables["params"]["shortcut"]["kernel"].reshape(4, 6)
    np.testing.assert_allclose(wider.apply(variables, x), x @ kernel, rtol=1e-4, atol=1e-5)


def test_maskgits_shortcut_carries_nothing_of_the_input():
    x, block = normal(0, 2, 5, 6, 4), ResidualBlock(6, shortcut_from_output=True)
    variables = filled(block, x)
    np.testing.assert_array_equal(block.apply(without_branch(variables), x), jnp.zeros((2, 5, 6, 6)))
    kernel = variables["params"]["shortcut"]["kernel"].reshape(6, 6)
    params = variables["params"] | {"shortcut": {"kernel": jnp.zeros((1, 1, 4, 6))}}
    branch = ResidualBlock(6).apply({"params": params}, x)
    np.testing.assert_allclose(block.apply(variables, x), branch + branch @ kernel, rtol=1e-4, atol=1e-4)


def test_groups_are_32_where_channels_allow_it():
    x, block = normal(0, 1, 4, 4, 40), ResidualBlock(40)
    variables = filled(block, x)
    params = variables["params"]
    y = np.asarray(x).reshape(1, 16, 8, 5)  # eight groups of five channels: 32 does not divide 40, 8 does
    y = (y - y.mean((1, 3), keepdims=True)) / np.sqrt(y.var((1, 3), keepdims=True) + 1e-6)
    y = y.reshape(x.shape) * params["norm1"]["scale"] + params["norm1"]["bias"]
    _, found = block.apply(variables, x, capture_intermediates=lambda module, _: module.name == "norm1")
    np.testing.assert_allclose(found["intermediates"]["norm1"]["__call__"][0], y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("conv_downsample", [False, True])
def test_sides_and_time_shrink_as_the_flags_say_and_grow_back(conv_downsample):
    shared = dict(width=4, multipliers=(1, 2, 2), num_blocks=1, temporal_downsample=(True, False))
    encoder = ConvolutionalEncoder(latent_width=3, conv_downsample=conv_downsample, **shared)
    decoder = ConvolutionalDecoder(channels=2, **shared)
    clip = normal(0, 1, 4, 8, 12, 2)
    latents, found = jax.eval_shape(encoder.init_with_output, jax.random.key(0), clip)[0]
    assert latents.shape == (1, 2, 2, 3, 3)
    sizes = [(1, 4, 8, 12, 4), (1, 2, 4, 6, 8), (1, 2, 2, 3, 8), (1, 2, 2, 3, 8)]
    assert [block.shape for block in found["blocks"]] == sizes
    pixels, found = jax.eval_shape(decoder.init_with_output, jax.random.key(0), latents)[0]
    assert pixels.shape == clip.shape
    sizes = [(1, 2, 2, 3, 8), (1, 2, 2, 3, 8), (1, 2, 4, 6, 8), (1, 4, 8, 12, 4)]
    assert [block.shape for block in found["blocks"]] == sizes


def test_rematerialised_blocks_compute_the_same():
    x, shared = normal(0, 1, 4, 4, 2), dict(width=4, multipliers=(1, 2), num_blocks=1, latent_width=3)
    plain, again = ConvolutionalEncoder(**shared), ConvolutionalEncoder(**shared, remat="full")
    variables = filled(plain, x)

    def gradient(network):
        return jax.jit(jax.grad(lambda v: jnp.square(network.apply(v, x)[0]).sum()))(variables)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradient(plain), gradient(again))


def test_unknown_parts_are_named():
    for field in ("activation", "norm"):
        network = ConvolutionalEncoder(4, (1, 2), 1, 3, **{field: "gelu"})
        with pytest.raises(ValueError, match=f"{field} is 'gelu', but must be one of"):
            network.init(jax.random.key(0), normal(0, 1, 4, 4, 2))


def test_a_discriminator_block_halves_both_ways_and_keeps_the_scale():
    x, block = normal(0, 2, 4, 6, 6, 3), DiscriminatorBlock(5)
    variables = without_branch(filled(block, x))
    kernel = variables["params"]["shortcut"]["kernel"].reshape(3, 5)
    pooled = np.asarray(x).reshape(2, 2, 2, 3, 2, 3, 2, 3).mean((2, 4, 6))
    np.testing.assert_allclose(block.apply(variables, x), pooled @ kernel / np.sqrt(2), rtol=1e-4, atol=1e-5)


def test_logits_judge_each_sample_alone():
    x, network = normal(0, 3, 9, 7, 2), StyleGANDiscriminator(4, (2, 2))
    variables = filled(network, x)
    logits, _ = network.apply(variables, x)
    changed, _ = network.apply(variables, x.at[1].add(1.0))
    assert logits.shape == (3,) and (logits != changed).tolist() == [False, True, False]


@pytest.mark.parametrize("sides", [(8, 12), (4, 8, 8)])
def test_patch_discriminators_have_a_logit_a_patch_and_no_sample_sees_another(sides):
    x, network = normal(0, 3, *sides, 2), PatchDiscriminator(4, num_layers=2)
    variables = filled(network, x)

    @jax.jit
    def judge(x):
        return network.apply(variables, x)[0]

    logits, alone = judge(x), judge(x.at[1:].add(1.0))
    assert logits.shape == (3, *(side // 4 for side in sides))
    np.testing.assert_array_equal(alone[0], logits[0])
    assert np.abs(alone[1:] - logits[1:]).max() > 1e-3


@pytest.mark.parametrize("sides", [(4, 6), (3, 4, 6)])
def test_folded_pixels_are_all_there(sides):
    x = normal(0, 2, *sides, 3)
    folded = fold_pixels(x, 2)
    assert folded.shape == (2, *sides[:-2], 2, 3, 12)
    np.testing.assert_array_equal(folded[..., 1, 2, :], x[..., 2:4, 4:6, :].reshape(*folded.shape[:-3], 12))
    np.testing.assert_array_equal(unfold_pixels(folded, 2), x)


def test_groups_of_single_frames_have_statistics_of_their_own():
    x = normal(0, 1, 3, 4, 4, 4)
    changed = x.at[:, 2].add(5.0 * x[:, 2])
    for norm, same in (("frame_group", True), ("group", False)):
        block = ResidualBlock(4, norm=norm, causal=True)
        variables = filled(block, x)
        before, after = block.apply(variables, x), block.apply(variables, changed)
        assert bool((before[:, :2] == after[:, :2]).all()) is same
