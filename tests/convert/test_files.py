import json
import pickle
import struct
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from transformer_zoo.convert import files
from transformer_zoo.convert.files import read_arrays, read_safetensors, write_arrays


def hostile(path, header, data=b"", length=None):
    """A safetensors file with a given header, as bytes or as what becomes JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def allocate_nothing(monkeypatch):
    """Refusals must come from the header alone: the file's data may not be mapped."""
    monkeypatch.setattr(np, "memmap", lambda *args: pytest.fail("data was touched"))


@pytest.mark.parametrize(
    "header, data, length, message",
    [
        ({}, b"", 10**15, "its header has 1000000000000000 bytes, the file 10"),
        ({}, b"", 2**64 - 1, "its header has 18446744073709551615 bytes"),
        ({}, b"", 3, "its header has 3 bytes, the file 10"),
        (b"\xff\xfe", b"", None, "its header is no JSON"),
        (b"[" * 100_000, b"", None, "its header is no JSON"),
        (b"[1, 2]", b"", None, "no JSON object"),
        (b'{"a": 1, "a": 2}', b"", None, "appears twice"),
        ({"a": 3}, b"", None, "a must have dtype, shape and data_offsets"),
        ({"a": {"dtype": "F32", "shape": [2]}}, b"", None, "a must have dtype, shape and data_offsets"),
        ({"a": entry("F31")}, bytes(8), None, "a has the unknown dtype 'F31'"),
        ({"a": entry(["F32"])}, bytes(8), None, "a has the unknown dtype"),
        ({"a": entry(shape=(-2,))}, bytes(8), None, r"a has shape \[-2\]"),
        ({"a": entry(shape=(2.0,))}, bytes(8), None, r"a has shape \[2.0\]"),
        ({"a": entry(shape=(True, 2))}, bytes(8), None, r"a has shape \[True, 2\]"),
        ({"a": entry(offsets=(0, 4, 8))}, bytes(8), None, "which are no lists of counts"),
        ({"a": entry(shape=(1,) * 64)}, bytes(4), None, "which are no lists of counts"),
        ({"a": entry(offsets=(0, 16), shape=(4,))}, bytes(8), None, "a lies at bytes 0 to 16 of 8"),
        ({"a": entry(offsets=(8, 0))}, bytes(8), None, "a lies at bytes 8 to 0 of 8"),
        ({"a": entry(shape=(3,))}, bytes(8), None, "needs 12 bytes, but has 8"),
        ({"a": entry(shape=(2**40, 2**40))}, bytes(8), None, "needs 4835703278458516698824704 bytes, but has 8"),
        ({"a": entry(shape=(0,), offsets=(0, 8))}, bytes(8), None, "needs 0 bytes, but has 8"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12), None, "b begins at byte 4, but a ends at 8"),
        ({"a": entry(), "b": entry()}, bytes(8), None, "b begins at byte 0, but a ends at 8"),
        ({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20), None, "b begins at byte 12, but a ends at 8"),
        ({"a": entry()}, bytes(12), None, "the arrays end at byte 8 of 12"),
        ({"a": entry(), "__metadata__": {"format": 1}}, bytes(8), None, "__metadata__ must map names to texts"),
    ],
)
def test_hostile_headers_are_refused_before_data_is_touched(header, data, length, message, tmp_path, allocate_nothing):
    file = hostile(tmp_path / "weights.safetensors", header, data, length)
    with pytest.raises(ValueError, match=message):
        read_arrays(file)


def test_truncated_safetensors_are_refused(tmp_path, allocate_nothing):
    file = tmp_path / "weights.safetensors"
    save_file({"a": np.arange(6, dtype=np.float32)}, file)
    whole = file.read_bytes()
    for end in (0, 7, 40, len(whole) - 1):
        file.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"weights\.safetensors is (no safetensors file|damaged)"):
            read_arrays(file)


def test_safetensors_of_every_dtype_are_read_and_written_as_the_library_does(tmp_path):
    arrays = {name: np.arange(6).reshape(2, 3).astype(dtype) for name, dtype in files.DTYPES.items()}
    arrays |= {"scalar": np.float32(3)[...], "empty": np.zeros((0, 4), np.float32)}
    assert files.DTYPES["BF16"] == ml_dtypes.bfloat16
    save_file({name: array for name, array in arrays.items()}, tmp_path / "theirs.safetensors", {"format": "pt"})
    found, metadata = read_safetensors(tmp_path / "theirs.safetensors")
    assert metadata == {"format": "pt"} and found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array), name
    write_arrays(tmp_path / "ours.safetensors", {"t": np.arange(6).reshape(2, 3).T}, {"format": "x"})
    assert np.array_equal(load_file(tmp_path / "ours.safetensors")["t"], np.arange(6).reshape(2, 3).T)


def test_npz_is_read_without_pickles(tmp_path):
    write_arrays(tmp_path / "plain.npz", {"a/b": np.arange(3)}, {})
    assert np.array_equal(read_arrays(tmp_path / "plain.npz")["a/b"], np.arange(3))
    np.savez(tmp_path / "objects.npz", a=np.array([{"b": 1}], object))
    (tmp_path / "text.npz").write_text("no zip")
    for name in ("objects", "text"):
        with pytest.raises(ValueError, match=rf"{name}\.npz is no \.npz file of plain arrays"):
            read_arrays(tmp_path / f"{name}.npz")


def test_pickles_and_unknown_kinds_are_refused(tmp_path, monkeypatch):
    for name in ("weights.pkl", "weights.npy", "weights.onnx"):
        (tmp_path / name).write_bytes(pickle.dumps({"a": 1}))
    for name, message in (("weights.pkl", "may be a pickle"), ("weights.onnx", r"ends in none of \.safetensors")):
        with pytest.raises(ValueError, match=message):
            read_arrays(tmp_path / name)
    with pytest.raises(ValueError, match=r"ends in neither \.safetensors nor \.npz"):
        write_arrays(tmp_path / "weights.bin", {}, {})
    with pytest.raises(FileNotFoundError, match=r"did you mean 'weights.onnx'"):
        read_arrays(tmp_path / "weight.onnx")


def test_torch_files_ask_for_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"torch is not installed; save it as \.safetensors"):
        read_arrays(tmp_path / "weights.pth")
