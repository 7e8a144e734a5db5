"""The judge of clips: objects followed over time, the player and its actions, events, identity.

Positions are in pixels of the canvas (see `clip`), as far as the camera is known: `windows` says what each frame shows,
from the fields of a sample or, with the first window at column 0, from what a program states of its camera. A zoomed
frame is brought back to the canvas before it is parsed.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from transformer_zoo.data.scenes import checker, clip, fields, grammar, palette, shapes

Video = UInt8[np.ndarray, "frames side side 3"]
Window = Int[np.ndarray, "frames 3"]

PLAYER_CONTRAST = 50  # of the white disc over its black ring; 245 as generated, half of it under slight blur
FLAKE_CONTRAST = 20
SNOW_SHARE = 0.008  # of the pixels, by which there are more flakes in the end than at first
SEEN_SHARE = 0.25  # of frames in which a colour must be seen to be an object of a clip
NOT_FOUND = -1


class Track(NamedTuple):
    """An object over time, nan in frames where it is not seen; `shape` and `size` are what it is in most frames."""

    colour: int
    shape: int
    size: int
    place: Float[np.ndarray, "frames 2"]


class ParsedClip(NamedTuple):
    """What a clip shows.

    Attributes:
        frames: each frame, objects at places on the canvas; where the horizon is goes unread.
        tracks: one a colour that is seen often enough.
        player: its centre on the canvas, nan where it is not found.
        flakes: pixels that stand out as flakes do, in each frame.
    """

    frames: tuple[checker.Parsed, ...]
    tracks: tuple[Track, ...]
    player: Float[np.ndarray, "frames 2"]
    flakes: Int[np.ndarray, " frames"]


def stated_windows(program: np.ndarray, frames: int, side: int) -> Window:
    """What frames of a clip show if its camera does what the program states; without a word of it, it stays."""
    cameras = [clause[1] for clause in program if clause[0] == grammar.CAMERA]
    camera = np.array(cameras[:1] or [clip.STAYS])
    return clip.windows(camera, 0 * camera, frames, side)[0]


def windows_of(cam: Float[np.ndarray, "frames 3"], side: int) -> Window:
    """The windows that the field `cam` of a sample describes."""
    column, row, scale = cam.T
    return np.round(np.stack([row, column, scale * side], axis=-1)).astype(int)


def to_canvas(video: Video, window: Window) -> UInt8[np.ndarray, "frames side side 3"]:
    """Frames in pixels of the canvas; a zoomed one fills only the upper left part, the rest is grey."""
    side = video.shape[1]
    frames = np.full_like(video, 128)
    for frame, source, (_, _, size) in zip(frames, video, window):
        pixel = -(-np.arange(size) * side // size)  # the first that shows a canvas pixel
        frame[:size, :size] = source[pixel[:, None], pixel]
    return frames


def parse(video: Video, window: Window) -> ParsedClip:
    """Reads a clip.

    Args:
        video: frames.
        window: first row, first column and side of what each frame shows.
    """
    side = video.shape[1]
    flat = to_canvas(video, window)
    frames = []
    seen = zip(checker.find_objects(flat, side), video, ~checker.is_object(video), window)
    for (objects, light), frame, background, (row, column, _) in seen:
        moved = tuple(one._replace(row=one.row + int(row), column=one.column + int(column)) for one in objects)
        frames.append(checker.Parsed(moved, *checker.sky_and_ground(frame, background), light, checker.UNSEEN))
    player = find_player(flat) + window[:, :2]
    return ParsedClip(tuple(frames), _tracks(frames), player, count_flakes(flat))


def _tracks(frames: list[checker.Parsed]) -> tuple[Track, ...]:
    tracks = []
    for colour in range(len(palette.COLOURS)):
        seen = [next((one for one in frame.objects if one.colour == colour), None) for frame in frames]
        found = [one for one in seen if one]
        if not found or len(found) < SEEN_SHARE * len(frames):
            continue
        place = np.array([(one.row, one.column) if one else (np.nan, np.nan) for one in seen])
        shape, size = (int(np.bincount(ids).argmax()) for ids in zip(*[(one.shape, one.size) for one in found]))
        tracks.append(Track(colour, shape, size, place))
    return tuple(tracks)


@functools.cache
def _player_masks(side: int) -> tuple[np.ndarray, np.ndarray]:
    """The player's ring and the disc inside of it as weights that sum to 1."""
    mask = shapes.sprite("ball", int(palette.half_widths(side)[0])).mask
    ring = shapes.player_ring(mask)
    return ring / ring.sum(), (mask & ~ring) / (mask & ~ring).sum()


