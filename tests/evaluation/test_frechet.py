"""Frechet distances against the matrix square root, in parts, and between scenes."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg

from transformer_zoo.data import sources
from transformer_zoo.evaluation.frechet import Moments, SceneFrechet, frechet_distance, moments


def test_the_distance_is_that_of_its_formula():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)) + 1, rng.normal(size=(70, 4)) @ rng.normal(size=(4, 4))
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(c1 @ c2).real
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(c1 + c2 - 2 * root)
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(moments(x), moments(x)) == pytest.approx(0, abs=1e-9)


def test_moments_of_parts_add_up():
    x = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    added = Moments(*(a + b for a, b in zip(moments(x[:11]), moments(x[11:]))))
    assert frechet_distance(added, moments(x)) == pytest.approx(0, abs=1e-9)


def test_covariances_need_two_samples():
    with pytest.raises(ValueError, match="needs at least two samples, but a set has 1"):
        frechet_distance(moments(np.zeros((1, 2))), moments(np.zeros((3, 2))))


@dataclasses.dataclass(frozen=True)
class Stub:
    field: str = "image"


@pytest.mark.parametrize("name, field, frames", [("scenes:still", "image", 1), ("scenes:clip", "video", 8)])
def test_worse_scenes_are_farther_and_the_name_says_what_was_seen(name, field, frames):
    source = sources.open_source(name, "test", {"difficulty": "easy", "fields": (field,)})
    pixels = source.read(np.arange(24), np.arange(24, dtype=np.uint64))[field] / np.float32(255)
    judge = SceneFrechet(task=Stub(field))
    batch = {"weight": np.array([1.0] * 23 + [0.0])}

    def distance(other):
        return judge.result(judge.update(None, {"original": pixels, "reconstruction": other}, batch)).metrics

    key = f"frechet_scene_state16_32px_{frames}f"
    same, grey, mirrored = distance(pixels), distance(0 * pixels + 0.5), distance(pixels[..., ::-1])
    assert set(same) == {key, f"{key}_between_halves"}
    assert same[key] == pytest.approx(0, abs=1e-6) and same[f"{key}_between_halves"] > 0
    assert grey[key] > mirrored[key] > 0.01
