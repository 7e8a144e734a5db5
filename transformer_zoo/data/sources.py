"""Sources by name. A source is a set of records that can be read in batches of indices."""

import dataclasses
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from transformer_zoo import naming

# A source named 'name:rest' in a config takes what follows the colon as its field `name`.
SOURCES = {
    "digits": "transformer_zoo.data.digits:Digits",
    "moving_digits": "transformer_zoo.data.moving_digits:MovingDigits",
    "photographs": "transformer_zoo.data.photographs:Photographs",
    "text": "transformer_zoo.data.text:Text",
    "folder": "transformer_zoo.data.folder:Folder",
    "tfds": "transformer_zoo.data.tfds_source:TfdsSource",
    "scenes:still": "transformer_zoo.data.scenes.source:Still",
    "scenes:clip": "transformer_zoo.data.scenes.source:Clip",
}
EXAMPLES = {"text": "text:book.txt", "folder": "folder:/path/to/images", "tfds": "tfds:mnist"}
STREAMS = {
    "shuffle": 0,
    "train": 1,
    "val": 2,
    "test": 3,
    "mixture": 4,
}  # random streams; part of the format, append only


@runtime_checkable
class Source(Protocol):
    """Records 0 .. len - 1 of one split, read in batches.

    The sources of this package also have `about`: what of them is real, what is generated, and the licence.
    """

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        """Fields [batch, ...] of the records at `indices`; every random choice comes from `seeds` uint64 [batch].

        A field whose records differ in shape or are still encoded is an object array [batch].
        """
        ...


def open_source(name: str, split: str, options: naming.Options) -> Source:
    """Opens a split of a source, 'name' or 'name:rest'.

    Raises:
        ValueError: no such source or option (the nearest one is named), the source needs a name after a colon or
            takes none, or the split is empty.
    """
    kind, _, rest = (name, "", "") if name in SOURCES else name.partition(":")
    if kind not in SOURCES:
        raise naming.unknown("data.source", name, [EXAMPLES.get(known, known) for known in SOURCES])
    source_class = naming.load(SOURCES[kind])
    takes_name = "name" in {field.name for field in dataclasses.fields(source_class)}
    if takes_name and not rest:
        raise ValueError(f"data.source {name!r} does not say which: write it like {EXAMPLES.get(kind, kind + ':NAME')}")
    if rest and not takes_name:
        raise ValueError(f"data.source {name!r} takes nothing after a colon: write {kind}")
    given = {"split": split} | ({"name": rest} if takes_name else {})
    source = naming.construct(source_class, options, "data.options", given)
    if len(source) == 0:
        raise ValueError(f"the {split!r} split of data.source {name!r} is empty: nothing to train on or to judge by")
    return source


def stream(split: str) -> int:
    """The stream of random choices that evaluation draws from in a split."""
    return STREAMS.get(split, sum(map(ord, split)) + 2**16)


def existing(path: str, where: str) -> Path:
    """`path` with ~ expanded, if there is such a file or folder.

    Raises:
        ValueError: there is none; names `where`, the path and what lies nearest to it.
    """
    found = Path(path).expanduser()
    if found.exists():
        return found
    above = found.parent
    while not above.is_dir():
        above = above.parent
    here = (above / found.relative_to(above).parts[0]).name
    siblings = sorted(entry.name for entry in above.iterdir())
    near = f"did you mean {str(above / naming.nearest(here, siblings))!r}?" if siblings else f"{above} is empty"
    raise ValueError(f"{where}: there is no {str(found)!r}; {near}")


def no_such_split(where: str, split: str, splits: list[str]) -> ValueError:
    """The error for a split that a source lacks."""
    return ValueError(f"{where} has no split {split!r}; there are {', '.join(splits)}")
