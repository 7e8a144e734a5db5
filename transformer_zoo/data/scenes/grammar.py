"""Words, captions and programs. A program is a list of clauses (kind, a, b, c); a caption says them one by one.

Every clause has one phrase and every phrase one clause, so captions and programs turn into each other without loss:

    1 OBJECT    size or -1, colour, shape      "a large red ball"; "," before it, but not after a relation
    2 AT        object, row, column            "at top left", thirds of the centre; of the object just named
    3 RELATION  object, relation, object       "left of"; between the object just named and the next one
    4 ENV       which, value, 0                "on grass ground", "under a day sky", "lit from the left"
    5 COUNT     number, size, shape            "three large balls"
    6 MOTION    object, down + 1, right + 1    "moves left", "rises", "moves up left", "stays"; of the object just named
    7 CAMERA    which, 0, 0                    ". camera pans left"
    8 PLAYER    which, 0, 0                    ", player walks"
    9 EVENT     which, value, 0                "it becomes night"; "then" before it

Objects are numbered in the order in which the caption names them. A caption of a picture ends with ".", one of a clip,
which has a camera or an event, without. Unused rows of a program are 0.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int

from transformer_zoo.data.scenes import palette

PAD, BOS, EOS, MASK, UNKNOWN, SEPARATOR, NULL, IMAGE = range(8)
SENTINEL, COORDINATE, LETTER, DIGIT, WORD = 8, 24, 88, 114, 124  # first ids of their kinds
VOCABULARY_SIZE = 320  # rows of an embedding table: the ids in use and room for more
CAPTION_LENGTH = 40
PROGRAM_LENGTH = 16

_WORDS = """a an the and with of on in is to at from then under lit one two three four small medium large red orange
yellow green cyan blue purple pink ball box cone gem ring cross balls boxes cones gems rings crosses left right above
below front behind top middle bottom center day dusk night sky grass sand snow stone ground camera pans zooms out still
moves rises falls stays bounces turns jumps walks it snows becomes player presses sign reads written plain bold slanted
outlined face person light tan brown dark skin hair short long bald glasses hat talking silent wearing shirt pants
stripes dots checks dancing waving standing make change replace remove add copy into same set image images first second
layer layers scene view angle up down , ."""
WORDS: tuple[str, ...] = (
    *("<pad>", "<bos>", "<eos>", "<mask>", "<unk>", "<sep>", "<null>", "<img>"),
    *(f"<s{k}>" for k in range(16)),
    *(f"c{k}" for k in range(64)),
    *"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    *"0123456789",
    *_WORDS.split(),
)
IDS = {word: number for number, word in enumerate(WORDS)}

OBJECT, AT, RELATION, ENV, COUNT, MOTION, CAMERA, PLAYER, EVENT = range(1, 10)
LEFT_OF, RIGHT_OF, ABOVE, BELOW, IN_FRONT, BEHIND = range(6)
ENV_SKY, ENV_GROUND, ENV_LIGHT = range(3)
NO_EVENT, SKY_CHANGE, GROUND_CHANGE, SNOWFALL = range(4)

ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
RELATIONS = ("left of", "right of", "above", "below", "in front of", "behind")
NUMBERS = ("one", "two", "three", "four")
MOTIONS = (
    *("moves up left", "rises", "moves up right"),
    *("moves left", "stays", "moves right"),
    *("moves down left", "falls", "moves down right"),
)
CAMERAS = ("stays", "pans left", "pans right", "zooms in", "zooms out")
PLAYERS = ("stays", "walks", "jumps")

CONNECTORS = {OBJECT: ",", CAMERA: ".", PLAYER: ",", EVENT: "then"}
_CLIP_ONLY = (MOTION, CAMERA, PLAYER, EVENT)
_OBJECT_NUMBERS = {AT: (0,), RELATION: (0, 2), MOTION: (0,)}  # which of a, b, c are known from where a clause stands

Clause = tuple[int, int, int, int]
Program = Int[np.ndarray, "16 4"]
Programs = Int[np.ndarray, "batch 16 4"]
Captions = Int[np.ndarray, "batch 40"]


def phrases() -> Iterator[tuple[Clause, str]]:
    """Every clause that can be said, numbers of objects left at 0, with its words."""
    shapes, sizes = range(len(palette.SHAPES)), range(len(palette.SIZES))
    for size, colour, shape in itertools.product((-1, *sizes), range(len(palette.COLOURS)), shapes):
        stated = palette.SIZES[size] + " " if size >= 0 else ""
        yield (OBJECT, size, colour, shape), f"a {stated}{palette.COLOURS[colour]} {palette.SHAPES[shape]}"
    for row, column in itertools.product(range(3), range(3)):
        yield (AT, 0, row, column), f"at {ROWS[row]} {COLUMNS[column]}"
        yield (MOTION, 0, row, column), MOTIONS[3 * row + column]
    for which, words in enumerate(RELATIONS):
        yield (RELATION, 0, which, 0), words
    for value, sky in enumerate(palette.SKIES):
        yield (ENV, ENV_SKY, value, 0), f"under a {sky} sky"
        yield (EVENT, SKY_CHANGE, value, 0), f"it becomes {sky}"
    for value, ground in enumerate(palette.GROUNDS):
        yield (ENV, ENV_GROUND, value, 0), f"on {ground} ground"
        yield (EVENT, GROUND_CHANGE, value, 0), f"ground becomes {ground}"
    for value, light in enumerate(palette.LIGHTS):
        yield (ENV, ENV_LIGHT, value, 0), f"lit from the {light}"
    yield (EVENT, SNOWFALL, 0, 0), "it snows"
    for number, size, shape in itertools.product(range(1, len(NUMBERS) + 1), sizes, shapes):
        named = palette.SHAPES[shape] if number == 1 else palette.PLURALS[shape]
        yield (COUNT, number, size, shape), f"{NUMBERS[number - 1]} {palette.SIZES[size]} {named}"
    for which, words in enumerate(CAMERAS):
        yield (CAMERA, which, 0, 0), f"camera {words}"
    for which, words in enumerate(PLAYERS):
        yield (PLAYER, which, 0, 0), f"player {words}"


PHRASES = dict(phrases())
_CLAUSES = {tuple(words.split()): clause for clause, words in PHRASES.items()}
_LONGEST = max(map(len, _CLAUSES))


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of every phrase (-1 where it is shorter), the phrase of each clause, connectors, spoken columns."""
    tokens = np.full((len(PHRASES), _LONGEST), -1)
    index = np.full((EVENT + 1, 6, 10, 10), -1)
    for number, ((kind, a, b, c), words) in enumerate(PHRASES.items()):
        tokens[number, : len(words.split())] = [IDS[word] for word in words.split()]
        index[kind, a + 1, b, c] = number
    connectors = np.full(EVENT + 1, -1)
    spoken = np.ones((EVENT + 1, 3), int)
    for kind, word in CONNECTORS.items():
        connectors[kind] = IDS[word]
    for kind, columns in _OBJECT_NUMBERS.items():
        spoken[kind, list(columns)] = 0
    return tokens, index, connectors, spoken


