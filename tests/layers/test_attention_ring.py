"""Attention over split tokens: the numbers of one device, and nothing but blocks of keys and values on the links."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.layers.test_attention import (
    HOOKS,
    KEYS,
    QUERIES,
    definition,
    difference,
    inputs,
    normal,
    outputs_and_gradients,
)
from transformer_zoo.layers import constraints
from transformer_zoo.layers.attention import attend, choose_implementation
from transformer_zoo.layers.attention_ring import ring
from transformer_zoo.training import sharding
from transformer_zoo.training.planner.programs import traffic

pytestmark = pytest.mark.devices(8)


@pytest.mark.parametrize(
    ("name", "sizes", "chunk_size"),
    [(name, {"data": 2, "sequence": 4}, 2) for name in ("none", "bias of samples", "mask", "causal", "window")]
    + [("everything", {"data": 4, "sequence": 2}, 2), ("everything", {"data": 1, "sequence": 8}, 256)]
    + [("mask of keys", {"data": 2, "sequence": 4}, 1), ("bias", {"data": 1, "sequence": 2, "tensor": 4}, 256)],
)
def test_the_ring_has_the_outputs_and_gradients_of_the_definition(name, sizes, chunk_size):
    """7 queries and 9 keys divide by none of the meshes: they are padded, and on 8 devices some hold nothing else."""
    with jax.set_mesh(sharding.make_mesh(sizes)):
        (found,) = outputs_and_gradients(inputs(), HOOKS[name], functools.partial(ring, chunk_size=chunk_size))
    assert difference(found, definition(inputs(), HOOKS[name])) < 1e-5


def test_a_query_that_sees_nothing_gets_the_mean_of_all_values():
    with jax.set_mesh(sharding.make_mesh({"data": 2, "sequence": 4})):
        blind = jax.jit(functools.partial(attend, mask=jnp.zeros((1, 1, 1, KEYS), bool), implementation="ring"))
        output = jax.device_get(blind(*inputs()))
    assert difference(output, np.broadcast_to(np.mean(inputs()[2], 1, keepdims=True), output.shape)) < 1e-6


def test_only_blocks_of_keys_and_values_and_their_gradients_travel():
    """Once around forward (the last block has come home), once around backward, and no array is gathered or summed."""
    size, tokens, batch, heads, dim = 4, 64, 4, 2, 8
    mesh = sharding.make_mesh({"data": 2, "sequence": size})
    placed = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "sequence"))
    shape = jax.ShapeDtypeStruct((batch, tokens, heads, dim), jnp.float32, sharding=placed)

    def loss(*arrays):
        return (attend(*arrays, causal=True, implementation="ring") ** 2).sum()

    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss, (0, 1, 2)), out_shardings=(placed,) * 3)
        found = traffic(step.lower(shape, shape, shape).compile().as_text()).collectives
    assert {one.kind for one in found} == {"collective-permute"}
    block = batch // 2 * tokens // size * heads * dim * 4
    travelled = sum(one.size * one.times for one in found)
    assert travelled == block * (2 * (size - 1) + 2 * (size - 1) + 2 * size)


def test_the_choice_sees_how_tokens_are_split():
    long, words = (jax.ShapeDtypeStruct((8, tokens, 2, 4), jnp.float32) for tokens in (300, 77))
    assert choose_implementation("auto", long, long, long, platform="cpu", sequence=4) == (
        "ring",
        "300 x 300 logits are split over sequence=4",
    )
    with pytest.raises(ValueError, match="'ring' cannot serve this call: it needs a mesh whose sequence axis"):
        choose_implementation("ring", long, long, long, platform="cpu")
    with jax.set_mesh(sharding.make_mesh({"data": 2, "sequence": 4})):
        assert "ppermute" in str(jax.make_jaxpr(attend)(long, long, long))
        assert "ppermute" not in str(jax.make_jaxpr(attend)(long, words, words)), "words are whole on every device"


def test_streams_are_split_where_they_are_long_and_it_is_logged(caplog):
    constraints._log_once.cache_clear()

    def spec(tokens):
        with jax.set_mesh(sharding.make_mesh({"data": 2, "sequence": 4})):
            x = jax.jit(constraints.constrain_tokens)(np.zeros((4, tokens, 8), np.float32))
        return x.sharding.spec

    with caplog.at_level(logging.INFO):
        assert spec(256)[1] == "sequence"
        assert len(spec(255)) < 2 or spec(255)[1] is None
    assert "streams of 256 tokens are split over sequence=4, 64 a device" in caplog.text
    assert "streams of 255 tokens stay whole: sequence=4 splits those of 256 and more" in caplog.text


def test_bfloat16_sums_in_float32():
    arrays = [x.astype(jnp.bfloat16) for x in inputs()]
    with jax.set_mesh(sharding.make_mesh({"data": 2, "sequence": 4})):
        found = jax.device_get(jax.jit(functools.partial(attend, scale=0.3, implementation="ring"))(*arrays))
    assert found.dtype == jnp.bfloat16 and found.shape == (2, QUERIES, 3, 4)
    assert difference(found.astype(np.float32), definition(arrays, {})[0]) < 2e-2


def test_ring_inside_a_scan_with_recomputation():
    query, key, value = inputs(8, 8)
    weights = normal(60, 3, 4, 4)

    def loss(weights, implementation):
        @jax.checkpoint
        def body(x, weight):
            return attend(x @ weight, key, value, implementation=implementation), None

        return (jax.lax.scan(body, query, weights)[0] ** 2).sum()

    expected = jax.jit(jax.value_and_grad(functools.partial(loss, implementation="xla")))(weights)
    with jax.set_mesh(sharding.make_mesh({"data": 2, "sequence": 4})):
        found = jax.device_get(jax.jit(jax.value_and_grad(functools.partial(loss, implementation="ring")))(weights))
    assert difference(found, expected) < 1e-5
