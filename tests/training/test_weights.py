"""Imported weights as what a run stands on: their arrays, their hash, and what is said where they change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.convert.samples import filled
from transformer_zoo.convert import __main__ as cli
from transformer_zoo.convert.files import write_arrays
from transformer_zoo.convert.layout import layout
from transformer_zoo.convert.table import export_arrays
from transformer_zoo.models.features.vgg16 import LPIPS
from transformer_zoo.task import Task, Variables
from transformer_zoo.tasks.networks import frozen_network
from transformer_zoo.training import sharding, stages, start
from transformer_zoo.training.checkpoints import Checkpoints
from transformer_zoo.training.config import load_config
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.state import abstract_state
from transformer_zoo.zoo.build import build, build_network

NETWORK = LPIPS((2, 3, 4, 5, 6))
ROW = ("params/model/(.*)", r"frozen/perceptual/params/\1")


@dataclasses.dataclass(frozen=True)
class Stub(Task):
    """One parameter and a frozen network."""

    def spec(self, batch_size=1):
        return {}

    def init(self, key):
        frozen = {"perceptual": frozen_network(NETWORK, jnp.zeros((1, 16, 16, 3)))}
        return Variables({"model": {"weight": jnp.zeros(3)}}, frozen=frozen)

    def loss(self, variables, batch, ctx):
        raise AssertionError("nothing is trained here")


@pytest.fixture
def imported(tmp_path):
    """Two files, as torchvision and the lpips package publish them, in one folder with our names."""
    ours = filled("lpips", NETWORK)
    theirs = export_arrays(layout("lpips", "torchvision").table(NETWORK), ours)
    for kind in ("features", "lin"):
        chosen = {name: array for name, array in theirs.items() if name.startswith(kind)}
        chosen |= {"classifier.0.bias": np.zeros(3, np.float32)} if kind == "features" else {}
        write_arrays(tmp_path / f"{kind}.safetensors", chosen, {"format": "pt"})
    files = [f"--from={tmp_path / kind}.safetensors" for kind in ("features", "lin")]
    cli.main(["import", "lpips", *files, f"--to={tmp_path / 'lpips'}"])
    return tmp_path / "lpips", ours


def test_a_run_stands_on_a_folder_of_imported_weights(imported, tmp_path):
    folder, ours = imported
    config = ConfigDict({"seed": 0, "requires": {"perceptual": str(folder)}})
    config.init_from = {"requires": "perceptual", "table": (ROW,)}
    config, required = stages.with_requirements(config, tmp_path / "run", build_network)
    network = build_network(required["perceptual"][0].model, "float32")
    assert network == NETWORK.clone(dtype="float32")
    task, mesh = Stub(), sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    with jax.set_mesh(mesh):
        abstract = abstract_state(task, {}, False, mesh)
        state, meta = start.start_state(config, task, {}, abstract, Checkpoints(tmp_path / "run"))
        frozen = state.frozen["perceptual"]["params"]
        assert np.array_equal(frozen["head3"], ours["head3"])
        assert np.array_equal(frozen["vgg"]["conv5_3"]["kernel"], ours["vgg/conv5_3/kernel"])
        sources, origins = [dict(source) for source in config.init_from], meta["frozen"]
        again = start.restore_frozen(abstract.frozen, sources, origins)
        assert np.array_equal(again["perceptual"]["params"]["head3"], ours["head3"])
        with (folder / "weights.safetensors").open("r+b") as stream:
            stream.seek(-1, 2)
            stream.write(b"\0")
        with pytest.raises(UserError, match=r"frozen arrays came from .*/lpips, which has changed since"):
            start.restore_frozen(abstract.frozen, sources, origins)


def test_a_name_in_two_files_is_refused(imported, tmp_path):
    twice = [f"--from={tmp_path}/lin.safetensors"] * 2
    with pytest.raises(UserError, match=r"lin.safetensors holds 'lin0.model.1.weight', and so does a file before it"):
        cli.main(["import", "lpips", *twice, f"--to={tmp_path / 'other'}"])


def test_batch_statistics_are_the_state_of_a_run(tmp_path):
    from transformer_zoo.training.weights import read_imported
    from transformer_zoo.zoo.load import save

    variables = {"params": {"scale": np.ones(2, np.float32)}, "batch_stats": {"mean": np.zeros(2, np.float32)}}
    save("lpips", LPIPS(), variables, None, tmp_path)
    assert set(read_imported(tmp_path)) == {"params/model/scale", "state/model/batch_stats/mean"}


def test_evaluators_bring_networks_with_weights_by_path(imported, tmp_path):
    folder, ours = imported

    def built(**options):
        config = load_config("configs/maskgit.py:tokenizer_tiny", {"evaluators": {"it": options}})
        return build(config).evaluators["it"]

    judge = built(name="perceptual_distance", weights=str(folder))
    assert judge.network == NETWORK
    equipped = judge.equip(Variables({}, frozen={"tokenizer": 1})).frozen
    assert equipped["tokenizer"] == 1 and np.array_equal(equipped["extractor"]["params"]["head3"], ours["head3"])
    assert "head3" not in repr(judge)
    with pytest.raises(
        ValueError, match=r"evaluators\.it\.weights is missing: give the file of inception_v3's weights"
    ):
        built(name="network_frechet")
    with pytest.raises(ValueError, match=r"evaluators\.it: the names fit no layout of 'i3d'"):
        built(name="network_frechet", extractor="i3d", weights=str(tmp_path / "lin.safetensors"))
