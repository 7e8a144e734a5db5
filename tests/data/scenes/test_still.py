"""Stills: every field against the specification's formulas, pixel by pixel."""

import itertools
import math

import numpy as np
import pytest

from transformer_zoo.data.scenes import canvas, fields, grammar, palette, shapes, slots, still


def scenes(indices, split="train", side=32, easy=False):
    indices = np.asarray(indices)
    return still.Fields(still.draw(slots.scene_seeds(0, "still", split, indices), split, side, easy))


def test_a_sample_does_not_depend_on_the_batch_it_is_in():
    order = np.random.default_rng(0).permutation(40)
    whole, shuffled, alone = scenes(range(40), "val"), scenes(order, "val"), scenes([17], "val")
    for name in still.FIELDS:
        np.testing.assert_array_equal(getattr(whole, name)[order], getattr(shuffled, name), err_msg=name)
        np.testing.assert_array_equal(getattr(whole, name)[17:18], getattr(alone, name), err_msg=name)


def surface(shape, u, v):
    """Whether (u, v) is inside; normal and height there."""
    r = math.hypot(u, v)
    if shape == "ball":
        z = math.sqrt(max(0, 1 - u * u - v * v))
        return u * u + v * v <= 1, (u, v, z), z
    if shape == "box":
        return max(abs(u), abs(v)) <= 0.86, (0, 0, 1), 0.5
    if shape == "cone":
        w = 0.55 * (v + 1)
        p = u / w if w else 0.0
        z = math.sqrt(max(0, 1 - p * p))
        return v <= 0.85 and abs(u) <= w, (p, -0.45, z), w * z
    if shape == "gem":
        return abs(u) + abs(v) <= 1, (0.6 * np.sign(u), 0.6 * np.sign(v), 0.75), 1 - abs(u) - abs(v)
    if shape == "ring":
        q = (r - 0.76) / 0.24
        z = math.sqrt(max(0, 1 - q * q))
        return 0.52 <= r <= 1, (q * u / r, q * v / r, z) if r else (0, 0, 1), 0.24 * z
    return min(abs(u), abs(v)) <= 0.34 and max(abs(u), abs(v)) <= 0.95, (0, 0, 1), 0.3


def painted(found, k, side):
    """One scene painted slowly from its attributes: image, depth, normal, semseg, inst."""
    sky, ground, light, horizon = found.env[k].astype(int)
    image, normal = np.zeros((side, side, 3)), np.zeros((side, side, 3))
    depth, semseg, inst = np.ones((side, side)), np.zeros((side, side)), np.zeros((side, side))
    image[:], normal[:] = palette.SKY_RGB[sky], (128, 128, 255)
    for row in range(horizon, side):
        q = (row - horizon + 1) / (side - horizon)
        striped = math.floor(2 / max(0.05, 1.05 - q)) % 2 == 1
        image[row] = np.round(palette.GROUND_RGB[ground] * (0.95 if striped else 1))
        depth[row], semseg[row], normal[row] = 0.9 - 0.8 * q, 1, (128, 0, 128)
    towards = palette.LIGHT_DIRECTIONS[light] / np.linalg.norm(palette.LIGHT_DIRECTIONS[light])
    halves = [max(3, round(side * share)) for share in (0.125, 0.18, 0.25)]
    objects = [(k, *map(int, one[:5])) for k, one in enumerate(found.obj[k]) if one[0] >= 0]
    for number, shape, colour, size, cy, cx in sorted(objects, key=lambda one: one[4] + halves[one[3]]):
        half = halves[size]
        bottom = cy + half
        base = 0.9 - 0.8 * (bottom - horizon + 1) / (side - horizon) if bottom >= horizon else 0.9
        for y in range(-half, half + 1):
            for x in range(-half, half + 1):
                inside, n, height = surface(palette.SHAPES[shape], x / half, y / half)
                if inside:
                    n = np.array(n) / np.linalg.norm(n)
                    at = cy + y, cx + x
                    image[at] = np.round(palette.COLOUR_RGB[colour] * (0.6 + 0.4 * max(0, n @ towards)))
                    depth[at] = base - 0.08 * height * half / halves[2]
                    normal[at], semseg[at], inst[at] = np.round(127.5 * n + 127.5), shape + 2, number + 1
    return image, depth, normal, semseg, inst


