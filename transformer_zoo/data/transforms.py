"""Transforms of whole batches on the host: pure functions of (batch, seeds), named in `config.data.transforms`."""

from collections.abc import Callable, Iterable

import numpy as np

from transformer_zoo import naming

Fields = dict[str, np.ndarray]


def scale(batch: Fields, seeds: np.ndarray, low: float = -1.0, high: float = 1.0) -> Fields:
    """`image` uint8 0..255 to float32 in [low, high]."""
    table = (np.arange(256) / 255 * (high - low) + low).astype(np.float32)
    return batch | {"image": table[batch["image"]]}


TRANSFORMS: dict[str, Callable[..., Fields]] = {"scale": scale}


def chain(steps: Iterable[tuple[str, dict]]) -> Callable[[Fields, np.ndarray], Fields]:
    """One function of (batch, seeds) that applies the named transforms in order.

    Raises:
        ValueError: a name that is no transform; the nearest one is named.
    """
    steps = [(name, dict(options)) for name, options in steps]
    for name, _ in steps:
        if name not in TRANSFORMS:
            raise naming.unknown("data.transforms:", name, TRANSFORMS)

    def apply(batch: Fields, seeds: np.ndarray) -> Fields:
        for name, options in steps:
            batch = TRANSFORMS[name](batch, seeds, **options)
        return batch

    return apply
