"""Transforms against Pillow, explicit formulas and the distributions they are said to draw from."""

import io
import math

import numpy as np
import PIL.Image
import pytest

from transformer_zoo.convert.preprocessing import Preprocessing
from transformer_zoo.data import draws, transforms
from transformer_zoo.data.checks import CORRUPT, DataError
from transformer_zoo.data.transforms import colour, decode, images

RNG = np.random.default_rng(0)


def seeds(count, stream=0):
    return draws.record_seeds(0, stream, np.arange(count))


def noise(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


def smooth(height, width, channels=3):
    """A picture that compression and resizing change little."""
    rows, columns = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    return np.stack([255 * rows, 255 * columns, 128 * (rows + columns)], -1)[..., :channels].astype(np.uint8)


def objects(records):
    packed = np.empty(len(records), object)
    packed[:] = records
    return packed


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(*records, **options):
    return decode.decode({"image": objects(records)}, seeds(len(records)), **options)["image"]


# Chains


def test_a_chain_applies_its_transforms_in_order():
    steps = transforms.chain([("resize", {"size": [4, 6]}), ("scale", {"low": 0, "high": 1})])
    batch = {"image": noise(3, 8, 8, 1), "label": np.arange(3)}
    for _, step in steps:
        batch = step(batch, seeds(3))
    assert [name for name, _ in steps] == ["resize", "scale"]
    assert batch["image"].shape == (3, 4, 6, 1) and batch["image"].dtype == np.float32
    np.testing.assert_array_equal(batch["label"], np.arange(3))


def flips(steps, name):
    """Which of 500 records the transform `name` turned."""
    batch = {"image": np.tile(np.arange(2, dtype=np.uint8)[None, None, :, None], (500, 1, 1, 1))}
    (step,) = [step for other, step in steps if other == name]
    return step(batch, seeds(500))["image"][:, 0, 0, 0] == 1


def test_a_transform_draws_the_same_wherever_it_stands_and_never_what_another_draws():
    alone = flips(transforms.chain([("flip", {})]), "flip")
    np.testing.assert_array_equal(alone, flips(transforms.chain([("scale", {}), ("flip", {})]), "flip"))
    first, second = transforms.chain([("flip", {}), ("flip", {})])
    agree = (flips([first], "flip") == flips([second], "flip")).mean()
    assert 0.4 < agree < 0.6
    source = draws.integers(seeds(500), 0, 2) == 1  # what a source draws first
    assert 0.4 < (alone == source).mean() < 0.6


def test_every_transform_leaves_its_batch_and_other_fields_alone():
    batch = {"image": noise(4, 12, 12, 3), "label": np.arange(4)}
    video = {"video": noise(4, 5, 12, 12, 3)}
    before = {name: values.copy() for name, values in (batch | video).items()}
    options = {"resize": {"size": 5}, "resize_short_side": {"size": 5}, "sample_frames": {"frames": 2}}
    options |= {"centre_crop": {"size": 5}, "random_resized_crop": {"size": 5}, "shorten": {"length": 3}}
    for name in transforms.TRANSFORMS:
        given = video if name == "sample_frames" else batch
        if name == "shorten":
            given = batch | {"caption": np.tile([1, 2, 0, 0], (4, 1))}
        if name == "scene_objects":
            given = batch | {"boxes": np.zeros((4, 4, 4), np.uint8), "obj": np.zeros((4, 4, 3), np.uint8)}
        if name == "random_erasing":
            given = {"image": batch["image"].astype(np.float32)}
        ((_, step),) = transforms.chain([(name, options.get(name, {}))])
        first, again = step(given, seeds(4)), step(given, seeds(4))
        for field in first:
            np.testing.assert_array_equal(first[field], again[field])
        assert ("label" in first) == ("label" in given)
    for name, values in before.items():
        np.testing.assert_array_equal((batch | video)[name], values)


# Decoding


def test_lossless_formats_come_back_as_they_were():
    pictures = [noise(5, 7, 3), noise(5, 7, 3)]
    found = decoded(encoded(PIL.Image.fromarray(pictures[0]), "png"), encoded(PIL.Image.fromarray(pictures[1]), "bmp"))
    np.testing.assert_array_equal(found, pictures)
    different = decoded(encoded(PIL.Image.new("RGB", (3, 4)), "png"), encoded(PIL.Image.new("RGB", (4, 3)), "png"))
    assert [picture.shape for picture in different] == [(4, 3, 3), (3, 4, 3)]


def test_every_mode_becomes_the_channels_asked_for():
    red = (200, 30, 60)
    palette = PIL.Image.new("RGB", (4, 4), red).quantize(4)
    transparent = palette.copy()
    modes = {
        "RGB": encoded(PIL.Image.new("RGB", (4, 4), red), "png"),
        "RGBA": encoded(PIL.Image.new("RGBA", (4, 4), (*red, 7)), "png"),
        "P": encoded(palette, "png"),
        "P with alpha": encoded(transparent, "png", transparency=b"\x07\xff\xff\xff"),
    }
    luma = round(0.299 * 200 + 0.587 * 30 + 0.114 * 60)
    for name, data in modes.items():
        assert (decoded(data)[0] == red).all(), name
        assert abs(decoded(data, channels=1)[0].astype(int) - luma).max() <= 1, name
    greys = {
        "L": encoded(PIL.Image.new("L", (4, 4), 90), "png"),
        "LA": encoded(PIL.Image.new("LA", (4, 4), (90, 7)), "png"),
        "16 bits": encoded(PIL.Image.fromarray(np.full((4, 4), 90 * 257, np.uint16)), "png"),
        "CMYK": encoded(PIL.Image.new("CMYK", (4, 4), (0, 0, 0, 165)), "tiff"),
    }
    for name, data in greys.items():
        assert (decoded(data)[0] == 90).all() and decoded(data)[0].shape == (4, 4, 3), name
        assert (decoded(data, channels=1)[0] == 90).all() and decoded(data, channels=1).shape == (1, 4, 4, 1), name
    bits = encoded(PIL.Image.fromarray(np.eye(4, dtype=bool)), "png")
    np.testing.assert_array_equal(decoded(bits, channels=1)[0, ..., 0], 255 * np.eye(4))


def test_arrays_keep_their_pixels_and_get_the_channels():
    picture = noise(3, 4, 5, 3)
    np.testing.assert_array_equal(decoded(*picture), picture)
    grey = decoded(*picture, channels=1)
    expected = [np.asarray(PIL.Image.fromarray(one).convert("L"))[..., None] for one in picture]
    np.testing.assert_array_equal(grey, expected)
    np.testing.assert_array_equal(decoded(*grey), np.repeat(grey, 3, axis=-1))


def test_photographs_are_turned_upright():
    picture = smooth(6, 9)
    for orientation, turned in {3: picture[::-1, ::-1], 6: np.rot90(picture, 1), 8: np.rot90(picture, -1)}.items():
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        data = encoded(PIL.Image.fromarray(np.ascontiguousarray(turned)), "png", exif=exif)
        np.testing.assert_array_equal(decoded(data)[0], picture)


def test_large_photographs_may_be_read_at_a_fraction_of_their_size():
    data = encoded(PIL.Image.fromarray(smooth(400, 600)), "jpeg", quality=95)
    for min_side, shape in {0: (400, 600), 201: (400, 600), 200: (200, 300), 60: (100, 150), 50: (50, 75)}.items():
        found = decoded(data, min_side=min_side)[0]
        assert found.shape == (*shape, 3), min_side
        assert abs(found.astype(int) - smooth(*shape)).max() < 12
    assert decoded(encoded(PIL.Image.fromarray(smooth(400, 600)), "png"), min_side=50)[0].shape == (400, 600, 3)


def test_animations_become_clips():
    frames = [PIL.Image.fromarray(np.full((4, 6), level, np.uint8)) for level in (10, 90, 200)]
    data = encoded(frames[0], "gif", save_all=True, append_images=frames[1:])
    batch = decode.decode({"video": objects([data, data])}, seeds(2), channels=1)
    assert batch["video"].shape == (2, 3, 4, 6, 1) and batch["video"][1, :, 2, 2, 0].tolist() == [10, 90, 200]


def test_records_that_do_not_decode_are_replaced_by_the_next_good_one():
    good = [encoded(PIL.Image.new("L", (4, 4), level), "png") for level in (10, 40)]
    batch = {
        "image": objects([b"text", good[0], b"", good[1][:-30], good[1], b"GIF89a"]),
        "label": np.array([9, 0, 9, 9, 1, 9]),
        "record": np.array([f"{row}.png" for row in range(6)], object),
    }
    found = decode.decode(batch, seeds(6), channels=1)
    assert found["image"][:, 0, 0, 0].tolist() == [10, 10, 40, 40, 40, 10]
    assert found["label"].tolist() == [0, 0, 1, 1, 1, 0]
    assert found["record"].tolist() == ["1.png", "1.png", "4.png", "4.png", "4.png", "1.png"]
    named = [text.partition(": ")[0] for text in found[CORRUPT]]
    assert named == ["0.png", "", "2.png", "3.png", "", "5.png"]
    assert found[CORRUPT][[0, 2]].tolist() == ["0.png: no picture of a known format", "2.png: no bytes"]
    with pytest.raises(DataError, match=r"none of 2 records of a batch decodes \(0.png, 1.png, ...: no picture of a"):
        decode.decode({"image": objects([b"a", b"b"]), "record": batch["record"][:2]}, seeds(2))


# Geometry


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resizing_is_pillows(channels, interpolation):
    pictures = noise(2, 9, 13, channels)
    found = images.resize({"image": pictures}, seeds(2), (5, 7), interpolation)["image"]
    resample = PIL.Image.Resampling[interpolation.upper()]
    for picture, result in zip(pictures, found):
        for channel in range(channels):
            expected = PIL.Image.fromarray(picture[..., channel]).resize((7, 5), resample)
            np.testing.assert_array_equal(result[..., channel], np.asarray(expected))


def test_the_short_side_is_resized_and_the_long_one_rounded_down():
    pictures = objects([noise(10, 25, 3), noise(25, 10, 3), noise(7, 7, 3)])
    found = images.resize_short_side({"image": pictures}, seeds(3), 7)["image"]
    assert [picture.shape for picture in found] == [(7, 17, 3), (17, 7, 3), (7, 7, 3)]
    np.testing.assert_array_equal(found[2], pictures[2])


@pytest.mark.parametrize("size", [(24, 24), (24, 20)])
@pytest.mark.parametrize(("crop", "keep_aspect"), [(0.875, True), (1.0, True), (0.9, False)])
def test_the_centre_crop_is_that_of_given_weights(size, crop, keep_aspect):
    reference = Preprocessing(size, crop=crop, keep_aspect=keep_aspect)
    pictures = objects([noise(30, 41, 3), noise(50, 26, 3), noise(24, 24, 3)])
    batch = images.centre_crop({"image": pictures}, seeds(3), size, crop, "bicubic", keep_aspect)
    found = colour.normalise(batch, seeds(3))["image"]
    np.testing.assert_allclose(found, [reference(picture) for picture in pictures], atol=1e-6)


def test_boxes_have_uniform_areas_and_log_uniform_aspects_and_lie_anywhere():
    count, side = 20_000, 1000
    sides = np.full(count, side)
    top, left, height, width = images.random_boxes(seeds(count), sides, sides, (0.1, 0.3), (0.5, 2.0))
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= side).all() and (left + width <= side).all()
    limit = 5 * math.sqrt(count / 10)
    area, aspect = height * width / side**2, np.log(width / height)
    assert abs(np.histogram(area, 10, (0.1, 0.3))[0] - count / 10).max() < limit
    assert abs(np.histogram(aspect, 10, (-math.log(2), math.log(2)))[0] - count / 10).max() < limit
    for place in (top / (side - height), left / (side - width)):
        assert abs(np.histogram(place, 10, (0, 1))[0] - count / 10).max() < limit
    for one, other in ((area, aspect), (area, top / (side - height)), (top / (side - height), left / (side - width))):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


