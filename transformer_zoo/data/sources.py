"""Sources by name. A source is a set of records that can be read in batches of indices."""

from typing import Protocol, runtime_checkable

import numpy as np

from transformer_zoo import naming

SOURCES = {"digits": "transformer_zoo.data.digits:Digits"}
STREAMS = {
    "shuffle": 0,
    "train": 1,
    "val": 2,
    "test": 3,
    "mixture": 4,
}  # random streams; part of the format, append only


@runtime_checkable
class Source(Protocol):
    """Records 0 .. len - 1 of one split, read in batches."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        """Fields [batch, ...] of the records at `indices`; every random choice comes from `seeds` uint64 [batch]."""
        ...


def open_source(name: str, split: str, options: naming.Options) -> Source:
    """Opens a split of a source.

    Raises:
        ValueError: no such source or option (the nearest one is named), or the split is empty.
    """
    if name not in SOURCES:
        raise naming.unknown("data.source", name, SOURCES)
    source = naming.construct(naming.load(SOURCES[name]), options, "data.options", {"split": split})
    if len(source) == 0:
        raise ValueError(f"the {split!r} split of data.source {name!r} is empty: nothing to train on or to judge by")
    return source