@pytest.mark.parametrize(("side", "count"), [(32, 24), (64, 4)])
def test_pictures_follow_the_formulas(side, count):
    found = scenes(range(count), "comp", side)
    for k in range(count):
        image, depth, normal, semseg, inst = painted(found, k, side)
        # One level of rounding, for sums in another order.
        assert abs(found.image[k] - image).max() <= 1 and (found.image[k] != image).mean() < 1e-3
        assert abs(found.normal[k] - normal).max() <= 1 and (found.normal[k] != normal).mean() < 1e-3
        np.testing.assert_allclose(found.depth[k], depth, atol=1e-6)
        np.testing.assert_array_equal(found.semseg[k], semseg)
        np.testing.assert_array_equal(found.inst[k], inst)


def test_all_shapes_sizes_and_surroundings_occur_and_sprites_stay_inside():
    found = scenes(range(800))
    objects = found.obj[found.obj[..., 0] >= 0]
    for column, number in ((0, 6), (1, 8), (2, 3)):
        assert set(objects[:, column]) == set(range(number))
    half = palette.half_widths(32)[objects[:, 2]]
    for centre in (objects[:, 3], objects[:, 4]):
        assert (centre - half >= 0).all() and (centre + half <= 31).all()
        assert (centre - half == 0).any() and (centre + half == 31).any()
    assert [set(found.env[:, k]) for k in range(4)] == [{0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2}, {12, 13, 14, 15}]