def test_boxes_that_do_not_fit_are_drawn_again_and_given_up_in_the_middle():
    wide = (np.full(2000, 100), np.full(2000, 400))
    _, _, height, width = images.random_boxes(seeds(2000), *wide, (0.08, 1.0), (3 / 4, 4 / 3))
    fallback = (height == 100) & (width == 133)
    assert 0 < fallback.mean() < 0.2 and (height * width / 40_000 < 0.45).all()
    for sides, box in {(100, 1000): (0, 433, 100, 133), (1000, 100): (433, 0, 133, 100)}.items():
        found = images.random_boxes(seeds(3), *(np.full(3, side) for side in sides), (0.9, 1.0), (3 / 4, 4 / 3))
        assert [part[0] for part in found] == list(box)


def test_the_crop_is_the_box_resized_and_alike_in_all_frames():
    pictures = objects([noise(20, 30, 3), noise(40, 25, 3)])
    found = images.random_resized_crop({"image": pictures}, seeds(2), 8)["image"]
    sides = [np.array([picture.shape[axis] for picture in pictures]) for axis in range(2)]
    boxes = np.stack(images.random_boxes(seeds(2), *sides, (0.08, 1.0), (3 / 4, 4 / 3)), 1)
    for picture, (top, left, height, width), result in zip(pictures, boxes, found):
        box = PIL.Image.fromarray(picture).crop((left, top, left + width, top + height))
        np.testing.assert_array_equal(result, np.asarray(box.resize((8, 8), PIL.Image.Resampling.BICUBIC)))
    clips = np.repeat(noise(2, 1, 20, 30, 3), 3, axis=1)
    videos = images.random_resized_crop({"video": clips, "image": clips[:, 0]}, seeds(2), 8)
    for frame in range(3):
        np.testing.assert_array_equal(videos["video"][:, frame], videos["image"])


