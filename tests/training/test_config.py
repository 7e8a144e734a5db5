"""Configs: what a user can get wrong, and what they are told."""

import subprocess
import sys

import pytest

from tests.conftest import COMMAND_ENVIRONMENT
from transformer_zoo import zoo
from transformer_zoo.training import command, stages
from transformer_zoo.training.config import load_config
from transformer_zoo.training.errors import UserError

VIT = "configs/vit.py"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batchsize=8"], r"config has no field 'batchsize'; did you mean 'batch_size'"),
        (["checkpoint.kep=8"], r"config.checkpoint has no field 'kep'; did you mean 'keep'"),
        (["optimizer.name.x=8"], r"config.optimizer.name is a value, not a group"),
        (["batch_size=many"], r"config.batch_size is 'many', but must be of type int"),
        (["batch_size=1.5"], r"config.batch_size is 1.5, but must be of type int"),
        (["batch_size=True"], r"config.batch_size is True, but must be of type int"),
        (["model=3"], r"config.model is a group with the fields"),
        (["batch_size=-4"], r"config.batch_size is -4, but must be a whole number of at least 1"),
        (["total_steps=0"], r"config.total_steps is 0"),
        (["checkpoint.keep=0"], r"config.checkpoint.keep is 0"),
        (["accumulate_steps=3"], r"batch_size 128 is not divisible by accumulate_steps 3"),
        (["nan='ignore'"], r"config.nan is 'ignore', but must be 'stop' or 'skip'"),
        (["seed=-1"], r"config.seed is -1"),
    ],
)
def test_an_override_that_does_not_fit_names_the_field_and_the_nearest_valid_one(overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(VIT, overrides)


def test_overrides_reach_nested_fields_with_their_types():
    config = load_config(VIT, ["optimizer.learning_rate=1", "model.qk_norm=true", "dtype=bfloat16"])
    assert config.optimizer.learning_rate == 1.0 and isinstance(config.optimizer.learning_rate, float)
    assert config.model.qk_norm is True and config.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("configs/vjt.py", r"no config file 'configs/vjt.py'; did you mean 'configs/vit.py'"),
        ("configs/vit.py:huge", r"configs/vit.py: no variant 'huge'; there are: tiny"),
    ],
)
def test_a_config_that_is_not_there_is_named_with_the_nearest(spec, message):
    with pytest.raises(UserError, match=message):
        load_config(spec)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"total_steps": 41, "optimizer.schedule": "cosin"},
            r"optimizer.schedule is 'cosin'; the nearest .* is 'cosine'",
        ),
        ({"model.dept": 8}, r"model.dept: 'dept' is unknown; did you mean 'depth'"),
        ({"model.qk_norm": 3}, r"model.qk_norm is 3, but must be of type bool"),
        ({"optimizer.layer_decy": 0.5}, r"optimizer.layer_decy is no field; the nearest is optimizer.layer_decay"),
        ({"model.name": "vti"}, r"paper 'vti' is unknown; did you mean 'vit'"),
        ({"model.image_size": (13, 12)}, r"image_size \(13, 12\) is not a multiple of patch_size \(4, 4\)"),
        ({"model.pool": "maen"}, r"pool 'maen' is none of class_token, mean"),
        ({"task.name": "clasification"}, r"task.name 'clasification' is unknown; did you mean 'classification'"),
        ({"data.source": "digit"}, r"data.source 'digit' is unknown; did you mean 'digits'"),
        ({"data.options": {"sides": 12}}, r"data.options.sides: 'sides' is unknown; did you mean 'side'"),
        ({"data.options.side": 4}, r"data.options.side is 4, but a digit is 8 pixels wide"),
        ({"data.transforms": (("scael", {}),)}, r"data.transforms: 'scael' is unknown; did you mean 'scale'"),
        ({"optimizer.name": "adam"}, r"optimizer.name is 'adam'; the nearest of .* is 'adamw'"),
        ({"optimizer.warmup_steps": 500}, r"optimizer.warmup_steps is 500, more than total_steps"),
        ({"dtype": "bfloat"}, r"dtype 'bfloat' is unknown; did you mean 'bfloat16'"),
        ({"mesh.fsdp": 3}, r"needs a multiple of 3 devices, but there are 1"),
    ],
)
def test_names_and_numbers_that_fit_nothing_stop_before_training(tmp_path, overrides, message):
    config = load_config(VIT, overrides)
    with pytest.raises(UserError, match=message):
        stages.run(config, tmp_path / "run", zoo.build)


def test_an_empty_dataset_is_an_error(tmp_path, monkeypatch):
    from transformer_zoo.data import digits

    monkeypatch.setitem(digits.SHARES, "train", (0.0, 0.0))
    with pytest.raises(UserError, match=r"the 'train' split of data\.source 'digits' is empty"):
        stages.run(load_config(VIT), tmp_path, zoo.build)


def test_the_command_prints_one_line_and_no_traceback():
    wrong = subprocess.run(
        [sys.executable, "train.py", "--config=configs/vit.py", "--config.eval.every_stps=3"],
        capture_output=True,
        text=True,
    )
    assert wrong.returncode == 2
    assert wrong.stderr == "error: config.eval has no field 'every_stps'; did you mean 'every_steps'?\n"


def test_a_flag_that_does_not_exist_is_named_with_the_nearest():
    import argparse

    with pytest.raises(UserError, match="no flag '--workdirs=x'; did you mean '--workdir'"):
        command.parse(argparse.ArgumentParser(), ["--config=configs/vit.py", "--workdirs=x"])
    with pytest.raises(UserError, match="an override needs a value"):
        command.parse(argparse.ArgumentParser(), ["--config=configs/vit.py", "--config.seed", "3"])


def test_another_source_leaves_the_options_of_the_configs_own_behind():
    own = load_config("configs/vit.py")
    assert own.data.options.side == 12 and own.data.eval_options.placements == 4
    other = load_config("configs/vit.py", ["data.options.side=32", "data.source=scenes:still"])
    assert dict(other.data.options) == {"side": 32} and not other.data.eval_options
    same = load_config("configs/vit.py", ["data.source=digits"])
    assert same.data.options.side == 12


def test_what_is_compiled_is_kept_for_the_next_start(tmp_path):
    script = (
        "from transformer_zoo.training import command; import jax, jax.numpy as jnp; command.main(lambda _: print("
        "jax.jit(lambda x: jnp.linalg.svd(x @ x)[1].sum())(jnp.ones((8, 8)))))"
    )
    environment = {name: value for name, value in COMMAND_ENVIRONMENT.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    kept = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True)
        kept.append(sorted(file.name for file in (tmp_path / "transformer_zoo/compiled").glob("*-cache")))
    assert any("lambda" in name for name in kept[0]) and kept[1] == kept[0], "the second start finds all"
