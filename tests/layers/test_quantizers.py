"""Quantizers against brute force: ids, gradients, losses, averages, dead codes, padding, sharding."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.layers.quantizers.interface import code_usage
from transformer_zoo.layers.quantizers.memcodes import Memcodes
from transformer_zoo.layers.quantizers.residual import ResidualQuantizer
from transformer_zoo.layers.quantizers.scalar import FiniteScalarQuantizer, LookupFreeQuantizer, group_shares
from transformer_zoo.layers.quantizers.vector import CosineQuantizer, EmaVectorQuantizer, VectorQuantizer
from transformer_zoo.training.sharding import batch_sharding, make_mesh

CODES, WIDTH = 7, 4
QUANTIZERS = {
    "vector": VectorQuantizer(CODES, WIDTH, entropy_weight=0.1, entropy_temperature=1.0),
    "hard_entropy": VectorQuantizer(CODES, WIDTH, entropy_weight=0.1, entropy_temperature=1.0, entropy_kind="argmax"),
    "cosine_vector": VectorQuantizer(CODES, WIDTH, cosine=True),
    "ema": EmaVectorQuantizer(CODES, WIDTH, dead_share=0.2),
    "cosine": CosineQuantizer(CODES, WIDTH),
    "scalar": FiniteScalarQuantizer((2, 3, 4, 5)),
    "lookup_free": LookupFreeQuantizer(WIDTH, temperature=1.0),
    "lookup_free_in_groups": LookupFreeQuantizer(WIDTH, temperature=1.0, group_bits=3),
    "residual": ResidualQuantizer(tuple(EmaVectorQuantizer(CODES, WIDTH, dead_share=0.2) for _ in range(3)), 0.5),
    "memcodes": Memcodes(CODES, WIDTH, num_heads=2),
}
TRAINED = [name for name in QUANTIZERS if name not in ("scalar", "memcodes")]  # by losses or averages
KEY = {"dropout": jax.random.key(3)}
EMA = ("ema", "cosine")


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def variables_of(name):
    return jax.tree.map(lambda leaf: leaf, initial(name))  # a tree of its own, to be changed


@functools.cache
def initial(name):
    return QUANTIZERS[name].init(jax.random.key(0), jnp.zeros((1, WIDTH)))


@functools.partial(jax.jit, static_argnums=0)
def apply(network, variables, z):
    return network.apply(variables, z)


@functools.partial(jax.jit, static_argnums=0)
def train_network(network, variables, z, weights):
    return network.apply(variables, z, weights, train=True, rngs=KEY, mutable=["codebook"])


def train(name, z, weights=None, variables=None):
    """The result and the new codebook of one training call."""
    variables = variables_of(name) if variables is None else variables
    found, new = train_network(QUANTIZERS[name], variables, z, weights)
    return found, new.get("codebook", {})


def total(found):
    return sum(found.losses.values(), jnp.zeros(()))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_ids_give_back_the_values_and_values_the_ids(name):
    network, variables = QUANTIZERS[name], variables_of(name)
    found = apply(network, variables, normal(1, 5, 3, WIDTH))
    values = network.apply(variables, found.ids, method="lookup")
    assert found.ids.dtype == jnp.int32 and len(np.unique(found.ids)) > 1
    np.testing.assert_allclose(values, found.values, rtol=1e-6, atol=1e-6)
    if name not in ("memcodes", "residual", "scalar"):  # whose codes are not their own nearest
        np.testing.assert_array_equal(apply(network, variables, values * (1 + 1e-3)).ids, found.ids)


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if name not in ("memcodes", "scalar", "cosine_vector")])
def test_values_have_the_gradient_of_the_identity(name):
    cotangent = normal(2, 5, 3, WIDTH)
    variables = variables_of(name)
    gradient = jax.grad(lambda z: (apply(QUANTIZERS[name], variables, z).values * cotangent).sum())(
        normal(1, 5, 3, WIDTH)
    )
    np.testing.assert_array_equal(gradient, cotangent)


@pytest.mark.parametrize("name, affinity", [("vector", "distance"), ("ema", "distance"), ("cosine", "angle")])
def test_the_nearest_code_is_taken(name, affinity):
    variables, z = variables_of(name), normal(1, 40, WIDTH)
    (table,) = [leaf for leaf in jax.tree.leaves(variables) if leaf.shape == (CODES, WIDTH) and leaf.any()]
    found = apply(QUANTIZERS[name], variables, z)
    if affinity == "angle":
        expected = (unit(np.asarray(z)) @ unit(np.asarray(table)).T).argmax(-1)
    else:
        expected = np.square(z[:, None] - table).sum(-1).argmin(-1)
    np.testing.assert_array_equal(found.ids, expected)
    np.testing.assert_array_equal(found.values, table[expected])


def test_only_allowed_codes_are_taken():
    z, halves = normal(1, 30, WIDTH), jnp.arange(CODES) < 3
    first = (jnp.arange(30) % 2 == 0)[:, None]
    found = QUANTIZERS["ema"].apply(variables_of("ema"), z, allowed=halves == first)
    assert set(np.asarray(found.ids[::2])) <= {0, 1, 2} and set(np.asarray(found.ids[1::2])) <= {3, 4, 5, 6}
    assert len(set(np.asarray(found.ids))) > 4


def test_the_codebook_moves_to_its_latents_and_the_latents_to_their_codes():
    network = VectorQuantizer(CODES, WIDTH, commitment_weight=0.5, codebook_weight=2.0)
    variables, z = variables_of("vector"), normal(1, 6, WIDTH)
    table = np.asarray(variables["params"]["embedding"])
    by_table, by_z = jax.grad(lambda v, z: total(network.apply(v, z)), (0, 1))(variables, z)
    ids = np.asarray(apply(network, variables, z).ids)
    np.testing.assert_allclose(by_z, 0.5 * 2 * (z - table[ids]) / z.size, rtol=1e-5)
    expected = np.zeros_like(table)
    np.add.at(expected, ids, 2.0 * 2 * (table[ids] - np.asarray(z)) / z.size)
    np.testing.assert_allclose(by_table["params"]["embedding"], expected, rtol=1e-5, atol=1e-7)


def test_scaled_codes_lie_on_the_sphere_as_their_losses_do():
    variables, z = variables_of("cosine_vector"), normal(1, 6, WIDTH)
    found = apply(QUANTIZERS["cosine_vector"], variables, z)
    np.testing.assert_allclose(np.linalg.norm(found.values, axis=-1), 1, rtol=1e-6)
    apart = np.square(unit(np.asarray(z)) - np.asarray(found.values)).mean()
    np.testing.assert_allclose(total(found), 1.25 * apart, rtol=1e-5)


@pytest.mark.parametrize("name", ["vector", "hard_entropy"])
def test_the_entropy_of_soft_and_of_hard_choices(name):
    variables, z = variables_of(name), normal(1, 6, WIDTH)

    def expected(z):
        logits = -jnp.square(z[:, None] - variables["params"]["embedding"]).sum(-1)
        soft = jnp.exp(logits) / jnp.exp(logits).sum(-1, keepdims=True)
        hard = jnp.eye(CODES)[logits.argmax(-1)]
        shares = soft if name == "vector" else soft + jax.lax.stop_gradient(hard - soft)
        mean = shares.mean(0)
        return 0.1 * (-(shares * jnp.log(soft)).sum(-1).mean() + (mean * jnp.log(mean + 1e-5)).sum())

    def found(z):
        return apply(QUANTIZERS[name], variables, z).losses["entropy"]

    for ours, theirs in zip(jax.value_and_grad(found)(z), jax.jit(jax.value_and_grad(expected))(z)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_averages_follow_the_latents_of_each_code():
    network = EmaVectorQuantizer(CODES, WIDTH, decay=0.9)
    usage, sums = np.abs(normal(5, CODES)) + 1, normal(6, CODES, WIDTH)
    book = {"embedding": normal(4, CODES, WIDTH), "usage": jnp.asarray(usage), "sums": sums}
    z = normal(1, 30, WIDTH)
    found, new = network.apply({"codebook": book}, z, train=True, mutable=["codebook"])
    chosen = np.eye(CODES)[found.ids]
    usage = 0.9 * usage + 0.1 * chosen.sum(0)
    sums = 0.9 * np.asarray(sums) + 0.1 * chosen.T @ np.asarray(z)
    smoothed = (usage + 1e-5) / (usage.sum() + CODES * 1e-5) * usage.sum()
    for name, expected in {"usage": usage, "sums": sums, "embedding": sums / smoothed[:, None]}.items():
        np.testing.assert_allclose(new["codebook"][name], expected, rtol=1e-4, atol=1e-5)


def test_directions_are_averaged_and_an_unused_code_keeps_its_own():
    network = CosineQuantizer(2, WIDTH, decay=0.9, dead_share=0.0)
    table = jnp.zeros((2, WIDTH)).at[0, 0].set(1.0).at[1, 0].set(-0.5)
    z = jnp.abs(normal(1, 20, WIDTH))  # all nearer to the first code
    book = {"embedding": table, "usage": jnp.array([3.0, 1.0])}
    _, new = network.apply({"codebook": book}, z, train=True, mutable=["codebook"])
    mean = unit(unit(np.asarray(z)).mean(0))
    np.testing.assert_allclose(new["codebook"]["embedding"][0], 0.9 * table[0] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(new["codebook"]["embedding"][1], [-0.55, 0, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(new["codebook"]["usage"], [0.9 * 3 + 0.1 * 20, 0.9], rtol=1e-6)


@pytest.mark.parametrize("name", EMA)
def test_evaluation_changes_no_codebook(name):
    variables, z = variables_of(name), normal(1, 30, WIDTH)
    _, new = QUANTIZERS[name].apply(variables, z, mutable=["codebook"])
    jax.tree.map(np.testing.assert_array_equal, new["codebook"], variables["codebook"])


@pytest.mark.parametrize("name", EMA)
def test_dead_codes_become_latents_that_count_and_live_ones_do_not(name):
    variables = variables_of(name)
    variables["codebook"]["usage"] = jnp.array([9.0, 0, 9, 9, 0, 0, 9])
    z, weights = normal(1, 12, WIDTH), (jnp.arange(12) < 5).astype(jnp.float32)
    found, new = train(name, z, weights, variables)
    rows = np.asarray(z) if name == "ema" else unit(np.asarray(z))
    share, counted = QUANTIZERS[name].dead_share, np.bincount(found.ids[:5], minlength=CODES)
    usage = 0.99 * np.asarray(variables["codebook"]["usage"]) + 0.01 * counted
    dead = usage < share * 5 / CODES
    apart = np.linalg.norm(np.asarray(new["embedding"])[:, None] - rows, axis=-1)
    assert 1 <= dead.sum() <= 3 and not dead[0]
    np.testing.assert_array_equal(apart.min(1) < 1e-5, dead)
    taken = apart.argmin(1)[dead]
    assert set(taken) <= set(range(5)) and len(set(taken)) == dead.sum()  # no padding, and no row twice
    np.testing.assert_allclose(new["usage"], np.where(dead, share * 5 / CODES, usage), rtol=1e-5)
    if name == "ema":  # or the next average would pull a fresh code back
        np.testing.assert_allclose(new["sums"][dead], (new["usage"][:, None] * new["embedding"])[dead], rtol=1e-5)


@pytest.mark.parametrize("name", EMA)
def test_a_collapsed_codebook_comes_to_life(name):
    variables, z = variables_of(name), normal(1, 200, WIDTH)
    variables["codebook"]["embedding"] = jnp.ones((CODES, WIDTH)) + 1e-3 * normal(2, CODES, WIDTH) + 5
    collapsed = code_usage(apply(QUANTIZERS[name], variables, z).ids, CODES)
    _, book = train(name, z, None, variables)
    revived = code_usage(QUANTIZERS[name].apply({"codebook": book}, z).ids, CODES)
    assert collapsed["perplexity"] < 4.5 and revived["usage"] == 1 and revived["perplexity"] > 5


def test_without_a_latent_that_counts_nothing_is_replaced():
    for name in EMA:
        variables = variables_of(name)
        found, new = train(name, normal(1, 6, WIDTH), jnp.zeros(6), variables)
        assert total(found) == 0
        moved = np.abs(unit(np.asarray(new["embedding"])) - unit(np.asarray(variables["codebook"]["embedding"])))
        assert moved.max() < 1e-6


@pytest.mark.parametrize("name", TRAINED)
def test_padding_has_no_part_in_losses_and_averages(name):
    z, junk = normal(1, 4, 3, WIDTH), 9 * normal(2, 4, 3, WIDTH)
    weights = jnp.asarray(np.random.default_rng(0).integers(0, 2, (4, 3)), jnp.float32)
    mixed = jnp.where(weights[..., None] > 0, z, junk)
    one, other = train(name, z, weights), train(name, mixed, weights)
    jax.tree.map(np.testing.assert_array_equal, one[1], other[1])
    np.testing.assert_allclose(total(one[0]), total(other[0]), rtol=1e-6)
    if name in ("vector", "lookup_free"):
        alone = train(name, z[weights > 0])[0]
        np.testing.assert_allclose(total(one[0]), total(alone), rtol=1e-5)


def test_finite_scalars_round_within_their_levels():
    levels = (2, 3, 4, 5)
    network = QUANTIZERS["scalar"]
    z = jnp.linspace(-9, 9, 400)[:, None] * jnp.ones(4)
    found = network.apply({}, z)
    for channel, count in enumerate(levels):
        expected = (np.arange(count) - count // 2) / (count // 2)
        np.testing.assert_allclose(np.unique(found.values[:, channel]), expected)
    every = network.apply({}, jnp.arange(120), method="lookup")
    assert len(np.unique(every, axis=0)) == 120
    np.testing.assert_allclose(every[1] - every[0], [1, 0, 0, 0])  # the first channel is the lowest digit
    gradient = jax.grad(lambda z: network.apply({}, z).values[1].sum())(normal(1, 4))
    z, half = normal(1, 4)[1], 1.001
    np.testing.assert_allclose(gradient, [0, half * (1 - np.tanh(z) ** 2), 0, 0], rtol=1e-5)


def brute_force_lfq(z, temperature):
    codes = np.array([code[::-1] for code in itertools.product((-1.0, 1.0), repeat=z.shape[-1])])
    logits = 2 * np.asarray(z, np.float64) @ codes.T / temperature
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        sample = -np.nansum(shares * np.log(shares), -1).mean()
    mean = shares.mean(0)
    return codes, sample, -(mean * np.log(mean + 1e-5)).sum()


@pytest.mark.parametrize("temperature, scale", [(1.0, 1.0), (0.01, 0.01), (0.01, 1.0)])
def test_lookup_free_entropies_equal_those_over_all_codes(temperature, scale):
    z = scale * normal(1, 11, 5)
    found = apply(LookupFreeQuantizer(5, temperature=temperature), {}, z)
    codes, sample, batch = brute_force_lfq(z, temperature)
    np.testing.assert_allclose(found.metrics["sample_entropy"], sample, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.metrics["batch_entropy"], batch, rtol=1e-4)
    np.testing.assert_allclose(found.losses["entropy"], 0.1 * (sample - batch), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(codes[found.ids], found.values)


def test_shares_of_codes_are_products_over_bits_the_first_the_lowest():
    one = 1 / (1 + np.exp(-np.asarray(normal(1, 3))))
    expected = [np.prod([one[bit] if code >> bit & 1 else 1 - one[bit] for bit in range(3)]) for code in range(8)]
    np.testing.assert_allclose(group_shares(normal(1, 3)), expected, rtol=1e-5)


def test_groups_of_bits_bound_the_entropy_and_equal_it_where_bits_are_independent():
    grid = jnp.asarray(list(itertools.product((-0.4, 0.1), repeat=4)), jnp.float32)
    whole, grouped = (apply(QUANTIZERS[n], {}, grid).metrics for n in ("lookup_free", "lookup_free_in_groups"))
    np.testing.assert_allclose(grouped["batch_entropy"], whole["batch_entropy"], rtol=1e-3)
    diagonal = jnp.array([[2.0] * 4, [-2.0] * 4])
    whole, grouped = (apply(QUANTIZERS[n], {}, diagonal).metrics for n in ("lookup_free", "lookup_free_in_groups"))
    assert grouped["batch_entropy"] > whole["batch_entropy"] + 0.5


def test_a_quarter_of_a_million_codes_need_no_table():
    network, z = LookupFreeQuantizer(18), normal(1, 64, 18)
    computed = str(jax.make_jaxpr(jax.grad(lambda z: total(network.apply({}, z))))(z))
    sizes = [np.prod([int(side) for side in shape.split(",")]) for shape in re.findall(r"f32\[([\d,]+)\]", computed)]
    assert len(sizes) > 50 and max(sizes) == 64 * 2**9  # a group's codes at every place
    ids = apply(network, {}, z).ids
    np.testing.assert_array_equal(network.apply({}, ids, method="lookup"), jnp.where(z > 0, 1.0, -1.0))
    assert ids.max() > 2**17 and apply(network, {}, jnp.zeros((1, 18))).ids[0] == 0  # z = 0 is a zero bit


def test_residual_levels_quantize_what_is_left():
    network, variables, z = QUANTIZERS["residual"], variables_of("residual"), normal(1, 6, WIDTH)
    found = apply(network, variables, z)
    tables = [variables["codebook"][f"quantizers_{level}"]["embedding"] for level in range(3)]
    left, pull = np.asarray(z), 0
    for level, table in enumerate(tables):
        ids = np.square(left[:, None] - table).sum(-1).argmin(-1)
        np.testing.assert_array_equal(found.ids[:, level], ids)
        left = left - table[ids]
        pull += 0.25 * 2 * left / z.size
    gradient = jax.grad(lambda z: total(apply(network, variables, z)))(z)
    np.testing.assert_allclose(gradient, pull, rtol=1e-4, atol=1e-6)  # every level's latent moves to its code
    np.testing.assert_allclose(found.values, z - left, atol=1e-5)
    first = network.apply(variables, found.ids[:, :1], method="lookup")
    np.testing.assert_array_equal(first, tables[0][found.ids[:, 0]])


def test_dropped_levels_are_the_last_ones_of_whole_samples_and_learn_nothing():
    z = normal(1, 64, 2, WIDTH)
    variables = variables_of("residual")
    found, new = train("residual", z, None, variables)
    kept = (np.asarray(found.ids) >= 0).sum(-1)
    assert (kept[:, 0] == kept[:, 1]).all() and set(kept[:, 0]) == {1, 2, 3} and 16 < (kept[:, 0] == 3).sum() < 60
    np.testing.assert_array_equal(found.ids >= 0, np.arange(3) < kept[..., None])
    again = QUANTIZERS["residual"].apply(variables, found.ids, method="lookup")
    np.testing.assert_allclose(again, found.values, atol=1e-6)
    dead = 0.2 * np.array([kept.size, (kept > 1).sum(), (kept > 2).sum()]) / CODES
    for level in range(3):  # every code was dead, as usage starts from 0
        np.testing.assert_allclose(new[f"quantizers_{level}"]["usage"].min(), dead[level], rtol=1e-5)


def test_memcodes_heads_choose_by_key_and_give_values():
    network, variables, z = QUANTIZERS["memcodes"], variables_of("memcodes"), normal(1, 5, WIDTH)
    p = jax.tree.map(np.asarray, variables["params"])
    noise = normal(2, 5, 2, CODES)
    found = network.apply(variables, z, train=True, noise=noise)
    for head in range(2):
        keys, values = p["embedding"][head] @ p["key"][head], p["embedding"][head] @ p["value"][head]
        logits = np.asarray(z)[:, 2 * head : 2 * head + 2] @ keys.T / np.sqrt(2) + noise[:, head]
        np.testing.assert_array_equal(found.ids[:, head], logits.argmax(-1))
        np.testing.assert_allclose(found.values[:, 2 * head : 2 * head + 2], values[logits.argmax(-1)], atol=1e-5)
    gradient = jax.grad(lambda z: network.apply(variables, z, train=True, noise=noise).values[0].sum())(z)
    assert np.abs(gradient[0]).min() > 1e-4 and np.abs(gradient[1:]).max() == 0


def test_memcodes_sample_while_training_and_choose_the_best_otherwise():
    z = jnp.tile(normal(1, 1, WIDTH), (200, 1))
    assert code_usage(train("memcodes", z)[0].ids[:, 0], CODES)["perplexity"] > 2
    assert code_usage(QUANTIZERS["memcodes"].apply(variables_of("memcodes"), z).ids[:, 0], CODES)["perplexity"] == 1


def test_usage_counts_codes_and_neither_padding_nor_dropped_ids():
    found = code_usage(jnp.array([0, 0, 1, 1, 2, -1]), 8, jnp.array([1.0, 1, 1, 1, 0, 1]))
    np.testing.assert_allclose([found["perplexity"], found["usage"]], [2, 0.25], rtol=1e-6)


@pytest.mark.devices(8)
@pytest.mark.parametrize("name", ["vector", "cosine", "lookup_free_in_groups", "residual"])
def test_statistics_over_eight_devices_are_those_of_one(name):
    z, weights = normal(1, 16, 3, WIDTH), (jnp.arange(48) % 5 > 0).astype(jnp.float32).reshape(16, 3)
    variables = variables_of(name)

    def step(variables, z, weights):
        def loss(params, z):
            found, book = train(name, z, weights, {**variables, "params": params})
            return total(found) + jnp.square(found.values).sum(), (found.ids, book)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(variables.get("params", {}), z)

    mesh = make_mesh({"data": 8})
    spread = [jax.device_put(array, batch_sharding(mesh)) for array in (z, weights)]
    with jax.set_mesh(mesh):
        several = jax.jit(step)(variables, *spread)
    one = jax.jit(step)(variables, z, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), several, one)


def test_fields_that_cannot_be_are_refused():
    z = jnp.zeros((1, 4))
    for network, message in [
        (VectorQuantizer(CODES, 4, entropy_kind="max"), "'max', but must be one of softmax, argmax"),
        (FiniteScalarQuantizer((5, 1, 5, 5)), r"\(5, 1, 5, 5\); each must be at least 2"),
        (LookupFreeQuantizer(31), "bits is 31"),
        (Memcodes(CODES, 4, num_heads=3), "width 4 of Memcodes is no multiple of num_heads 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            network.init(jax.random.key(0), z)
