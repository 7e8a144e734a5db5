"""RandAugment: every operation against its formula, and how operations, magnitudes and signs are drawn."""

import math

import numpy as np
import PIL.Image
import pytest

from transformer_zoo.data import draws
from transformer_zoo.data.transforms import rand_augment as module
from transformer_zoo.data.transforms.rand_augment import OPERATIONS, operation, rand_augment

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(30, 220, (16, 20, 3), np.uint8)
LUMA = np.array([0.299, 0.587, 0.114])
BICUBIC, NEAREST = PIL.Image.Resampling.BICUBIC, PIL.Image.Resampling.NEAREST


def seeds(count):
    return draws.record_seeds(0, 0, np.arange(count))


def applied(name, level, sign=1.0, increasing=True, picture=PICTURE, resample=BICUBIC):
    fill = (128,) * picture.shape[-1]
    image = PIL.Image.fromarray(picture if picture.shape[-1] == 3 else picture[..., 0])
    found = operation(name, level, sign, increasing, resample, fill)(image)
    return np.asarray(found).reshape(picture.shape)


def equalised(channel):
    """Levels so that the cumulated histogram is straight, in whole steps of the histogram without its last bin."""
    counts = np.bincount(channel.ravel(), minlength=256)
    step = (counts.sum() - counts[counts > 0][-1]) // 255
    below = step // 2 + np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.minimum(below // step, 255)[channel]


def test_operations_without_magnitude():
    low, high = PICTURE.min(axis=(0, 1)).astype(float), PICTURE.max(axis=(0, 1)).astype(float)
    stretched = (PICTURE - low) * 255 / (high - low)
    np.testing.assert_allclose(applied("auto_contrast", 3.0), stretched, atol=1)
    np.testing.assert_array_equal(applied("invert", 3.0), 255 - PICTURE)
    large = RNG.integers(60, 90, (64, 64, 3), np.uint8)
    expected = np.stack([equalised(large[..., channel]) for channel in range(3)], -1)
    np.testing.assert_array_equal(applied("equalise", 3.0, picture=large), expected)


@pytest.mark.parametrize(
    ("level", "increasing", "bits", "threshold"),
    [(0.0, True, 4, 256), (5.0, True, 2, 128), (9.0, True, 1, 26), (10.0, True, 0, 0), (15.0, True, 0, 0)]
    + [(5.0, False, 2, 128), (9.0, False, 3, 230), (15.0, False, 6, 256)],
)
def test_posterise_and_solarise(level, increasing, bits, threshold):
    mask = 256 - 2 ** (8 - bits)
    np.testing.assert_array_equal(applied("posterise", level, increasing=increasing), PICTURE & np.uint8(mask))
    solarised = np.where(threshold > PICTURE, PICTURE, 255 - PICTURE)
    np.testing.assert_array_equal(applied("solarise", level, increasing=increasing), solarised)


@pytest.mark.parametrize(("level", "added"), [(0.0, 0), (5.0, 55), (9.0, 99), (15.0, 128)])
def test_solarise_add(level, added):
    dark = np.minimum(PICTURE.astype(int) + added, 255)
    np.testing.assert_array_equal(applied("solarise_add", level), np.where(PICTURE < 128, dark, PICTURE))


@pytest.mark.parametrize(
    ("level", "sign", "increasing", "factor"),
    [(9.0, 1.0, True, 1.81), (9.0, -1.0, True, 0.19), (15.0, -1.0, True, 0.1), (9.0, 1.0, False, 1.72)]
    + [(9.0, -1.0, False, 1.72), (0.0, 1.0, False, 0.1)],
)
def test_blends_with_grey_black_and_blur(level, sign, increasing, factor):
    grey = (PICTURE @ LUMA)[..., None]
    pixels = PICTURE.astype(float)
    around = sum(pixels[1 + row : 15 + row, 1 + column : 19 + column] for row in (-1, 0, 1) for column in (-1, 0, 1))
    smooth = pixels.copy()
    smooth[1:-1, 1:-1] = (around + 4 * pixels[1:-1, 1:-1]) / 13
    for name, centre in {"colour": grey, "contrast": grey.mean(), "brightness": 0.0, "sharpness": smooth}.items():
        expected = (centre + factor * (PICTURE - centre)).clip(0, 255)
        np.testing.assert_allclose(applied(name, level, sign, increasing), expected, atol=2.1, err_msg=name)


