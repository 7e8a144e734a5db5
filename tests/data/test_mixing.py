"""Mixup and cutmix: convex, consistent with the labels, and nothing where they are off."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.data.mixing import mix
from transformer_zoo.task import Context, Variables
from transformer_zoo.tasks.classification import Classification

COUNT, SIDE, CLASSES = 4, 24, 3
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(COUNT, SIDE, SIDE, 2)), jnp.float32)
TARGETS = jnp.eye(CLASSES)[jnp.array([0, 1, 2, 0])]
# Every image is its own number, so that a pixel tells where it comes from.
KEYS = jax.random.split(jax.random.key(1), 2000)
MARKED = jnp.broadcast_to(jnp.arange(COUNT, dtype=jnp.float32)[:, None, None, None], (COUNT, SIDE, SIDE, 1))


@functools.cache
def many(**options):
    """Mixed images and targets for 2000 keys; the images are `MARKED` and `IMAGES` together."""
    images = jnp.concatenate([MARKED, IMAGES], axis=-1)
    mixed = jax.jit(jax.vmap(lambda key: mix(key, images, TARGETS, **options)))(KEYS)
    return tuple(map(np.asarray, mixed))


def test_off_gives_back_what_came_in():
    images, targets = mix(jax.random.key(0), IMAGES, TARGETS)
    assert images is IMAGES and targets is TARGETS


def test_mixup_is_one_convex_combination_with_the_reversed_batch():
    images, targets = many(mixup_alpha=2.0)
    for mixed, soft in zip(images[:20, ..., 1:], targets):
        share = soft[1, 1]  # of the second image, whose partner is of class 2
        assert 0 < share < 1
        np.testing.assert_allclose(soft, share * TARGETS + (1 - share) * TARGETS[::-1], atol=1e-6)
        np.testing.assert_allclose(mixed, share * IMAGES + (1 - share) * IMAGES[::-1], atol=1e-5)


def test_shares_of_mixup_follow_the_beta_distribution():
    shares = many(mixup_alpha=2.0)[1][:, 1, 1]
    assert abs(shares.mean() - 0.5) < 0.03 and abs(shares.var() - 1 / 20) < 0.006  # 1 / (4 (2 alpha + 1))


def test_the_weight_of_a_label_is_the_share_of_pixels_in_cutmix():
    images, targets = many(cutmix_alpha=1.0)
    for mixed, soft in zip(images[:400], targets):
        own = mixed[1, :, :, 0] == 1
        assert np.isin(mixed[1, ..., 0], (1, 2)).all() and soft[1, 1] == pytest.approx(own.mean(), abs=1e-6)
        np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-6)
        box = np.argwhere(~own)
        if len(box):
            low, high = box.min(axis=0), box.max(axis=0) + 1
            assert len(box) == (high - low).prod(), "what is cut out is a rectangle"
        np.testing.assert_array_equal((mixed[0, :, :, 0] == 0), own)  # the same box in every image


def test_boxes_of_cutmix_are_as_large_as_drawn_and_centred_anywhere():
    images, _ = many(cutmix_alpha=1.0)
    cut = images[:, 1, :, :, 0] != 1
    # Uniform areas a, cut off at the border: the side sqrt(a) centred uniformly keeps (s - s^2 / 4) of itself.
    sides = np.sqrt((np.arange(1000) + 0.5) / 1000)
    assert abs(cut.mean() - ((sides - sides**2 / 4) ** 2).mean()) < 0.02
    assert abs(cut[:, :, : SIDE // 2].mean() - cut[:, :, SIDE // 2 :].mean()) < 0.02
    assert abs(cut[:, : SIDE // 2].mean() - cut[:, SIDE // 2 :].mean()) < 0.02


def test_with_both_on_a_step_takes_one_of_them():
    images, _ = many(mixup_alpha=1.0, cutmix_alpha=1.0, switch_probability=0.75)
    whole = (
        np.array([len(np.unique(mixed[1, ..., 0])) for mixed in images]) == 1
    )  # blended, or a box that is empty or all
    blended = whole & ~np.isin(images[:, 1, 0, 0, 0], (1, 2))
    assert abs(blended.mean() - 0.25) < 0.04
    assert (~whole).mean() > 0.6


def test_frames_of_a_clip_share_the_box():
    clips = jnp.repeat(MARKED[:, None], 3, axis=1)
    videos, _ = jax.jit(lambda key: mix(key, clips, TARGETS, cutmix_alpha=1.0))(KEYS[3])
    images = many(cutmix_alpha=1.0)[0][3, ..., :1]
    assert 0 < (images[1] == 1).mean() < 1
    np.testing.assert_array_equal(videos, np.repeat(images[:, None], 3, axis=1))


def test_smoothing_before_is_smoothing_after():
    smooth = 0.9 * TARGETS + 0.1 / CLASSES
    soft = many(mixup_alpha=2.0)[1][2]
    _, found = jax.jit(lambda key: mix(key, IMAGES, smooth, mixup_alpha=2.0))(KEYS[2])
    np.testing.assert_allclose(found, 0.9 * soft + 0.1 / CLASSES, atol=1e-6)


# In the task


class Mean(nn.Module):
    """Logits are the mean pixel, counted against fixed levels."""

    num_classes: int = CLASSES
    image_size: tuple[int, int] = (SIDE, SIDE)
    channels: int = 1

    @nn.compact
    def __call__(self, images, train=False):
        return images.mean(axis=(1, 2)) * self.param("level", lambda key: jnp.array([1.0, -0.5, 0.3])), {}


def test_classification_mixes_in_training_only():
    batch = {"image": MARKED, "label": jnp.array([0, 1, 2, 0])}
    variables = Variables({"model": {"level": jnp.array([1.0, -0.5, 0.3])}})
    ctx = Context(jax.random.key(5), jnp.int32(0))

    def expected(images, targets):
        logits = np.asarray(images.mean(axis=(1, 2))) * np.array([1.0, -0.5, 0.3])
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return -(targets * logs).sum(axis=1).mean(), (logits.argmax(1) == targets.argmax(1)).mean()

    smooth = 0.9 * TARGETS + 0.1 / CLASSES
    plain, mixing = (Classification(Mean(), label_smoothing=0.1, cutmix_alpha=alpha) for alpha in (0.0, 1.0))
    mixed = mix(jax.random.fold_in(ctx.key, 1), MARKED, smooth, cutmix_alpha=1.0)
    untouched = expected(MARKED, np.asarray(smooth))
    for task, train, (loss, accuracy) in (
        (plain, True, untouched),
        (mixing, False, untouched),
        (mixing, True, expected(mixed[0], np.asarray(mixed[1]))),
    ):
        value, aux = task.loss(variables, batch, ctx.replace(train=train))
        assert float(value) == pytest.approx(loss, rel=1e-5) and float(aux.metrics["accuracy"]) == accuracy
    assert abs(expected(mixed[0], np.asarray(mixed[1]))[0] - untouched[0]) > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup_alpha": -0.1}, r"task.mixup_alpha is -0.1, but must be at least 0 \(0: off\)"),
        ({"cutmix_alpha": -1.0}, r"task.cutmix_alpha is -1.0"),
        ({"switch_probability": 1.5}, r"task.switch_probability is 1.5, but must lie between 0 and 1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Classification(Mean(), **options)
