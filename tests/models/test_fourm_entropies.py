"""Cross-entropy of targets against their own vocabularies: by tiles the same as with all of them, for less work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from transformer_zoo import zoo
from transformer_zoo.models.multimodal.fourm import entropies as module
from transformer_zoo.models.multimodal.fourm.entropies import entropies, loops_pay, sorted_entropies, tile_size
from transformer_zoo.task import Context
from transformer_zoo.training import sharding
from transformer_zoo.training.config import load_config
from transformer_zoo.training.flops import count_flops

SIZES = (3, 11, 7)


def arrays(targets=40, width=4):
    rng = np.random.default_rng(0)
    group = jnp.asarray(rng.choice([-1, 0, 2], targets, p=[0.2, 0.5, 0.3]))  # nothing of the second
    ids = jnp.asarray([rng.integers(SIZES[max(number, 0)]) for number in group])
    tables = [jnp.asarray(rng.normal(size=(size, width)), jnp.float32) for size in SIZES]
    return jnp.asarray(rng.normal(size=(targets, width)), jnp.float32), ids, group, tables


def plain(x, ids, group, tables):
    logits = jnp.stack([jnp.pad(x @ table.T, ((0, 0), (0, 11 - len(table))), constant_values=-1e9) for table in tables])
    mine = logits[group, jnp.arange(len(x))]
    found = jax.nn.logsumexp(mine, axis=-1) - jnp.take_along_axis(mine, ids[:, None], axis=1)[:, 0]
    return jnp.where(group >= 0, found, 0.0)


@pytest.mark.parametrize("tile", [2, 8, 64])
def test_loops_give_what_every_target_gives_alone(tile):
    x, ids, group, tables = arrays()
    weights = jnp.asarray(np.random.default_rng(1).normal(size=len(x)), jnp.float32)

    def looped(x, ids, group, tables):  # two shards, whose targets fall differently
        parts = (part.reshape(2, -1, *part.shape[1:]) for part in (x, ids, group))
        return sorted_entropies(*parts, tables, tile).ravel()

    @jax.jit
    def both(x, tables):
        def loss(function):
            return jax.value_and_grad(lambda x, t: (function(x, ids, group, t) * weights).sum(), (0, 1))(x, tables)

        return loss(looped), loss(plain)

    (total, gradients), (wanted, wanted_gradients) = both(x, tables)
    assert float(total) == pytest.approx(float(wanted), rel=1e-5)
    for found, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted_gradients)):
        np.testing.assert_allclose(found, other, atol=1e-5)


def test_tiles_leave_few_places_empty_and_loops_pay_where_groups_are_many():
    assert [tile_size(targets, 7) for targets in (100, 4096, 100_000)] == [128, 128, 512]
    assert loops_pay(512, 7) and not loops_pay(512, 2) and not loops_pay(128, 7)


def test_both_ways_agree_on_a_batch_and_shards_of_it(monkeypatch):
    x, ids, group, tables = arrays()
    batch = [part.reshape(4, 10, *part.shape[1:]) for part in (x, ids, group)]
    dense = jax.jit(entropies)(*batch, tables)
    np.testing.assert_allclose(dense.ravel(), plain(x, ids, group, tables), atol=1e-5)
    monkeypatch.setattr(module, "loops_pay", lambda *_: True)
    monkeypatch.setattr(module, "batch_shards", lambda: 2)
    np.testing.assert_allclose(jax.jit(lambda *parts: entropies(*parts, tables))(*batch), dense, atol=1e-5)


@pytest.mark.devices(8)
def test_loops_over_shards_and_split_tables_equal_one_device(monkeypatch):
    x, ids, group, tables = arrays(targets=64)
    tables = [jnp.pad(table, ((0, len(table) % 2), (0, 0))) for table in tables]
    batch = [part.reshape(8, 8, *part.shape[1:]) for part in (x, ids, group)]

    def total(x, tables, *labels):
        return (entropies(x, *labels, tables) * jnp.arange(1.0, 9.0)).sum()

    gradient = jax.value_and_grad(total, (0, 1))
    wanted = jax.jit(gradient)(batch[0], tables, *batch[1:])  # too few for loops to pay
    monkeypatch.setattr(module, "loops_pay", lambda *_: True)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(mesh):
        batch = [jax.device_put(part, NamedSharding(mesh, PartitionSpec(("data", "fsdp")))) for part in batch]
        tables = [jax.device_put(table, NamedSharding(mesh, PartitionSpec("tensor", "fsdp"))) for table in tables]
        found = jax.jit(gradient)(batch[0], tables, *batch[1:])
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), found, wanted)


@pytest.mark.parametrize(("size", "share"), [("B", 0.8), ("B_21", 0.6)])
def test_vocabularies_of_others_are_saved(size, share, monkeypatch):
    task = zoo.build_task(load_config(f"configs/fourm.py:{size}"))
    variables, ctx = jax.eval_shape(task.init, jax.random.key(0)), Context(jax.random.key(0), jnp.int32(0))

    def step():
        gradient = jax.grad(lambda params, batch: task.loss(variables.replace(params=params), batch, ctx)[0])
        return count_flops(gradient, variables.params, task.spec(64)).total

    found = step()
    monkeypatch.setattr(module, "loops_pay", lambda *_: False)
    assert found < share * step()
