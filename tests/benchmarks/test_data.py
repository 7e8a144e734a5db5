"""What benchmarks.data makes of rates; no test here measures any."""

import json

import numpy as np
import PIL.Image
import pytest

from benchmarks import data
from transformer_zoo.training.errors import UserError


def test_the_rate_that_data_is_held_against_is_computed_from_the_index():
    rate, words = data.eaten()
    assert rate == pytest.approx(989e12 / 2 / (6 * 17_563_828_224))
    assert words == "9.89e+14 FLOP/s * 0.5 / (3 * 2 * 17.56e9 FLOP an image) = 4,692 images/s"


def test_rows_name_stages_and_workers(monkeypatch, capsys):
    monkeypatch.setattr(data, "stage_rates", lambda read, batch: {name: 100.0 for name in read(0).seconds})
    monkeypatch.setattr(data, "pipeline_rate", lambda read, batch, workers: 10.0 * (1 + workers))
    data.main(["--json", "--sources", "jpegs", "--workers", "0,2", "--batch", "4"])
    out, err = capsys.readouterr()
    found = json.loads(out)
    stages = ["read", "decode", "random_resized_crop", "flip", "normalise", "whole, a thread", "whole, 2 workers"]
    assert [row["name"] for row in found] == [f"jpegs {stage}" for stage in stages]
    assert [row["workers"] for row in found][-2:] == [0, 2] and [row["ours"] for row in found][-2:] == [10.0, 30.0]
    assert found[0]["ratio"] == pytest.approx(100 / data.eaten()[0]) and found[0]["batch"] == 4
    assert "4,692 images/s" in err


def test_the_jpegs_are_of_the_size_that_they_are_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "JPEGS", 3)
    source = data.Files(data.write_jpegs(tmp_path))
    assert len(source) == 3
    for path in tmp_path.iterdir():
        with PIL.Image.open(path) as picture:
            assert picture.size == (500, 375)
    assert source.read(np.array([2]), np.array([0], np.uint64))["image"][0] == (tmp_path / "2.jpg").read_bytes()


def test_an_unknown_source_is_refused():
    with pytest.raises(UserError, match="source 'digit' is unknown; did you mean 'digits'"):
        data.main(["--sources", "digit"])
