"""What benchmarks.step makes of times; no test here measures any."""

import json

import jax
import numpy as np
import pytest

from benchmarks import step
from transformer_zoo import zoo
from transformer_zoo.tasks.classification import Classification
from transformer_zoo.training.errors import UserError


@pytest.fixture
def times(monkeypatch):
    """Ours takes 2 s for a training step and 1 s for a forward pass, the peer 3 s for both; a matmul 10 FLOP/s."""
    monkeypatch.setattr(step, "matmul_rate", lambda dtype: 10.0)
    monkeypatch.setattr(step, "measure", lambda calls: [call() for call in calls])
    ours = {"train step": lambda: 2.0, "inference": lambda: 1.0}
    flops, memory = {"train step": 12.0, "inference": 4.0}, {"train step": 64.0, "inference": 32.0}
    monkeypatch.setattr(step, "our_calls", lambda task, batch: step.Ours(ours, flops, memory))
    peer = dict.fromkeys(step.MODES, lambda: 3.0)
    monkeypatch.setattr(step, "peer_calls", lambda model, dtype, batch: (peer, model.peer))


def test_rows_compare_images_a_second(times, capsys):
    step.main(["--json", "--models", "vit_s16", "--batch", "6", "--dtype", "bfloat16"])
    train, inference = json.loads(capsys.readouterr().out)
    assert (train["name"], train["ours"], train["peer"], train["ratio"]) == ("vit_s16 train step", 3.0, 2.0, 1.5)
    assert (inference["ours"], inference["peer"], inference["ratio"]) == (6.0, 2.0, 3.0)
    assert train["share_of_matmul_rate"] == pytest.approx(12 / 2 / 10)
    assert (train["memory"], inference["memory"], train["peer_memory"], train["mfu"]) == (64.0, 32.0, None, None)
    assert (train["peer_name"], train["unit"], train["dtype"]) == ("vit_small_patch16_224", "images/s", "bfloat16")
    assert train["batch"] == 6 and train["threads"] >= 1 and train["device"] == "cpu"


def test_without_torch_the_peer_is_left_out_and_said_so(times, monkeypatch, capsys):
    def missing(model, dtype, batch):
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr(step, "peer_calls", missing)
    step.main(["--json", "--models", "mae_b16"])
    out, err = capsys.readouterr()
    assert "mae_b16: no peer to compare with: No module named 'torch'" in err
    for row in json.loads(out):
        assert row["peer"] is row["peer_name"] is row["ratio"] is None and row["ours"] > 0
    step.main(["--models", "mae_b16"])
    assert "60 % of the matmul rate; no peer" in capsys.readouterr().out


def test_an_unknown_model_is_refused():
    with pytest.raises(UserError, match="model 'vit_s61' is unknown; did you mean 'vit_s16'"):
        step.main(["--models", "vit_s61"])


def test_calls_train_and_forward_what_they_name():
    network = zoo.create("vit", "Ti16", depth=1, width=8, num_heads=1, image_size=[32, 32], num_classes=3)
    results = []
    original, step_finished = step.finished, lambda *call: results.append(original(*call)) or results[-1]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(step, "finished", step_finished)
        calls, flops, memory = step.our_calls(Classification(network=network), 2)
        for mode in ("train step", "inference", "train step", "inference"):
            calls[mode]()
    (first, metrics), before, (second, later), after = results
    assert (int(second.step), before.shape) == (2, (2, 3))
    assert later["learning_rate"] < metrics["learning_rate"]  # no warm-up, so both steps move the parameters
    assert np.abs(before - after).max() > 0
    embedding = 2 * 4 * 16 * 16 * 3 * 8  # no gradient to the image
    assert flops["train step"] == pytest.approx(3 * flops["inference"] - 2 * embedding)
    assert jax.tree.leaves(first)[0].is_deleted()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(second.params)) * 4 / 2**20
    assert memory["train step"] > 3 * parameters and memory["inference"] > parameters  # with both moments, without
