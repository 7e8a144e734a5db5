"""Captions as a large encoder reads them, computed once: written by `zoo.text_features`, read by the source `folder`.

A folder holds one array a field, NAME.npy [records, ...], and ABOUT with the records in the order of its rows and what
computed them. Arrays are read from the disk row by row, so they may be larger than the memory.
"""

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from transformer_zoo import naming

ABOUT = "about.json"


def token_ids(tokenizer: str | Path, texts: Sequence[str], length: int, pad: int) -> Int[np.ndarray, "texts length"]:
    """Ids by a published tokenizer, with the tokens that it puts around a text, cut and padded to `length`.

    Args:
        tokenizer: path of a tokenizer.json.
        texts: captions.
        length: of a row.
        pad: the id that fills it up.

    Raises:
        ValueError: no such file, no tokenizer in it, or one that marks no text's end.
    """
    encode = _tokenizer(Path(tokenizer), length)
    if not encode.encode("").ids:
        raise ValueError(f"{tokenizer} puts no end token behind a text; take the one that belongs to the encoder")
    rows = np.full((len(texts), length), pad, np.int32)
    for row, found in zip(rows, encode.encode_batch(list(texts))):
        row[: len(found.ids)] = found.ids
    return rows


@functools.lru_cache(maxsize=2)
def _tokenizer(file: Path, length: int) -> Any:
    import tokenizers  # a tenth of a second, which only captions need

    if not file.is_file():
        there = [path.name for path in file.parent.glob("*.json")]
        raise ValueError(f"no tokenizer {str(file)!r}; the nearest is {naming.nearest(file.name, there)!r}")
    try:
        found = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing more exact
        raise ValueError(f"{file} is no tokenizer.json: {error}") from error
    found.no_padding()
    found.enable_truncation(length)
    return found


def write(
    folder: Path, records: Sequence[str], batches: Iterable[Mapping[str, np.ndarray]], about: Mapping[str, Any]
) -> None:
    """Writes features of `records`, in their order; the folder appears as a whole or not at all.

    Args:
        folder: to write, which must not be there.
        records: names, one a row.
        batches: fields to arrays [batch, ...], together as many rows as there are records.
        about: what computed them.
    """
    new = folder.with_name(f".{folder.name}.{os.getpid()}")
    new.mkdir(parents=True)
    try:
        arrays: dict[str, Any] = {}
        start = 0
        for batch in batches:
            for name, values in batch.items():
                if name not in arrays:
                    shape = (len(records), *values.shape[1:])
                    arrays[name] = np.lib.format.open_memmap(new / f"{name}.npy", "w+", values.dtype, shape)
                arrays[name][start : start + len(values)] = values
            start += len(values)
        for array in arrays.values():
            array.flush()
        text = json.dumps({**about, "fields": sorted(arrays), "records": list(records)}, indent=0)
        (new / ABOUT).write_text(text, encoding="utf-8")
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new)
        raise


@dataclasses.dataclass(frozen=True)
class CaptionFeatures:
    """What `write` left in a folder.

    Attributes:
        folder: where.
        rows: of every record.
        arrays: by field, on the disk.
    """

    folder: Path
    rows: Mapping[str, int]
    arrays: Mapping[str, np.ndarray]

    def read(self, records: Sequence[str]) -> dict[str, np.ndarray]:
        """The fields of these records, float32; raises ValueError for one that has none."""
        missing = next((record for record in records if record not in self.rows), None)
        if missing is not None:
            raise ValueError(
                f"data.options.features {str(self.folder)!r} holds no features of the caption of {missing!r}; compute "
                "them anew: python -m transformer_zoo.zoo.text_features"
            )
        rows = [self.rows[record] for record in records]
        return {name: array[rows].astype(np.float32) for name, array in self.arrays.items()}


@functools.lru_cache(maxsize=4)
def opened(folder: str) -> CaptionFeatures:
    """The features in a folder; raises ValueError where there are none."""
    path = Path(folder).expanduser()
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"data.options.features {folder!r} holds no features of captions ({ABOUT} is missing or damaged); compute "
            "them: python -m transformer_zoo.zoo.text_features"
        ) from error
    arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in about["fields"]}
    return CaptionFeatures(path, {record: row for row, record in enumerate(about["records"])}, arrays)