def test_half_of_the_records_are_flipped_whole():
    pictures = noise(400, 3, 5, 1)
    found = images.flip({"image": pictures, "video": pictures[:, None].astype(np.float32)}, seeds(400))
    flipped = (found["image"] == pictures[:, :, ::-1]).all(axis=(1, 2, 3))
    same = (found["image"] == pictures).all(axis=(1, 2, 3))
    assert (flipped ^ same).all() and 0.4 < flipped.mean() < 0.6
    np.testing.assert_array_equal(found["video"][:, 0], found["image"])
    uneven = images.flip({"image": objects([*pictures[:399], noise(4, 4, 1)])}, seeds(400))["image"]
    for row in range(399):
        np.testing.assert_array_equal(uneven[row], found["image"][row])


# Colour


def test_scaling_and_normalisation_are_their_formulas():
    picture = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    found = colour.scale({"image": picture}, seeds(1), -1.0, 3.0)["image"]
    np.testing.assert_allclose(found, picture / 255 * 4 - 1, atol=1e-6)
    pictures, clips = noise(2, 4, 5, 3), noise(2, 3, 4, 5, 3)
    mean, std = (0.5, 0.25, 0.1), (0.2, 0.4, 0.1)
    batch = colour.normalise({"image": pictures, "video": clips}, seeds(2), mean, std)
    for values, found in ((pictures, batch["image"]), (clips, batch["video"])):
        assert found.dtype == np.float32 and found.flags.c_contiguous
        np.testing.assert_allclose(found, (values / 255 - np.array(mean)) / np.array(std), atol=2e-6)
    single = colour.normalise({"image": pictures}, seeds(2), (0.5,), (0.5,))["image"]
    np.testing.assert_allclose(single, pictures / 127.5 - 1, atol=1e-6)


