"""Text becomes tokens and text again; vocabularies see the train part only and are trained once."""

import json
import pickle

import numpy as np
import pytest

from transformer_zoo.data import vocabulary
from transformer_zoo.data.sources import open_source
from transformer_zoo.data.vocabulary import EOS, SPECIALS, Vocabulary, train

WORDS = ["a", "digit", "is", "not", "<eos>", "nor", "<pad>,", "Größe", "zählt;", "数字", "move", "left", "and", "right"]


@pytest.fixture
def book(tmp_path):
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, 8)) for _ in range(400)] + ["zyzzyva zyzzyva"] * 40
    file = tmp_path / "book.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def opened(book, split="train", **options):
    return open_source(f"text:{book}", split, {"cache_dir": str(book.parent / "cache"), "length": 16} | options)


def tokens(source):
    return source.read(np.arange(len(source)), np.zeros(len(source), np.uint64))["tokens"]


@pytest.mark.parametrize("tokenizer", ["bpe", "bytes"])
def test_the_parts_joined_are_the_text_but_for_their_ends(book, tokenizer):
    text, position = book.read_text(encoding="utf-8"), 0
    for split in ("train", "val", "test"):
        source = opened(book, split, tokenizer=tokenizer, vocabulary_size=300)
        ids = tokens(source)
        assert ids.dtype == np.int32 and len(SPECIALS) <= ids.min() and ids.max() < source.vocabulary.size <= 300
        part = source.vocabulary.decode(ids.ravel()).rstrip("�")
        found = text.index(part, position)
        assert found - position < 60, "what is left of a part is shorter than a chunk"
        position = found + len(part)
    assert len(text) - position < 60


def test_wordpiece_lowers_case_and_takes_words_whole(book):
    source = opened(book, tokenizer="wordpiece", vocabulary_size=200)
    text = book.read_text(encoding="utf-8").lower().replace("\n", " ")
    decoded = source.vocabulary.decode(tokens(source)[0])
    plain = source.vocabulary.decode(source.vocabulary.encode(text))
    assert plain.replace(" ", "").startswith(decoded.replace(" ", "")) and " digit is " in plain
    assert source.vocabulary.encode("Digit").tolist() == source.vocabulary.encode("digit").tolist()
    assert len(source.vocabulary.encode("digit")) == 1


def test_a_vocabulary_is_trained_on_the_train_part_alone(book):
    source = opened(book, "test", tokenizer="bpe", vocabulary_size=400)
    assert len(source.vocabulary.encode(" digit")) == 1
    assert len(source.vocabulary.encode(" zyzzyva")) > 3, "the word occurs only in the last part"


def test_a_vocabulary_is_trained_once_and_read_again(book, monkeypatch):
    first = opened(book).vocabulary
    (file,) = (book.parent / "cache").iterdir()
    assert json.loads(file.read_text())["model"]["type"] == "BPE"
    monkeypatch.setattr(vocabulary, "train", lambda *args: pytest.fail("trained again"))
    again = opened(book, "val").vocabulary
    np.testing.assert_array_equal(first.encode("a digit <eos> Größe"), again.encode("a digit <eos> Größe"))


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "bytes"])
def test_special_tokens_written_in_a_text_are_only_text_even_after_pickling(kind):
    words = train(["a <eos> b <pad>"] * 3, kind, 300)
    for copy in (words, pickle.loads(pickle.dumps(words))):
        ids = copy.encode("a <eos> b <pad>")
        assert ids.min() >= len(SPECIALS)
        assert copy.decode(ids).replace(" ", "") == "a<eos>b<pad>"


@pytest.mark.parametrize(("kind", "size"), [("wordpiece", 120), ("bpe", 330)])
def test_the_same_texts_give_the_same_vocabulary(kind, size):
    rng = np.random.default_rng(1)
    letters = list("abcdefghijklmno")
    captions = [" ".join("".join(rng.choice(letters, 4)) for _ in range(6)) for _ in range(50)]
    found = {train(iter(captions), kind, size).tokenizer.to_str() for _ in range(5)}
    assert len(found) == 1
    words = train(captions, kind, size)
    assert words.size == size
    assert [words.tokenizer.id_to_token(number) for number in range(len(SPECIALS))] == list(SPECIALS)


def test_captions_are_cut_ended_and_padded():
    captions = Vocabulary().encode_captions(["ab", "abcdef", ""], 4)
    a = ord("a") + len(SPECIALS)
    assert captions.tolist() == [[a, a + 1, EOS, 0], [a, a + 1, a + 2, EOS], [EOS, 0, 0, 0]]


def test_bad_text_is_named(book, tmp_path):
    with pytest.raises(ValueError, match=f"did you mean '{book}'"):
        open_source(f"text:{tmp_path}/bok.txt", "train", {})
    with pytest.raises(ValueError, match="is a folder, but text reads one file"):
        open_source(f"text:{tmp_path}", "train", {})
    with pytest.raises(ValueError, match=r"length is 100000, but the 'val' part .* has only \d+ tokens"):
        opened(book, "val", length=100_000)
    with pytest.raises(ValueError, match="did you mean 'wordpiece'"):
        opened(book, tokenizer="wordpieces")
    with pytest.raises(ValueError, match="vocabulary_size is 100, but 'bpe' needs at least 264"):
        opened(book, vocabulary_size=100)
    with pytest.raises(ValueError, match=r"vocabulary_size is 12, but the letters of the text alone need \d\d"):
        opened(book, tokenizer="wordpiece", vocabulary_size=12)
    book.write_bytes(b"good \xff bad")
    with pytest.raises(ValueError, match="is not UTF-8: byte 5"):
        opened(book)
