"""Stages and required runs, with the smallest networks there are."""

import json

import pytest
from ml_collections import ConfigDict

from transformer_zoo import zoo
from transformer_zoo.training import loop, stages
from transformer_zoo.training.config import load_config
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.reporting import read_metrics

TINY = {"total_steps": 2, "batch_size": 4, "model.depth": 1, "model.width": 8, "model.num_heads": 1, "model.unroll": 1}
FEWER = {"optimizer.warmup_steps": 0, "eval.batch_size": 32}
PRETRAIN = TINY | FEWER | {"model.decoder_depth": 1, "model.decoder_width": 8, "evaluators": {}}
TAKE = {"stage": "pretrain", "table": (("params/model/encoder/(?!norm/)(.*)", r"params/model/\1"),)}


def two_stages():
    pretrain = {"name": "pretrain", "config": "configs/mae.py", "overrides": PRETRAIN}
    finetune = {"name": "finetune", "config": "configs/vit.py", "overrides": TINY | FEWER, "take": TAKE}
    finetune["summary"] = {"test/finetune_accuracy": "test/accuracy"}
    return ConfigDict({"stages": (pretrain, finetune)}).lock()


def test_stages_run_in_order_take_from_each_other_and_resume(tmp_path, capsys, monkeypatch):
    figures = stages.run(two_stages(), tmp_path, zoo.build)
    out = capsys.readouterr().out
    assert "stage 1 of 2: pretrain" in out and "took 15 arrays" in out
    assert 0 <= figures["test/finetune_accuracy"] <= 1
    assert read_metrics(tmp_path)[-1] == {"step": 2, "split": "test"} | figures
    assert list((tmp_path / "samples/pretrain").glob("*.png"))
    assert (tmp_path / "checkpoints/finetune/00000002").is_dir() and (tmp_path / "report.html").exists()

    compiled = []
    monkeypatch.setattr(loop, "make_step", lambda *args, **kwargs: compiled.append(1) or (lambda *args: None))
    assert stages.run(two_stages(), tmp_path, zoo.build) == figures
    assert "resumed from step 2" in capsys.readouterr().out


def test_a_required_run_is_trained_once_and_shared(tmp_path, capsys, monkeypatch):
    built = []

    def build(config, required=None):
        built.append(config.task.name)
        return zoo.build(config, required)

    original = stages.load_config

    def small(spec, overrides=()):
        return original(spec, PRETRAIN if "mae" in spec else overrides)

    monkeypatch.setattr(stages, "load_config", small)
    config = load_config("configs/vit.py", TINY | FEWER)
    with config.unlocked():
        config.requires = {"teacher": "configs/mae.py"}
        config.init_from = {"requires": "teacher", "table": TAKE["table"]}
    for name in ("first", "second"):
        stages.run(config.copy_and_resolve_references(), tmp_path / name, build)
    assert built == ["masked_pixels", "classification", "classification"]
    assert len(list((tmp_path / "required").iterdir())) == 1
    taken = json.loads((tmp_path / "second/config.json").read_text())["init_from"][0]["workdir"]
    assert "required/mae-tiny-" in taken


def test_a_required_run_of_paper_size_is_asked_for_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "load_config", lambda spec: load_config("configs/mae.py"))
    config = load_config("configs/vit.py")
    with config.unlocked():
        config.requires = {"teacher": "configs/mae.py:B16"}
    with pytest.raises(UserError, match=r"no finished run of configs/mae.py:B16. Train it: python train.py --config="):
        stages.run(config, tmp_path / "run", zoo.build)


def test_a_stage_that_takes_from_nothing_before_it_is_refused(tmp_path):
    stage = {"name": "finetune", "config": "configs/vit.py", "take": TAKE}
    with pytest.raises(UserError, match="takes from 'pretrain', which is not before it"):
        stages.run(ConfigDict({"stages": (stage,)}), tmp_path, zoo.build)
