"""Any UTF-8 text file, cut into chunks of tokens, for language modelling."""

import dataclasses
import functools
from pathlib import Path
from typing import ClassVar

import numpy as np

from transformer_zoo.data.sources import existing, no_such_split
from transformer_zoo.data.vocabulary import Vocabulary, train_once

SHARES = {"train": (0.0, 0.8), "val": (0.8, 0.9), "test": (0.9, 1.0)}  # of the characters, in the text's order


@dataclasses.dataclass(frozen=True)
class Text:
    """Field: `tokens` int32 [length], chunk after chunk of the split's part of the text.

    Attributes:
        name: path of the file.
        split: 'train', the first 80 % of the characters; 'val', the next 10 %; or 'test', the last 10 %.
        length: of a chunk in tokens; what is left at the end of a part is not read.
        tokenizer: 'wordpiece', 'bpe' or 'bytes'; the first two are trained on the train part.
        vocabulary_size: at most so many tokens, special ones included.
        cache_dir: where trained vocabularies are kept; '' means ~/.cache/transformer_zoo/vocabularies.
    """

    about: ClassVar[str] = "Real: a text file of the user's own, under its own licence."

    name: str
    split: str = "train"
    length: int = 128
    tokenizer: str = "bpe"
    vocabulary_size: int = 1000
    cache_dir: str = ""

    def __post_init__(self) -> None:
        if self.split not in SHARES:
            raise no_such_split(f"data.source 'text:{self.name}'", self.split, list(SHARES))
        if self.length < 1:
            raise ValueError(f"data.options.length is {self.length}, but must be at least 1")
        if len(self) == 0:
            raise ValueError(
                f"data.options.length is {self.length}, but the {self.split!r} part of {self.name!r} has only "
                f"{len(self._tokens)} tokens"
            )

    @property
    def vocabulary(self) -> Vocabulary:
        """Turns token ids into text again; its `size` is what a model must know."""
        return self._read()[0]

    @property
    def _tokens(self) -> np.ndarray:
        return self._read()[1]

    def _read(self) -> tuple[Vocabulary, np.ndarray]:
        file = existing(self.name, "data.source")
        if file.is_dir():
            raise ValueError(f"data.source 'text:{self.name}' is a folder, but text reads one file")
        return _tokens(file, file.stat().st_mtime_ns, self.split, self.tokenizer, self.vocabulary_size, self.cache_dir)

    def __len__(self) -> int:
        return len(self._tokens) // self.length

    def read(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        """Chunks at `indices` [batch]; nothing is random."""
        starts = np.asarray(indices)[:, None] * self.length
        return {"tokens": self._tokens[starts + np.arange(self.length)]}


@functools.lru_cache(maxsize=8)
def _tokens(
    file: Path, modified: int, split: str, kind: str, size: int, cache_dir: str
) -> tuple[Vocabulary, np.ndarray]:
    """Vocabulary and token ids int32 [count] of one part of a file; `modified` tells its versions apart."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"data.source 'text:{file}' is not UTF-8: byte {error.start} is {error.reason}") from error
    parts = {name: text[round(low * len(text)) : round(high * len(text))] for name, (low, high) in SHARES.items()}
    words = train_once(parts["train"].splitlines(keepends=True), kind, size, cache_dir)
    # By line, because one call on a whole book would keep every token's text and place in memory.
    encoded = [words.encode(line) for line in parts[split].splitlines(keepends=True)]
    return words, np.concatenate(encoded) if encoded else np.zeros(0, np.int32)
