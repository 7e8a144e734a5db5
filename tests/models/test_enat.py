"""ENAT where the golden file does not reach: computing less must change nothing, and must cost less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tasks.test_masked_tokens import Corners
from transformer_zoo.decoding.schedules import hidden_after
from transformer_zoo.models.masked_generation.enat import ENAT, ENATTokens, Previous
from transformer_zoo.task import Context, Variables
from transformer_zoo.tasks.masked_tokens import Sampling
from transformer_zoo.training.flops import macs

NETWORK = ENAT(grid=(2, 3), num_codes=4, num_classes=5, encoder_depth=2, decoder_depth=1, width=8, num_heads=2)
KEY = jax.random.key(0)
FROZEN = {"tokenizer": {"params": {"offset": jnp.float32(0)}, "state": {}}}


@pytest.fixture(scope="module")
def params():
    ids = jnp.zeros((1, 2, 3), jnp.int32)
    leaves, structure = jax.tree.flatten(jax.eval_shape(NETWORK.init, KEY, ids, ids[:, 0, 0])["params"])
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(structure, [0.5 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])


def test_computing_only_what_is_new_gives_what_masks_give(params):
    rng = np.random.default_rng(1)
    ids = jnp.asarray(rng.integers(0, 4, (3, 6)))
    rank = jnp.asarray(np.stack([rng.permutation(6) for _ in range(3)]))
    labels = jnp.arange(3)
    dense = gathered = None
    seen = 0
    apply = jax.jit(lambda *given: NETWORK.apply({"params": params}, *given), static_argnums=3)
    for visible in (0, 2, 5):
        shown = jnp.where(rank < visible, ids, NETWORK.mask_id).reshape(3, 2, 3)
        found = apply(shown, labels, dense or Previous(jnp.zeros((3, 6, 8)), jnp.ones((3, 6), bool)), None)
        fewer = apply(shown, labels, gathered, (seen, visible - seen))
        assert np.abs(found[0] - fewer[0]).max() < 1e-4 * np.abs(found[0]).max()
        hidden = rank >= visible
        dense, gathered = (Previous(one[1]["features"], hidden) for one in (found, fewer))
        seen = visible


def task(**options):
    return ENATTokens(**dict(network=NETWORK, tokenizer=Corners(), sampling=Sampling(steps=3)) | options)


def test_sampling_with_counts_is_sampling_with_masks(params):
    variables = Variables({"model": params}, {}, FROZEN)
    free = task(sampling=Sampling(steps=3, guidance_scale=2.5, guidance_ramp="rising_from_zero"))
    sample = jax.jit(free.sample)
    found = sample(variables, jnp.arange(4), KEY)
    masked = sample(variables, jnp.arange(4), KEY, unknown=jnp.ones((4, 2, 3), bool))
    assert np.array_equal(found, masked) and (found < 4).all()
    assert free.guidance_scales.tolist() == pytest.approx([1.0, 1.5, 2.0])


def test_a_step_costs_what_is_new_to_it():
    wide = ENAT(grid=(4, 4), encoder_depth=6, decoder_depth=1, width=32, num_heads=2, num_codes=8, num_classes=2)
    ids = jax.ShapeDtypeStruct((1, 4, 4), jnp.int32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    shapes = jax.eval_shape(wide.init, KEY, ids, label)
    previous = Previous(jax.ShapeDtypeStruct((1, 16, 32), jnp.float32), jax.ShapeDtypeStruct((1, 16), jnp.bool_))

    def cost(counts):
        return macs(lambda *given: wide.apply(*given, counts)[0], shapes, ids, label, previous)

    left = [16, *hidden_after(4, "cosine", 16).tolist()]
    steps = [(16 - left[max(i - 1, 0)], left[max(i - 1, 0)] - left[i]) for i in range(4)]
    assert [sum(pair) for pair in steps] == [0, 16 - left[1], 16 - left[2], 16 - left[3]]
    spent = sum(cost(counts) for counts in steps)
    assert spent < 0.4 * 4 * cost(None)


def test_the_teacher_s_features_are_reused_in_some_steps_only(params):
    shapes = jax.eval_shape(task().init, KEY)
    assert set(shapes.params["model"]) == set(params)
    variables = Variables({"model": params}, {}, FROZEN)
    images = jnp.asarray((np.random.default_rng(3).random((2, 4, 6, 1)) > 0.5).astype(np.float32))
    batch = {"image": images, "label": jnp.arange(2)}

    def value(ema, probability):
        ctx = Context(jax.random.key(3), jnp.int32(0), ema={"model": ema})
        return task(reuse_probability=probability, ratio_alpha=2.0, ratio_beta=6.0).loss(variables, batch, ctx)[0]

    other = jax.tree.map(lambda leaf: leaf * 1.5, params)
    differentiated = jax.jit(jax.value_and_grad(value), static_argnums=1)
    (reused, gradient), (changed, _) = differentiated(params, 1.0), differentiated(other, 1.0)
    assert reused != changed and not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    assert differentiated(params, 0.0)[0] == differentiated(other, 0.0)[0]
    hidden = task().hide(KEY, (3, 2, 3))
    assert len(set(np.asarray(hidden).sum(axis=(1, 2)).tolist())) == 1
