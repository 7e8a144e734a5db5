"""Positions against loops, and the objective over several sizes: its chain of teachers, its sizes, its evaluation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.models.backbones.resformer import (
    LocalPositionAttention,
    MultiResolution,
    ResFormer,
    normalised_sincos,
    resize,
    scale_consistency,
)
from transformer_zoo.task import Context, Variables


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def filled(module, x, *sizes):
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, *sizes), x)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


def test_global_positions_are_sines_of_places_relative_to_the_grid():
    found = normalised_sincos((3, 5), 8)
    for row in range(3):
        for column in range(5):
            for part, place in enumerate([(row + 1) / 3, (column + 1) / 5]):
                for j in range(4):
                    angle = 2 * np.pi * place / 10000 ** (2 * (j // 2) / 4)
                    expected = np.sin(angle) if j % 2 == 0 else np.cos(angle)
                    assert found[row, column, 4 * part + j] == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(normalised_sincos((6, 10), 8)[1::2, 1::2], found, atol=1e-5)


def test_local_positions_are_one_convolution_of_the_patches_values_for_all_heads():
    grid, heads, width = (3, 2), 2, 6
    x = normal(1, 2, 7, width)
    plain, local = (LocalPositionAttention(heads, local_positions=local) for local in (False, True))
    variables = {"params": filled(plain, x, grid)["params"]}
    untrained = local.init(jax.random.key(0), x, grid)["params"]
    assert untrained["local_kernel"].shape == (3, 3, 1, 3)
    assert np.abs(untrained["local_kernel"]).max() == np.abs(untrained["local_bias"]).max() == 0
    p = {"local_kernel": normal(2, 3, 3, 1, 3), "local_bias": normal(3, 3)} | variables["params"]
    value = jnp.einsum("bnc,chd->bnhd", x, p["qkv"]["kernel"][:, 2]) + p["qkv"]["bias"][2]
    added = np.zeros((2, 7, heads, 3))  # the class token in front gets none
    for row in range(3):
        for column in range(2):
            added[:, 1 + row * 2 + column] += p["local_bias"]
            for i in range(3):
                for j in range(3):
                    r, c = row + i - 1, column + j - 1
                    if 0 <= r < 3 and 0 <= c < 2:
                        added[:, 1 + row * 2 + column] += value[:, 1 + r * 2 + c] * p["local_kernel"][i, j, 0]
    expected = plain.apply(variables, x, grid) + added.reshape(2, 7, width) @ p["out"]["kernel"]
    np.testing.assert_allclose(local.apply({"params": p}, x, grid), expected, rtol=1e-4, atol=1e-4)


def test_consistency_is_smooth_l1_to_whitened_features_that_get_no_gradient():
    student, teacher = normal(4, 3, 5) * 2, normal(5, 3, 5) * 4 + 1
    t = np.asarray(teacher)
    whitened = (t - t.mean(1, keepdims=True)) / np.sqrt(t.var(1, keepdims=True) + 1e-6)
    apart = np.abs(np.asarray(student) - whitened)
    expected = np.where(apart < 1, 0.5 * apart**2, apart - 0.5).mean(1)
    np.testing.assert_allclose(scale_consistency(student, teacher), expected, rtol=1e-5)
    gradients = jax.grad(lambda *both: scale_consistency(*both).sum(), (0, 1))(student, teacher)
    assert np.abs(gradients[0]).max() > 0 and np.abs(gradients[1]).max() == 0


class SizeOfImage(nn.Module):
    """Features that tell the size of an image, and logits that are right below 12 pixels."""

    num_classes: int = 2
    image_size: tuple[int, int] = (16, 16)
    patch_size: tuple[int, int] = (4, 4)
    channels: int = 1

    @nn.compact
    def __call__(self, images, *, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        side = images.shape[1]
        pooled = jnp.tile(scale * jnp.asarray([side / 16, 0.0, -((side / 16) ** 2)]), (images.shape[0], 1))
        logits = jnp.asarray([0.0, 1.0 if side < 12 else -1.0]) * scale
        return jnp.tile(logits, (images.shape[0], 1)), {"pooled": pooled}


BATCH = {"image": jnp.zeros((2, 16, 16, 1)), "label": jnp.array([1, 0])}


def test_each_size_learns_from_the_next_larger_one_alone():
    task = MultiResolution(SizeOfImage(), resolutions=(16, 12, 8), consistency=2.0)
    variables = Variables({"model": {"scale": jnp.ones(())}})
    loss, aux = task.loss(variables, BATCH, Context(jax.random.key(0), jnp.int32(0)))
    features = [np.array([[side / 16, 0.0, -((side / 16) ** 2)]], np.float32) for side in (16, 12, 8)]
    chain = [float(scale_consistency(*map(jnp.asarray, pair))[0]) for pair in zip(features[1:], features)]
    entropy = (np.log1p(np.exp(-1)) + np.log1p(np.exp(1))) / 2
    expected = [entropy, entropy + 2 * chain[0], entropy + 2 * chain[1]]
    found = [aux.metrics[f"loss_{side}"] for side in (16, 12, 8)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)
    assert float(aux.metrics["consistency"]) == pytest.approx(np.mean(chain), rel=1e-5)
    evaluated, _ = task.loss(variables, BATCH, Context(jax.random.key(0), jnp.int32(0), train=False))
    assert float(evaluated) == pytest.approx(entropy, rel=1e-5)


def test_evaluation_reports_the_accuracy_at_every_size():
    task = MultiResolution(SizeOfImage(), resolutions=(16,), test_resolutions=(8, 12))
    judge = task.evaluators()["resized"]
    batch = BATCH | {"label": jnp.array([1, 1])}
    variables = Variables({"model": {"scale": jnp.ones(())}})
    arrays = judge.compute(variables, batch, Context(jax.random.key(0), jnp.int32(0), train=False))
    padded = {"weight": np.array([1.0, 0.0])}
    metrics = judge.result(judge.update(judge.update(None, arrays, padded), arrays, padded)).metrics
    assert metrics == {"accuracy_8": 1.0, "accuracy_12": 0.0, "accuracy": 0.5}
    assert list(MultiResolution(SizeOfImage(), resolutions=(16,)).evaluators()) == [""]


def test_one_network_takes_images_of_any_size_and_of_no_square():
    network = ResFormer(num_classes=3, image_size=(8, 8), patch_size=(4, 4), depth=1, width=8, num_heads=2)
    variables = filled(network, jnp.zeros((1, 8, 8, 3)))
    picture = normal(6, 1, 8, 12, 3)
    turned = picture.transpose(0, 2, 1, 3)
    one, other = (jax.jit(network.apply)(variables, x)[1]["tokens"] for x in (picture, turned))
    assert one.shape == other.shape == (1, 6, 8)
    assert np.abs(one - other.reshape(1, 3, 2, 8).transpose(0, 2, 1, 3).reshape(1, 6, 8)).max() > 1e-2


def test_shrinking_smooths_and_keeps_the_size_of_training_as_it_is():
    images = normal(7, 1, 8, 8, 2)
    np.testing.assert_array_equal(resize(images, 8), images)
    checks = jnp.indices((8, 8)).sum(0)[None, :, :, None] % 2 * 1.0
    np.testing.assert_allclose(resize(checks, 4), 0.5, atol=0.1)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(resolutions=(8, 16)), r"resolutions is \(8, 16\), but must fall from the largest"),
        (dict(resolutions=()), r"resolutions is \(\)"),
        (dict(resolutions=(16, 10)), "resolutions has 10, but must be multiples of 4, such as 8"),
        (
            dict(resolutions=(16,), test_resolutions=(2,)),
            "test_resolutions has 2, but must be multiples of 4, such as 4",
        ),
    ],
)
def test_sizes_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        MultiResolution(SizeOfImage(), **options)