def test_boxes_and_counts_are_those_of_the_instances():
    found = scenes(range(200))
    for inst, boxes, objects in zip(found.inst, found.boxes, found.obj):
        for k in range(4):
            rows, columns = np.nonzero(inst == k + 1)
            if len(rows):
                assert boxes[k].tolist() == [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
                assert objects[k, 5] == len(rows)
            else:
                assert (boxes[k] == -1).all() and objects[k, 5] in (0, -1)
                assert (objects[k] == -1).all() == (objects[k, 5] == -1)
    assert (found.obj[..., 5] == 0).any(), "some objects are hidden"


def test_what_is_lower_is_nearer():
    found = scenes(range(200), side=64)
    ground = np.where(found.semseg == 1, found.depth, np.nan)
    with np.errstate(invalid="ignore"):
        below = ground[:, 1:] - ground[:, :-1]
    assert (below[~np.isnan(below)] < 0).all()
    assert (found.depth[found.semseg == 0] == 1).all() and found.depth.min() >= 0.0199
    half = palette.half_widths(64)[found.obj[..., 2]]
    bottom = np.maximum(found.obj[..., 3] + half, found.env[:, 3:] - 1)
    for k in range(200):
        order = [n for n in np.argsort(bottom[k], kind="stable") if found.obj[k, n, 5] > 0]
        for far, near in itertools.pairwise(order):
            if bottom[k, near] - bottom[k, far] >= 8:
                depth = [found.depth[k][found.inst[k] == n + 1].mean() for n in (far, near)]
                assert depth[1] < depth[0]


def test_relations_are_true_and_stand_between_the_objects_they_name():
    found = scenes(range(1500))
    seen = set()
    for program, objects, env in zip(found.program, found.obj, found.env):
        relations = [clause for clause in program if clause[0] == grammar.RELATION]
        if not relations:
            continue
        named = [clause for clause in program if clause[0] == grammar.OBJECT]
        assert len(named) == (objects[:, 0] >= 0).sum()
        first, second = (next(one for one in objects if one[1] == clause[2]).astype(int) for clause in named[:2])
        bottom = [max(one[3] + palette.half_widths(32)[one[2]], env[3] - 1) for one in (first, second)]
        gaps = (second[4] - first[4], second[3] - first[3], bottom[0] - bottom[1])
        _, _, relation, _ = relations[0]
        gap = gaps[relation // 2] * (1 if relation % 2 == 0 else -1)
        assert gap >= 4
        seen.add(int(relation))
    assert seen == set(range(6))


def test_captions_state_the_scene():
    found = scenes(range(800))
    templates = set()
    for text, program, objects, env in zip(found.text, found.program, found.obj, found.env):
        objects = objects[objects[:, 0] >= 0]
        by_colour = {int(one[1]): one for one in objects}
        named = [clause for clause in program if clause[0] == grammar.OBJECT]
        kinds = set(program[:, 0]) - {0}
        templates.add(frozenset(map(int, kinds)))
        if grammar.COUNT in kinds:
            assert kinds == {grammar.COUNT} and (objects[:, [0, 2]] == objects[0, [0, 2]]).all()
            assert program[0].tolist() == [grammar.COUNT, len(objects), objects[0, 2], objects[0, 0]]
            assert text.split()[0] == ("one", "two", "three")[len(objects) - 1]
            continue
        assert sorted(clause[2] for clause in named) == sorted(by_colour)
        for clause in named:
            assert clause[3] == by_colour[int(clause[2])][0] and clause[1] in (-1, by_colour[int(clause[2])][2])
        for kind, a, b, c in program:
            if kind == grammar.AT:
                one = by_colour[int(named[a][2])]
                assert (b, c) == (3 * one[3] // 32, 3 * one[4] // 32)
            if kind == grammar.ENV:
                assert b == env[a]
    assert templates == {frozenset(kinds) for kinds in ({1}, {1, 2}, {1, 3}, {1, 4}, {1, 2, 4}, {5})}
    sizes = [clause[1] for program in found.program for clause in program if clause[0] == grammar.OBJECT]
    assert 0.2 < np.mean(np.array(sizes) == -1) < 0.3
    assert 0.09 < np.mean(found.program[:, 0, 0] == grammar.COUNT) < 0.16


def test_easy_stills_show_one_object_that_the_caption_names():
    full, easy = scenes(range(300)), scenes(range(300), easy=True)
    assert ((easy.obj[..., 0] >= 0).sum(axis=1) == 1).all() and (easy.program[:, 0, 0] == grammar.OBJECT).all()
    np.testing.assert_array_equal(easy.env, full.env)
    alone = (full.obj[:, 1, 0] < 0) & (full.program[:, 0, 0] == grammar.OBJECT)
    np.testing.assert_array_equal(easy.image[alone], full.image[alone])  # the same slots


def test_edges_of_instances_and_of_luminance():
    found = scenes(range(20))
    for inst, edges in zip(found.inst.astype(int), found.sam_edge):
        for y in range(32):
            for x in range(32):
                right = x < 31 and inst[y, x] != inst[y, x + 1]
                assert edges[y, x] == (right or (y < 31 and inst[y, x] != inst[y + 1, x]))
    step = np.zeros((1, 8, 8, 3), np.uint8)
    step[:, :, 4:] = 100
    edges = fields.canny(step)[0]
    assert (edges.sum(axis=1) == 1).all() and (edges.sum(axis=0) > 0).sum() == 1  # one pixel thick
    np.testing.assert_array_equal(fields.canny(step.swapaxes(1, 2))[0], edges.T)
    diagonal = np.where(np.add.outer(np.arange(9), np.arange(9)) > 8, 200, 0).astype(np.uint8)
    edges = fields.canny(np.repeat(diagonal[None, ..., None], 3, axis=-1))[0]
    assert 7 <= edges.sum() <= 17 and set(np.add.outer(np.arange(9), np.arange(9))[edges > 0]) <= {8, 9}
    assert not fields.canny(np.full((1, 8, 8, 3), 9, np.uint8)).any()
    faint = np.zeros((1, 8, 8, 3), np.uint8)
    faint[:, :, 4:] = 10  # magnitude 40, not over it
    assert not fields.canny(faint).any()
    faint[:, :, 4:] = 11
    assert fields.canny(faint).any()


def test_palette_holds_mean_colours_by_area():
    found = scenes(range(50))
    for image, semseg, colours in zip(found.image.astype(float), found.semseg, found.palette7):
        areas = [(-(semseg == c).sum(), c) for c in range(8) if (semseg == c).any()]
        for (_, c), colour in zip(sorted(areas), colours):
            np.testing.assert_allclose(colour, image[semseg == c].mean(axis=0), atol=0.5)
        assert (colours[len(areas) :] == 0).all()


def test_detections_read_from_left_to_right():
    found = scenes(range(100), side=64)
    for words, boxes, objects in zip(found.det_seq, found.boxes.astype(int), found.obj):
        expected = []
        for k in sorted(range(4), key=lambda k: boxes[k, 1]):
            if boxes[k, 0] >= 0:
                y0, x0, y1, x1 = boxes[k]
                expected += [palette.SHAPES[objects[k, 0]], f"c{y0}", f"c{x0}", f"c{y1 - 1}", f"c{x1 - 1}"]
        assert [grammar.WORDS[word] for word in words[: len(expected) + 1]] == [*expected, "<eos>"]
        assert (words[len(expected) + 1 :] == 0).all()
    small = fields.detections(np.array([[[0, 2, 10, 32]] + [[-1] * 4] * 3]), np.array([[3, 0, 0, 0]]), 32)
    assert grammar.decode(small[0]) == "gem c0 c4 c19 c63"


def test_metadata_bins():
    found = scenes(range(300))
    meta = found.meta
    np.testing.assert_array_equal(meta[:, 0], (found.obj[..., 0] >= 0).sum(axis=1))
    np.testing.assert_array_equal(meta[:, 1], 2 * (found.env[:, 3] - 12))
    image = found.image.astype(float)
    brightness = (image @ (0.30078125, 0.5859375, 0.11328125)).mean(axis=(1, 2))
    np.testing.assert_allclose(meta[:, 2], brightness / 32 - 0.5, atol=0.54)
    np.testing.assert_array_equal(meta[:, 4], np.minimum(7, 8 * (found.semseg == 1).mean(axis=(1, 2))).astype(int))
    np.testing.assert_array_equal(meta[:, 5], np.minimum(7, found.canny_edge.sum(axis=(1, 2)) // 32))
    np.testing.assert_array_equal(meta[:, 7], found.env[:, 2])
    area = np.append(np.diff(shapes.atlas(32).first), 1)[found.sprite]
    hidden = np.where(found.sprite >= 0, 1 - found.obj[..., 5] / area, 0).max(axis=1)
    np.testing.assert_array_equal(meta[:, 6], np.minimum(3, np.floor(4 * hidden)))
    saturation = ((image.max(axis=-1) - image.min(axis=-1)) / image.max(axis=-1)).mean(axis=(1, 2))
    np.testing.assert_allclose(meta[:, 3], 8 * saturation - 0.5, atol=0.6)
    assert all(len(set(meta[:, column])) > 2 for column in range(8)), "no figure says always the same"


def test_palettes_and_metadata_as_words():
    found = scenes(range(60))
    for words, colours in zip(found.palette_seq, found.palette7):
        count = int(colours.any(axis=-1).sum())
        assert grammar.WORDS[words[0]] == str(count) and words[1 + 3 * count] == grammar.EOS
        assert np.array_equal(words[1 : 1 + 3 * count].reshape(-1, 3) - grammar.COORDINATE, colours[:count] // 4)
        assert not words[2 + 3 * count :].any()
    assert found.palette_seq.shape[1] == 23 and (found.meta_seq[:, -1] == grammar.EOS).all()
    assert grammar.decode(found.meta_seq[0]) == " ".join(f"{'ABCDEFGH'[k]} c{x}" for k, x in enumerate(found.meta[0]))


def test_backgrounds_are_grey_and_objects_are_not():
    found = scenes(range(100))
    image = found.image.astype(float)
    saturation = (image.max(axis=-1) - image.min(axis=-1)) / image.max(axis=-1)
    assert saturation[found.inst == 0].max() <= 0.25 and saturation[found.inst > 0].min() >= 0.6


def test_a_larger_bottom_row_is_painted_over_a_smaller():
    buffer = canvas.empty(1, 32, 32)
    sprite, place = np.array([[0, 1]]), np.array([[16, 16]])
    canvas.paint(buffer, 32, sprite, place, place, np.array([[20, 19]]))
    assert buffer[0, 16, 16] >> 24 == 1
    canvas.paint(buffer, 32, sprite, place, place, np.array([[19, 20]]))
    assert buffer[0, 16, 16] >> 24 == 2
