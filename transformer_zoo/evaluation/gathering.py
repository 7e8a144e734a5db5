"""What several processes evaluated, brought together, so that each of them sees whole batches."""

import pickle
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def whole(arrays: Any, host: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What `compute` gave for a batch, and the batch on the host, of all processes in the order of the rows.

    With one process nothing moves but from the devices to the host.

    Args:
        arrays: a tree on the devices.
        host: this process's rows of the batch, text among them.
    """
    if jax.process_count() == 1:
        return jax.device_get(arrays), dict(host)
    gathered = jax.tree.map(_whole_array, arrays)
    return gathered, {name: np.concatenate(_of_all(np.asarray(value))) for name, value in host.items()}


def _whole_array(array: Any) -> Any:
    if not isinstance(array, jax.Array):
        return array
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    return multihost_utils.process_allgather(array, tiled=True)


def _of_all(value: Any) -> list[Any]:
    """A picklable value of every process."""
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.int64(data.size))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]
