"""Vocabularies trained on the spot: WordPiece and BPE through the `tokenizers` package, and plain bytes.

Every vocabulary begins with the same special tokens, so that padding is 0 everywhere.
"""

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from transformer_zoo import naming

SPECIALS = ("<pad>", "<bos>", "<eos>", "<mask>", "<unk>", "<sep>", "<null>", "<img>")
PAD, BOS, EOS, MASK, UNK, SEP, NULL, IMG = range(len(SPECIALS))
KINDS = ("wordpiece", "bpe", "bytes")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Text to token ids and back.

    Attributes:
        tokenizer: of the `tokenizers` package; None means one token a byte of UTF-8, after the special ones.
    """

    tokenizer: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (Vocabulary, ()) if self.tokenizer is None else (from_json, (self.tokenizer.to_str(),))

    @property
    def size(self) -> int:
        """How many token ids there are, special ones included."""
        return len(SPECIALS) + 256 if self.tokenizer is None else self.tokenizer.get_vocab_size()

    def encode(self, text: str) -> np.ndarray:
        """Token ids int32 [count]; a special token that is written out in the text is only text."""
        if self.tokenizer is None:
            return np.frombuffer(text.encode(), np.uint8).astype(np.int32) + len(SPECIALS)
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_captions(self, texts: Iterable[str], length: int) -> np.ndarray:
        """Token ids int32 [batch, length]: each text cut to length - 1 tokens, the end token, padding with 0."""
        encoded = [np.append(self.encode(text)[: length - 1], EOS) for text in texts]
        captions = np.full((len(encoded), length), PAD, np.int32)
        for row, ids in zip(captions, encoded):
            row[: len(ids)] = ids
        return captions

    def decode(self, ids: np.ndarray) -> str:
        """The text of token ids [count], special tokens left out; WordPiece gives it in lower case."""
        plain = [int(number) for number in ids if number >= len(SPECIALS)]
        if self.tokenizer is None:
            return bytes(number - len(SPECIALS) for number in plain).decode(errors="replace")
        return self.tokenizer.decode(plain)


def train(texts: Iterable[str], kind: str = "wordpiece", size: int = 2000) -> Vocabulary:
    """A vocabulary of at most `size` tokens for `texts`; the same texts give the same one.

    Args:
        texts: sentences, lines or captions.
        kind: 'wordpiece' (Schuster and Nakajima 2012, lower-cased and split as BERT does), 'bpe' (Sennrich et al.
            2016, over bytes, so every text can be written and read back) or 'bytes', which learns nothing.
        size: special tokens included; at least 264 for 'bpe', which has all bytes.

    Raises:
        ValueError: no such kind, or too small a size.
    """
    if kind not in KINDS:
        raise naming.unknown("data.options.tokenizer", kind, KINDS)
    if kind == "bytes":
        return Vocabulary()
    least = len(SPECIALS) + (256 if kind == "bpe" else 1)
    if size < least:
        raise ValueError(f"data.options.vocabulary_size is {size}, but {kind!r} needs at least {least}")
    tokenizer = (_train_wordpiece if kind == "wordpiece" else _train_bpe)(texts, size)
    if tokenizer.get_vocab_size() > size:
        raise ValueError(
            f"data.options.vocabulary_size is {size}, but the letters of the text alone need "
            f"{tokenizer.get_vocab_size()}; choose that or more, or the tokenizer 'bpe' or 'bytes'"
        )
    return _of(tokenizer)


def _train_wordpiece(texts: Iterable[str], size: int) -> Any:
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    texts, normalizer, splitter = list(texts), normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()

    def make(vocabulary: dict[str, int]) -> Any:
        tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIALS[UNK]))
        tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, splitter, decoders.WordPiece()
        return tokenizer

    # The trainer numbers letters within words in an order of chance, and breaks ties by number. So they are handed to
    # it, as special tokens because it takes no others, and its words then go into a tokenizer without that mark.
    words = (word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    within = sorted({letter for word in words for letter in word[1:]})
    first = [*SPECIALS, *("##" + letter for letter in within)]
    trained = make({})
    trained.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=first, show_progress=False)
    )
    tokenizer = make(trained.get_vocab())
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def _train_bpe(texts: Iterable[str], size: int) -> Any:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_once(texts: list[str], kind: str, size: int, cache_dir: str = "") -> Vocabulary:
    """As `train`, but what was trained before is read again.

    Args:
        texts: what to train on; its hash is part of the file's name.
        kind: as in `train`.
        size: as in `train`.
        cache_dir: where the JSON files lie; '' means ~/.cache/transformer_zoo/vocabularies.
    """
    if kind == "bytes":
        return Vocabulary()
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    file = _cache_dir(cache_dir) / f"{kind}-{size}-{digest.hexdigest()[:16]}.json"
    if file.exists():
        return from_json(file.read_text(encoding="utf-8"))
    vocabulary = train(texts, kind, size)
    save(vocabulary, file)
    return vocabulary


def save(vocabulary: Vocabulary, file: Path) -> None:
    """Writes a trained vocabulary as the JSON that the `tokenizers` package reads; whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".part", delete=False, encoding="utf-8") as part:
        part.write(vocabulary.tokenizer.to_str(pretty=True))
    os.replace(part.name, file)


def from_json(text: str) -> Vocabulary:
    """The vocabulary that `save` wrote."""
    import tokenizers

    return _of(tokenizers.Tokenizer.from_str(text))


def _of(tokenizer: Any) -> Vocabulary:
    tokenizer.encode_special_tokens = True  # '<eos>' in somebody's text must not end it; not part of the JSON
    return Vocabulary(tokenizer)


def _cache_dir(given: str) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given).expanduser() if given else base / "transformer_zoo" / "vocabularies"