def jittered(picture, **amounts):
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    batch = {"image": np.repeat(picture[None], 300, axis=0)}
    return colour.colour_jitter(batch, seeds(300), **off | amounts)["image"].astype(float)


def test_jitter_scales_within_its_bounds():
    picture = np.full((4, 4, 3), (100, 60, 20), np.uint8)
    picture[:2] = (50, 90, 80)
    luma = picture @ np.array([0.299, 0.587, 0.114])
    centres = {"brightness": 0.0, "contrast": luma.mean(), "saturation": luma[..., None]}
    for name, centre in centres.items():
        found = jittered(picture, **{name: 0.5})
        away = (picture - centre)[0, 0]
        factors = ((found - centre)[:, 0, 0] @ away) / (away @ away)  # least squares over the channels of one pixel
        assert 0.45 < factors.min() < 0.55 and 1.45 < factors.max() < 1.55 and abs(factors.mean() - 1) < 0.06, name
        expected = (centre + factors[:, None, None, None] * (picture - centre)).clip(0, 255)
        np.testing.assert_allclose(found, expected, atol=2.1)
    np.testing.assert_array_equal(jittered(picture), np.repeat(picture[None], 300, axis=0))


def test_jitter_turns_hues_both_ways():
    found = jittered(np.full((2, 2, 3), (200, 0, 0), np.uint8), hue=1 / 6)[:, 0, 0]
    np.testing.assert_allclose(found.max(axis=1), 200, atol=2)  # value and saturation stay
    np.testing.assert_allclose(found.min(axis=1), 0, atol=2)
    green, blue = found[:, 1], found[:, 2]
    assert (np.minimum(green, blue) < 3).all() and green.max() > 185 and blue.max() > 185
    assert 0.4 < (green > blue).mean() < 0.6


def test_jitter_of_brightness_and_contrast_comes_in_either_order():
    picture = np.zeros((2, 2, 1), np.uint8)
    picture[0] = 200
    ways = set()
    for row in range(200):
        ways.add(tuple(np.argsort([int(draws.draw(seeds(200), 4 + number)[row]) for number in range(2)])))
    assert ways == {(0, 1), (1, 0)}
    found = jittered(picture, brightness=0.5, contrast=0.5)
    # The mean is scaled by the brightness alone in one order, and both keep the two levels apart in proportion.
    spread, mean = found[:, 0, 0, 0] - found[:, 1, 1, 0], found.mean(axis=(1, 2, 3))
    assert np.corrcoef(spread, mean)[0, 1] < 0.95 and spread.min() > 40


