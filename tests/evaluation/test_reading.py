"""What the readers see in scenes and digits that come back as they were, damaged, or exchanged."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.data import sources
from transformer_zoo.evaluation import reading
from transformer_zoo.task import Context, Variables


@dataclasses.dataclass(frozen=True)
class Damaged:
    """Stands for a task; only `field` is asked for on the host."""

    field: str


def figures(reader, fields, reconstruction):
    pixels = fields[reader.task.field].astype(np.float32) / 255
    batch = {**fields, "weight": np.array([1.0] * (len(pixels) - 1) + [0.0], np.float32)}
    state = reader.update(None, {"original": pixels, "reconstruction": reconstruction(pixels)}, batch)
    return reader.result(reader.merge(state, state)).metrics


def read(name, count=12, **options):
    source = sources.open_source(name, "test", options)
    return source.read(np.arange(count), np.arange(count, dtype=np.uint64))


@pytest.mark.parametrize(
    "name, options, kinds",
    [
        ("scenes:still", {"fields": ("image", "program")}, ("colour", "shape")),
        ("scenes:clip", {"fields": ("video", "program")}, ("colour", "motion")),
    ],
)
def test_scenes_are_read_as_they_are_and_chance_is_low(name, options, kinds):
    fields = read(name, difficulty="easy", **options)
    reader = reading.SceneReading(task=Damaged(options["fields"][0]))
    same = figures(reader, fields, lambda pixels: pixels)
    grey = figures(reader, fields, lambda pixels: 0 * pixels + 0.5)
    for kind in kinds:
        assert same[kind] == same[f"{kind}_of_originals"] == 1
        assert same[f"{kind}_by_chance"] < 0.6
        assert grey[kind] == 0 and grey[f"{kind}_of_originals"] == 1


@pytest.mark.parametrize("scale", [1, 2])
def test_digits_are_read_in_every_frame(scale):
    fields = read("moving_digits", 100, side=32, frames=4, scale=scale)
    reader = reading.DigitReading(task=Damaged("video"), scale=scale)
    same = figures(reader, fields, lambda pixels: pixels)
    assert same["accuracy"] == same["accuracy_of_originals"] > 0.9
    assert same["accuracy_by_chance"] < 0.3
    assert figures(reader, fields, lambda pixels: 0 * pixels)["accuracy"] < 0.3


def test_samples_are_judged_by_the_digit_asked_for_beside_the_ceiling_and_chance():
    fields = read("moving_digits", 100, side=32, frames=4, scale=2) | {"weight": np.ones(100, np.float32)}
    copies = types.SimpleNamespace(
        pixel_range=(0.0, 1.0),
        calls=3,
        generate=lambda variables, batch, key: 0 * batch["video"],
        reconstruct=lambda variables, batch: batch["video"],
    )
    pixels = {"video": jnp.asarray(fields["video"], jnp.float32) / 255}
    judge = reading.DigitSamples(task=copies, scale=2)
    arrays = jax.device_get(judge.compute(Variables({}), pixels, Context(jax.random.key(0), jnp.int32(0), train=False)))
    state = judge.update(None, arrays, fields)
    black = judge.result(state)
    assert black.metrics["digit"] < 0.3 and black.metrics["ceiling_digit"] > 0.9 and black.metrics["calls"] == 3
    assert black.clips["samples"].shape == (16, 4, 32, 32, 3)
    assert black.texts["captions"][0] == f"a {fields['label'][0]}"
    true = judge.result(judge.update(None, arrays | {"samples": arrays["reconstructions"]}, fields)).metrics
    assert true["digit"] == true["ceiling_digit"] and true["chance_digit"] < 0.3


def test_a_source_without_the_truth_is_refused():
    with pytest.raises(ValueError, match=r"add it to data\.options"):
        reading.SceneReading().truth({"image": np.zeros(1)})
    with pytest.raises(ValueError, match="judged by the field 'label'; there are image"):
        reading.DigitReading().truth({"image": np.zeros(1)})
