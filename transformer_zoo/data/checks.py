"""What can be wrong with data: corrupt records, fields that a task cannot take, records that are no arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from transformer_zoo import naming
from transformer_zoo.data.transforms import RESIZERS, Fields

CORRUPT = "corrupt"  # field of a batch, str: 'record: what is wrong', or '' for records that are as they should be


class DataError(ValueError):
    """Something is wrong with the data, found while it is read; the message says what and where."""


class CorruptRecords:
    """Those met so far of one split: each is named once in a warning, too many are an error.

    Args:
        total: number of records of the split.
        limit: share of them that may be corrupt.
    """

    def __init__(self, total: int, limit: float) -> None:
        self._total, self._limit = total, limit
        self._found: set[str] = set()

    def add(self, found: Sequence[str]) -> None:
        """Takes 'record: what is wrong' of a batch's corrupt records.

        Raises:
            DataError: together with those before they are more than the limit allows.
        """
        for text in sorted(set(found) - self._found):
            logging.warning("data: a record does not decode and is left out: %s", text)
        self._found |= set(found)
        if len(self._found) > self._limit * self._total:
            share, shown = len(self._found) / self._total, "; ".join(sorted(self._found)[:5])
            raise DataError(
                f"{len(self._found)} of {self._total} records do not decode ({100 * share:.3g} %, but "
                f"data.max_corrupt_share is {self._limit:g}): {shown}"
            )


def record_name(batch: Mapping[str, Any], row: int) -> str:
    """What a message calls a record: its name where the source gives one."""
    return str(batch["record"][row]) if "record" in batch else f"row {row} of a batch"


def is_text(values: np.ndarray) -> bool:
    """Whether a field holds strings, which stay on the host."""
    return values.dtype.kind in "US" or (values.dtype == object and all(isinstance(value, str) for value in values))


def check_dense(batch: Fields) -> None:
    """Raises DataError for a field that is neither a plain array nor text once all transforms are through."""
    for name, values in batch.items():
        if values.dtype != object or is_text(values):
            continue
        if any(isinstance(value, bytes) for value in values):
            raise DataError(f"the field {name!r} is still encoded after data.transforms; put 'decode' there")
        shapes = sorted({np.shape(value) for value in values})
        raise DataError(
            f"the field {name!r} has records of different sizes after data.transforms, such as {shapes[0]} and "
            f"{shapes[-1]}; put one of {', '.join(RESIZERS)} there"
        )


def check_fields(batch: Mapping[str, Any], spec: Mapping[str, Any], where: str, all_wanted: bool = True) -> None:
    """Compares a batch with what a task asks for.

    Args:
        batch: fields to arrays [batch, ...]; of a mixture, members to such dicts.
        spec: `Task.spec()`.
        where: whose batch it is, for messages.
        all_wanted: whether a field of the spec may be missing.

    Raises:
        DataError: a field that is missing, or has another shape or kind of number; the fields there are are listed.
    """
    there = ", ".join(f"{name} {_shown(values)}" for name, values in batch.items())
    for name, wanted in spec.items():
        if name not in batch:
            if all_wanted:
                near = naming.nearest(name, batch)
                raise DataError(f"{where} has no field {name!r}; the nearest is {near!r}. There are: {there}")
        elif isinstance(wanted, Mapping):
            check_fields(batch[name], wanted, f"{where} of {name!r}", all_wanted)
        else:
            shape, dtype = np.shape(batch[name])[1:], np.dtype(batch[name].dtype)
            if shape != tuple(wanted.shape[1:]) or not _same_kind(dtype, np.dtype(wanted.dtype)):
                hint = "; 'scale' or 'normalise' in data.transforms makes floats" if dtype == np.uint8 else ""
                raise DataError(
                    f"{where}: the field {name!r} is {_shown(batch[name])}, but the task takes {_shown(wanted)}{hint}. "
                    f"There are: {there}"
                )


def _same_kind(first: np.dtype, second: np.dtype) -> bool:
    return np.issubdtype(first, np.floating) == np.issubdtype(second, np.floating)


def _shown(values: Any) -> str:
    if isinstance(values, Mapping):
        return "(" + ", ".join(f"{name} {_shown(value)}" for name, value in values.items()) + ")"
    kind = "text" if values.dtype == object else values.dtype
    return f"{kind} {list(np.shape(values)[1:])}"
