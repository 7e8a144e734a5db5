import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.convert import __main__ as cli
from transformer_zoo.convert import golden, layout
from transformer_zoo.training.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
FILE = GOLDEN / "mae.npz"


SMALLER = dict(img_size=24, patch_size=4, embed_dim=32, depth=2, num_heads=4, mlp_ratio=4) | dict(
    decoder_embed_dim=24, decoder_depth=2, decoder_num_heads=3
)


def rewritten(tmp_path, change):
    arrays = dict(np.load(FILE))
    change(arrays)
    np.savez(tmp_path / "changed.npz", **arrays)
    return str(tmp_path / "changed.npz")


def lines(capsys):
    return {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}


# Float32 moves the gradients of these by more than half of what is allowed (their `accuracy` says so), and more if
# nothing is optimised: they are compiled as users compile them.
SENSITIVE = ("magvit2",)


@pytest.fixture
def optimised(file):
    jax.config.update("jax_disable_most_optimizations", file.stem not in SENSITIVE)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.npz")), ids=lambda file: file.stem)
def test_every_paper_computes_what_its_reference_does(file, capsys, optimised):
    stored = [name for name in np.load(file).files if name.startswith(("out/", "grad/"))]
    cli.main(["check", str(file)])
    assert stored and f"{len(stored)} of {len(stored)} arrays agree" in capsys.readouterr().out


def test_check_names_every_array_that_differs_or_is_not_compared(tmp_path, capsys):
    def tamper(arrays):
        arrays["out/pred"][1, 2, 3] += 1e-3
        arrays["grad/cls_token"] *= 1.001
        arrays["out/ids_restore"][0, 0] += 1
        arrays["out/latent"] = arrays["out/latent"][:, 1:]
        arrays["out/block0"][0, 0, 0] = np.nan
        arrays["out/attention7"] = np.zeros(3, np.float32)
        arrays["grad/unknown.weight"] = np.zeros(3, np.float32)

    with pytest.raises(SystemExit) as stopped:
        cli.main(["check", rewritten(tmp_path, tamper)])
    assert stopped.value.code == 1
    found = lines(capsys)
    wrong = {name for name, line in found.items() if line.split()[3:4] == ["NO"]}
    changed = {"pred", "ids_restore", "latent", "block0", "attention7"}
    assert wrong == {f"out/{name}" for name in changed} | {"grad/cls_token", "grad/unknown.weight"}
    assert "not compared" in found["out/attention7"] and "ours has shape (3, 10, 40)" in found["out/latent"]
    assert "13 of 20 arrays agree" in found["13"]


def test_other_parameters_give_other_outputs(tmp_path):
    def tamper(arrays):
        arrays["param/decoder_blocks.1.mlp.fc1.bias"][5] += 0.05

    with pytest.raises(SystemExit):
        cli.main(["check", rewritten(tmp_path, tamper)])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda arrays: arrays.pop("config"), "has no 'config'"),
        (lambda arrays: arrays.update(other=np.zeros(1)), "holds 'other'"),
        (lambda arrays: arrays.pop("param/norm.bias"), r"nothing fills: encoder/norm/bias \(wants norm.bias\)"),
        (lambda arrays: arrays.update({"param/norm.gamma": np.zeros(1)}), "no place for: norm.gamma"),
        (lambda arrays: arrays.update({"param/pos_embed": arrays["param/pos_embed"] * 1.01}), "pos_embed differs by"),
        (lambda arrays: with_config(arrays, paper="mea"), "did you mean 'mae'"),
        (lambda arrays: with_config(arrays, paper="vit"), "no golden run of 'vit'"),
        (lambda arrays: with_config(arrays, arguments={"image_size": 24}), "did you mean 'img_size'"),
        (lambda arrays: with_config(arrays, arguments=SMALLER), r"blocks.1.norm1.bias.* has shape \(40,\)"),
    ],
)
def test_files_that_cannot_be_run_say_why(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        cli.main(["check", rewritten(tmp_path, change)])


def with_config(arrays, **fields):
    arrays["config"] = np.array(json.dumps(json.loads(str(arrays["config"])) | fields))


def one(stored, ours, accuracy=None, name="out/x"):
    return golden._compare(name, np.asarray(stored), np.asarray(ours), {"accuracy": accuracy})


def test_the_rule():
    assert one(np.float32([0, 20]), np.float32([1.9e-3, 20])).ok
    assert not one(np.float32([0, 20]), np.float32([2.1e-3, 20])).ok
    assert one(np.float32(0), np.float32(0.9e-7)).ok and not one(np.float32(0), np.float32(1.1e-7)).ok
    assert one([3, 4], [3, 4]).ok and not one([3, 4], [3, 5]).ok and not one([True], [False]).ok
    infinite = np.float32([np.inf, 1])
    assert one(infinite, infinite).ok and not one(infinite, np.float32([1, 1])).ok
    assert not one(np.float32([1]), np.float32([np.nan])).ok
    assert not one(np.float32([1]), np.float32([[1]])).ok


def test_what_the_reference_cannot_keep_itself_is_not_asked_for():
    jitter = {"max_abs_change_under_2e-6_relative_parameter_jitter": {"x": 3e-4}}
    assert one(np.float32([1]), np.float32([1.0029]), jitter).ok
    assert not one(np.float32([1]), np.float32([1.0031]), jitter).ok
    assert "the reference itself moves by 0.0003" in one(np.float32([1]), np.float32([1]), jitter).note
    assert not one(np.float32([10]), np.float32([10.0029]), jitter).ok  # a thousandth of 10 is more than it moves
    relative = {"float32_vs_float64_max_relative_to_max": {"grad/w": 2e-4}, "float32_vs_float64_worst": 1.0}
    assert one(np.float32([5]), np.float32([5.0099]), relative, "grad/w").ok
    assert not one(np.float32([5]), np.float32([5.0101]), relative, "grad/w").ok
    assert not one(np.float32([5]), np.float32([5.0099]), relative, "grad/v").ok
    assert not one(np.float32([1]), np.float32([1.1]), {"float32_minus_float64_max_abs": "not run"}).ok


def test_files_without_parameters_run_without_a_network(tmp_path, monkeypatch):
    class Schedules:
        @staticmethod
        def golden(config):
            return None, lambda variables, inputs: {"doubled": jnp.asarray(inputs["t"]) * config["settings"]["factor"]}

    monkeypatch.setattr(golden, "paper_layouts", lambda key: Schedules)
    monkeypatch.setattr(layout, "papers", lambda: ["fourm"])
    config = json.dumps({"paper": "fourm", "settings": {"factor": 2}})
    arrays = {"in/t": np.arange(3), "in/text": np.array("[1]"), "out/doubled": 2 * np.arange(3), "config": config}
    np.savez(tmp_path / "schedules.npz", **arrays)
    stored = golden.read(tmp_path / "schedules.npz")
    assert [c.ok for c in golden.compare(stored, golden.compute(stored, golden.build(stored)))] == [True]
