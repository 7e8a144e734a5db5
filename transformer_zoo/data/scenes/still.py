"""Family `still`: one picture of one to three objects of pairwise distinct colours.

Slots beyond the shared ones (`slots`):
    5       objects of one scene all alike in size and shape, and counted by the caption, if 0 of [0, 8)
    6       template, [0, 4): listed, placed, related, described with its surroundings
    24..27  centre row of object k, R + [0, S - 2 R); 28..31 centre column
    32..35  size of object k left out of the caption if 0 of [0, 4)
    36      which of the true relations is stated
    37      whether the template with surroundings also places the objects, [0, 2)

Choices where the specification is open. Objects are named in the order of their numbers; a related pair comes first, in
the order of its relation, and a third object follows after a comma. The gap of `in front of` and `behind` is one of
bottom rows, where rows above the horizon count as the horizon. A scene where no relation is true is placed instead. A
caption that counts states neither colours nor places.

`easy` is the same world with slot 0 read as one object and slot 5 as not counted, so that every caption names colour
and shape of the one object.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Int

from transformer_zoo.data import draws
from transformer_zoo.data.scenes import canvas, fields, grammar, palette, slots

COUNTED, TEMPLATE, RELATION, ENV_PLACED = 5, 6, 36, 37
LISTED, PLACED, RELATED, DESCRIBED = range(4)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Attributes of a batch of stills; rows of absent objects hold -1.

    Attributes:
        side: of the picture.
        objects: count, shape, colour and size.
        environment: sky, ground, light and horizon.
        row: of each centre, int [batch, 4].
        column: likewise.
        programs: what the caption states, int16 [batch, 16, 4].
    """

    side: int
    objects: slots.Objects
    environment: slots.Environment
    row: slots.Table
    column: slots.Table
    programs: grammar.Programs


def draw(seeds: slots.Seeds, split: str, side: int, easy: bool = False) -> Scene:
    """Scenes of `seeds` uint64 [batch], see `slots.scene_seeds`."""
    counted = (draws.integers(seeds, COUNTED, 8) == 0) & (not easy)
    objects = slots.draw_objects(seeds, split, alike=counted, single=easy)
    half = palette.half_widths(side)[objects.size]
    row, column = (
        np.where(objects.exists, half + slots.integers(seeds, slot, palette.MAX_OBJECTS, side - 2 * half), -1)
        for slot in (slots.ROW, slots.COLUMN)
    )
    environment = slots.draw_environment(seeds, side)
    programs = _programs(seeds, side, objects, environment, row, column, counted)
    return Scene(side, objects, environment, row, column, programs)


def _programs(
    seeds: slots.Seeds,
    side: int,
    objects: slots.Objects,
    environment: slots.Environment,
    row: np.ndarray,
    column: np.ndarray,
    counted: np.ndarray,
) -> grammar.Programs:
    """The clauses of each scene's template."""
    template = draws.integers(seeds, TEMPLATE, 4)
    first, relation, second = _relations(seeds, side, objects, environment.horizon, row, column)
    related = ~counted & (template == RELATED) & (relation >= 0)
    placed = (template == PLACED) | ((template == RELATED) & ~related)
    placed |= (template == DESCRIBED) & (draws.integers(seeds, ENV_PLACED, 2) == 1)
    listed = np.arange(palette.MAX_OBJECTS)
    # The related two first, then the others as they come.
    rank = np.where(listed == first[:, None], -2, np.where(listed == second[:, None], -1, listed))
    order = np.where(related[:, None], np.argsort(rank, axis=1), listed)
    stated = slots.integers(seeds, slots.SIZE_STATED, palette.MAX_OBJECTS, 4) > 0
    size = np.where(stated, objects.size, -1)
    size, colour, shape, row, column = (
        np.take_along_axis(table, order, axis=1) for table in (size, objects.colour, objects.shape, row, column)
    )
    writer = grammar.ProgramWriter(len(seeds))
    for k in range(3):
        named = ~counted & (k < objects.count)
        writer.add(named, grammar.OBJECT, size[:, k], colour[:, k], shape[:, k])
        writer.add(named & placed, grammar.AT, k, 3 * row[:, k] // side, 3 * column[:, k] // side)
        if k == 0:
            writer.add(related, grammar.RELATION, 0, relation, 1)
    writer.add(counted, grammar.COUNT, objects.count, objects.size[:, 0], objects.shape[:, 0])
    described = ~counted & (template == DESCRIBED)
    writer.add(described, grammar.ENV, grammar.ENV_GROUND, environment.ground)
    writer.add(described, grammar.ENV, grammar.ENV_SKY, environment.sky)
    writer.add(described, grammar.ENV, grammar.ENV_LIGHT, environment.light)
    return writer.programs


PAIRS = np.array([(i, j) for i in range(3) for j in range(3) if i != j])


def _relations(
    seeds: slots.Seeds, side: int, objects: slots.Objects, horizon: np.ndarray, row: np.ndarray, column: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One of each scene's true relations (first object, relation, second), with relation -1 where none is true."""
    bottom = np.maximum(row + palette.half_widths(side)[objects.size], horizon[:, None] - 1)
    gaps = np.stack([x[:, PAIRS[:, 0]] - x[:, PAIRS[:, 1]] for x in (column, row, bottom)], axis=-1)
    exists = (objects.count[:, None] > PAIRS.max(axis=1))[..., None]
    true = (exists & (abs(gaps) >= side // 8)).reshape(len(seeds), -1)
    number = true.sum(axis=1)
    chosen = (draws.draw(seeds, RELATION) % np.maximum(number, 1).astype(np.uint64)).astype(np.int64)
    place = (np.cumsum(true, axis=1) > chosen[:, None]).argmax(axis=1)
    pair, axis = np.divmod(place, 3)
    positive = gaps.reshape(len(seeds), -1)[np.arange(len(seeds)), place] > 0
    # left of, above: the smaller coordinate; in front of: the larger bottom row.
    relation = 2 * axis + np.where(axis == 2, ~positive, positive)
    return PAIRS[pair, 0], np.where(number > 0, relation, -1), PAIRS[pair, 1]


class Fields(fields.PictureFields):
    """Every field of a batch of stills by its name in `FIELDS`, computed when first asked for."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        objects, exists = scene.objects, scene.objects.exists
        sprite = np.where(exists, len(palette.SHAPES) * objects.size + objects.shape, -1)
        buffer = canvas.empty(len(sprite), scene.side, scene.side)
        bottom = scene.row + canvas.half_of(sprite, scene.side)
        canvas.paint(buffer, scene.side, sprite, scene.row, scene.column, bottom)
        pictures = canvas.Pictures(scene.side, buffer, scene.environment, objects.colour, bottom)
        super().__init__(pictures, sprite, scene.programs)

    @property
    def image(self) -> np.ndarray:
        return self.pictures.rgb

    @functools.cached_property
    def obj(self) -> Int[np.ndarray, "batch 4 6"]:
        objects, scene = self.scene.objects, self.scene
        visible = np.where(objects.exists, self.pictures.visible, -1)
        columns = (objects.shape, objects.colour, objects.size, scene.row, scene.column, visible)
        return np.stack(columns, axis=-1).astype(np.int16)


FIELDS = (
    *("image", "depth", "normal", "semseg", "inst", "canny_edge", "sam_edge", "boxes", "obj", "env", "palette7"),
    *("caption", "caption_len", "text", "program", "det_seq", "meta", "palette_seq", "meta_seq"),
)
