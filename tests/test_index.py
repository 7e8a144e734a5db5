"""The index: its figures are those of the code, its names resolve, the README shows what it holds."""

import ast
import json
import shutil
from pathlib import Path

import pytest

from transformer_zoo import zoo
from transformer_zoo.training.config import load_config
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.state import abstract_variables
from transformer_zoo.zoo import counts, table

SIZES = [(key, size) for key in zoo.papers() for size in zoo.sizes(key)]


@pytest.mark.parametrize("key", zoo.papers())
def test_stored_counts_are_those_of_the_code(key):
    stored = {name: {field: size[field] for field in ("parameters", "macs")} for name, size in zoo.sizes(key).items()}
    assert counts.recount(key) == stored


@pytest.mark.parametrize(("key", "size"), SIZES)
def test_counts_agree_with_the_published_ones_or_say_why(key, size):
    entry = zoo.sizes(key)[size]
    for field in ("parameters", "macs"):
        published = entry.get(f"published_{field}")
        if published:
            assert abs(entry[field] / published - 1) <= 0.01 or entry.get("note"), field


@pytest.mark.parametrize(("key", "size"), SIZES)
def test_every_size_is_a_variant_of_the_paper_s_config(key, size):
    config = load_config(f"{zoo.paper(key)['config']}:{size}")
    assert counts.num_parameters(zoo.build_task(config)) == zoo.sizes(key)[size]["parameters"]
    network = zoo.create(key, size)
    given = {name: value for name, value in config.model.items() if name != "name"}
    assert given == {name: getattr(network, name) for name in given}


@pytest.mark.parametrize("file", sorted(map(str, Path("configs").glob("*.py"))))
def test_every_config_says_how_to_run_it(file):
    assert f"python train.py --config={file}" in ast.get_docstring(ast.parse(Path(file).read_text()))


def test_fine_tuning_takes_every_parameter_of_the_pretrained_encoder_but_its_last_norm():
    vit = abstract_variables(zoo.build_task(load_config("configs/mae.py:finetune_B16"))).params["model"]
    encoder = abstract_variables(zoo.build_task(load_config("configs/mae.py:B16"))).params["model"]["encoder"]
    shared = {name: tree for name, tree in vit.items() if name not in ("head", "norm")}
    assert shared == {name: tree for name, tree in encoder.items() if name != "norm"}


def test_the_readme_shows_what_the_index_holds(tmp_path):
    copy = tmp_path / "README.md"
    shutil.copy("README.md", copy)
    table.write_readme(copy)
    assert copy.read_text() == Path("README.md").read_text(), "python -m transformer_zoo.zoo --readme README.md"


def test_a_recount_writes_what_changed_and_keeps_the_rest(tmp_path):
    text = (counts.PAPERS / "mae.toml").read_text()
    stored = zoo.sizes("mae")["B16"]["parameters"]
    (tmp_path / "mae.toml").write_text("# a comment\n" + text.replace(f"{stored:_}", f"{stored + 1:_}", 1))
    changes = counts.write_counts("mae", counts.recount("mae"), tmp_path)
    assert len(changes) == 1 and "B16" in changes[0]
    assert (tmp_path / "mae.toml").read_text() == "# a comment\n" + text


def test_the_index_is_plain_data_with_the_fields_programs_rely_on():
    for record in json.loads(json.dumps(table.records())):
        wanted = [
            "key",
            "title",
            "arxiv",
            "family",
            "module",
            "config",
            "sizes",
            "reference",
            "licence",
            "peer",
            "claims",
            "status",
        ]
        assert not set(wanted) - set(record)
        assert record["status"] in ("verified", "reconstruction", "building")
        for size in record["sizes"].values():
            assert {"parameters", "published_parameters", "macs", "published_macs", "note"} <= set(size)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zoo.create("vitt", "S16"), "paper 'vitt' is unknown; did you mean 'vit'"),
        (lambda: zoo.create("vit", "S17"), "size of 'vit': 'S17' is unknown; did you mean 'S16'"),
        (lambda: zoo.create("vit", "S16", num_class=3), "'num_class' is unknown; did you mean 'num_classes'"),
        (lambda: zoo.create("vit", "S16", depth="6"), "vit.depth is '6', but must be of type int"),
    ],
)
def test_names_that_fit_nothing_are_answered_with_the_nearest(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_data_that_is_not_there_is_named(tmp_path):
    from transformer_zoo.training import stages

    with pytest.raises(UserError, match=r"data.source 'tfds:imagenet2012' is unknown"):
        stages.run(load_config("configs/vit.py:S16", {"batch_size": 8}), tmp_path, zoo.build)
