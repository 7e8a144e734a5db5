"""Raster order: the loop with a cache against whole passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tasks.test_masked_tokens import Corners
from transformer_zoo.models.masked_generation.raster import Raster, RasterTokens
from transformer_zoo.task import Context, Variables
from transformer_zoo.tasks.masked_tokens import Sampling, token_loss

KEY = jax.random.key(0)
NETWORK = Raster(
    grid=(2, 3), num_codes=4, num_conditions=5, prefix_length=2, null_condition=4, depth=2, width=8, num_heads=2
)


def task(**options):
    return RasterTokens(
        **dict(network=NETWORK, tokenizer=Corners(), condition="caption", label_smoothing=0.0) | options
    )


@pytest.fixture(scope="module")
def variables():
    leaves, structure = jax.tree.flatten(jax.eval_shape(task().init, KEY).params)
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(structure, [0.5 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])
    return Variables(params, {}, {"tokenizer": {"params": {"offset": jnp.float32(0)}, "state": {}}})


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_greedy_samples_are_those_of_whole_passes(variables, scale):
    condition = jnp.array([[0, 1], [2, 3], [1, 0]])
    chosen = task(sampling=Sampling(temperature=0.0, guidance_scale=scale))
    found = jax.jit(chosen.sample)(variables, condition, KEY)
    everywhere = jnp.ones(found.shape, bool)
    logits = chosen.predict(variables, found, condition, everywhere)
    without = chosen.predict(variables, found, jnp.full_like(condition, 4), everywhere)
    assert np.array_equal(found, (without + scale * (logits - without)).argmax(axis=-1))
    assert chosen.calls == 6 * (1 if scale == 1 else 2)


def test_a_token_is_predicted_from_those_before_it(variables):
    ids = jnp.array([[[0, 1, 2], [3, 0, 1]]])
    condition, everywhere = jnp.array([[1, 2]]), jnp.ones(ids.shape, bool)
    before = task().predict(variables, ids, condition, everywhere)
    after = task().predict(variables, ids.at[0, 1, 0].set(2), condition, everywhere)
    changed = np.abs(before - after).max(axis=-1).reshape(-1) > 1e-6
    assert changed.tolist() == [False] * 4 + [True] * 2
    images = jnp.asarray((np.random.default_rng(3).random((2, 4, 6, 1)) > 0.5).astype(np.float32))
    batch = {"image": images, "caption": jnp.array([[0, 1], [2, 3]])}
    value, _ = task().loss(variables, batch, Context(KEY, jnp.int32(0), train=False))
    ids = task().tokenize(variables, batch)
    logits = task().predict(variables, ids, batch["caption"], jnp.ones(ids.shape, bool))
    assert float(value) == pytest.approx(float(token_loss(logits, ids, jnp.ones(ids.shape, bool))), rel=1e-5)
