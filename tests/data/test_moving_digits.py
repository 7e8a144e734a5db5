"""Digits move as captions say, turn at walls, and those held out are held out."""

import numpy as np
import pytest

from transformer_zoo.data import draws
from transformer_zoo.data.digits import Digits
from transformer_zoo.data.moving_digits import DIRECTIONS, WORDS, MovingDigits


def read(source, seed=0):
    indices = np.arange(len(source))
    return source.read(indices, draws.record_seeds(seed, 1, indices))


def places(source, batch):
    """Top left corners [clips, frames, 2] of the one digit, found by looking for its pixels."""
    images, _ = source.digits
    found = np.zeros((*batch["video"].shape[:2], 2), int)
    for clip, (frames, image) in enumerate(zip(batch["video"][..., 0], images)):
        for number, frame in enumerate(frames):
            assert frame.sum() == image.sum()
            windows = np.lib.stride_tricks.sliding_window_view(frame, image.shape)
            (place,) = np.argwhere((windows == image).all(axis=(2, 3)))
            found[clip, number] = place
    return found


def test_without_walls_a_digit_goes_where_its_caption_says():
    source = MovingDigits("val", frames=4, side=18, speed=3, bounce=False)
    batch = read(source)
    moved = np.diff(places(source, batch), axis=1)
    expected = 3 * np.array(list(DIRECTIONS.values()))[batch["direction"]]
    np.testing.assert_array_equal(moved, np.broadcast_to(expected[:, None], moved.shape))
    assert set(batch["direction"]) == set(range(8))
    for text, caption, label, direction in zip(*(batch[f] for f in ("text", "caption", "label", "direction"))):
        assert text == f"the digit {label} moves {list(DIRECTIONS)[direction]}"
        assert [WORDS[word] for word in caption if word] == [*text.split(), "<eos>"]


@pytest.mark.parametrize(("side", "scale"), [(14, 1), (28, 2)])
def test_at_a_wall_a_digit_turns(side, scale):
    source = MovingDigits("val", frames=9, side=side, speed=1, scale=scale)
    batch = read(source)
    small = batch["video"][:, :, ::scale, scale - 1 :: scale]
    np.testing.assert_array_equal(small.repeat(scale, axis=2).repeat(scale, axis=3), batch["video"])
    batch["video"] = small
    moved = np.diff(places(source, batch), axis=1)
    assert set(np.unique(moved)) == {-1, 0, 1}
    signs = np.array(list(DIRECTIONS.values()))[batch["direction"]]
    np.testing.assert_array_equal(moved == 0, np.broadcast_to(signs[:, None] == 0, moved.shape))
    turned = moved * signs[:, None] < 0
    assert not turned[:, :4].any(), "for the first half it goes where the caption says"
    assert turned.any(axis=(1, 2)).all(), "in 8 steps on 6 pixels every digit meets a wall"
    assert (np.diff(turned.astype(int), axis=1) != 0).sum(axis=1).max() == 1, "and turns once"


def test_every_place_is_a_start_and_a_reading_has_its_own_path():
    source = MovingDigits("train", frames=1, side=11)
    first, again, other = (read(source, seed) for seed in (0, 0, 1))
    assert len({tuple(place) for place in places(source, first)[:, 0]}) == 16
    np.testing.assert_array_equal(first["video"], again["video"])
    assert (first["video"] != other["video"]).any(axis=(1, 2, 3, 4)).mean() > 0.8


def test_two_digits_share_the_canvas_and_the_caption_names_both():
    one, two = (MovingDigits("test", num_digits=number, side=20) for number in (1, 2))
    single, double = read(one), read(two)
    assert (double["video"] >= single["video"]).all(), "the first digit takes the same path, the second adds ink"
    assert (double["video"].sum(axis=(1, 2, 3, 4)) > single["video"].sum(axis=(1, 2, 3, 4))).all()
    for text, before in zip(double["text"], single["text"]):
        assert text.startswith(before + " and the digit ")
    np.testing.assert_array_equal(double["label"], Digits("test").records[1])
    others = [int(text.split(" and ")[1].split()[2]) for text in double["text"]]
    assert np.bincount(others).min() > 15, "all digits occur as the second"


def test_what_does_not_fit_is_refused_with_what_would():
    with pytest.raises(ValueError, match=r"goes 21 pixels of a digit, .* choose at most 2, or bounce"):
        MovingDigits(side=24, speed=3, bounce=False)
    assert len(MovingDigits("val", side=24, speed=2, bounce=False)) == 180
    with pytest.raises(ValueError, match="side is 8, but must be at least 9"):
        MovingDigits(side=8)
    with pytest.raises(ValueError, match=r"side is 21, but must be a multiple of data\.options\.scale 2: 20 or 22"):
        MovingDigits(side=21, scale=2)
    with pytest.raises(ValueError, match="no split 'valid'"):
        MovingDigits("valid")
