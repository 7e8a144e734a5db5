"""Models whose tokens are split over devices: the numbers of one device, and no stream gathered."""

import functools

import jax
import numpy as np
import pytest

from tests.test_every_paper import random_like
from transformer_zoo import zoo
from transformer_zoo.training import loop, sharding, state, step
from transformer_zoo.training.config import load_config
from transformer_zoo.training.planner.programs import traffic

pytestmark = pytest.mark.devices(8)
SMALL = {"model.depth": 2, "model.width": 32, "model.num_heads": 2, "model.unroll": 1, "dtype": "float32"}
# 16 x 16 patches and a class token, 4 x 8 x 8 ids behind two: what 2 and 4 devices do not divide evenly.
PAPERS = {
    "vit": SMALL | {"model.image_size": (32, 32), "model.patch_size": (2, 2)},
    "magvit": SMALL | {"model.dropout_rate": 0.1},
}
TOKENS = {"vit": 257, "magvit": 258}
BATCH = 8


@functools.cache
def stepped(paper, **sizes):
    """(loss, parameters before, parameters after one step of SGD with a rate of 1, collectives)."""
    config = load_config(f"configs/{paper}.py", PAPERS[paper])
    task = zoo.build_task(config)
    mesh = sharding.make_mesh(sizes, jax.devices() if sizes else jax.devices()[:1])
    sgd = {"name": "sgd", "learning_rate": 1.0, "schedule": "constant", "momentum": 0.0}
    optimizers = loop.make_optimizers(task, {"model": sgd}, 10)
    abstract = state.abstract_state(task, optimizers, False, mesh)
    rng = np.random.default_rng(0)
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    filled = random_like(abstract, rng, 0.1).replace(step=np.int32(0))
    batch = random_like(task.spec(BATCH), rng, 1.0)
    with jax.set_mesh(mesh):
        one = jax.jit(
            step.make_step(task, optimizers, seed=0, every={"model": 1}),
            static_argnums=2,
            out_shardings=(placed, None),
        )
        arguments = (jax.device_put(filled, placed), jax.device_put(batch, sharding.batch_sharding(mesh)))
        compiled = one.lower(*arguments, task.phase(0)).compile()
        after, metrics = jax.device_get(compiled(*arguments))
    return metrics["loss"], filled.params, after.params, traffic(compiled.as_text()).collectives


@pytest.mark.parametrize(
    ("paper", "sizes"),
    [
        ("vit", {"data": 1, "fsdp": 2, "sequence": 4}),
        ("vit", {"data": 2, "sequence": 2, "tensor": 2}),
        ("magvit", {"data": 4, "sequence": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else "_".join(f"{k}{v}" for k, v in value.items()),
)
def test_a_step_on_split_tokens_has_the_loss_and_gradient_of_one_device(paper, sizes):
    expected, before, one, _ = stepped(paper)
    loss, _, several, collectives = stepped(paper, **sizes)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    gradients = [jax.tree.map(np.subtract, before, after) for after in (one, several)]
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients[0]))
    for (path, wanted), found in zip(jax.tree_util.tree_leaves_with_path(gradients[0]), jax.tree.leaves(gradients[1])):
        bound = 1e-5 * max(np.abs(wanted).max(), 1e-2 * scale)
        assert np.abs(found - wanted).max() <= bound, sharding.path_of(path)

    parts = sizes["data"] * sizes.get("fsdp", 1)
    block = -(-TOKENS[paper] // sizes["sequence"]) * BATCH // parts * 32 * 4 // sizes.get("tensor", 1)
    table = TOKENS[paper] * 32 * 4  # of positions, whose gradient is wanted whole
    gathers = [one for one in collectives if one.kind == "all-gather" and one.devices == sizes["sequence"]]
    assert not [one for one in gathers if one.size > table], gathers
    turns = [one for one in collectives if one.kind == "collective-permute" and one.size == block]
    # Of both blocks: keys and values once around forward and backward, their gradients once around and home.
    assert sum(one.times for one in turns) == 2 * (6 * (sizes["sequence"] - 1) + 2)
