"""eval.py: one checkpoint, a grid, a folder of runs."""

import csv
import json
import subprocess
import sys

import pytest

from tests.conftest import COMMAND_ENVIRONMENT
from tests.training.test_stages import PRETRAIN
from transformer_zoo import zoo
from transformer_zoo.training import evaluate, stages
from transformer_zoo.training.config import load_config
from transformer_zoo.training.errors import UserError

MAE = "configs/mae.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "first"
    overrides = PRETRAIN | {"checkpoint.every_steps": 1}
    return workdir, overrides, stages.run(load_config(MAE, overrides), workdir, zoo.build)


def test_evaluating_a_checkpoint_gives_the_figures_of_the_run(run):
    workdir, overrides, figures = run
    assert evaluate.evaluate(load_config(MAE, overrides), workdir, zoo.build) == pytest.approx(figures, rel=1e-5)
    earlier = evaluate.evaluate(load_config(MAE, overrides), workdir, zoo.build, step=1)
    assert earlier["test/reconstruction_loss"] != figures["test/reconstruction_loss"]
    with pytest.raises(UserError, match="no checkpoint of step 7; there are: 1, 2"):
        evaluate.evaluate(load_config(MAE, overrides), workdir, zoo.build, step=7)


def test_a_sweep_writes_a_row_a_point_and_a_plot(run):
    workdir, overrides, figures = run
    trained_with = load_config(MAE).task.mask_ratio
    points = [{"task.mask_ratio": trained_with}, {"task.mask_ratio": 0.8}]
    rows = evaluate.sweep(load_config(MAE, overrides), workdir, zoo.build, points)
    assert rows[0]["test/reconstruction_loss"] == pytest.approx(figures["test/reconstruction_loss"], rel=1e-5)
    assert rows[1]["test/reconstruction_loss"] != rows[0]["test/reconstruction_loss"]
    assert json.loads((workdir / "sweep.json").read_text()) == rows
    with (workdir / "sweep.csv").open() as stream:
        assert [float(row["task.mask_ratio"]) for row in csv.DictReader(stream)] == [trained_with, 0.8]
    assert (workdir / "sweep.png").stat().st_size > 1000
    assert list((workdir / "samples").glob("*mask_ratio0.8*.png"))


def test_a_checkpoint_that_does_not_fit_the_config_is_refused_with_the_array(run):
    workdir, overrides, _ = run
    config = load_config(MAE, overrides | {"model.width": 16})
    with pytest.raises(UserError, match=r"does not fit the config: params/model/\S+ \(.*\), but it holds shape"):
        evaluate.evaluate(config, workdir, zoo.build)


def test_the_command_evaluates_a_folder_of_runs_with_the_config_of_each(run):
    workdir, _, figures = run
    command = [sys.executable, "eval.py", f"--config={MAE}", f"--workdir={workdir.parent}"]
    done = subprocess.run(command, capture_output=True, text=True, env=COMMAND_ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((workdir.parent / "sweep.json").read_text())
    assert row["test/reconstruction_loss"] == pytest.approx(figures["test/reconstruction_loss"], rel=1e-4)


def test_a_folder_without_a_run_says_how_to_train_one(tmp_path):
    with pytest.raises(UserError, match="holds no run and no folder of runs; train one first"):
        evaluate.runs_below(tmp_path)