def write(programs: Programs) -> Captions:
    """Token ids int32 of each program's caption, with `<bos>` and `<eos>`, padded with 0.

    Raises:
        ValueError: a clause that cannot be said, or more words than a caption holds.
    """
    tokens, index, connectors, spoken = _tables()
    programs = programs[:, : max(1, int((programs[..., 0] > 0).sum(axis=1).max(initial=0)))]
    kind = programs[..., 0]
    a, b, c = np.moveaxis(programs[..., 1:] * spoken[kind], -1, 0)
    phrase = index[kind, a + 1, b, c]
    if (phrase[kind > 0] < 0).any():
        wrong = programs[(kind > 0) & (phrase < 0)][0]
        raise ValueError(f"the clause {tuple(map(int, wrong))} of a program cannot be said")
    said = np.full((*kind.shape, 1 + _LONGEST), -1)
    said[..., 1:] = np.where((kind > 0)[..., None], tokens[phrase], -1)
    after_relation = np.zeros(kind.shape, bool)
    after_relation[:, 1:] = kind[:, :-1] == RELATION
    said[:, 1:, 0] = np.where(after_relation, -1, connectors[kind])[:, 1:]
    end = np.where(np.isin(kind, _CLIP_ONLY).any(axis=1), -1, IDS["."])
    count = len(programs)
    ones = np.ones((count, 1), int)
    flat = np.concatenate([BOS * ones, said.reshape(count, -1), end[:, None], EOS * ones], axis=1)
    spoken_at = flat >= 0
    place = np.cumsum(spoken_at, axis=1) - 1
    if count and place[:, -1].max() >= CAPTION_LENGTH:
        raise ValueError(f"a caption has {place[:, -1].max() + 1} words, but holds at most {CAPTION_LENGTH}")
    captions = np.zeros((count, CAPTION_LENGTH), np.int32)
    captions[np.nonzero(spoken_at)[0], place[spoken_at]] = flat[spoken_at]
    return captions


