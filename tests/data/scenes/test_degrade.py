"""`degrade`: parameters in their ranges, the same samples always, and steps that do what their names say."""

import numpy as np
import pytest
from PIL import Image

from transformer_zoo.data.scenes import degrade, slots, still


def seeds(count, split="train"):
    return slots.scene_seeds(0, "degrade", split, np.arange(count))


def images(count, side=64):
    return still.Fields(still.draw(slots.scene_seeds(0, "still", "train", np.arange(count)), "train", side)).image


def test_a_sample_does_not_depend_on_its_batch():
    pictures = images(12)
    whole, part = degrade.degrade(pictures, seeds(12)), degrade.degrade(pictures[[7, 3]], seeds(12)[[7, 3]])
    assert whole["lq"].shape == (12, 16, 16, 3) and whole["lq_up"].shape == (12, 64, 64, 3)
    for name in ("lq", "lq_up"):
        np.testing.assert_array_equal(whole[name][[7, 3]], part[name])
    other = degrade.degrade(pictures, seeds(12, "val"))
    assert (other["lq"] != whole["lq"]).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(("order", "sigma", "gauss", "poisson", "quality"), [(0, 2, 15, 2, 30), (1, 1, 8, 1, 50)])
def test_parameters_fill_their_ranges(order, sigma, gauss, poisson, quality):
    drawn = degrade.draw_order(seeds(4000), order)

    def fills(values, low, high):
        assert low <= values.min() < low + 0.02 * (high - low) and high - 0.02 * (high - low) < values.max() <= high

    fills(drawn.sigma, 0.2, sigma)
    fills(drawn.angle, 0, np.pi)
    fills(drawn.noise[drawn.poisson], 0.05, poisson)
    fills(drawn.noise[~drawn.poisson], 1, gauss)
    fills(drawn.quality, quality, 95)
    assert set(drawn.method) == {0, 1, 2}
    assert 0.45 < drawn.poisson.mean() < 0.55
    assert 0.45 < (drawn.sigma[:, 0] == drawn.sigma[:, 1]).mean() < 0.55


def test_the_two_orders_are_drawn_apart_and_half_the_samples_have_two(monkeypatch):
    first, second = (degrade.draw_order(seeds(2000), order) for order in range(2))
    assert abs(np.corrcoef(first.angle, second.angle)[0, 1]) < 0.1
    calls = []
    plain = degrade._apply
    monkeypatch.setattr(
        degrade, "_apply", lambda x, s, order, side: calls.append((order, side, len(x))) or plain(x, s, order, side)
    )
    degrade.degrade(images(64), seeds(64))
    (_, once), (_, twice), _ = [((order, side), count) for order, side, count in calls]
    assert [call[:2] for call in calls] == [(0, 16), (0, 32), (1, 16)] and once + twice == 64 and 16 < once < 48


def test_low_quality_looks_like_the_picture_and_second_orders_are_worse_than_none():
    pictures = images(40)
    low = degrade.degrade(pictures, seeds(40))["lq_up"].astype(float)
    error = ((low - pictures) ** 2).mean(axis=(1, 2, 3))
    others = ((low - np.roll(pictures, 1, axis=0)) ** 2).mean(axis=(1, 2, 3))
    assert (error < others).mean() > 0.95 and error.min() > 0
    psnr = 10 * np.log10(255**2 / error)
    assert 15 < psnr.mean() < 30


@pytest.mark.parametrize("side", [16, 32, 128])
@pytest.mark.parametrize(
    ("method", "filter_of_pillow"), list(zip(degrade.METHODS, (Image.BOX, Image.BILINEAR, Image.BICUBIC)))
)
def test_resizing_is_that_of_pillow(method, filter_of_pillow, side):
    pictures = images(3)
    number = np.full(3, degrade.METHODS.index(method))
    ours = degrade._to_bytes(degrade._resize(pictures.astype(float), side, number))
    for picture, found in zip(pictures, ours):
        theirs = np.asarray(Image.fromarray(picture).resize((side, side), filter_of_pillow))
        assert abs(found.astype(int) - theirs).max() <= 1  # it rounds between rows and columns


def test_a_point_is_blurred_to_its_gaussian():
    point = np.zeros((2, 25, 25, 3))
    point[:, 12, 12] = 1
    blurred = degrade._blur(point, np.array([[2.0, 0.7], [1.0, 1.0]]), np.array([np.pi / 6, 0.3]))[..., 0]
    y, x = np.mgrid[-12:13, -12:13]
    for spot, (major, minor), angle in zip(blurred, ((2.0, 0.7), (1.0, 1.0)), (np.pi / 6, 0.3)):
        assert spot.sum() == pytest.approx(1)
        covariance = np.array([[(spot * x * x).sum(), (spot * x * y).sum()], [0, (spot * y * y).sum()]])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        expected = turn @ np.diag([major**2, minor**2]) @ turn.T
        np.testing.assert_allclose(covariance[[0, 0, 1], [0, 1, 1]], expected[[0, 0, 1], [0, 1, 1]], atol=0.1)


@pytest.mark.parametrize("level", [0, 3, 50, 200])
def test_noise_has_the_variance_of_its_kind(level):
    flat = np.full((1, 120, 120, 3), level, np.uint8)
    drawn = degrade.draw_order(seeds(1), 0)
    counted = drawn._replace(poisson=np.array([True]), noise=np.array([1.0]))
    noisy = degrade._noise(flat, seeds(1), 0, counted).astype(float)
    assert noisy.mean() == pytest.approx(level, abs=0.2) and noisy.var() == pytest.approx(level, rel=0.05)
    if level:
        counts = np.bincount(noisy.astype(int).ravel(), minlength=256) / noisy.size
        mode = np.argmax(counts)
        assert abs(mode - level) <= max(1, level // 20)
    gaussian = drawn._replace(poisson=np.array([False]), noise=np.array([7.0]))
    noisy = degrade._noise(np.full_like(flat, 120), seeds(1), 0, gaussian).astype(float)
    assert noisy.mean() == pytest.approx(120, abs=0.2) and noisy.std() == pytest.approx(7, rel=0.02)
    again = degrade._noise(np.full_like(flat, 120), seeds(1), 1, gaussian)
    assert (again != noisy).mean() > 0.8


def test_as_a_transform_it_adds_to_the_batch():
    batch = {"image": images(2, 32), "label": np.arange(2)}
    found = degrade.add_degraded(batch, seeds(2))
    assert set(found) == {"image", "label", "lq", "lq_up"} and found["lq"].shape == (2, 8, 8, 3)
    with pytest.raises(ValueError, match="a multiple of 4, but the side is 30"):
        degrade.degrade(np.zeros((1, 30, 30, 3), np.uint8), seeds(1))
