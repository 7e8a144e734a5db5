"""Meissonic's blocks beside diffusers' FLUX blocks, which its reference copies: outputs and every gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock

from tests.parity.peers import gradients, normal, randomise, state, worst
from transformer_zoo.convert.layouts.meissonic import double_blocks, single_blocks
from transformer_zoo.convert.table import flatten, import_arrays, unflatten
from transformer_zoo.layers.positions import grid_positions
from transformer_zoo.layers.rope import rope_tables
from transformer_zoo.layers.streams import SingleStreamBlock, TwoStreamBlock

WIDTH, HEADS, WORDS, GRID, WIDTHS = 48, 2, 5, (3, 4), (4, 8, 12)
SHARED = dict(num_heads=HEADS, head_dim=WIDTH // HEADS)
PLACES = np.concatenate([np.zeros((WORDS, 3)), np.pad(grid_positions(GRID), ((0, 0), (1, 0)))])


def turns():
    """Places in FLUX's own form: cosines and sines of every channel, pairs side by side."""
    angles = [
        np.repeat(PLACES[:, axis, None] * 1e4 ** (-np.arange(0, width, 2) / width), 2, axis=1)
        for axis, width in enumerate(WIDTHS)
    ]
    angles = torch.from_numpy(np.concatenate(angles, axis=1)).float()
    return angles.cos(), angles.sin()


def compare(model, block, table, call, text, image):
    """`call` takes (params, streams, condition, rope) to (text, image)."""
    condition = normal(5, 2, WIDTH)
    inputs = [torch.from_numpy(one) for one in (image, text, condition)]
    their_text, their_image = model(*inputs, image_rotary_emb=turns())
    cotangents = normal(6, *text.shape), normal(7, *image.shape)
    theirs = (their_text, their_image)
    sum((one * torch.from_numpy(c)).sum() for one, c in zip(theirs, cotangents)).backward()
    rope = rope_tables(PLACES, WIDTHS, interleaved=True)
    streams = jnp.asarray(text), jnp.asarray(image)
    shapes = flatten(jax.eval_shape(lambda key: init(block, key, streams, condition, rope), jax.random.key(0)))
    params = unflatten(import_arrays(table, state(model), shapes))["params"]

    @jax.jit
    def run(params):
        def loss(params):
            found = call(params, streams, jnp.asarray(condition), rope)
            return sum((one * c).sum() for one, c in zip(found, cotangents)), found

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, found), grads = run(params)
    pairs = {name: (one.detach().numpy(), own) for name, one, own in zip(("text", "image"), theirs, found)}
    return worst(pairs | gradients(model, table, {"params": grads}))


def init(block, key, streams, condition, rope):
    x = streams if isinstance(block, TwoStreamBlock) else jnp.concatenate(streams, axis=1)
    return block.init(key, x, 0.0, jnp.asarray(condition), rope)


def named(rules):
    """Names and paths of one block on its own: neither has what stands in front of it."""
    return [
        dataclasses.replace(rule, theirs=tuple(name.removeprefix("x.") for name in rule.names), ours=rule.ours[2:])
        for rule in rules
    ]


TEXT, IMAGE = normal(3, 2, WORDS, WIDTH), normal(4, 2, GRID[0] * GRID[1], WIDTH)


def test_two_streams():
    model = randomise(FluxTransformerBlock(WIDTH, HEADS, WIDTH // HEADS))
    block = TwoStreamBlock(**SHARED)

    def call(params, streams, condition, rope):
        return block.apply({"params": params}, streams, 0.0, condition, rope)[0]

    assert compare(model, block, named(double_blocks("x", "x")), call, TEXT, IMAGE) <= 1e-4


def test_a_single_stream():
    model = randomise(FluxSingleTransformerBlock(WIDTH, HEADS, WIDTH // HEADS))
    block = SingleStreamBlock(**SHARED)

    def call(params, streams, condition, rope):
        x, _ = block.apply({"params": params}, jnp.concatenate(streams, axis=1), 0.0, condition, rope)
        return x[:, :WORDS], x[:, WORDS:]

    assert compare(model, block, named(single_blocks("x", "x")), call, TEXT, IMAGE) <= 1e-4
