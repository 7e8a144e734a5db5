"""Draws are the documented hash of (seed, family, split, index, slot), and objects keep to the hold-out."""

import numpy as np
import pytest

from transformer_zoo.data import draws
from transformer_zoo.data.scenes import slots

MASK = 2**64 - 1


def finalise(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


@pytest.mark.parametrize(
    ("seed", "family", "split"), [(0, "still", "train"), (7, "clip", "comp"), (2**40, "group", "val")]
)
def test_a_draw_is_the_documented_hash(seed, family, split):
    a = finalise((seed * 0xD1342543DE82EF95 + 16 * slots.FAMILIES[family] + slots.SPLITS[split]) & MASK)
    indices = [0, 1, 5, 10**9]
    seeds = slots.scene_seeds(seed, family, split, np.array(indices))
    for index, found in zip(indices, seeds):
        b = finalise(a ^ index)
        assert int(found) == b
    for slot in (0, 3, 703):
        expected = [finalise((finalise(a ^ index) + slot * 0xA24BAED4963EE407) & MASK) for index in indices]
        assert slots.integers(seeds, slot, 1, 1000)[:, 0].tolist() == [u % 1000 for u in expected]
        assert draws.uniforms(seeds, slot).tolist() == [(u >> 11) * 2.0**-53 for u in expected]


def test_families_and_splits_keep_their_numbers():
    names = ("still", "layers", "glyph", "clip", "portrait", "person", "orbit", "group", "degrade")
    assert {name: number for number, name in enumerate(names)} == slots.FAMILIES
    assert slots.SPLITS == {"train": 0, "val": 1, "test": 2, "comp": 3}


def draw(split, count=4000, **options):
    return slots.draw_objects(slots.scene_seeds(0, "still", split, np.arange(count)), split, **options)


@pytest.mark.parametrize("alike", [None, np.ones(4000, bool)])
def test_held_out_pairs_never_occur_but_in_comp_where_one_always_does(alike):
    for split in slots.SPLITS:
        objects = draw(split, alike=alike)
        held = slots.held_out(objects.shape, objects.colour) & objects.exists
        if split == "comp":
            assert held.any(axis=1).all()
            assert len({tuple(pair) for pair in np.stack([objects.shape, objects.colour], -1)[held]}) == 6
        else:
            assert not held.any()


def test_a_held_out_pair_that_eight_redraws_leave_takes_a_free_colour(monkeypatch):
    monkeypatch.setattr(slots, "TRIES", 0)
    objects = draw("train")
    assert not (slots.held_out(objects.shape, objects.colour) & objects.exists).any()
    for count, colours in zip(objects.count, objects.colour):
        assert len(set(colours[:count])) == count


def test_every_other_pair_occurs_about_as_often():
    objects = draw("train", 12_000)
    pairs = (8 * objects.shape + objects.colour)[objects.exists]
    counts = np.bincount(pairs, minlength=48)
    held = slots.held_out(*np.divmod(np.arange(48), 8))
    assert held.sum() == 6 and (counts[held] == 0).all()
    assert counts[~held].min() > 0.8 * len(pairs) / 48 and counts[~held].max() < 1.5 * len(pairs) / 48


def test_colours_of_a_scene_differ_and_counts_sizes_spread():
    for split in ("train", "comp"):
        objects = draw(split)
        for count, colours in zip(objects.count, objects.colour):
            assert len(set(colours[:count])) == count and (colours[count:] == -1).all()
        shares = np.bincount(objects.count)[1:] / 4000
        np.testing.assert_allclose(shares, 1 / 3, atol=0.04)
        np.testing.assert_allclose(np.bincount(objects.size[objects.exists]) / objects.exists.sum(), 1 / 3, atol=0.04)


def test_alike_objects_share_size_and_shape_and_single_ones_are_alone():
    objects = draw("val", alike=np.arange(4000) % 2 == 0)
    for table in (objects.shape, objects.size):
        same = (np.where(objects.exists, table, table[:, :1]) == table[:, :1]).all(axis=1)
        assert same[::2].all() and not same[1::2].all()
    assert (draw("val", single=True).count == 1).all()
