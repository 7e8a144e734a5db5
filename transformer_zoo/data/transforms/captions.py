"""Captions of fixed length."""

import numpy as np

from transformer_zoo.data.transforms import Fields


def shorten(batch: Fields, seeds: np.ndarray, length: int, field: str = "caption") -> Fields:
    """The first `length` ids of a padded caption, int [batch, words].

    Raises:
        ValueError: a caption is longer.
    """
    if batch[field][:, length:].any():
        longest = int((batch[field] != 0).sum(axis=1).max())
        raise ValueError(f"data.transforms.shorten: length is {length}, but a {field} has {longest} ids")
    return batch | {field: batch[field][:, :length]}