def encode(text: str) -> list[int]:
    """Token ids of words set apart by spaces; a word that is none becomes `<unk>`."""
    return [IDS.get(word, UNKNOWN) for word in text.split()]


def decode(tokens: Sequence[int] | np.ndarray) -> str:
    """Words of token ids up to `<eos>`, without padding and `<bos>`."""
    words = itertools.takewhile(lambda token: token != EOS, map(int, tokens))
    return " ".join(
        WORDS[token] if token < len(WORDS) else WORDS[UNKNOWN] for token in words if token not in (PAD, BOS)
    )


def read(caption: str | Sequence[int] | np.ndarray) -> Program:
    """The program that a caption states, int16.

    Raises:
        ValueError: words that no phrase begins with, or more clauses than a program holds.
    """
    words = (caption if isinstance(caption, str) else decode(caption)).split()
    program = np.zeros((PROGRAM_LENGTH, 4), np.int16)
    at = count = 0
    named = -1  # number of the object last named
    while at < len(words):
        if words[at] in (".", ",", "then"):
            at += 1
            continue
        for length in range(min(_LONGEST, len(words) - at), 0, -1):
            clause = _CLAUSES.get(tuple(words[at : at + length]))
            if clause:
                break
        else:
            raise ValueError(f"no phrase of the grammar begins at word {at + 1}, {words[at]!r}, of {' '.join(words)!r}")
        if count == PROGRAM_LENGTH:
            raise ValueError(f"a caption states more than {PROGRAM_LENGTH} clauses: {' '.join(words)!r}")
        program[count] = clause
        named += clause[0] == OBJECT
        for column in _OBJECT_NUMBERS.get(clause[0], ()):
            program[count, 1 + column] = named + (column == 2)
        at, count = at + length, count + 1
    return program


class ProgramWriter:
    """Programs of a batch, filled clause by clause: `programs` int16 [batch, 16, 4]."""

    def __init__(self, batch: int) -> None:
        self.programs = np.zeros((batch, PROGRAM_LENGTH, 4), np.int16)
        self._length = np.zeros(batch, int)

    def add(self, where: Bool[np.ndarray, " batch"], kind: int, a: object, b: object = 0, c: object = 0) -> None:
        """Appends a clause to the programs where `where` holds; a, b and c are numbers or int arrays [batch]."""
        rows = np.flatnonzero(where)
        for column, value in enumerate((kind, a, b, c)):
            value = np.broadcast_to(np.asarray(value), where.shape)
            self.programs[rows, self._length[rows], column] = value[rows]
        self._length[rows] += 1
