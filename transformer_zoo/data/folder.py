"""A user's own folder: images with a class a folder or without classes, clips, pairs of image and caption.

Splits. Where the folder has `train` beside `val` (or `validation`) and `test`, they are the splits; any other folder
beside them can be named as a split too. Without `test`, 'test' reads `val`; without `val`, 'val' is a tenth of `train`,
which then keeps the rest. A folder with none of them is split 80/10/10. Tenths go by a hash of each path below the
folder, so a file stays in its part when others are added or taken away.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import os
import re
from pathlib import Path
from typing import ClassVar

import numpy as np

from transformer_zoo import naming
from transformer_zoo.data import caption_features
from transformer_zoo.data.sources import existing, no_such_split
from transformer_zoo.data.vocabulary import Vocabulary, train_once

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
CAPTIONS = "captions.jsonl"
KINDS = ("images", "clips", "pairs")
SHARES = {"train": (0.0, 0.8), "val": (0.8, 0.9), "test": (0.9, 1.0)}
WHOLE, MOST, TENTH = (0.0, 1.0), (0.0, 0.9), (0.9, 1.0)


@dataclasses.dataclass(frozen=True)
class Folder:
    """Fields: `image` or `video`, `record` (the path), and `label`, or `text` and `caption`; and those of `features`.

    `image` is an object array of the bytes of files. `video` is one of the bytes of GIFs, and of uint8 arrays
    [time, height, width, 3] where frames are files. A record that cannot be read has no bytes, which the transform
    `decode` treats as corrupt.

    Attributes:
        name: path of the folder.
        split: one of the folder's splits (see above).
        kind: 'images'; 'clips', each a folder of frames in the order of their names, or a GIF; or 'pairs', each an
            image with a text file of the same name beside it, or a line {"image": path, "caption": text} of
            `captions.jsonl`.
        classes: names of the classes in the order of their labels; () means the class folders (of `train`) by name.
        tokenizer: of captions: 'wordpiece', 'bpe' or 'bytes', trained on the captions of `train`.
        vocabulary_size: at most so many tokens, special ones included.
        caption_length: tokens of `caption`, int32, with an end token, padded with 0.
        cache_dir: where trained vocabularies are kept; '' means ~/.cache/transformer_zoo/vocabularies.
        features: folder that `zoo.text_features` wrote for this one; its fields stand in place of others of their name.
    """

    about: ClassVar[str] = "Real: images, clips or captions of the user's own, under their own licence."

    name: str
    split: str = "train"
    kind: str = "images"
    classes: tuple = ()
    tokenizer: str = "wordpiece"
    vocabulary_size: int = 2000
    caption_length: int = 32
    cache_dir: str = ""
    features: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise naming.unknown("data.options.kind", self.kind, KINDS)
        if self.caption_length < 2:
            raise ValueError(f"data.options.caption_length is {self.caption_length}, but must be at least 2")
        if self.features:
            caption_features.opened(self.features)
        _ = self.records, self.labels  # so that a folder that cannot be read stops the run before anything is compiled

    @functools.cached_property
    def _split_part(self) -> tuple[str, tuple[float, float]]:
        folder = existing(self.name, "data.source")
        if not folder.is_dir():
            raise ValueError(f"data.source 'folder:{self.name}' is a file; name its folder: folder:{folder.parent}")
        return _part(folder, self.split)

    @property
    def root(self) -> Path:
        """The folder that the split's paths begin in."""
        return Path(self.name).expanduser() / self._split_part[0]

    @functools.cached_property
    def _items(self) -> list[str]:
        """Paths below `root` of all images or clips there, whichever split they belong to."""
        files = _files(self.root)
        items = [name for name in files if name.lower().endswith(IMAGES)]
        if self.kind == "clips":
            gifs = {name for name in items if name.lower().endswith(".gif")}
            items = sorted(gifs | {name.rpartition("/")[0] for name in items if name not in gifs} - {""})
        if not items:
            kinds = collections.Counter(Path(name).suffix.lower() or "no extension" for name in files)
            found = ", ".join(f"{number} {suffix}" for suffix, number in kinds.most_common(5)) or "no file at all"
            raise ValueError(
                f"data.source 'folder:{self.root}' has no {self.kind}: looked for {' '.join(IMAGES)}, found {found}"
            )
        return items

    @functools.cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Path below `root` and caption of this split's pairs; () of other kinds."""
        if self.kind != "pairs":
            return ()
        listed = self.root / CAPTIONS
        pairs = _listed(listed) if listed.exists() else [(name, _beside(self.root, name)) for name in self._items]
        return tuple(pair for pair in pairs if self._holds(pair[0]))

    @functools.cached_property
    def records(self) -> tuple[str, ...]:
        """Paths below `root` of this split's images or clips."""
        if self.kind == "pairs":
            return tuple(name for name, _ in self.pairs)
        return tuple(name for name in self._items if self._holds(name))

    def _holds(self, name: str) -> bool:
        low, high = self._split_part[1]
        return low <= int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48 < high

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """Class folders in the order of their labels; () where records lie in no class folders."""
        if self.kind == "pairs":
            return ()
        if _part(Path(self.name).expanduser(), "train")[0] != self._split_part[0]:
            return self._train.class_names
        loose = [name for name in self._items if "/" not in name]
        if len(loose) == len(self._items):
            return ()
        if loose:
            raise ValueError(
                f"data.source 'folder:{self.root}' has {self.kind} both in class folders and beside them, as "
                f"{loose[0]!r}: move one or the other away"
            )
        return tuple(self.classes) or tuple(sorted({name.split("/")[0] for name in self._items}))

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """int32 [count], or None where records lie in no class folders."""
        names = self.class_names
        if not names:
            return None
        numbers = {name: number for number, name in enumerate(names)}
        found = [name.split("/")[0] for name in self.records]
        for name in found:
            if name not in numbers:
                listed = "data.options.classes" if self.classes else "train"
                raise ValueError(
                    f"data.source 'folder:{self.root}': {name!r} is none of the {len(names)} classes of {listed}; "
                    f"the nearest is {naming.nearest(name, names)!r}"
                )
        return np.array([numbers[name] for name in found], np.int32)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """Turns the tokens of captions into text again; its `size` is what a model must know."""
        texts = [text for _, text in self._train.pairs]
        return train_once(texts, self.tokenizer, self.vocabulary_size, self.cache_dir)

    @functools.cached_property
    def _train(self) -> "Folder":
        return self if self.split == "train" else dataclasses.replace(self, split="train")

    def __len__(self) -> int:
        return len(self.records)

    def read(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        """Records at `indices` [batch]; nothing is random."""
        names = [self.records[index] for index in indices]
        records = [self._record(name) for name in names]
        fields = {
            "video" if self.kind == "clips" else "image": _objects([_read(self.root / name) for name in names]),
            "record": _objects(records),
        }
        if self.kind == "pairs":
            texts = [self.pairs[index][1] for index in indices]
            fields["text"] = _objects(texts)
            fields["caption"] = self.vocabulary.encode_captions(texts, self.caption_length)
        elif self.labels is not None:
            fields["label"] = self.labels[indices]
        return fields | (caption_features.opened(self.features).read(records) if self.features else {})

    def captions(self) -> list[tuple[str, str]]:
        """(record, caption) of this split, whatever its kind; captions of clips stand where those of images do."""
        names, listed = set(self.records), self.root / CAPTIONS
        pairs = _listed(listed) if listed.exists() else [(name, _beside(self.root, name)) for name in self.records]
        return [(self._record(name), text) for name, text in pairs if name in names]

    def _record(self, name: str) -> str:
        below = self._split_part[0]
        return f"{below}/{name}" if below else name


def _part(folder: Path, split: str) -> tuple[str, tuple[float, float]]:
    """The folder below `folder` that a split reads ('' is `folder` itself) and its share of the hash.

    Raises:
        ValueError: no such split.
    """
    where = f"data.source 'folder:{folder}'"
    folders = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    val = "val" if "val" in folders else "validation"
    if "train" not in folders or not folders & {val, "test"}:
        if split not in SHARES:
            raise no_such_split(where, split, list(SHARES))
        return ("train" if "train" in folders else ""), SHARES[split]
    if split == "train":
        return "train", WHOLE if val in folders else MOST
    if split == "val":
        return (val, WHOLE) if val in folders else ("train", TENTH)
    if split == "test":
        return ("test" if "test" in folders else val), WHOLE
    if split not in folders:
        raise no_such_split(where, split, sorted({"train", "val", "test", *folders}))
    return split, WHOLE


def _files(folder: Path) -> list[str]:
    """Paths below `folder` of all files that are not hidden, sorted."""
    found = []
    for here, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(here).relative_to(folder)
        found += [(relative / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(found)


def _objects(values: list) -> np.ndarray:
    """An object array [count], also of tuples, which numpy would make a matrix of."""
    array = np.empty(len(values), object)
    for place, value in enumerate(values):
        array[place] = value
    return array


def _read(path: Path) -> bytes | np.ndarray:
    """The bytes of a file, or the frames of a folder, uint8 [time, height, width, 3]; no bytes where it fails."""
    try:
        if not path.is_dir():
            return path.read_bytes()
        frames = [entry for entry in path.iterdir() if entry.suffix.lower() in IMAGES and entry.name[0] != "."]
        return np.stack([_pixels(frame) for frame in sorted(frames, key=_natural)])
    except (OSError, ValueError):  # gone, unreadable, no image, or frames of different sizes
        return b""


def _pixels(file: Path) -> np.ndarray:
    import PIL.Image

    with PIL.Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def _natural(path: Path) -> list[tuple[str, int]]:
    """Sorts frame_2 before frame_10."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", path.name)]


def _listed(file: Path) -> list[tuple[str, str]]:
    """Pairs of `captions.jsonl`."""
    pairs = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            name, text = str(row["image"]), str(row["caption"])
        except (ValueError, TypeError, KeyError) as error:
            wanted = '{"image": path, "caption": text}'
            raise ValueError(f"{file}:{number} is {line[:80]!r}, but must be {wanted}") from error
        if not (file.parent / name).exists():
            raise ValueError(f"{file}:{number} names {name!r}, but there is no such file in {file.parent}")
        pairs.append((name, text))
    return pairs


def _beside(folder: Path, name: str) -> str:
    """The caption of an image or a clip, from the text file of its name."""
    file = folder / name
    file = file.with_name(f"{file.name}.txt") if file.is_dir() else file.with_suffix(".txt")
    try:
        return file.read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        message = f"{folder / name} has no caption: write {file.name} beside it, or list it in {folder / CAPTIONS}"
        raise ValueError(message) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: byte {error.start} is {error.reason}") from error
