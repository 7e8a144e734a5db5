"""Decay, rotation and the two forms of Manhattan attention against loops, and the head's batch statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.models.backbones.rmt import RMT, ManhattanAttention, manhattan_bias, rotation

SMALL = dict(num_classes=3, image_size=(16, 24), depths=(1,), widths=(8,), num_heads=(2,), head_width=12)
SMALL |= dict(mlp_ratios=(2.0,), decay_starts=(2.0,), decay_spreads=(4.0,), layer_scales=(0.0,), decomposed=(False,))
GRID, WIDTH, HEADS = (3, 4), 8, 2
GAMMAS = np.array([1 - 2**-2, 1 - 2 ** -(2 + 4 / 2)])  # start 2, spread 4


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def filled(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(np.abs(rng.normal(size=leaf.shape)) * 0.3, jnp.float32), shapes)


def test_the_decay_is_a_power_of_the_manhattan_distance_and_the_product_of_the_axes():
    decays = np.log(GAMMAS).astype(np.float32)
    found = np.exp(manhattan_bias(GRID, decays)[0])
    for head, gamma in enumerate(GAMMAS):
        for i in range(12):
            for j in range(12):
                distance = abs(i // 4 - j // 4) + abs(i % 4 - j % 4)
                assert found[head, i, j] == pytest.approx(gamma**distance, rel=1e-5)
        rows, columns = (np.exp(manhattan_bias((1, side), decays)[0, head]) for side in GRID)
        np.testing.assert_allclose(found[head], np.kron(rows, columns), rtol=1e-5)
    assert manhattan_bias(GRID, None) is None


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_loops(p, x, decomposed):
    """Tokens by index row * 4 + column; one query, one head at a time."""
    qkv = np.einsum("nc,cphd->pnhd", x, p["qkv"]["kernel"]) + p["qkv"]["bias"][:, None]
    pairs = WIDTH // HEADS // 2
    angles = 10000.0 ** -(np.arange(pairs) / (pairs - 1))
    turned = qkv[:2].copy()
    for token in range(12):
        for pair, angle in enumerate(angles):
            cos, sin = np.cos(token * angle), np.sin(token * angle)
            even, odd = qkv[:2, token, :, 2 * pair], qkv[:2, token, :, 2 * pair + 1]
            turned[:, token, :, 2 * pair] = even * cos - odd * sin
            turned[:, token, :, 2 * pair + 1] = odd * cos + even * sin
    (query, key), value = turned, qkv[2]

    def attend(value, sees):
        y = np.zeros_like(value)
        for head in range(HEADS):
            for i in range(12):
                seen = [j for j in range(12) if sees(i, j)]
                logits = [
                    query[i, head] @ key[j, head] / np.sqrt(WIDTH / HEADS)
                    + np.log(GAMMAS[head]) * (abs(i // 4 - j // 4) + abs(i % 4 - j % 4))
                    for j in seen
                ]
                y[i, head] = softmax(np.array(logits)) @ value[seen, head]
        return y

    if decomposed:
        y = attend(value, lambda i, j: i // 4 == j // 4)
        y = attend(y, lambda i, j: i % 4 == j % 4)
    else:
        y = attend(value, lambda i, j: True)
    around = np.pad(value.reshape(*GRID, WIDTH), ((2, 2), (2, 2), (0, 0)))
    kernel = np.asarray(p["local_positions"]["kernel"])[:, :, 0]
    local = [
        (around[row : row + 5, column : column + 5] * kernel).sum((0, 1)) for row in range(3) for column in range(4)
    ]
    y = y.reshape(12, WIDTH) + np.array(local) + p["local_positions"]["bias"]
    return y @ p["out"]["kernel"] + p["out"]["bias"]


@pytest.mark.parametrize("decomposed", [True, False])
def test_attention_is_its_formula(decomposed):
    x = normal(1, 1, *GRID, WIDTH)
    module = ManhattanAttention(HEADS, decomposed)
    rope = rotation(12, 10000.0 ** -np.linspace(0, 1, 2))
    decays = np.log(GAMMAS).astype(np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, rope, decays)
    draws = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: jnp.asarray(draws.normal(size=leaf.shape), jnp.float32), shapes)
    expected = by_loops(jax.tree.map(np.asarray, variables["params"]), np.asarray(x).reshape(12, WIDTH), decomposed)
    found = module.apply(variables, x, rope, decays).reshape(12, WIDTH)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_head_without_decay_has_a_gamma_of_one():
    images = normal(2, 1, 16, 24, 3)
    decaying, flat = RMT(**SMALL), RMT(**SMALL | dict(decay=False))
    variables = filled(decaying, images)
    tables = [(jnp.asarray([1.0, 1e-4]), jnp.zeros(2))]
    without, of_one, within = (
        jax.jit(network.apply)(variables, images, *given)[1]["levels"][-1]
        for network, given in ((flat, ()), (decaying, (tables,)), (decaying, ()))
    )
    np.testing.assert_allclose(of_one, without, rtol=1e-4, atol=1e-5)
    assert np.abs(within - without).max() > 1e-3


def test_the_head_normalises_each_projected_channel_over_batch_and_places_before_the_mean():
    images = normal(3, 2, 16, 24, 3)
    network = RMT(**SMALL)
    variables = filled(network, images)
    training = functools.partial(
        network.apply, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
    )
    (logits, aux), new = jax.jit(training)(variables, images)
    p = variables["params"]
    projected = np.asarray(aux["levels"][-1] @ p["projection"]["kernel"] + p["projection"]["bias"])
    mean, variance = projected.mean((0, 1, 2)), projected.var((0, 1, 2))
    normed = (projected - mean) / np.sqrt(variance + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]
    pooled = (normed / (1 + np.exp(-normed))).mean((1, 2))
    np.testing.assert_allclose(aux["pooled"], pooled, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(logits, pooled @ p["head"]["kernel"] + p["head"]["bias"], rtol=1e-3, atol=1e-3)
    old = variables["batch_stats"]["norm"]["mean"]
    np.testing.assert_allclose(new["batch_stats"]["norm"]["mean"], 0.9 * old + 0.1 * mean, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_heads=(2, 2)), r"num_heads \(2, 2\) must have one entry for each of depths \(1,\)"),
        (dict(num_heads=(3,)), r"widths \(8,\) must be multiples of twice num_heads \(3,\)"),
    ],
)
def test_stages_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        RMT(**SMALL | options).init(jax.random.key(0), jnp.zeros((1, 16, 24, 3)))
