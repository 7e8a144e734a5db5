"""The gallery shows every source that needs no data of the user's, as pictures with the right colours."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from transformer_zoo.data import gallery, sources

OF_THE_USER = {"text", "folder", "tfds"}


def test_every_source_of_the_package_is_on_the_page():
    assert {shown.name for shown in gallery.SHOWN} == set(sources.SOURCES) - OF_THE_USER


def pictures(text):
    return [
        Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"data:image/\w+;base64,([^\"]+)", text)
    ]


def test_a_section_shows_the_records_and_what_is_real_in_them():
    shown = gallery.Shown("Canvas", "digits", {"side": 12})
    text = gallery.section(shown)
    about, count, batch = gallery.records(shown)
    assert "scikit-learn" in about and f"{count:,} records" in text and f"label {batch['label'][0]}" in text
    found = pictures(text)
    assert len(found) == gallery.COUNT and found[0].size == (132, 132)
    np.testing.assert_array_equal(np.asarray(found[3])[5::11, 5::11, 0], batch["image"][3, :, :, 0])


def test_clips_move_and_captions_stand_beside_them():
    shown = gallery.Shown("Moving", "moving_digits", {"frames": 5})
    text = gallery.section(shown)
    clip = pictures(text)[0]
    assert clip.n_frames == 5 and clip.info["duration"] == gallery.FRAME_MILLISECONDS
    assert gallery.records(shown)[2]["text"][0] in text


def test_classes_get_colours_and_what_is_near_is_bright():
    classes = gallery.pictures_of("semseg", np.array([[[0, 1], [2, 2]]], np.uint8))
    assert len({tuple(pixel) for pixel in classes[0].reshape(-1, 3)}) == 3
    depth = gallery.pictures_of("depth", np.array([[[0.0, 1.0]]], np.float32))
    assert depth[0, 0, 0].tolist() == [255] * 3 and depth[0, 0, 1].tolist() == [0] * 3
    assert gallery.pictures_of("label", np.arange(3)) is None


def test_the_command_shows_a_folder_of_ones_own_or_says_what_is_wrong(tmp_path, capsys):
    for name in ("cats", "dogs"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(8):
            picture = np.full((10 + number, 20, 3), 30 * number, np.uint8)
            Image.fromarray(picture).save(tmp_path / "images" / name / f"{number}.png")
    page = tmp_path / "page.html"
    gallery.main([f"--source=folder:{tmp_path / 'images'}", f"--out={page}"])
    assert len(pictures(page.read_text())) == min(gallery.COUNT, 13) and "label 1" in page.read_text()
    with pytest.raises(SystemExit, match="did you mean 'digits'"):
        gallery.main(["--source=digit", f"--out={page}"])
