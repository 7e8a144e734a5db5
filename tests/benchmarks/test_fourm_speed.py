"""What benchmarks.fourm makes of times; no test here measures any."""

import json

import numpy as np
import pytest

from benchmarks import fourm
from transformer_zoo.training.errors import UserError


@pytest.fixture
def times(monkeypatch):
    """Ours takes 2 s and 12 FLOPs, the peer 3 s; a matmul 10 FLOP/s."""
    monkeypatch.setattr(fourm, "matmul_rate", lambda dtype: 10.0)
    monkeypatch.setattr(fourm, "measure", lambda calls: [call() for call in calls])
    monkeypatch.setattr(fourm, "our_calls", lambda task, batch: ({"": lambda: 2.0}, 12.0))
    monkeypatch.setattr(fourm, "peer_calls", lambda task, batch, reference, dtype: ({"": lambda: 3.0}, reference))


def test_tokens_a_second_are_those_shown_and_asked_for(times, monkeypatch, capsys):
    fourm.main(["--json", "--size", "Ti", "--batch", "3", "--tokens", "10", "--reference", "there"])
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["ours"], row["peer"], row["ratio"], row["peer_name"]) == (30.0, 20.0, 1.5, "there")
    assert row["share_of_matmul_rate"] == pytest.approx(0.6) and row["name"] == "fourm Ti forward and backward"

    def missing(*_):
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr(fourm, "peer_calls", missing)
    fourm.main(["--size", "Ti", "--batch", "1"])
    out, err = capsys.readouterr()
    assert "60 % of the matmul rate; no peer" in out and "No module named 'torch'" in err


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="size 'Bi' is unknown"):
        fourm.main(["--size", "Bi"])
    with pytest.raises(UserError, match="is no checkout of apple/ml-4m"):
        fourm.reference_modules(tmp_path)


def test_random_values_are_what_the_task_takes():
    task = fourm.task_of("Ti", 8, "float32")
    batch = fourm.random_values(task, 2)
    task.check(batch)
    assert batch.keys() == task.spec().keys() and batch["rgb@224"].std() == pytest.approx(1, abs=0.01)
    assert np.min(batch["caption"]) >= 204  # no sentinel
