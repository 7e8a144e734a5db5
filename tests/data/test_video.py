"""Frames of clips: which ones, and from where."""

import numpy as np
import pytest

from transformer_zoo.data import draws
from transformer_zoo.data.transforms.video import sample_frames


def seeds(count):
    return draws.record_seeds(0, 0, np.arange(count))


def clips(count, length):
    """Clips whose pixels are the number of their frame."""
    return np.broadcast_to(np.arange(length, dtype=np.uint8)[None, :, None, None, None], (count, length, 2, 2, 1))


def frames_of(batch):
    return [clip[:, 0, 0, 0].tolist() for clip in batch["video"]]


def test_stretches_begin_anywhere_in_training():
    found = frames_of(sample_frames({"video": clips(600, 10)}, seeds(600), 3, 2))
    starts = np.array([frames[0] for frames in found])
    assert all(frames == [start, start + 2, start + 4] for frames, start in zip(found, starts))
    counts = np.bincount(starts)
    assert len(counts) == 6 and abs(counts - 100).max() < 5 * np.sqrt(100)


def test_stretches_lie_in_the_middle_in_evaluation():
    assert frames_of(sample_frames({"video": clips(2, 10)}, seeds(2), 3, 2, random=False)) == [[2, 4, 6]] * 2
    assert frames_of(sample_frames({"video": clips(1, 4)}, seeds(1), 4, random=False)) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("random", [True, False])
def test_the_last_frame_of_a_short_clip_is_repeated(random):
    assert frames_of(sample_frames({"video": clips(1, 3)}, seeds(1), 4, 2, random=random)) == [[0, 2, 2, 2]]


def test_clips_of_different_lengths_become_one_array():
    uneven = np.empty(2, object)
    uneven[:] = [clips(1, 7)[0], clips(1, 2)[0]]
    batch = sample_frames({"video": uneven, "label": np.arange(2)}, seeds(2), 3, random=False)
    assert batch["video"].shape == (2, 3, 2, 2, 1) and frames_of(batch) == [[2, 3, 4], [0, 1, 1]]
    assert batch["label"].tolist() == [0, 1]


def test_impossible_numbers_and_pictures_are_refused():
    with pytest.raises(ValueError, match="frames 0 and stride 1 must be at least 1"):
        sample_frames({"video": clips(1, 3)}, seeds(1), 0)
    with pytest.raises(ValueError, match="there is no field 'video', only image"):
        sample_frames({"image": clips(1, 3)[:, 0]}, seeds(1), 2)
