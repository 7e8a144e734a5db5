"""Sweeps: the grid that a text stands for, and the files that its figures become."""

import csv
import json

import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure

from transformer_zoo.evaluation.sweeps import pareto_front, parse_sweep, write_sweep


def test_a_sweep_is_the_grid_of_its_fields():
    assert parse_sweep("sampling.steps=4,8;sampling.guidance_scale=1,3.5") == [
        {"sampling.steps": 4, "sampling.guidance_scale": 1},
        {"sampling.steps": 4, "sampling.guidance_scale": 3.5},
        {"sampling.steps": 8, "sampling.guidance_scale": 1},
        {"sampling.steps": 8, "sampling.guidance_scale": 3.5},
    ]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a=1e-3, .5 ,-2", [1e-3, 0.5, -2]),
        ("a=true,False,null,None", [True, False, None, None]),
        ("a=cosine,masks/block-2.npz", ["cosine", "masks/block-2.npz"]),
        ('a=[1,2],(3,4),"x, y; z"', [[1, 2], (3, 4), "x, y; z"]),
        ("a='4',4", ["4", 4]),
    ],
)
def test_values_are_literals_or_words(text, values):
    parsed = [row["a"] for row in parse_sweep(text)]
    assert parsed == values and list(map(type, parsed)) == list(map(type, values))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("steps", "'steps'"),
        ("steps=4;;scale=1", "''"),
        ("steps=4,,8", "'' in sweep part 'steps=4,,8'"),
        ("steps=4;9lives=2", "'9lives=2'"),
        ("steps=4;scale=$x", "'$x' in sweep part 'scale=$x'"),
        ("steps=4;steps=8", "'steps' twice"),
    ],
)
def test_errors_name_the_part(text, named):
    with pytest.raises(ValueError) as error:
        parse_sweep(text)
    assert named in str(error.value)


def test_pareto_front_in_every_direction():
    points = [(1.0, 5.0), (2.0, 3.0), (2.0, 4.0), (3.0, 3.5), (4.0, 1.0)]
    assert pareto_front(points, (-1, -1)) == [0, 1, 4]
    assert pareto_front(points, (1, 1)) == [0, 2, 3, 4]
    assert pareto_front(points, (-1, 1)) == [0]
    assert pareto_front([(1.0, 1.0), (1.0, 1.0)], (1, 1)) == [0]


def test_the_table_is_written_as_strict_json_and_csv(tmp_path):
    rows = [
        {"steps": 4, "size": [8, 8], "fid": np.float32(3.5)},
        {"steps": 8, "size": [8, 8], "fid": float("nan"), "note": "diverged"},
    ]
    write_sweep(tmp_path / "new" / "folder", rows, ["steps", "size"])
    assert json.loads((tmp_path / "new/folder/sweep.json").read_text(), parse_constant=pytest.fail) == [
        {"steps": 4, "size": [8, 8], "fid": 3.5, "note": None},
        {"steps": 8, "size": [8, 8], "fid": None, "note": "diverged"},
    ]
    with (tmp_path / "new/folder/sweep.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["steps", "size", "fid", "note"],
            ["4", "[8, 8]", "3.5", ""],
            ["8", "[8, 8]", "", "diverged"],
        ]


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn, panel by panel: (x label, y label, {line label or colour: points})."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))

    def panels():
        return [
            (axis.get_xlabel(), axis.get_ylabel(), {name_of(line): line.get_xydata().tolist() for line in axis.lines})
            for axis in figures[0].axes
            if axis.get_visible()
        ]

    def name_of(line):
        return line.get_color() if line.get_label().startswith("_") else line.get_label()

    return panels


def test_one_panel_a_metric_and_its_trade_off_against_the_cost(tmp_path, drawn):
    rows = parse_sweep("sampling.steps=2,1,16;scale=1,2")
    for row in rows:
        steps, scale = row["sampling.steps"], row["scale"]
        row |= {"fid": 30 / steps + scale, "accuracy": steps / scale, "calls": steps * scale}
    write_sweep(tmp_path, rows, ["sampling.steps", "scale"])
    fid, accuracy, fid_trade, accuracy_trade = drawn()
    assert fid == (
        "sampling.steps",
        "fid ↓",
        {"scale=1": [[1, 31], [2, 16], [16, 2.875]], "scale=2": [[1, 32], [2, 17], [16, 3.875]]},
    )
    assert accuracy[:2] == ("sampling.steps", "accuracy ↑")
    assert fid_trade[:2] == ("calls ↓", "fid ↓") and accuracy_trade[:2] == ("calls ↓", "accuracy ↑")
    assert len(fid_trade[2]["0.65"]) == 6
    assert fid_trade[2]["C3"] == [[1, 31], [2, 16], [16, 2.875]]
    assert accuracy_trade[2]["C3"] == [[1, 1], [2, 2], [16, 16]]
    with PIL.Image.open(tmp_path / "sweep.png") as image:
        assert min(image.size) > 500


def test_two_metrics_are_traded_against_each_other_and_one_stands_alone(tmp_path, drawn):
    write_sweep(tmp_path, [{"t": 1, "accuracy": 0.5, "fid": 3.0}, {"t": 2, "accuracy": 0.7, "fid": 2.0}], ["t"])
    assert [panel[:2] for panel in drawn()] == [("t", "accuracy ↑"), ("t", "fid ↓"), ("accuracy ↑", "fid ↓")]
    assert drawn()[2][2]["C3"] == [[0.7, 2.0]]


def test_the_first_field_may_be_words_and_figures_may_be_missing(tmp_path, drawn):
    rows = [row | {"accuracy": 0.5} for row in parse_sweep("schedule=cosine,linear;size=[1,2],[3,4]")]
    del rows[0]["accuracy"]
    write_sweep(tmp_path, rows, ["schedule", "size"])
    ((x_label, y_label, lines),) = drawn()
    assert (x_label, y_label) == ("schedule", "accuracy ↑")
    assert lines["size=[3, 4]"] == [[0, 0.5], [1, 0.5]]
    assert np.isnan(lines["size=[1, 2]"][0][1]) and lines["size=[1, 2]"][1] == [1, 0.5]


def test_a_sweep_without_figures_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="numeric figure"):
        write_sweep(tmp_path, [{"steps": 4, "note": "x"}], ["steps"])
