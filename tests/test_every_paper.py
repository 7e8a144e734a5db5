"""What holds for every paper: these tests walk the index, so a new paper is tested by being listed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo import zoo
from transformer_zoo.training import loop, sharding, state, step
from transformer_zoo.training.config import load_config

CONFIGS = {key: entry["config"] for key, entry in zoo.papers().items()}


def random_like(tree, rng, scale):
    """Arrays for ShapeDtypeStructs, every float random, zero-initialised gates too."""

    def fill(leaf):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return (rng.normal(size=leaf.shape) * scale).astype(leaf.dtype)
        return rng.integers(0, 2, leaf.shape).astype(leaf.dtype)

    return jax.tree.map(fill, tree)


@pytest.mark.devices(8)
@pytest.mark.parametrize("key", CONFIGS)
def test_one_sharded_bfloat16_step_is_finite_and_reaches_every_parameter(key):
    config = load_config(CONFIGS[key], {"dtype": "bfloat16"})
    if "unroll" in config.model:
        config.model.unroll = 1  # compiles sooner
    task = zoo.build_task(config)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    players = {
        name: {"name": "sgd", "learning_rate": 1.0, "schedule": "constant", "momentum": 0.0} for name in task.players
    }
    optimizers = loop.make_optimizers(task, players, 10)
    abstract = state.abstract_state(task, optimizers, False, mesh)
    rng = np.random.default_rng(0)
    with jax.set_mesh(mesh):
        filled = random_like(abstract, rng, 0.3).replace(step=np.int32(0))
        filled = jax.device_put(filled, jax.tree.map(lambda leaf: leaf.sharding, abstract))
        batch = jax.device_put(random_like(task.spec(8), rng, 1.0), sharding.batch_sharding(mesh))
        before = jax.device_get(filled.params)
        one = step.make_step(task, optimizers, seed=0, every=dict.fromkeys(task.players, 1))
        after, metrics = jax.jit(one, static_argnums=2)(filled, batch, task.phase(0))
    assert all(np.isfinite(float(value)) for value in metrics.values())
    moved = jax.tree.map(lambda old, new: float(np.abs(old - new).max()), before, jax.device_get(after.params))
    still = [sharding.path_of(path) for path, size in jax.tree_util.tree_leaves_with_path(moved) if size == 0]
    assert not still, "these parameters got no gradient"
