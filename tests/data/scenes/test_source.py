"""The world as sources: fields by name, labels, splits, and errors that name what is wrong."""

import numpy as np
import pytest

from transformer_zoo import naming
from transformer_zoo.data import sources
from transformer_zoo.data.scenes import clip, degrade, grammar, slots, source, still

SEEDS = np.zeros(6, np.uint64)


@pytest.mark.parametrize(("kind", "names"), [(source.Still, still.FIELDS), (source.Clip, clip.FIELDS)])
def test_every_field_can_be_read_by_its_name(kind, names):
    opened = kind("test", fields=names)
    assert isinstance(opened, sources.Source)
    batch = opened.read(np.arange(6), SEEDS)
    assert list(batch) == list(names) and all(len(field) == 6 for field in batch.values())
    again = opened.read(np.arange(6)[::-1], SEEDS + np.uint64(1))
    for name, field in batch.items():
        np.testing.assert_array_equal(field, again[name][::-1], err_msg=name)
    assert not np.array_equal(batch["text"], kind("test", fields=names, seed=1).read(np.arange(6), SEEDS)["text"])
    assert not np.array_equal(batch["text"], kind("val", fields=names).read(np.arange(6), SEEDS)["text"])


def test_fields_are_what_the_families_draw():
    batch = source.Still("comp", side=64, seed=3).read(np.array([5, 2]), SEEDS[:2])
    found = still.Fields(still.draw(slots.scene_seeds(3, "still", "comp", np.array([5, 2])), "comp", 64))
    assert list(batch) == ["image", "caption"]
    np.testing.assert_array_equal(batch["image"], found.image)
    np.testing.assert_array_equal(batch["caption"], found.caption)
    batch = source.Clip("comp", frames=9, player="always").read(np.arange(2), SEEDS[:2])
    found = clip.Fields(clip.draw(slots.scene_seeds(0, "clip", "comp", np.arange(2)), "comp", 32, 9, player="always"))
    np.testing.assert_array_equal(batch["video"], found.video)


def test_degraded_pictures_have_seeds_of_their_own():
    batch = source.Still("val", side=64, fields=("image", "lq", "lq_up")).read(np.array([4]), SEEDS[:1])
    expected = degrade.degrade(batch["image"], slots.scene_seeds(0, "degrade", "val", np.array([4])))
    for name, field in expected.items():
        np.testing.assert_array_equal(batch[name], field)
    assert "image" not in source.Still(fields=("lq",)).read(np.array([4]), SEEDS[:1])


def test_labels_are_those_of_the_one_object():
    for name, classes in source.STILL_LABELS.items():
        opened = source.Still("train", difficulty="easy", fields=("obj",), label=name)
        batch = opened.read(np.arange(500), np.zeros(500, np.uint64))
        shape, colour = batch["obj"][:, 0, 0], batch["obj"][:, 0, 1]
        expected = {"shape": shape, "colour": colour, "shape_colour": 8 * shape + colour, "count": 0 * shape}[name]
        np.testing.assert_array_equal(batch["label"], expected)
        assert batch["label"].dtype == np.int32 and opened.num_classes == classes
    counted = source.Still("train", fields=("obj",), label="count").read(np.arange(50), np.zeros(50, np.uint64))
    np.testing.assert_array_equal(counted["label"] + 1, (counted["obj"][..., 0] >= 0).sum(axis=1))
    opened = source.Clip("train", difficulty="easy", fields=("program", "obj"), label="motion")
    batch = opened.read(np.arange(300), np.zeros(300, np.uint64))
    motions = batch["program"][batch["program"][..., 0] == grammar.MOTION]
    np.testing.assert_array_equal(batch["label"], 3 * motions[:, 2] + motions[:, 3])
    assert set(batch["label"]) == set(range(opened.num_classes))
    coloured = source.Clip("train", difficulty="easy", fields=("obj",), label="colour").read(np.arange(9), SEEDS)
    np.testing.assert_array_equal(coloured["label"], coloured["obj"][:, 0, 1])


def test_splits_have_their_lengths():
    assert [len(source.Still(split)) for split in slots.SPLITS] == [100_000, 2_000, 2_000, 2_000]
    assert len(source.Clip("train", count=7)) == 7
    assert "generated" in source.Still.about and "generated" in source.Clip.about


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (source.Still, {"side": 48}, "data.options.side is 48, but must be one of 32, 64, 128; the nearest is 32"),
        (source.Still, {"fields": ["image", "depht"]}, "data.options.fields: 'depht' is unknown; did you mean 'depth'"),
        (source.Still, {"difficulty": "eazy"}, "data.options.difficulty: 'eazy' is unknown; did you mean 'easy'"),
        (source.Still, {"label": "color"}, "data.options.label: 'color' is unknown; did you mean 'colour'"),
        (source.Still, {"label": "shape"}, "data.options.label is 'shape', which means one object, .* choose 'easy'"),
        (source.Still, {"count": -1}, "data.options.count is -1, but must be at least 0"),
        (source.Still, {"split": "validation"}, "split of scenes: 'validation' is unknown; did you mean 'val'"),
        (source.Clip, {"frames": 12}, "data.options.frames is 12, but must be one of 8, 9, 16, 17; the nearest is 9"),
        (source.Clip, {"player": "sometimes"}, "data.options.player: 'sometimes' is unknown"),
        (source.Clip, {"fields": ["image"]}, "data.options.fields: 'image' is unknown; did you mean"),
        (source.Clip, {"label": "count"}, "data.options.label: 'count' is unknown"),
        (source.Clip, {"label": "motion"}, "data.options.label is 'motion', which means one object"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(kind, options, message):
    given = {"split": options.pop("split", "train")}
    with pytest.raises(ValueError, match=message):
        naming.construct(kind, options, "data.options", given)
