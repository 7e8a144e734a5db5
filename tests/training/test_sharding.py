"""Sharding on eight devices: the numbers of one device, the shardings asked for, checkpoints that change meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo import zoo
from transformer_zoo.task import Context
from transformer_zoo.training import checkpoints as store
from transformer_zoo.training import loop, sharding, state
from transformer_zoo.training.config import load_config
from transformer_zoo.training.errors import UserError

pytestmark = pytest.mark.devices(8)
MESHES = [{"data": 8}, {"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}]
SMALL = {"model.depth": 2, "model.width": 32, "model.num_heads": 2, "model.unroll": 1, "dtype": "float32"}


@functools.cache
def small_task(paper):
    decoder = {"model.decoder_width": 32, "model.decoder_depth": 1} if paper == "mae" else {}
    config = load_config(f"configs/{paper}.py", SMALL | decoder)
    return zoo.build_task(config), config


@functools.cache
def inputs(paper):
    task, _ = small_task(paper)
    rng = np.random.default_rng(0)
    shapes = state.abstract_variables(task).params["model"]
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.2, shapes)
    spec = task.spec(16)
    batch = {"image": rng.normal(size=spec["image"].shape).astype(np.float32)}
    if "label" in spec:
        batch["label"] = rng.integers(0, 9, 16, dtype=np.int32)
    return params, batch


def loss_and_gradient(paper, mesh):
    task, _ = small_task(paper)
    params, batch = inputs(paper)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, sharding.shardings({"model": params}, mesh)["model"])
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))

        def loss(params, batch):
            ctx = Context(jax.random.key(3), jnp.int32(0), train=True)
            return task.loss(state.Variables({"model": params}), batch, ctx)[0]

        return jax.device_get(jax.jit(jax.value_and_grad(loss))(params, batch))


@functools.cache
def one_device(paper):
    return loss_and_gradient(paper, sharding.make_mesh({}, jax.devices()[:1]))


@pytest.mark.parametrize("sizes", MESHES, ids=["data", "data_fsdp", "data_fsdp_tensor"])
@pytest.mark.parametrize("paper", ["vit", "mae"])
def test_a_sharded_step_has_the_loss_and_gradient_of_one_device(paper, sizes):
    loss, gradient = one_device(paper)
    sharded_loss, sharded_gradient = loss_and_gradient(paper, sharding.make_mesh(sizes))
    np.testing.assert_allclose(sharded_loss, loss, rtol=1e-5)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    for (path, expected), found in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(sharded_gradient)
    ):
        assert np.abs(found - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1e-2 * scale), sharding.path_of(
            path
        )


def specs(sizes, paper="vit"):
    task, config = small_task(paper)
    mesh = sharding.make_mesh(sizes)
    optimizers = loop.make_optimizers(task, {"model": config.optimizer}, 100)
    abstract = state.abstract_state(task, optimizers, True, mesh)
    with jax.set_mesh(mesh):
        made = state.create_state(task, optimizers, abstract, 0)
    leaves = jax.tree_util.tree_leaves_with_path(made)
    return {sharding.path_of(path): (leaf.sharding.spec, leaf) for path, leaf in leaves}


def test_large_kernels_are_created_split_as_the_rules_say():
    found = specs({"data": 2, "fsdp": 2, "tensor": 2})
    expected = {
        "blocks/attention/qkv/kernel": (None, "fsdp", None, "tensor", None),
        "blocks/attention/out/kernel": (None, "tensor", None, "fsdp"),
        "blocks/mlp/up/kernel": (None, "fsdp", "tensor"),
        "blocks/mlp/down/kernel": (None, "tensor", "fsdp"),
    }
    for name, spec in expected.items():
        for tree in ("params", "ema"):
            assert tuple(found[f"{tree}/model/{name}"][0]) == spec, name
    moments = [name for name in found if name.startswith("optimizer") and name.endswith("mu/blocks/mlp/up/kernel")]
    assert len(moments) == 1 and tuple(found[moments[0]][0]) == expected["blocks/mlp/up/kernel"]
    kernel = found["params/model/blocks/mlp/up/kernel"][1]
    assert kernel.addressable_shards[0].data.shape == (2, 16, 64), "a device holds a quarter of it"


def test_a_large_parameter_that_stays_whole_stops_the_run_and_is_named():
    mesh = sharding.make_mesh({"data": 1, "fsdp": 8})
    params = {
        "odd": jax.ShapeDtypeStruct((301, 303), jnp.float32),
        "even": jax.ShapeDtypeStruct((304, 304), jnp.float32),
    }
    with pytest.raises(UserError, match=r"cannot be split by them: odd \(301, 303\)\. Choose"):
        sharding.check_sharded(params, sharding.shardings(params, mesh), mesh)


def test_a_checkpoint_moves_between_meshes(tmp_path):
    task, config = small_task("vit")
    optimizers = loop.make_optimizers(task, {"model": config.optimizer}, 100)

    def abstract_on(sizes, count):
        mesh = sharding.make_mesh(sizes, jax.devices()[:count])
        return mesh, state.abstract_state(task, optimizers, True, mesh)

    mesh, abstract = abstract_on({"data": 2, "fsdp": 4}, 8)
    with jax.set_mesh(mesh):
        made = state.create_state(task, optimizers, abstract, 0)
    original = jax.device_get(made)
    steps = [({"data": 1, "fsdp": 4}, 4), ({}, 1), ({"data": 2, "fsdp": 2, "tensor": 2}, 8)]
    for number, (sizes, count) in enumerate(steps):
        checkpoints = store.Checkpoints(tmp_path, keep=9)
        checkpoints.save(number, made, {})
        checkpoints.close()
        _, abstract = abstract_on(sizes, count)
        made, _ = store.Checkpoints(tmp_path).restore_newest(abstract)
        for wanted, leaf in zip(jax.tree.leaves(abstract), jax.tree.leaves(made)):
            assert leaf.sharding == wanted.sharding
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(made), original)


def test_a_batch_that_the_mesh_cannot_divide_is_refused_with_the_numbers():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
    with pytest.raises(UserError, match=r"batch_size 12 cannot be split over data 2 x fsdp 4 = 8 .* nearest .* is 16"):
        sharding.check_batch_size(mesh, 12)
    with pytest.raises(UserError, match="batch_size 32 / accumulate_steps 8 cannot be split"):
        sharding.check_batch_size(mesh, 32, 8)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "needs a multiple of 3 devices, but there are 8"),
        ({"data": 4}, "data=4.* needs a multiple of 4 devices, but there are 8"),
        ({"data": -1, "fsdp": -1}, "one axis at most may be -1"),
        ({"date": 8}, "no axis 'date'; there are data, fsdp, tensor, sequence, expert"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(sizes)