def find_player(frames: Video) -> Float[np.ndarray, "frames 2"]:
    """Centre of the white disc in a black ring in each frame, nan where there is none."""
    from scipy.signal import fftconvolve  # most of a second to import: only where clips are judged

    ring, disc = _player_masks(frames.shape[1])
    brightest, darkest = fields.extremes(frames)
    # The masks are their own mirror images, so that convolving is correlating.
    white = fftconvolve(darkest, disc[None], "valid", axes=(1, 2))
    black = fftconvolve(brightest, ring[None], "valid", axes=(1, 2))
    contrast = (white - black).reshape(len(frames), -1)
    place = np.stack(np.divmod(contrast.argmax(axis=1), white.shape[2]), axis=1) + len(ring) // 2
    return np.where(contrast.max(axis=1, keepdims=True) > PLAYER_CONTRAST, place, np.nan)


def count_flakes(frames: Video) -> Int[np.ndarray, " frames"]:
    """Pixels whose lowest value exceeds those two flakes above, below, left and right of them."""
    side = frames.shape[1]
    away = 2 * (side // 32)
    lowest = fields.extremes(frames)[1].astype(int)
    around = np.pad(lowest, ((0, 0), (away, away), (away, away)))
    middle, before, after = slice(away, away + side), slice(side), slice(2 * away, None)
    vertical = np.maximum(around[:, before, middle], around[:, after, middle])
    horizontal = np.maximum(around[:, middle, before], around[:, middle, after])
    return (lowest - np.maximum(vertical, horizontal) > FLAKE_CONTRAST).sum(axis=(1, 2))


def actions(parsed: ParsedClip) -> Int[np.ndarray, " steps"]:
    """The class of each step of the player, `clip.NOOP` to `clip.DOWN`, -1 where it is not found."""
    steps = np.diff(parsed.player, axis=0)
    return np.where(np.isnan(steps).any(axis=1), NOT_FOUND, clip.step_classes(np.nan_to_num(steps)))


def direction(track: Track) -> Int[np.ndarray, "2"] | None:
    """Sign of the way (down, right) it goes in most steps; None if it is never seen in two frames in a row."""
    steps = np.diff(track.place, axis=0)
    steps = steps[~np.isnan(steps).any(axis=1)]
    return clip.main_direction(steps[None])[0] if len(steps) else None


def heading(track: Track, side: int) -> Int[np.ndarray, "2"] | None:
    """Sign of the way (down, right) from where it is first seen to where it is last; None if it is never seen twice.

    What moves a quarter of a pixel of 32 a frame or less is at rest. Unlike `direction`, a place that is read one
    pixel off somewhere on the way changes nothing; an object that turns at a wall may have gone another way.
    """
    frames = np.flatnonzero(~np.isnan(track.place).any(axis=1))
    if len(frames) < 2:
        return None
    first, last = frames[[0, -1]]
    way = track.place[last] - track.place[first]
    return np.where(np.abs(way) <= side / 128 * (last - first), 0, np.sign(way)).astype(np.int64)


def identity(parsed: ParsedClip) -> float:
    """Share of objects that the next frame shows again in the same colour and shape."""
    kept = []
    for before, after in zip(parsed.frames, parsed.frames[1:]):
        kinds = {(one.colour, one.shape) for one in after.objects}
        kept += [(one.colour, one.shape) in kinds for one in before.objects]
    return float(np.mean(kept)) if kept else 0.0


def snows(parsed: ParsedClip, side: int) -> bool:
    """Whether the last frame shows more flakes than the first."""
    return bool(parsed.flakes[-1] - parsed.flakes[0] > SNOW_SHARE * side**2)


def score(
    video: Video, program: np.ndarray, *, cam: np.ndarray | None = None, action: np.ndarray | None = None
) -> dict[str, float]:
    """How much of a program a clip shows.

    Args:
        video: frames.
        program: clauses int [16, 4].
        cam: the field of a sample; None takes what the program states.
        action: what the player was told, int [frames - 1].

    Returns:
        `adherence` and `exact` over objects, motions, surroundings at the start, player and event (what the camera does
        is taken as given, and objects are counted by colour); `identity`; and the right share of what is stated:
        `colour`, `shape`, `size`, `env`, `motion`, `player`, `event`, and of `action`, by displacement. `direction`
        judges motions by `heading`, which counts for nothing else.
    """
    frames, side = video.shape[:2]
    window = stated_windows(program, frames, side) if cam is None else windows_of(cam, side)
    parsed = parse(video, window)
    clauses = [tuple(map(int, clause)) for clause in program if clause[0] > 0]
    objects = tuple(checker.Found(one.shape, one.size, one.colour, 0, 0, 1.0, 0) for one in parsed.tracks)
    truths, match = checker.best_match(parsed.frames[0]._replace(objects=objects), clauses, side)
    tracks = {one.colour: one for one in parsed.tracks}
    classes = actions(parsed)
    truths |= {"motion": [], "direction": [], "player": [], "event": []}
    for kind, a, b, c in clauses:
        if kind == grammar.MOTION:
            found = match[a]
            track = tracks[found.colour] if found else None
            for name, way in (
                ("motion", direction(track) if track else None),
                ("direction", heading(track, side) if track else None),
            ):
                truths[name].append(way is not None and tuple(way + 1) == (b, c))
        elif kind == grammar.PLAYER:
            truths["player"].append(bool((classes >= 0).all()) and int(clip.player_kind(classes[None])[0]) == a)
        elif kind == grammar.EVENT:
            last = parsed.frames[-1]
            happened = {
                grammar.SKY_CHANGE: last.sky == b,
                grammar.GROUND_CHANGE: last.ground == b,
                grammar.SNOWFALL: snows(parsed, side),
            }
            truths["event"].append(happened[a])
    for name in ("motion", "player", "event"):
        truths["clause"] += truths[name]
    result = checker.summary(truths, all(truths["clause"]) and len(parsed.tracks) == len(match))
    if action is not None:
        result["action"] = float((classes == clip.action_classes(action[None])[0]).mean())
    return result | {"identity": identity(parsed)}


def evaluate(videos: np.ndarray, fields: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean scores of clips uint8 [batch, frames, side, side, 3] by `program` and, where given, `cam` and `action`.

    A clip without a player in its program has no say in the mean of `action`.
    """
    scores = []
    for number, (video, program) in enumerate(zip(videos, fields["program"])):
        extra = {name: fields[name][number] for name in ("cam", "action") if name in fields}
        if not (program[:, 0] == grammar.PLAYER).any():
            extra.pop("action", None)
        scores.append(score(video, program, **extra))
    return checker.mean_scores(scores)


STATE = (
    *("objects", "row", "column", "row spread", "column spread", "step down", "step right", "speed", "jerk"),
    *("size", "hue cosine", "hue sine", "shape", "identity", "sky", "ground"),
)


def state(video: Video, window: Window | None = None) -> Float[np.ndarray, "16"]:
    """A clip in 16 numbers of about equal range (named in `STATE`), for Frechet distances between sets of clips."""
    frames, side = video.shape[:2]
    parsed = parse(video, stated_windows(np.zeros((0, 4)), frames, side) if window is None else window)
    seen = [one for frame in parsed.frames for one in frame.objects]
    places = np.array([(one.row, one.column) for one in seen]).reshape(-1, 2) / side
    steps = [np.diff(track.place, axis=0) for track in parsed.tracks]
    jerks = [np.diff(step, axis=0) for step in steps]
    angle = 2 * np.pi * np.array([one.colour for one in seen]) / len(palette.COLOURS)
    quarter = side // 4

    def mean(values: np.ndarray) -> float:
        values = values[~np.isnan(values)]
        return float(values.mean()) if values.size else 0.0

    all_steps = np.concatenate([np.zeros((0, 2)), *steps])
    all_jerks = np.concatenate([np.zeros((0, 2)), *jerks])
    figures = (
        len(seen) / frames / palette.MAX_OBJECTS,
        *(mean(places[:, axis]) for axis in range(2)),
        *(float(places[:, axis].std()) if len(seen) else 0.0 for axis in range(2)),
        *(mean(all_steps[:, axis]) / 2 for axis in range(2)),
        mean(np.linalg.norm(all_steps, axis=1)) / 2,
        mean(np.linalg.norm(all_jerks, axis=1)) / 2,
        mean(np.array([one.size / 2 for one in seen])),
        mean(np.cos(angle)),
        mean(np.sin(angle)),
        mean(np.array([one.shape / (len(palette.SHAPES) - 1) for one in seen])),
        identity(parsed),
        float(video[:, :quarter].mean()) / 255,
        float(video[:, -quarter:].mean()) / 255,
    )
    return np.array(figures, np.float64)
