"""Words keep their ids; captions and programs turn into each other."""

import numpy as np
import pytest

from transformer_zoo.data.scenes import clip, grammar, palette, slots, still


def test_words_keep_their_ids():
    assert len(grammar.WORDS) == len(set(grammar.WORDS)) == 256
    known = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<null>": 6, "<s0>": 8, "<s15>": 23, "c0": 24, "c63": 87}
    known |= {"A": 88, "Z": 113, "0": 114, "9": 123, "a": 124, "one": 139, "red": 146, "ball": 154, "crosses": 165}
    known |= {"day": 176, "camera": 185, "player": 201, "face": 210, "down": 253, ",": 254, ".": 255}
    assert {word: grammar.IDS[word] for word in known} == known


def programs(split="train", count=600):
    stills = still.draw(slots.scene_seeds(0, "still", split, np.arange(count)), split, 64).programs
    clips = clip.draw(slots.scene_seeds(0, "clip", split, np.arange(count)), split, 32, 8).programs
    return np.concatenate([stills, clips])


def test_captions_state_their_programs_and_programs_write_their_captions():
    wanted = programs()
    captions = grammar.write(wanted)
    again = np.stack([grammar.read(caption) for caption in captions])
    np.testing.assert_array_equal(again, wanted)
    np.testing.assert_array_equal(np.stack([grammar.read(grammar.decode(tokens)) for tokens in captions]), wanted)
    np.testing.assert_array_equal(grammar.write(again), captions)
    kinds = wanted[..., 0]
    assert set(np.unique(kinds)) == set(range(10)), "every kind of clause occurs"


def test_every_phrase_has_one_clause():
    assert len({words for words in grammar.PHRASES.values()}) == len(grammar.PHRASES)
    for clause, words in grammar.PHRASES.items():
        assert tuple(grammar.read(words)[0, :1]) == clause[:1], words


TEMPLATES = {
    "a large red ball , a blue box .": [(1, 2, 0, 0), (1, -1, 5, 1)],
    "a small yellow cone at top left , a medium green gem at bottom center .": [
        *[(1, 0, 2, 2), (2, 0, 0, 0)],
        *[(1, 1, 3, 3), (2, 1, 2, 1)],
    ],
    "a small pink ring in front of a large purple cross , a cyan ball .": [
        *[(1, 0, 7, 4), (3, 0, 4, 1)],
        *[(1, 2, 6, 5), (1, -1, 4, 0)],
    ],
    "a orange ball on stone ground under a night sky lit from the front .": [
        *[(1, -1, 1, 0), (4, 1, 3, 0)],
        *[(4, 0, 2, 0), (4, 2, 1, 0)],
    ],
    "three large balls .": [(5, 3, 2, 0)],
    "one small cross .": [(5, 1, 0, 5)],
    "a small red ball moves left . camera stays": [(1, 0, 0, 0), (6, 0, 1, 0), (7, 0, 0, 0)],
    "a small red ball moves down right , player jumps . camera zooms in then it snows": [
        *[(1, 0, 0, 0), (6, 0, 2, 2), (8, 2, 0, 0)],
        *[(7, 3, 0, 0), (9, 3, 0, 0)],
    ],
    "it becomes night": [(9, 1, 2, 0)],
}


@pytest.mark.parametrize("text", TEMPLATES)
def test_templates_read_as_written(text):
    clauses = TEMPLATES[text]
    program = np.zeros((16, 4), np.int16)
    program[: len(clauses)] = clauses
    tokens = grammar.write(program[None])[0]
    assert grammar.decode(tokens) == text
    assert tokens[0] == grammar.BOS and tokens[len(text.split()) + 1] == grammar.EOS
    assert (tokens[len(text.split()) + 2 :] == 0).all()
    np.testing.assert_array_equal(grammar.read(text), program)
    assert grammar.encode(text) == tokens[1 : len(text.split()) + 1].tolist()


def test_a_caption_with_most_words_fits():
    longest = [(1, 0, 0, 0), (6, 0, 0, 0)] * 3 + [(4, 1, 0, 0), (4, 0, 0, 0), (8, 1, 0, 0), (7, 1, 0, 0)]
    program = np.zeros((1, 16, 4), np.int16)
    program[0, : len(longest)] = longest
    assert 0 < (grammar.write(program) > 0).sum() <= 40
    program[0, : len(longest) + 3] = longest + [(1, 0, 0, 0)] * 3
    with pytest.raises(ValueError, match=r"a caption has 5\d words, but holds at most 40"):
        grammar.write(program)


def test_what_is_no_sentence_is_refused():
    with pytest.raises(ValueError, match="no phrase of the grammar begins at word 5, 'blau', of 'a red ball , blau"):
        grammar.read("a red ball , blau box .")
    with pytest.raises(ValueError, match=r"the clause \(2, 0, 3, 0\) of a program cannot be said"):
        grammar.write(np.array([[(2, 0, 3, 0)] + [(0, 0, 0, 0)] * 15], np.int16))
    with pytest.raises(ValueError, match="more than 16 clauses"):
        grammar.read("a red ball , " * 17)
    assert grammar.encode("a mauve ball") == [grammar.IDS["a"], grammar.UNKNOWN, grammar.IDS["ball"]]


def test_phrases_name_what_the_palette_names():
    for words in grammar.PHRASES.values():
        assert all(word in grammar.IDS for word in words.split()), words
    for names in (palette.COLOURS, palette.SHAPES, palette.PLURALS, palette.SIZES, palette.SKIES, palette.GROUNDS):
        assert all(name in grammar.IDS for name in names)
