"""The index against what the configs build, and names that it does not hold."""

import ast
import re
from pathlib import Path

import jax
import pytest

from transformer_zoo import zoo
from transformer_zoo.training import checkpoints
from transformer_zoo.training.config import load_config
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.loop import make_optimizers
from transformer_zoo.training.sharding import path_of
from transformer_zoo.training.state import abstract_variables
from transformer_zoo.zoo import counts
from transformer_zoo.zoo.build import build_task


def abstract_params(task):
    leaves = jax.tree_util.tree_leaves_with_path(abstract_variables(task).params)
    return {f"params/{path_of(path)}": leaf for path, leaf in leaves}


@pytest.mark.parametrize("key", zoo.papers())
def test_stored_figures_are_those_that_the_configs_build(key):
    stored = {size: {name: entry[name] for name in ("parameters", "macs")} for size, entry in zoo.sizes(key).items()}
    assert counts.recount(key) == stored


@pytest.mark.parametrize("key", zoo.papers())
def test_published_figures_are_met_or_the_difference_is_explained(key):
    for size, entry in zoo.sizes(key).items():
        for name in ("parameters", "macs"):
            published = entry.get(f"published_{name}", entry[name])
            assert abs(entry[name] / published - 1) < 0.01 or entry.get("note"), f"{key} {size} {name}"


def test_figures_counted_on_the_references_are_met_exactly():
    exact = {
        ("vit", size): entry["published_parameters"]
        for size, entry in zoo.sizes("vit").items()
        if "published_parameters" in entry
    }
    exact |= {("mae", "B16"): 85_647_360 + 26_008_320, ("mae", "L16"): 303_099_904 + 26_139_392}
    assert len(exact) >= 17
    assert {(key, size): zoo.sizes(key)[size]["parameters"] for key, size in exact} == exact


@pytest.mark.parametrize("key", zoo.papers())
def test_create_gives_the_network_that_the_config_trains(key):
    for size, entry in zoo.sizes(key).items():
        made = zoo.create(key, size)
        trained = build_task(load_config(f"{zoo.paper(key)['config']}:{size}")).network
        for name, value in entry["arguments"].items():
            value = tuple(value) if isinstance(value, list) else value
            assert getattr(made, name) == getattr(trained, name) == value, f"{key} {size} {name}"


def test_create_changes_fields_by_name():
    network = zoo.create("vit", "So400m14", num_classes=10, image_size=[28, 28])
    assert (network.width, network.num_classes, network.grid) == (1152, 10, (2, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zoo.create("vitt", "B16"), "paper 'vitt' is unknown; did you mean 'vit'?"),
        (lambda: zoo.create("vit", "So400"), "size of 'vit': 'So400' is unknown; did you mean 'So400m1"),
        (lambda: zoo.create("vit", "B16", num_clases=3), "num_clases' is unknown; did you mean 'num_classes'"),
        (lambda: zoo.create("vit", "B16", depth=2.5), "vit.depth is 2.5, but must be of type int"),
        (lambda: zoo.model_config("mae", "B32"), "size of 'mae': 'B32' is unknown; did you mean 'B16'"),
    ],
)
def test_unknown_names_give_the_nearest(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("key", zoo.papers())
def test_a_config_lists_its_variants_where_one_is_unknown(key):
    with pytest.raises(UserError, match=f"no variant 'nothing'; there are: tiny, {', '.join(zoo.sizes(key))}"):
        load_config(f"{zoo.paper(key)['config']}:nothing")


@pytest.mark.parametrize("file", sorted(Path("configs").glob("*.py")), ids=lambda file: file.stem)
def test_configs_say_how_to_run_them(file):
    assert f"python train.py --config={file}\n" in (ast.get_docstring(ast.parse(file.read_text())) or "") + "\n"


def test_vit_trains_for_the_epochs_of_its_recipes():
    images = 1_281_167
    for variant, epochs in (("B16", 300), ("S16_plain", 90)):
        config = load_config(f"configs/vit.py:{variant}")
        assert epochs * images - config.batch_size < config.total_steps * config.batch_size <= epochs * images


def test_mae_pretrains_by_the_paper():
    config = load_config("configs/mae.py:B16")
    assert (config.total_steps, config.optimizer.warmup_steps) == (800 * 312, 40 * 312)
    assert config.optimizer.learning_rate == pytest.approx(2.4e-3)
    table = config.optimizer.weight_decay_table
    decayed = {
        path.rpartition("/")[2]: path
        for path in abstract_params(build_task(config))
        if next(value for pattern, value in table if re.fullmatch(pattern, path))
    }
    assert set(decayed) == {"kernel", "class_token", "mask_token"}
    make_optimizers(build_task(config), {"model": config.optimizer}, config.total_steps)


@pytest.mark.parametrize("size", ["B16", "H14"])
def test_mae_fine_tunes_all_of_its_encoder_but_the_last_norm(size):
    config = load_config(f"configs/mae.py:finetune_{size}")
    task = build_task(config)
    stored = abstract_params(build_task(load_config(config.requires.pretrained)))
    targets = abstract_params(task)
    plan, _ = checkpoints.plan_transfer(stored, targets, config.init_from.table, "the pretrained run")
    assert {path.split("/")[2] for path in set(targets) - set(plan)} == {"head", "norm"}
    optimizer = make_optimizers(task, {"model": config.optimizer}, config.total_steps)["model"]
    assert float(optimizer.schedule(config.total_steps)) == pytest.approx(1e-6)