def test_erased_boxes_have_the_areas_and_aspects_asked_for_and_normal_noise():
    blank = np.full((3000, 40, 40, 1), 9.0, np.float32)
    found = colour.random_erasing({"image": blank}, seeds(3000), 0.5, (0.05, 0.3), (0.5, 2.0))["image"][..., 0]
    changed = found != 9.0
    erased = changed.any(axis=(1, 2))
    assert abs(erased.mean() - 0.5) < 0.04
    rows, columns = changed.any(axis=2).sum(axis=1)[erased], changed.any(axis=1).sum(axis=1)[erased]
    np.testing.assert_array_equal(changed.sum(axis=(1, 2))[erased], rows * columns)  # a full rectangle
    areas = rows * columns / 1600
    assert 0.045 < areas.min() < 0.07 and 0.28 < areas.max() < 0.32 and abs(areas.mean() - 0.175) < 0.01
    aspects = np.log(rows / columns)
    assert abs(aspects.mean()) < 0.05 and math.log(1.7) < aspects.max() < math.log(2.3)
    values = found[changed]
    assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01 and abs((values**4).mean() - 3) < 0.1
    empty = colour.random_erasing({"image": blank[:50]}, seeds(50), 1.0, noise=False)["image"]
    assert set(np.unique(empty)) == {0.0, 9.0} and (empty == 0).any(axis=(1, 2, 3)).all()


# What users get wrong


@pytest.mark.parametrize(
    ("name", "options", "batch", "message"),
    [
        ("resize", {"size": 0}, {}, r"data.transforms.resize.size is 0, but must be \(height, width\) or one side"),
        ("resize", {"size": 4, "interpolation": "cubic"}, {}, r"interpolation 'cubic' is .*; did you mean 'bicubic'"),
        ("centre_crop", {"size": 4, "crop": 1.5}, {}, r"centre_crop.crop is 1.5, but must be above 0 and at most 1"),
        (
            "random_resized_crop",
            {"size": 4, "scale": (0.5, 0.2)},
            {},
            r"crop.scale is \(0.5, 0.2\), but must be \(low,",
        ),
        ("random_resized_crop", {"size": 4, "scale": (1, 2)}, {}, r"above 0 and at most 1"),
        ("random_resized_crop", {"size": 4, "ratio": (0.0, 2.0)}, {}, r"crop.ratio is \(0.0, 2.0\)"),
        ("normalise", {"mean": (0.5,)}, {}, r"mean \(0.5,\) and std .* must be as many"),
        ("normalise", {"mean": (0.5, 0.5), "std": (0.5, 0.5)}, {}, r"2 means for pictures of 3 channels"),
        ("colour_jitter", {"hue": 0.6}, {}, r"colour_jitter.hue is 0.6, but must be between 0 and 0.5"),
        ("decode", {"channels": 2}, {}, r"decode.channels is 2, but must be 1 or 3"),
        ("random_erasing", {}, {}, r"random_erasing must come after 'normalise' or 'scale'"),
        ("resize", {"size": 4}, {"image": np.zeros((2, 8, 8, 3), np.float32)}, r"pixels are float32 too early"),
        ("resize", {"size": 4}, {"image": noise(2, 8, 8, 2)}, r"pictures must have 1 or 3 channels here, not 2"),
        ("resize", {"size": 4}, {"image": objects([b"png", b"png"])}, r"'image' is still encoded; put 'decode' first"),
        ("scale", {}, {"image": objects([noise(4, 4, 3), noise(5, 4, 3)])}, r"'image' has records of different sizes;"),
        ("scale", {}, {"image": np.zeros((2, 8, 8, 3), np.float32)}, r"scale takes uint8 pixels, not float32"),
        ("flip", {}, {"depth": noise(2, 8, 8, 1)}, r"there is neither 'image' nor 'video', only depth"),
        ("decode", {}, {"depth": noise(2, 8, 8, 1)}, r"there is neither 'image' nor 'video', only depth"),
    ],
)
def test_errors_name_the_field_and_what_would_serve(name, options, batch, message):
    ((_, step),) = transforms.chain([(name, options)])
    with pytest.raises(ValueError, match=message):
        step(batch or {"image": noise(2, 8, 8, 3)}, seeds(2))