def test_shifts_shears_and_rotations_move_pixels_as_far_as_they_say():
    rows, columns = np.mgrid[:200, :200]
    place = np.stack([rows, columns, np.zeros_like(rows)], -1).astype(np.uint8)
    inner = slice(70, 131)  # what comes from inside at every angle
    centre = (rows[inner, inner] - 99.5, columns[inner, inner] - 99.5)

    def source(name, level, sign):
        return applied(name, level, sign, picture=place, resample=NEAREST)[inner, inner].astype(float)

    share, sheared = 0.45 * 0.5, 0.3 * 0.8
    turned = math.radians(30 * 0.6)
    for sign in (1.0, -1.0):
        found = source("translate_x", 5.0, sign)
        np.testing.assert_allclose(found[..., 1], columns[inner, inner] + sign * share * 200, atol=1)
        np.testing.assert_allclose(found[..., 0], rows[inner, inner])
        found = source("translate_y", 5.0, sign)
        np.testing.assert_allclose(found[..., 0], rows[inner, inner] + sign * share * 200, atol=1)
        found = source("shear_x", 8.0, sign)
        np.testing.assert_allclose(found[..., 1], columns[inner, inner] + sign * sheared * rows[inner, inner], atol=1)
        found = source("shear_y", 8.0, sign)
        np.testing.assert_allclose(found[..., 0], rows[inner, inner] + sign * sheared * columns[inner, inner], atol=1)
        found = source("rotate", 6.0, sign)  # against the clock, as Pillow turns
        expected = 99.5 + math.cos(turned) * centre[0] + sign * math.sin(turned) * centre[1]
        np.testing.assert_allclose(found[..., 0], expected, atol=1)
    edge = applied("translate_x", 10.0, 1.0, picture=place)
    assert (edge[:, -80:] == 128).all(), "what comes in from outside is grey"


def test_pictures_of_one_channel_get_every_operation():
    grey = PICTURE[..., :1]
    for name in OPERATIONS:
        same = applied(name, 9.0, picture=np.repeat(grey, 3, axis=-1))
        np.testing.assert_allclose(applied(name, 9.0, picture=grey), same[..., :1], atol=1, err_msg=name)


# Draws


def drawn(monkeypatch, count=6000, **options):
    """(record, name, magnitude, sign) of every operation that was applied."""
    calls = []

    def noted(name, level, sign, *rest):
        calls.append((name, level, sign))
        return lambda image: image

    monkeypatch.setattr(module, "operation", noted)
    rand_augment({"image": np.zeros((count, 2, 2, 1), np.uint8)}, seeds(count), **options)
    return calls


def test_operations_are_chosen_evenly_and_applied_to_half(monkeypatch):
    calls = drawn(monkeypatch)
    names = [name for name, _, _ in calls]
    counts = np.array([names.count(name) for name in OPERATIONS])
    assert abs(counts - 400).max() < 5 * math.sqrt(400)  # 6000 records, two layers, half of them, fifteen operations
    signs = np.array([sign for _, _, sign in calls])
    assert set(signs) == {-1.0, 1.0} and abs(signs.mean()) < 0.07
    assert len(drawn(monkeypatch, 100, num_layers=3, probability=1.0)) == 300


def test_layers_are_independent(monkeypatch):
    calls = drawn(monkeypatch, 3000, probability=1.0)
    repeats = np.mean([calls[index][0] == calls[index + 1][0] for index in range(0, 6000, 2)])
    assert abs(repeats - 1 / 15) < 0.02


def test_magnitudes_are_normal_and_clipped(monkeypatch):
    levels = np.array([level for _, level, _ in drawn(monkeypatch, magnitude=5.0, magnitude_std=0.5)])
    assert abs(levels.mean() - 5) < 0.03 and abs(levels.std() - 0.5) < 0.03
    assert abs(((levels - 5) ** 4).mean() / 0.5**4 - 3) < 0.4
    levels = np.array([level for _, level, _ in drawn(monkeypatch, magnitude=9.0, magnitude_std=2.0)])
    assert levels.max() == 10 and 0.25 < (levels == 10).mean() < 0.37 and levels.min() > 0
    assert {level for _, level, _ in drawn(monkeypatch, 50, magnitude=15.0, magnitude_std=0.0)} == {15.0}
    assert min(level for _, level, _ in drawn(monkeypatch, magnitude=0.0)) == 0


def test_pictures_get_the_operations_drawn_and_all_frames_the_same():
    pictures = RNG.integers(0, 256, (40, 9, 9, 3), np.uint8)
    found = rand_augment({"image": pictures, "video": np.repeat(pictures[:, None], 2, 1)}, seeds(40), probability=1.0)
    for frame in range(2):
        np.testing.assert_array_equal(found["video"][:, frame], found["image"])
    plan = [module._draw(seeds(40), 6 * layer, 9.0, 0.5, 1.0) for layer in range(2)]
    for row, picture in enumerate(pictures):
        for numbers, _, levels, signs in plan:
            picture = applied(OPERATIONS[numbers[row]], levels[row], signs[row], picture=picture)
        np.testing.assert_array_equal(found["image"][row], picture)


def test_impossible_options_are_refused():
    batch = {"image": PICTURE[None]}
    with pytest.raises(ValueError, match=r"rand_augment.interpolation 'lanczos' is unknown"):
        rand_augment(batch, seeds(1), interpolation="lanczos")
    with pytest.raises(ValueError, match=r"magnitude -1.0 and magnitude_std 0.5 must be at least 0"):
        rand_augment(batch, seeds(1), magnitude=-1.0)
