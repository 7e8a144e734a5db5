"""Reading and writing files of named arrays: safetensors, .npz and torch's, never a pickle that can run code."""

import json
import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from transformer_zoo.naming import nearest

DTYPES: dict[str, Any] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
MAX_HEADER = 100_000_000  # bytes; the format's own limit
TORCH = (".pt", ".pth", ".bin", ".ckpt", ".tar")
PICKLES = (".pkl", ".pickle", ".joblib", ".npy")
CONTAINERS = ("state_dict", "model", "module")  # under which torch checkpoints keep their weights


def read_arrays(file: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors, .npz or torch file, by name.

    Raises:
        ValueError: a file of another kind, a damaged one, or one that would run code when read.
        FileNotFoundError: there is no such file.
    """
    file = Path(file)
    if not file.is_file():
        there = [path.name for path in file.parent.glob("*") if path.is_file()]
        hint = f"; did you mean {nearest(file.name, there)!r}?" if there else ""
        raise FileNotFoundError(f"no file {str(file)!r}{hint}")
    if file.suffix == ".safetensors":
        return read_safetensors(file)[0]
    if file.suffix == ".npz":
        return read_npz(file)
    if file.suffix in TORCH:
        return read_torch(file)
    if file.suffix in PICKLES:
        raise ValueError(f"{file} may be a pickle, which runs code when it is read; save its arrays as .safetensors")
    raise ValueError(f"{file} ends in none of {', '.join(('.safetensors', '.npz', *TORCH))}")


def write_arrays(file: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes named arrays as safetensors, or as .npz (which holds no metadata).

    Raises:
        ValueError: a file name that ends in neither.
    """
    file = Path(file)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    if file.suffix == ".safetensors":
        save_file(arrays, file, dict(metadata))
    elif file.suffix == ".npz":
        np.savez(file, **arrays)  # type: ignore[arg-type]
    else:
        raise ValueError(f"{file} ends in neither .safetensors nor .npz, which can be written")


def read_safetensors(file: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file; the arrays are read from the disk when they are used.

    The whole header is checked against the file's size before anything is allocated.

    Raises:
        ValueError: a header that is too long, no JSON, or describes arrays that the file cannot hold.
    """
    file = Path(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise ValueError(f"{file} is no safetensors file: its header has {length} bytes, the file {size}")
        text = stream.read(length)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no safetensors file: its header is no JSON ({error})") from None
    if not isinstance(header, dict):
        raise ValueError(f"{file} is no safetensors file: its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    start = 8 + length
    try:
        _check_header(header, metadata, size - start)
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    data = np.memmap(file, np.uint8, "r", start) if size > start else np.zeros(0, np.uint8)
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        arrays[name] = np.asarray(data[begin:end]).view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays, metadata


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name appears twice")
    return found


def _check_header(header: Mapping[str, Any], metadata: Any, size: int) -> None:
    """Raises ValueError where entries do not describe `size` bytes, each belonging to one array."""
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ must map names to texts")
    ranges = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name} must have dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f"{name} has the unknown dtype {dtype!r}; known are {', '.join(DTYPES)}")
        if not _is_counts(shape) or not _is_counts(offsets) or len(offsets) != 2 or len(shape) > 32:
            raise ValueError(f"{name} has shape {shape} and data_offsets {offsets}, which are no lists of counts")
        begin, end = offsets
        if not begin <= end <= size:
            raise ValueError(f"{name} lies at bytes {begin} to {end} of {size}")
        needed = math.prod(shape) * DTYPES[dtype].itemsize
        if needed != end - begin:
            raise ValueError(f"{name} of shape {shape} and dtype {dtype} needs {needed} bytes, but has {end - begin}")
        ranges.append((begin, end, name))
    position, before = 0, "the header"
    for begin, end, name in sorted(ranges):
        if begin != position:
            raise ValueError(f"{name} begins at byte {begin}, but {before} ends at {position}")
        position, before = end, name
    if position != size:
        raise ValueError(f"the arrays end at byte {position} of {size}")


def _is_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def read_npz(file: str | Path) -> dict[str, np.ndarray]:
    """Arrays of a .npz file.

    Raises:
        ValueError: a damaged file, or one that holds Python objects.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(f"{file} is no .npz file of plain arrays: {error}") from None


def read_torch(file: str | Path) -> dict[str, np.ndarray]:
    """Tensors of a file by torch.save, by name; 'module.' of a data-parallel model is left out of all names.

    Raises:
        ValueError: torch is not installed, the file holds more than tensors and plain values, or no tensors by name.
    """
    try:
        import torch
    except ImportError:
        raise ValueError(f"{file} is a torch file, and torch is not installed; save it as .safetensors") from None
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file} is refused: it is damaged or holds more than tensors ({reason})") from None
    while isinstance(found, dict) and not any(isinstance(value, torch.Tensor) for value in found.values()):
        inner = next((found[name] for name in CONTAINERS if name in found), None)
        if inner is None:
            raise ValueError(f"{file} has no tensors under {', '.join(CONTAINERS)}, but: {', '.join(map(str, found))}")
        found = inner
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}, not tensors by name")
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
    return {name.removeprefix(prefix): _to_numpy(value) for name, value in tensors.items()}


def _to_numpy(tensor: Any) -> np.ndarray:
    half = str(tensor.dtype) == "torch.bfloat16"  # numpy has none; every bfloat16 is a float32
    return (tensor.float() if half else tensor).detach().contiguous().numpy()
