"""What iLLaMA's golden run does not show: the mask, its schedule, and what the class token can see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.models.backbones.illama import ILLaMA, SoftMaskClassification, hidden_width, soft_causal_mask
from transformer_zoo.task import Context, Variables

SMALL = dict(num_classes=5, image_size=(8, 8), patch_size=(4, 4), depth=2, width=16, num_heads=2, hidden=24)


def filled(network):
    images = jnp.zeros((1, *network.image_size, 3))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5, jnp.float32), shapes)


def images(seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, 8, 8, 3)), jnp.float32)


def test_the_mask_goes_from_all_ones_to_the_lower_triangle():
    np.testing.assert_array_equal(soft_causal_mask(3, 1.0)[0, 0], np.ones((3, 3)))
    np.testing.assert_array_equal(soft_causal_mask(3, 0.0)[0, 0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    np.testing.assert_allclose(soft_causal_mask(2, 0.25)[0, 0], [[1, 0.25], [1, 1]])


def without_keys(variables):
    """The same with queries and keys of 0, so that every softmax is even."""
    kernel = variables["params"]["blocks"]["attention"]["qkv"]["kernel"]
    variables["params"]["blocks"]["attention"]["qkv"]["kernel"] = kernel.at[:, :, :2].set(0)
    return variables


def test_a_class_token_in_front_sees_no_patch_and_one_behind_sees_all():
    for first in (True, False):
        network = ILLaMA(**SMALL, class_token_first=first)
        variables = without_keys(filled(network))
        one, other = (network.apply(variables, images(seed))[0] for seed in (1, 2))
        assert np.abs(one - other).max() == 0 if first else np.abs(one - other).max() > 0.05


def test_earlier_tokens_depend_on_later_ones_only_through_the_softmax():
    network = ILLaMA(**SMALL)
    variables = filled(network)
    picture = images(1)
    changed = picture.at[:, 4:, 4:].add(1.0)  # the last of four patches
    before, after = (network.apply(variables, x)[1]["levels"][0] for x in (picture, changed))
    leak = np.abs(before - after).max(axis=(0, 2))
    assert leak[0] > 1e-6  # a strictly causal network would not move here
    variables = without_keys(variables)
    before, after = (network.apply(variables, x)[1]["levels"][0] for x in (picture, changed))
    leak = np.abs(before - after).max(axis=(0, 2))
    assert leak[:3].max() == 0 and leak[3:].min() > 1e-3


@pytest.mark.parametrize("schedule, expected", [("linear", [1, 2 / 3, 1 / 3, 0, 0]), ("constant", [1, 1, 1, 1, 0])])
def test_the_rate_falls_to_0_as_scheduled(schedule, expected):
    task = SoftMaskClassification(ILLaMA(**SMALL), soft_mask_steps=4, soft_mask_schedule=schedule)
    np.testing.assert_allclose([task.soft_mask_rate(jnp.int32(step)) for step in range(5)], expected, atol=1e-6)
    causal = SoftMaskClassification(ILLaMA(**SMALL), soft_mask_schedule=schedule)
    assert causal.soft_mask_rate(jnp.int32(0)) == 0


def test_training_uses_the_rate_of_its_step_and_evaluation_the_causal_mask():
    task = SoftMaskClassification(ILLaMA(**SMALL), soft_mask_steps=4)
    variables = Variables({"model": filled(task.network)["params"]})
    batch = {"image": images(3), "label": jnp.array([0, 3])}
    loss = {
        (step, train): float(task.loss(variables, batch, Context(jax.random.key(0), jnp.int32(step), train=train))[0])
        for step in (0, 9)
        for train in (False, True)
    }
    assert loss[0, False] == loss[9, False] == pytest.approx(loss[9, True], rel=1e-6)
    assert abs(loss[0, True] - loss[9, True]) > 1e-3


def test_hidden_widths_are_the_papers():
    assert [hidden_width(width) for width in (192, 384, 768, 1024)] == [512, 1024, 2048, 2816]


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="soft_mask_schedule is 'cosine'"):
        SoftMaskClassification(ILLaMA(**SMALL), soft_mask_schedule="cosine")
