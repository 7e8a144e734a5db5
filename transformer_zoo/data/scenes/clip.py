"""Family `clip`: one to three moving objects, a camera, an event, and a player that obeys actions.

The world is a canvas S high and 2 S wide, seen through a window S wide; `obj_track` and `obj` are in pixels of the
canvas, and `cam` (x0, y0, scale) says where the window lies: pixel i of a frame shows canvas row y0 + floor(i scale).

Slots beyond the shared ones (`slots`):
    24..31    centres at frame 0, such that sprites lie inside of the first window
    40..43    vertical velocity of object k, [0, 5) - 2 pixels a frame; 44..47 horizontal
    48        camera, max(0, [0, 8) - 3): stays half of the time, else pans left, pans right, zooms in, zooms out
    49        where the window starts, among the columns that keep it on the canvas
    50, 51    event, [0, 4): none, sky, ground, snowfall; its frame, T // 4 + [0, T // 2)
    52        its value: the sky after [0, 2) more steps of the cycle, the ground after [0, 3)
    53        a player if 1 of [0, 2)
    54, 55    its centre at frame 0
    56        surroundings stated by the caption if 1 of [0, 2), and at most two objects or no event
    640 + t   action t if it is new, [0, 6); 704 + t: as the action before if not 0 of [0, 4)
    1024..    flakes: row and column of each of 64

Choices where the specification is open. Objects reflect at the canvas; a caption says which way an object goes in most
steps (the first step's way if both are as many). The ground's stripes swap light and dark every S / 4 columns, so that
a moving camera is seen. A zoom shrinks the window around its centre from S to 3 S / 4, or widens it back. The player is
nearer than all objects, as near as the lowest row, and stays where all frames see it: an action that would leave that
region is 0 instead. A jump is 5 for all of its six steps; as it looks like three steps up and three down, judges
compare displacements. Flakes are squares of S / 32 on the canvas that fall S / 16 a frame, in `video` only. Of the
player `inst` is 4 and `semseg` that of a ball; it is row 3 of `obj` (colour -1) and of `obj_track`. `flow` is (down,
right) from a frame to the next, 0 in the last. The second caption and its start are 0 and -1 where there is no event;
`caption` and `program` state both segments.

`easy` is the same world with slot 0 read as one object, day, grass, the highest horizon, a camera that stays at column
0, no event, no player, and velocities of steady speed: their signs as drawn, times 2 (1 in clips of more than 8
frames), from a start such that the object reaches no wall (a large one at side 32 in 17 frames turns back by a pixel in
the last).
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Float, Int

from transformer_zoo.data import draws
from transformer_zoo.data.scenes import canvas, grammar, palette, shapes, slots

FRAMES = (8, 9, 16, 17)
VELOCITY = 40  # eight slots: vertical, then horizontal
CAMERA, CAMERA_START, EVENT, EVENT_FRAME, EVENT_VALUE = 48, 49, 50, 51, 52
PLAYER, PLAYER_PLACE, ENV_STATED = 53, 54, 56
PRESS, HOLD, FLAKES = 640, 704, 1024

STAYS, PANS_LEFT, PANS_RIGHT, ZOOMS_IN, ZOOMS_OUT = range(5)
NOOP, LEFT, RIGHT, UP, DOWN, JUMP = range(6)
STEPS = np.array([(0, 0), (0, -2), (0, 2), (-2, 0), (2, 0)])  # displacement (down, right) of the first five actions
JUMP_STEPS, JUMP_HEIGHT = 6, 6
JUMP_CLASSES = (UP, UP, UP, DOWN, DOWN, DOWN)
PLAYER_ROW = 3
NUM_FLAKES = 64

Tracks = Int[np.ndarray, "batch frames 4 2"]
Windows = Int[np.ndarray, "batch frames 3"]


@dataclasses.dataclass(frozen=True)
class Scene:
    """Attributes of a batch of clips.

    Attributes:
        side: of a frame.
        objects: up to three.
        environment: of each frame, int [batch, frames] each.
        window: first row, first column and side of what each frame shows, int [batch, frames, 3].
        track: centres (row, column) on the canvas, int [batch, frames, 4, 2], -1 where there is no object.
        player: whether there is one, bool [batch].
        action: int [batch, frames - 1].
        event: frame, kind, value, int [batch, 3]; frame -1 where there is none.
        flakes: row and column on the canvas at frame 0, int [batch, 64, 2].
        programs: what the caption states, int16 [batch, 16, 4].
    """

    side: int
    objects: slots.Objects
    environment: slots.Environment
    window: Windows
    track: Tracks
    player: Bool[np.ndarray, " batch"]
    action: Int[np.ndarray, "batch steps"]
    event: Int[np.ndarray, "batch 3"]
    flakes: Int[np.ndarray, "batch 64 2"]
    programs: grammar.Programs

    @functools.cached_property
    def sprite(self) -> slots.Table:
        """Which sprite each object is, -1 where there is none."""
        objects = self.objects
        sprite = np.where(objects.exists, len(palette.SHAPES) * objects.size + objects.shape, -1)
        sprite[:, PLAYER_ROW] = np.where(self.player, shapes.PLAYER_SPRITE, -1)
        return sprite

    @functools.cached_property
    def motion(self) -> Int[np.ndarray, "batch 4 2"]:
        """Sign of the way (down, right) that each object goes in most steps."""
        return main_direction(np.diff(self.track, axis=1))


def main_direction(steps: np.ndarray) -> np.ndarray:
    """Sign of most steps [batch, steps, ...]; of the first step where as many go either way."""
    total = np.sign(steps).sum(axis=1)
    return np.sign(np.where(total == 0, steps[:, 0], total)).astype(np.int64)


def windows(camera: np.ndarray, start: np.ndarray, frames: int, side: int) -> Windows:
    """First row, first column and side of each frame's window, from camera [batch] and its first column [batch]."""
    time = np.arange(frames)
    shrunk = (2 * side * time + 4 * (frames - 1)) // (8 * (frames - 1))  # side / 4 * time / (frames - 1), rounded
    camera = camera[:, None]
    narrower = np.where(camera == ZOOMS_IN, shrunk, np.where(camera == ZOOMS_OUT, shrunk[::-1], 0))
    pan = np.where(camera == PANS_RIGHT, time, np.where(camera == PANS_LEFT, -time, 0))
    return np.stack([narrower // 2, start[:, None] + pan + narrower // 2, side - narrower], axis=-1)


def draw(seeds: slots.Seeds, split: str, side: int, frames: int, easy: bool = False, player: str = "") -> Scene:
    """Clips of `seeds` uint64 [batch], see `slots.scene_seeds`.

    Args:
        seeds: one a clip.
        split: a key of `slots.SPLITS`.
        side: of a frame.
        frames: one of `FRAMES`.
        easy: see the head of this file.
        player: 'always' or 'never'; '' is half of the clips, or none if `easy`.
    """
    batch = len(seeds)
    zero = np.zeros(batch, np.int64)
    objects = slots.draw_objects(seeds, split, single=easy)
    first = slots.draw_environment(seeds, side)
    if easy:
        first = slots.Environment(zero, zero, first.light, zero + 3 * side // 8)
    camera = zero if easy else np.maximum(0, draws.integers(seeds, CAMERA, 8) - 3)
    window = _window(seeds, camera, frames, side, easy)
    track = _tracks(seeds, objects, window, side, easy)
    drawn = draws.integers(seeds, PLAYER, 2) == (2 if easy else 1)
    exists = {"always": zero == 0, "never": zero > 0}.get(player, drawn)
    action, path = _play(seeds, window, side)
    action[~exists] = 0
    track[:, :, PLAYER_ROW] = np.where(exists[:, None, None], path, -1)
    event = _event(seeds, first, frames)
    if easy:
        event[:] = (-1, 0, 0)
    flakes = slots.integers(seeds, FLAKES, 2 * NUM_FLAKES, 2 * side).reshape(batch, NUM_FLAKES, 2)
    past = (event[:, :1] >= 0) & (np.arange(frames) >= event[:, :1])

    def over_time(before: np.ndarray, change: int) -> np.ndarray:
        changed = past & (event[:, 1:2] == change)
        return np.where(changed, event[:, 2:], before[:, None])

    environment = slots.Environment(
        over_time(first.sky, grammar.SKY_CHANGE),
        over_time(first.ground, grammar.GROUND_CHANGE),
        *(np.repeat(x[:, None], frames, axis=1) for x in (first.light, first.horizon)),
    )
    programs = _programs(seeds, objects, first, camera, track, event)
    return Scene(side, objects, environment, window, track, exists, action, event, flakes, programs)


def _window(seeds: slots.Seeds, camera: np.ndarray, frames: int, side: int, easy: bool) -> Windows:
    if easy:
        return windows(camera, 0 * camera, frames, side)
    pans = (camera == PANS_LEFT) | (camera == PANS_RIGHT)
    room = np.where(pans, side - frames + 2, side + 1).astype(np.uint64)
    start = (draws.draw(seeds, CAMERA_START) % room).astype(np.int64)
    return windows(camera, start + np.where(camera == PANS_LEFT, frames - 1, 0), frames, side)


def _within(seeds: slots.Seeds, slot: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """A whole number from `low` to `high`, both included; `low` where that is nothing."""
    return low + (draws.draw(seeds, slot) % np.maximum(1, high - low + 1).astype(np.uint64)).astype(np.int64)


def _tracks(seeds: slots.Seeds, objects: slots.Objects, window: Windows, side: int, easy: bool) -> Tracks:
    """Centres of the objects: straight lines, reflected where a sprite would leave the canvas."""
    frames = window.shape[1]
    half = palette.half_widths(side)[objects.size]
    found = []
    for axis, slot in enumerate((slots.ROW, slots.COLUMN)):
        velocity = slots.integers(seeds, VELOCITY + 4 * axis, palette.MAX_OBJECTS, 5) - 2
        length = side if axis == 0 or easy else 2 * side
        room = length - 1 - 2 * half  # the range of a centre, from R on
        for k in range(palette.MAX_OBJECTS):
            low = window[:, 0, axis]
            high = low + window[:, 0, 2] - 1 - 2 * half[:, k]
            if easy:
                velocity[:, k] = np.sign(velocity[:, k]) * (2 if frames <= 8 else 1)
                way = velocity[:, k] * (frames - 1)
                low, high = np.minimum(np.maximum(0, -way), high), np.minimum(high, high - way)
            place = _within(seeds, slot + k, low, high)
            unfolded = place[:, None] + velocity[:, k, None] * np.arange(frames)
            folded = room[:, k, None] - abs(room[:, k, None] - unfolded % (2 * room[:, k, None]))
            found.append(np.where(objects.exists[:, k, None], half[:, k, None] + folded, -1))
    return np.stack(found, axis=-1).reshape(len(seeds), frames, 2, palette.MAX_OBJECTS).swapaxes(2, 3)


def _play(seeds: slots.Seeds, window: Windows, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Actions [batch, frames - 1] and the path of the player that obeys them [batch, frames, 2]."""
    half = int(palette.half_widths(side)[0])
    low = window[..., :2].max(axis=1) + half
    high = (window[..., :2] + window[..., 2:]).min(axis=1) - 1 - half
    place = np.stack([_within(seeds, PLAYER_PLACE + axis, low[:, axis], high[:, axis]) for axis in range(2)], axis=1)
    path, actions = [place], []
    action, left = np.zeros(len(seeds), np.int64), np.zeros(len(seeds), np.int64)  # `left`: steps of a jump to come
    for t in range(window.shape[1] - 1):
        new = draws.integers(seeds, PRESS + t, 6)
        held = (draws.integers(seeds, HOLD + t, 4) != 0) & (t > 0)
        action = np.where((left > 0) | held, np.where(left > 0, JUMP, action), new)
        starts = (left == 0) & (action == JUMP)
        action = np.where(starts & (place[:, 0] - JUMP_HEIGHT < low[:, 0]), NOOP, action)
        left = np.where(starts & (action == JUMP), JUMP_STEPS, left)
        step = STEPS[np.where(action == JUMP, np.where(left > JUMP_STEPS // 2, UP, DOWN), action)]
        leaves = ((place + step < low) | (place + step > high)).any(axis=1)
        action = np.where(leaves, NOOP, action)
        place = place + np.where(leaves[:, None], 0, step)
        left = np.maximum(0, left - 1)
        path.append(place)
        actions.append(action)
    return np.stack(actions, axis=1), np.stack(path, axis=1)


def _event(seeds: slots.Seeds, first: slots.Environment, frames: int) -> Int[np.ndarray, "batch 3"]:
    """Frame, kind and value; a sky or ground that changes becomes another one."""
    kind = draws.integers(seeds, EVENT, 4)
    frame = np.where(kind > 0, frames // 4 + draws.integers(seeds, EVENT_FRAME, frames // 2), -1)
    sky = (first.sky + 1 + draws.integers(seeds, EVENT_VALUE, 2)) % len(palette.SKIES)
    ground = (first.ground + 1 + draws.integers(seeds, EVENT_VALUE, 3)) % len(palette.GROUNDS)
    value = np.where(kind == grammar.SKY_CHANGE, sky, np.where(kind == grammar.GROUND_CHANGE, ground, 0))
    return np.stack([frame, kind, value], axis=1)


def _programs(
    seeds: slots.Seeds,
    objects: slots.Objects,
    first: slots.Environment,
    camera: np.ndarray,
    track: Tracks,
    event: np.ndarray,
) -> grammar.Programs:
    """Objects with their motions, surroundings at the start, player, camera, event."""
    stated = slots.integers(seeds, slots.SIZE_STATED, palette.MAX_OBJECTS, 4) > 0
    size = np.where(stated, objects.size, -1)
    described = (draws.integers(seeds, ENV_STATED, 2) == 1) & ((objects.count < 3) | (event[:, 1] == 0))
    steps = np.diff(track, axis=1)
    motion = main_direction(steps)
    writer = grammar.ProgramWriter(len(seeds))
    for k in range(3):
        named = k < objects.count
        writer.add(named, grammar.OBJECT, size[:, k], objects.colour[:, k], objects.shape[:, k])
        writer.add(named, grammar.MOTION, k, motion[:, k, 0] + 1, motion[:, k, 1] + 1)
    writer.add(described, grammar.ENV, grammar.ENV_GROUND, first.ground)
    writer.add(described, grammar.ENV, grammar.ENV_SKY, first.sky)
    player = track[:, 0, PLAYER_ROW, 0] >= 0
    writer.add(player, grammar.PLAYER, player_kind(step_classes(steps[:, :, PLAYER_ROW])))
    writer.add(np.ones(len(seeds), bool), grammar.CAMERA, camera)
    writer.add(event[:, 1] > 0, grammar.EVENT, event[:, 1], event[:, 2])
    return writer.programs


def step_classes(steps: np.ndarray) -> np.ndarray:
    """Steps (down, right) [..., 2] as the actions NOOP to DOWN; along the longer way, and NOOP below one pixel."""
    down, right = steps[..., 0], steps[..., 1]
    vertical = abs(down) > abs(right)
    way = np.where(vertical, np.where(down < 0, UP, DOWN), np.where(right < 0, LEFT, RIGHT))
    return np.where(np.maximum(abs(down), abs(right)) < 1, NOOP, way)


def action_classes(action: np.ndarray) -> np.ndarray:
    """The displacement class of each action [batch, steps]: a jump is three steps up, then three down."""
    classes, since = [], np.zeros(len(action), np.int64)
    for t in range(action.shape[1]):
        jumps = action[:, t] == JUMP
        classes.append(np.where(jumps, np.array(JUMP_CLASSES)[since % JUMP_STEPS], action[:, t]))
        since = np.where(jumps, since + 1, 0)
    return np.stack(classes, axis=1)


def player_kind(classes: np.ndarray) -> Int[np.ndarray, " batch"]:
    """0 stays, 1 walks, 2 jumps (anywhere three steps up and at once three down), of step classes [batch, steps]."""
    runs = np.lib.stride_tricks.sliding_window_view(classes, JUMP_STEPS, axis=1)
    jumps = (runs == JUMP_CLASSES).all(axis=-1).any(axis=1)
    return np.where(jumps, 2, (classes != NOOP).any(axis=1).astype(int))


class Fields:
    """Every field of a batch of clips by its name in `FIELDS`, computed when first asked for."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.side = scene, scene.side
        self.batch, self.frames = scene.window.shape[:2]
        window = scene.window.reshape(-1, 3)
        track = scene.track.reshape(-1, palette.MAX_OBJECTS, 2)
        sprite, colour = (np.repeat(x, self.frames, axis=0) for x in (scene.sprite, scene.objects.colour))
        bottom = track[..., 0] + canvas.half_of(sprite, self.side)
        bottom[:, PLAYER_ROW] = self.side - 1
        world = canvas.empty(len(window), self.side, 2 * self.side, band=self.side // 4)
        canvas.paint(world, self.side, sprite, track[..., 0], track[..., 1], bottom)
        self._let_it_snow(world)
        seen = np.arange(self.side) * window[:, 2:] // self.side
        rows, columns = window[:, :1] + seen, window[:, 1:2] + seen
        view = world[np.arange(len(world))[:, None, None], rows[:, :, None], columns[:, None]]
        flat = slots.Environment(*(x.reshape(-1) for x in scene.environment))
        self.pictures = canvas.Pictures(self.side, view, flat, colour, bottom)

    def _let_it_snow(self, world: np.ndarray) -> None:
        scene, size = self.scene, self.side // 32
        clips = np.flatnonzero(scene.event[:, 1] == grammar.SNOWFALL)
        square = np.arange(size)
        frame = np.arange(self.frames)
        row = scene.flakes[clips, None, :, 0] + frame[:, None] * (self.side // 16)
        rows = (row[..., None, None] + square[:, None]) % self.side
        columns = (scene.flakes[clips, None, :, 1, None, None] + square) % (2 * self.side)
        falls = frame >= scene.event[clips, :1]
        picture = (clips[:, None] * self.frames + frame)[..., None, None, None]
        where = ((picture * self.side + rows) * 2 * self.side + columns)[falls]
        world.reshape(-1)[where] |= canvas.FLAKE

    def _by_clip(self, field: np.ndarray) -> np.ndarray:
        return field.reshape(self.batch, self.frames, *field.shape[1:])

    @property
    def video(self) -> np.ndarray:
        return self._by_clip(self.pictures.rgb)

    @property
    def depth(self) -> np.ndarray:
        return self._by_clip(self.pictures.depth)

    @property
    def normal(self) -> np.ndarray:
        return self._by_clip(self.pictures.normal)

    @property
    def semseg(self) -> np.ndarray:
        return self._by_clip(self.pictures.semseg)

    @property
    def inst(self) -> np.ndarray:
        return self._by_clip(self.pictures.instance)

    @functools.cached_property
    def flow(self) -> Int[np.ndarray, "batch frames side side 2"]:
        steps = np.zeros((self.batch, self.frames, 1 + palette.MAX_OBJECTS, 2))
        steps[:, :-1, 1:] = np.diff(self.scene.track, axis=1)
        moved = steps[np.arange(self.batch)[:, None, None, None], np.arange(self.frames)[:, None, None], self.inst]
        window = self.scene.window.astype(float)
        after = np.concatenate([window[:, 1:], window[:, -1:]], axis=1)
        pixel = np.moveaxis(np.mgrid[: self.side, : self.side], 0, -1) + 0.5
        now, then = (x[:, :, None, None, 2:] / self.side for x in (window, after))
        origin, target = (x[:, :, None, None, :2] for x in (window, after))
        return np.round((origin + pixel * now + moved - target) / then - pixel).astype(np.int8)

    @property
    def action(self) -> Int[np.ndarray, "batch steps"]:
        return self.scene.action.astype(np.int8)

    @property
    def event(self) -> Int[np.ndarray, "batch 3"]:
        return self.scene.event.astype(np.int16)

    @property
    def cam(self) -> Float[np.ndarray, "batch frames 3"]:
        row, column, size = np.moveaxis(self.scene.window, -1, 0)
        return np.stack([column, row, size / self.side], axis=-1).astype(np.float32)

    @property
    def obj_track(self) -> Tracks:
        return self.scene.track.astype(np.int16)

    @functools.cached_property
    def obj(self) -> Int[np.ndarray, "batch 4 6"]:
        objects, exists = self.scene.objects, self.scene.sprite >= 0
        shape, size = objects.shape.copy(), objects.size.copy()
        shape[self.scene.player, PLAYER_ROW] = size[self.scene.player, PLAYER_ROW] = 0
        visible = np.where(exists, self._by_clip(self.pictures.visible)[:, 0], -1)
        row, column = np.moveaxis(self.scene.track[:, 0], -1, 0)
        columns = (shape, objects.colour, size, row, column, visible)
        return np.stack(columns, axis=-1).astype(np.int16)

    @property
    def env(self) -> Int[np.ndarray, "batch 4"]:
        return np.stack([x[:, 0] for x in self.scene.environment], axis=1).astype(np.int16)

    @property
    def program(self) -> grammar.Programs:
        return self.scene.programs

    @functools.cached_property
    def caption(self) -> grammar.Captions:
        return grammar.write(self.program)

    @property
    def caption_len(self) -> Int[np.ndarray, " batch"]:
        return (self.caption > 0).sum(axis=1).astype(np.int32)

    @property
    def text(self) -> np.ndarray:
        return np.array([grammar.decode(tokens) for tokens in self.caption], object)

    @property
    def captions(self) -> Int[np.ndarray, "batch 2 40"]:
        happens = self.program[..., 0] == grammar.EVENT
        before = np.where(happens[..., None], 0, self.program).astype(np.int16)
        after = np.zeros_like(before)
        after[happens.any(axis=1), 0] = self.program[happens]
        second = np.where(happens.any(axis=1)[:, None], grammar.write(after), 0)
        return np.stack([grammar.write(before), second], axis=1).astype(np.int32)

    @property
    def seg_start(self) -> Int[np.ndarray, "batch 2"]:
        return np.stack([0 * self.scene.event[:, 0], self.scene.event[:, 0]], axis=1).astype(np.int32)


FIELDS = (
    *("video", "depth", "normal", "semseg", "inst", "flow", "action", "event", "cam", "obj_track", "obj", "env"),
    *("caption", "caption_len", "text", "program", "captions", "seg_start"),
)
