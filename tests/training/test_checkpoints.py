"""Checkpoints: exact resume after any end, damage found, partial restore reported."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tests.conftest import COMMAND_ENVIRONMENT
from tests.training import toys
from tests.training.test_loop import arrays, train
from transformer_zoo.training import checkpoints as store
from transformer_zoo.training import loop
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.reporting import read_metrics

EVERY = {"checkpoint": {"every_steps": 4, "keep": 3}}


class Killed(BaseException):
    pass


def dying_data(at: int):
    """Data that ends the process's luck when batch number `at` is asked for."""

    def make(number):
        if number == at:
            raise Killed
        return toys.toy_batch(number)

    return toys.toy_data(make)


ADAM = {"name": "adamw", "learning_rate": 0.05, "schedule": "cosine", "warmup_steps": 5}


def test_forty_steps_equal_forty_steps_killed_at_23_and_resumed_bit_for_bit(tmp_path):
    fields = {"total_steps": 40, "checkpoint": {"every_steps": 10, "keep": 9}, "ema": {"decay": 0.9}, "optimizer": ADAM}
    train(toys.Codebook(), tmp_path / "whole", **fields)
    with pytest.raises(Killed):
        train(toys.Codebook(), tmp_path / "killed", dying_data(23), **fields)
    assert store.Checkpoints(tmp_path / "killed/checkpoints").steps()[-1] == 20
    train(toys.Codebook(), tmp_path / "killed", **fields)
    whole, killed = arrays(tmp_path / "whole", 40), arrays(tmp_path / "killed", 40)
    assert whole.keys() == killed.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], killed[name], err_msg=name)
    steps = [line["step"] for line in read_metrics(tmp_path / "killed") if line["split"] == "train"]
    assert steps == sorted(set(steps)), "no figure is logged twice"


SCRIPT = """
import sys
from pathlib import Path
from tests.training import toys
from transformer_zoo.training import loop
import time
def make(number):
    time.sleep(0.02)
    print(number, flush=True)
    return toys.toy_batch(number)
config = toys.toy_config(total_steps=400, checkpoint={"every_steps": 10, "keep": 2})
loop.train(config, toys.Regression(), {}, toys.toy_data(make), Path(sys.argv[1]))
"""


def start(workdir):
    """The script in its own process, once it has consumed thirty batches."""
    environment = COMMAND_ENVIRONMENT | {"PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(workdir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    for line in process.stdout:
        if line.strip() == "30":
            return process
    raise AssertionError(process.stderr.read())


def test_sigterm_saves_and_exits_0_and_sigkill_loses_at_most_what_was_not_saved(tmp_path):
    process = start(tmp_path)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    (saved,) = [int(word.rstrip(";")) for word in out.split("stopped by a signal at step ")[1].split()[:1]]
    assert saved in store.Checkpoints(tmp_path / "checkpoints").steps() and saved < 400
    process = start_resumed(tmp_path, saved)
    process.kill()
    process.communicate(timeout=60)
    assert store.newest_intact(tmp_path / "checkpoints").name >= f"{saved:08d}"


def start_resumed(workdir, step):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(workdir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=COMMAND_ENVIRONMENT | {"PYTHONPATH": os.getcwd()},
    )
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if line.strip().isdigit() and int(line) >= step + 15:
            break
    assert f"resumed from step {step} " in " ".join(lines) + " "
    assert str(step) in lines and str(step - 1) not in lines, "the data goes on where it stopped"
    return process


def largest_file(path):
    return max((file for file in (path / "state").rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [flip, truncate, lambda file: file.unlink()], ids=["flipped", "truncated", "deleted"])
def test_a_damaged_checkpoint_is_found_and_the_one_before_it_taken(tmp_path, capsys, harm):
    train(toys.Regression(), tmp_path, **EVERY)
    expected = arrays(tmp_path, 8)
    harm(largest_file(store.Checkpoints(tmp_path / "checkpoints").path(8)))
    train(toys.Regression(), tmp_path, **EVERY)
    out = capsys.readouterr().out
    assert "00000008 is damaged" in out and "resumed from step 4" in out
    for name, value in arrays(tmp_path, 8).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_no_intact_checkpoint_is_an_error_and_not_a_silent_new_start(tmp_path):
    train(toys.Regression(), tmp_path, **EVERY)
    for step in (4, 8):
        flip(largest_file(store.Checkpoints(tmp_path / "checkpoints").path(step)))
    with pytest.raises(UserError, match="none of the 2 checkpoints"):
        train(toys.Regression(), tmp_path, **EVERY)


def test_a_save_that_was_not_finished_does_not_count(tmp_path, capsys):
    train(toys.Regression(), tmp_path, **EVERY)
    (store.Checkpoints(tmp_path / "checkpoints").path(8) / store.MANIFEST).unlink()
    train(toys.Regression(), tmp_path, **EVERY)
    assert "resumed from step 4" in capsys.readouterr().out
    assert store.Checkpoints(tmp_path / "checkpoints").steps() == [4, 8]


def test_the_newest_and_the_best_are_kept(tmp_path, monkeypatch):
    errors = iter([5.0, 1.0, 3.0, 4.0])
    monkeypatch.setattr(toys.Error, "result", lambda self, state: toys.Result({"error": next(errors)}))
    options = {"checkpoint": {"every_steps": 2, "keep": 1, "best": "-test/error"}, "eval": {"every_steps": 2}}
    train(toys.Regression(), tmp_path, **options)
    assert store.Checkpoints(tmp_path / "checkpoints").steps() == [4, 8]


def test_a_disk_too_small_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"disk full: cannot write .*00000008.*same command to resume"):
        train(toys.Regression(), tmp_path)


def test_a_disk_that_fills_up_while_saving_is_a_clear_error(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_manifest", full)
    with pytest.raises(UserError, match="disk full"):
        train(toys.Regression(), tmp_path)


def test_partial_restore_reports_what_it_took_left_and_could_not_match(tmp_path, capsys):
    train(toys.Regression(), tmp_path / "first", total_steps=2)
    source = {"workdir": str(tmp_path / "first"), "table": ((r"params/model/(w)", r"params/model/\1"),)}
    sgd = {"name": "sgd", "learning_rate": 0.0, "schedule": "constant", "momentum": 0.0}
    train(toys.Regression(), tmp_path / "second", total_steps=1, init_from=source, optimizer=sgd)
    out = capsys.readouterr().out
    assert "took 1 arrays" in out and "(params/model/bias)" in out
    taken = arrays(tmp_path / "second", 1)["params/model/w"]
    np.testing.assert_array_equal(taken, arrays(tmp_path / "first", 2)["params/model/w"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ((("params/model/v", "params/model/w"),), "'params/model/v' matches nothing"),
        ((("params/model/w", "params/model/u"),), "would go to params/model/u, which this run does not have"),
        ((("params/model/bias", "params/model/w"),), r"has shape \(\), but params/model/w has shape \(4,\)"),
    ],
)
def test_partial_restore_refuses_what_does_not_fit(tmp_path, table, message):
    train(toys.Regression(), tmp_path / "first", total_steps=1)
    with pytest.raises(UserError, match=message):
        train(toys.Regression(), tmp_path / "second", init_from={"workdir": str(tmp_path / "first"), "table": table})


def test_a_finished_run_started_again_only_reports(tmp_path):
    first = train(toys.Regression(), tmp_path)
    again = loop.train(toys.toy_config(), toys.Regression(), {}, dying_data(0), tmp_path)
    assert again == first
