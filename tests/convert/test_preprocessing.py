import numpy as np
import pytest
from PIL import Image

from transformer_zoo.convert.preprocessing import HALF, Preprocessing


def picture(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_the_shorter_side_is_resized_and_the_centre_normalised():
    image = picture(60, 91)
    found = Preprocessing((32, 32), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), crop=0.8)(image)
    resized = np.asarray(Image.fromarray(image).resize((60, 40), Image.Resampling.BICUBIC))  # 40 * 91 / 60 = 60.7
    wanted = (resized[4:36, 14:46] / 255 - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]
    assert found.dtype == np.float32 and np.abs(found - wanted).max() <= 1e-6
    assert np.array_equal(Preprocessing((32, 32), crop=0.8)(Image.fromarray(image).convert("RGBA")).shape, (32, 32, 3))


def test_a_size_that_is_no_square_is_covered():
    image = picture(60, 91)
    found = Preprocessing((20, 40), HALF, HALF, crop=1.0, interpolation="bilinear")(image)
    resized = np.asarray(Image.fromarray(image).resize((40, 26), Image.Resampling.BILINEAR))  # 60 * 40 / 91 = 26.4
    assert np.abs(found - (resized[3:23] / 127.5 - 1)).max() <= 1e-6


def test_without_the_aspect_the_whole_image_is_seen():
    image = picture(60, 91)
    found = Preprocessing((20, 40), HALF, HALF, crop=1.0, interpolation="nearest", keep_aspect=False)(image)
    resized = np.asarray(Image.fromarray(image).resize((40, 20), Image.Resampling.NEAREST))
    assert np.abs(found - (resized / 127.5 - 1)).max() <= 1e-6


def test_grey_images_get_three_channels_and_floats_are_refused():
    grey = picture(40, 40)[..., 0]
    found = Preprocessing((40, 40), HALF, HALF, crop=1.0)(grey)
    assert np.abs(found - (grey[..., None] / 127.5 - 1)).max() <= 1e-6
    with pytest.raises(ValueError, match="must be uint8, not float64"):
        Preprocessing()(picture(40, 40) / 255)
    with pytest.raises(ValueError, match="'cubic' is none of nearest, bilinear, bicubic"):
        Preprocessing(interpolation="cubic")(grey)
