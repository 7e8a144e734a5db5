"""The format: samples and drawn parameters are what they were when golden.json was written."""

import hashlib
import json
from pathlib import Path

import numpy as np

from transformer_zoo.data.scenes import clip, degrade, slots, still

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())


def digest(field):
    """Floats are hashed as whole ten-thousandths, texts as UTF-8."""
    if field.dtype == object:
        return hashlib.sha256("\n".join(field).encode()).hexdigest()
    if field.dtype.kind == "f":
        field = np.round(field * 1e4).astype(np.int32)
    little = field.astype(field.dtype.newbyteorder("<"))
    return hashlib.sha256(f"{little.dtype.str} {field.shape} ".encode() + little.tobytes()).hexdigest()


def seeds(family):
    return slots.scene_seeds(0, family, "train", np.arange(64))


def stills():
    found = still.Fields(still.draw(seeds("still"), "train", 32))
    return {name: digest(getattr(found, name)) for name in still.FIELDS}


def clips():
    found = clip.Fields(clip.draw(seeds("clip"), "train", 32, 8))
    return {name: digest(getattr(found, name)) for name in clip.FIELDS}


def degradations():
    orders = [degrade.draw_order(seeds("degrade"), order) for order in range(2)]
    return {
        f"{name} {k}": digest(np.asarray(x)) for k, drawn in enumerate(orders) for name, x in drawn._asdict().items()
    }


def test_the_first_stills_are_what_they_were():
    assert stills() == GOLDEN["still"]


def test_the_first_clips_are_what_they_were():
    assert clips() == GOLDEN["clip"]


def test_the_first_degradations_are_what_they_were():
    assert degradations() == GOLDEN["degrade"]
