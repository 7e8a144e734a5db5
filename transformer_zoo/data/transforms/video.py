"""Frames of clips."""

import numpy as np

from transformer_zoo.data import draws
from transformer_zoo.data.transforms import Fields
from transformer_zoo.data.transforms.images import pack, picture_fields


def sample_frames(batch: Fields, seeds: np.ndarray, frames: int, stride: int = 1, random: bool = True) -> Fields:
    """`video` cut to `frames` frames, every `stride`-th of a stretch of the clip.

    The stretch begins at random, or lies in the middle where `random` is False (for evaluation). Of a clip that is
    shorter than the stretch the last frame is repeated.

    Args:
        batch: with `video` [batch, time, height, width, channels], or an object array [batch] of clips.
        seeds: uint64 [batch].
        frames: of the result, at least 1.
        stride: from a frame to the next, at least 1.
        random: where the stretch begins.
    """
    if frames < 1 or stride < 1:
        raise ValueError(f"data.transforms.sample_frames: frames {frames} and stride {stride} must be at least 1")
    if "video" not in picture_fields(batch):
        raise ValueError(f"data.transforms.sample_frames: there is no field 'video', only {', '.join(batch)}")
    clips = batch["video"]
    lengths = np.array([len(clip) for clip in clips])
    spare = np.maximum(lengths - ((frames - 1) * stride + 1), 0)
    starts = np.floor(draws.uniforms(seeds, 0) * (spare + 1)).astype(np.int64) if random else spare // 2
    indices = np.minimum(starts[:, None] + stride * np.arange(frames), lengths[:, None] - 1)
    if clips.dtype != object:
        return batch | {"video": clips[np.arange(len(clips))[:, None], indices]}
    return batch | {"video": pack([clip[chosen] for clip, chosen in zip(clips, indices)])}
