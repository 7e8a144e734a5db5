"""Patches are pixels of the photographs, and no pixel is in two splits."""

import socket

import numpy as np
import pytest
from skimage import data

from transformer_zoo.data import photographs
from transformer_zoo.data.photographs import Photographs


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a photograph was sought on the network")

    monkeypatch.setattr(socket, "socket", refuse)
    photographs._photographs.cache_clear()


def test_patches_are_cut_from_the_photograph_their_label_names():
    source = Photographs("val", side=24, stride=20)
    batch = source.read(np.arange(len(source)), np.zeros(len(source), np.uint64))
    coffee = [name for name, _ in photographs.PHOTOGRAPHS].index("coffee")
    corners = source.corners[batch["label"] == coffee]
    picture = data.coffee()
    assert len(corners) == len(range(0, 400 - 23, 20)) * len(range(420, 510 - 23, 20))
    for (_, top, left), patch in zip(corners, batch["image"][batch["label"] == coffee]):
        np.testing.assert_array_equal(patch, picture[top : top + 24, left : left + 24])


def test_no_pixel_is_in_two_splits_and_every_photograph_in_each():
    parts = {}
    for split in ("train", "val", "test"):
        source = Photographs(split, side=32, stride=8)
        parts[split] = [source.corners[source.corners[:, 0] == number] for number in range(6)]
    for train, val, test in zip(*parts.values()):
        assert 0 < len(val) < len(train) and 0 < len(test) < len(train)
        assert train[:, 2].max() + 32 <= val[:, 2].min() and val[:, 2].max() + 32 <= test[:, 2].min()


def test_a_patch_larger_than_a_part_is_refused_and_the_largest_named():
    with pytest.raises(ValueError, match=r"side is 300, but .* only 67 wide") as error:
        Photographs("train", side=300)
    assert len(Photographs("test", side=67)) > 0, error
    with pytest.raises(ValueError, match=r"stride is 0, but must be at least 1"):
        Photographs("train", stride=0)
    with pytest.raises(ValueError, match="there are train, val, test"):
        Photographs("tests")
