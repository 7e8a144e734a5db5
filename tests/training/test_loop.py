"""What the loop must carry, shown on toy tasks, and what it must survive."""

import json
import os
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.training import toys
from transformer_zoo.data.pipeline import Data
from transformer_zoo.training import checkpoints as store
from transformer_zoo.training import loop
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.reporting import read_metrics
from transformer_zoo.training.sharding import path_of


def train(task, workdir, data=None, **fields):
    return loop.train(toys.toy_config(**fields), task, {}, data or toys.toy_data(), workdir)


def arrays(workdir, step=8):
    """Every stored array of a checkpoint, by path, read as it lies on disk."""
    path = store.Checkpoints(workdir / "checkpoints").path(step) / "state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restore_args = jax.tree.map(
            lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), checkpointer.metadata(path).item_metadata.tree
        )
        tree = checkpointer.restore(path, restore_args=restore_args)
    return {path_of(keys): np.asarray(leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def training_lines(workdir):
    return [line for line in read_metrics(workdir) if line["split"] == "train"]


def test_training_lowers_the_held_out_error(tmp_path):
    short = train(toys.Regression(), tmp_path / "short", total_steps=1)
    long = train(toys.Regression(), tmp_path / "long", total_steps=40)
    assert long["test/error"] < 0.1 * short["test/error"]


def test_players_update_in_order_each_on_its_own_every(tmp_path):
    sgd = {"name": "sgd", "learning_rate": 1.0, "schedule": "constant", "momentum": 0.0}
    config = {"model": sgd | {"learning_rate": 0.1}, "follower": sgd | {"every": 3}}
    train(toys.Players(), tmp_path, total_steps=7, optimizer=config, checkpoint={"every_steps": 1, "keep": 9})
    followers = [arrays(tmp_path, step)["params/follower/w"] for step in range(1, 8)]
    models = [arrays(tmp_path, step)["params/model/w"] for step in range(1, 8)]
    # A rate of 1 on half the squared distance jumps onto the model: so it must be the model AFTER its update.
    for index, updated_at in enumerate([0, 0, 0, 3, 3, 3, 6]):
        np.testing.assert_allclose(followers[index], models[updated_at], rtol=1e-6)


def test_metrics_of_a_player_are_logged_only_when_it_was_updated(tmp_path):
    sgd = {"name": "sgd", "learning_rate": 0.5, "schedule": "constant", "momentum": 0.0}
    train(
        toys.Players(),
        tmp_path,
        total_steps=7,
        optimizer={"model": sgd | {"learning_rate": 0.1}, "follower": sgd | {"every": 3}},
        log={"every_steps": 1},
    )
    assert all(np.isfinite(line["model/loss"]) for line in training_lines(tmp_path))
    assert [line["step"] for line in training_lines(tmp_path) if "follower/gap" in line] == [1, 4, 7]


TEACHER_TABLE = (("params/model/w", "frozen/teacher/w"),)


def test_a_frozen_teacher_comes_from_another_run_and_is_not_stored(tmp_path):
    train(toys.Regression(), tmp_path / "teacher", total_steps=4)
    source = {"workdir": str(tmp_path / "teacher"), "table": TEACHER_TABLE}
    train(toys.Taught(), tmp_path / "student", total_steps=60, init_from=source)
    student = arrays(tmp_path / "student", 60)
    assert not [name for name in student if "frozen" in name]
    np.testing.assert_allclose(student["params/model/w"], arrays(tmp_path / "teacher", 4)["params/model/w"], atol=0.02)


def test_a_changed_or_missing_teacher_is_an_error_that_names_it(tmp_path):
    train(toys.Regression(), tmp_path / "teacher", total_steps=4)
    source = {"workdir": str(tmp_path / "teacher"), "table": TEACHER_TABLE}
    train(toys.Taught(), tmp_path / "student", init_from=source)
    path = store.Checkpoints(tmp_path / "teacher/checkpoints").path(4)
    (path / store.MANIFEST).write_text((path / store.MANIFEST).read_text() + " ")
    with pytest.raises(UserError, match=r"teacher/checkpoints/00000004, which has changed"):
        train(toys.Taught(), tmp_path / "student", init_from=source)
    shutil.rmtree(path)
    with pytest.raises(UserError, match=r"teacher/checkpoints/00000004, which is gone"):
        train(toys.Taught(), tmp_path / "student", init_from=source)


def test_a_start_from_a_run_that_had_another_teacher_is_told(tmp_path, capsys):
    for name, steps in (("teacher", 4), ("other", 3)):
        train(toys.Regression(), tmp_path / name, total_steps=steps)
    taught = {name: {"workdir": str(tmp_path / name), "table": TEACHER_TABLE} for name in ("teacher", "other")}
    train(toys.Taught(), tmp_path / "student", total_steps=2, init_from=taught["teacher"])
    student = {"workdir": str(tmp_path / "student"), "table": (("params/model/(.*)", r"params/model/\1"),)}
    train(toys.Taught(), tmp_path / "same", total_steps=2, init_from=(taught["teacher"], student))
    assert "warning" not in capsys.readouterr().out
    train(toys.Taught(), tmp_path / "changed", total_steps=2, init_from=(taught["other"], student))
    told = capsys.readouterr().out
    assert (
        "student/checkpoints/00000002 learned on" in told and "teacher/checkpoints/00000004 as frozen/teacher" in told
    )
    assert "this run has" in told and "other/checkpoints/00000003, which is not the same" in told


def test_frozen_arrays_that_nothing_fills_are_named(tmp_path):
    with pytest.raises(UserError, match="frozen/teacher/w"):
        train(toys.Taught(), tmp_path)


def test_buffers_and_teachers_in_state_follow_every_batch(tmp_path):
    train(toys.Codebook(), tmp_path, total_steps=3)
    mean = np.zeros(toys.WIDTH)
    for number in range(3):
        mean = 0.5 * mean + 0.5 * toys.toy_batch(number)["x"].mean(axis=0)
    stored = arrays(tmp_path, 3)
    np.testing.assert_allclose(stored["state/mean"], mean, rtol=1e-5)
    assert np.abs(stored["state/teacher"] - stored["params/model/w"]).max() > 1e-3  # it lags behind


def count_compilations(monkeypatch):
    """Counts how often the step function is traced for compilation."""
    counts = []
    original = loop.make_step

    def counted(*args, **kwargs):
        step = original(*args, **kwargs)

        def traced(state, batch, phase):
            counts.append(phase)
            return step(state, batch, phase)

        return traced

    monkeypatch.setattr(loop, "make_step", counted)
    return counts


def test_a_change_of_phase_compiles_exactly_once_more(tmp_path, monkeypatch):
    counts = count_compilations(monkeypatch)
    train(toys.Phased(), tmp_path, total_steps=8, log={"every_steps": 1})
    assert counts == ["all", "half"]
    assert [line["width"] for line in training_lines(tmp_path)] == [4, 4, 4, 4, 2, 2, 2, 2]


def test_a_mixture_of_two_shapes_compiles_once_each(tmp_path, monkeypatch):
    counts = count_compilations(monkeypatch)

    def make(number):
        name, width = ("narrow", 2) if number % 3 == 0 else ("wide", 4)
        return {name: toys.toy_batch(number, width=width)}

    task = toys.Mixed()
    data = Data(toys.toy_data(make).train, toys.toy_data().evaluate)
    train(task, tmp_path, data, total_steps=8, log={"every_steps": 1})
    assert len(counts) == 2
    seen = ["narrow" if "narrow_seen" in line else "wide" for line in training_lines(tmp_path)]
    assert seen == ["narrow", "wide", "wide", "narrow", "wide", "wide", "narrow", "wide"]


def test_training_only_a_low_rank_addition_leaves_the_rest_alone(tmp_path):
    optimizer = {"name": "adamw", "learning_rate": 0.01, "schedule": "constant", "freeze": ("kernel",)}
    train(toys.LowRank(), tmp_path, total_steps=5, optimizer=optimizer, checkpoint={"every_steps": 1, "keep": 9})
    first, last = arrays(tmp_path, 1), arrays(tmp_path, 5)
    np.testing.assert_array_equal(first["params/model/kernel"], last["params/model/kernel"])
    assert np.abs(first["params/model/lora/b"] - last["params/model/lora/b"]).max() > 0
    moments = [name for name in last if name.startswith("optimizer") and "kernel" in name]
    assert not moments, "frozen parameters must have no optimizer state"


def test_accumulation_equals_the_full_batch(tmp_path):
    task = toys.Regression(noise=0.0)
    train(task, tmp_path / "full", total_steps=3)
    train(task, tmp_path / "parts", total_steps=3, accumulate_steps=4)
    np.testing.assert_allclose(
        arrays(tmp_path / "full", 3)["params/model/w"], arrays(tmp_path / "parts", 3)["params/model/w"], rtol=1e-5
    )


def test_averaged_parameters_are_judged_and_stored(tmp_path):
    figures = train(
        toys.Regression(), tmp_path, total_steps=2, ema={"decay": 0.5}, checkpoint={"every_steps": 1, "keep": 9}
    )
    first, second = arrays(tmp_path, 1), arrays(tmp_path, 2)
    expected = 0.5 * first["ema/model/w"] + 0.5 * second["params/model/w"]
    np.testing.assert_allclose(second["ema/model/w"], expected, rtol=1e-5)
    batch = toys.toy_batch(10_000)
    error = ((batch["x"] @ second["ema/model/w"] - batch["y"]) ** 2).mean()
    assert figures["test/error"] == pytest.approx(float(error), rel=1e-5)


def test_a_run_leaves_what_the_design_lists(tmp_path):
    train(toys.Regression(), tmp_path)
    for name in ("config.json", "metrics.jsonl", "checkpoints", "report.html", "tensorboard"):
        assert (tmp_path / name).exists(), name
    assert json.loads((tmp_path / "config.json").read_text())["total_steps"] == 8
    assert "test/error" in read_metrics(tmp_path)[-1]


def test_a_loss_that_is_not_finite_stops_at_its_step_after_the_last_good_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"not finite at step 5: .*loss nan.*last good checkpoint is step 4"):
        train(toys.Diverging(), tmp_path, checkpoint={"every_steps": 2, "keep": 2}, log={"every_steps": 8})
    assert np.isfinite(arrays(tmp_path, 4)["params/model/w"]).all()


def test_a_loss_that_is_not_finite_can_be_skipped(tmp_path, capsys):
    train(toys.Diverging(), tmp_path, nan="skip", checkpoint={"every_steps": 1, "keep": 9})
    assert "step 5 was skipped" in capsys.readouterr().out
    np.testing.assert_array_equal(arrays(tmp_path, 4)["params/model/w"], arrays(tmp_path, 5)["params/model/w"])
    assert np.abs(arrays(tmp_path, 8)["params/model/w"] - arrays(tmp_path, 5)["params/model/w"]).max() > 0


def test_a_workdir_of_another_config_is_refused_with_the_difference(tmp_path):
    train(toys.Regression(), tmp_path)
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        train(toys.Regression(), tmp_path, seed=1)


def test_a_workdir_in_use_is_refused_with_the_process(tmp_path):
    import fcntl

    train(toys.Regression(), tmp_path)
    with (tmp_path / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=rf"in use by process {os.getpid()}"):
            train(toys.Regression(), tmp_path)


def test_a_batch_that_the_mesh_cannot_divide_is_refused_with_the_numbers(tmp_path):
    from transformer_zoo.training import sharding

    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    sharding.check_batch_size(mesh, 7)
    assert sharding.make_mesh({"data": -1, "fsdp": 1}, jax.devices()[:1]).shape["data"] == 1
    with pytest.raises(UserError, match="needs a multiple of 4 devices, but there are 1"):
        sharding.make_mesh({"data": 1, "fsdp": 4}, jax.devices()[:1])


def test_figures_go_to_weights_and_biases_where_a_project_is_named(tmp_path, monkeypatch):
    logged = []
    run = types.SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), finish=lambda: logged.append("end")
    )
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **options: run))
    train(toys.Regression(), tmp_path / "named", log={"every_steps": 4, "wandb_project": "digits"})
    assert [entry[0] for entry in logged[:-1]] == [4, 8, 8] and "test/error" in logged[-2][1] and logged[-1] == "end"
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb is missing: pip install -e '\.\[wandb\]'"):
        train(toys.Regression(), tmp_path / "missing", log={"every_steps": 4, "wandb_project": "digits"})


def test_the_step_gives_no_float64_and_keeps_float32_parameters(tmp_path):
    train(toys.Regression(), tmp_path)
    kinds = {name: leaf.dtype for name, leaf in arrays(tmp_path).items() if name.startswith("params")}
    assert set(kinds.values()) == {jnp.dtype("float32")}


def test_an_evaluator_that_cannot_work_stops_the_run_at_its_start(tmp_path):
    class Misspelt(toys.Error):
        def compute(self, variables, batch, ctx):
            raise ValueError("feature 'poold' is unknown; did you mean 'pooled'?")

    judges = {"probe": Misspelt(every=-1)}
    with pytest.raises(UserError, match=r"evaluator 'probe': feature 'poold' .* did you mean 'pooled'"):
        loop.train(toys.toy_config(), toys.Regression(), judges, toys.toy_data(), tmp_path)
    assert not training_lines(tmp_path)
