import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests.convert.samples import filled, mae, vit
from transformer_zoo.convert import __main__ as cli
from transformer_zoo.convert.files import read_arrays, write_arrays
from transformer_zoo.convert.layout import layout
from transformer_zoo.convert.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from transformer_zoo.convert.table import export_arrays, flatten, unflatten
from transformer_zoo.training.checkpoints import Checkpoints
from transformer_zoo.training.errors import UserError
from transformer_zoo.zoo.export import export_stablehlo, load_parameters, load_stablehlo, save_parameters
from transformer_zoo.zoo.index import papers
from transformer_zoo.zoo.load import load


def stored(file, key, module, name):
    """A file of another library with random weights, and those as ours."""
    ours = filled(key, module)
    write_arrays(file, export_arrays(layout(key, name).table(module), ours), {"format": "pt"})
    return ours


def equal(variables, arrays):
    flat = flatten(jax.device_get(variables))
    return flat.keys() == arrays.keys() and all(np.array_equal(flat[path], arrays[path]) for path in arrays)


@pytest.fixture
def sizes(monkeypatch):
    """Two published sizes of ViT."""
    arguments = {"depth": 2, "width": 12, "num_heads": 3, "patch_size": [2, 2], "mlp_ratio": 1.5}
    table = {"small": {"arguments": arguments}, "large": {"arguments": arguments | {"width": 24, "depth": 3}}}
    monkeypatch.setitem(papers()["vit"], "sizes", table)


def test_a_file_of_timm_and_a_size_give_the_network_its_weights_and_preprocessing(tmp_path, sizes):
    module = vit("mean_pooled_norm", image_size=(8, 8))
    ours = stored(tmp_path / "weights.safetensors", "vit", module, "timm")
    found, variables, preprocessing = load("vit", "small", tmp_path / "weights.safetensors", remat="full")
    assert found == module.clone(remat="full") and equal(variables, ours)
    assert preprocessing == Preprocessing((8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0.9, "bicubic")


def test_what_does_not_fit_is_said(tmp_path, sizes):
    file = tmp_path / "weights.npz"
    stored(file, "vit", vit(), "timm")
    with pytest.raises(ValueError, match=r"weights.npz does not tell num_heads; give a size \(small, large\)"):
        load("vit", "", file)
    with pytest.raises(ValueError) as caught:
        load("vit", "large", file)
    assert "cls_token has shape (1, 1, 12), but class_token of shape (1, 24) takes (1, 1, 24)" in str(caught.value)
    assert "(wants blocks.2.norm1.weight)" in str(caught.value)
    with pytest.raises(ValueError, match="'smal' is unknown; did you mean 'small'"):
        load("vit", "smal", file)
    with pytest.raises(ValueError, match="'vitt' is unknown; did you mean 'vit'"):
        load("vitt", "small", file)
    with pytest.raises(ValueError, match="'num_head' is unknown; did you mean 'num_heads'"):
        load("vit", "small", file, num_head=3)
    with pytest.raises(ValueError, match="fit no layout of 'mae'"):
        load("mae", "", file)
    with pytest.raises(ValueError, match=r"holds neither weights\.safetensors nor checkpoints"):
        load("vit", "small", tmp_path)


def test_weights_of_half_precision_become_float32(tmp_path):
    module = vit()
    theirs = export_arrays(layout("vit", "timm").table(module), filled("vit", module))
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in theirs.items()}
    write_arrays(tmp_path / "half.safetensors", half, {})
    _, variables, _ = load("vit", "", tmp_path / "half.safetensors", num_heads=3)
    assert variables["params"]["head"]["bias"].dtype == jnp.float32
    assert np.array_equal(variables["params"]["head"]["bias"], half["head.bias"].astype(np.float32))


def test_a_head_for_other_classes_stays_as_initialised(tmp_path):
    module = vit()
    ours = stored(tmp_path / "weights.npz", "vit", module, "timm")
    options = dict(num_heads=3, num_classes=9)
    with pytest.raises(ValueError, match=r"head.weight has shape \(5, 12\)"):
        load("vit", "", tmp_path / "weights.npz", **options)
    arrays = {name: array for name, array in read_arrays(tmp_path / "weights.npz").items() if "head" not in name}
    write_arrays(tmp_path / "headless.npz", arrays, {})
    found, variables, _ = load("vit", "", tmp_path / "headless.npz", allow_missing=["head/.*"], **options)
    wanted = {path: array for path, array in ours.items() if "head" not in path}
    assert found.num_classes == 9
    assert equal(variables, wanted | {"head/kernel": np.zeros((12, 9)), "head/bias": np.zeros(9)})
    write_arrays(tmp_path / "more.npz", arrays | {"decoder.weight": np.zeros(3)}, {})
    _, variables, _ = load("vit", "", tmp_path / "more.npz", allow_unplaced=["decoder.*"], num_heads=3)
    assert equal(variables, wanted)


def test_the_encoder_of_mae_is_a_vit(tmp_path):
    ours = stored(tmp_path / "mae.npz", "mae", mae(), "reference")
    with pytest.raises(ValueError, match=r"no place for: .*mask_token; .*decoder_pred.bias"):
        load("vit", "", tmp_path / "mae.npz", num_heads=3)
    module, variables, _ = load(
        "vit", "", tmp_path / "mae.npz", num_heads=3, positions="sincos_2d", allow_unplaced=["mask_token", "decoder_.*"]
    )
    assert (module.depth, module.width, module.num_classes) == (2, 12, 0)
    encoder = {path.removeprefix("encoder/"): leaf for path, leaf in ours.items() if path.startswith("encoder/")}
    assert equal(variables, encoder)


def test_the_commands_take_weights_in_and_out_again(tmp_path, capsys):
    theirs, folder, back = tmp_path / "theirs.safetensors", tmp_path / "ours", tmp_path / "back.safetensors"
    module = mae()
    ours = stored(theirs, "mae", module, "reference")
    heads = ["--set=num_heads=3", "--set=decoder_num_heads=2"]
    cli.main(["import", "mae", f"--from={theirs}", f"--to={folder}", *heads])
    for source in (folder, folder / "weights.safetensors"):
        found, variables, preprocessing = load("mae", "", source)
        assert found == module and equal(variables, ours)
        assert preprocessing == Preprocessing((4, 4), IMAGENET_MEAN, IMAGENET_STD, 0.875, "bicubic")
    assert json.loads((folder / "config.json").read_text())["paper"] == "mae"
    cli.main(["export", "mae", f"--from={folder}", f"--to={back}", "--layout=reference"])
    first, second = read_arrays(theirs), read_arrays(back)
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
    with pytest.raises(UserError, match="'referense' is unknown; did you mean 'reference'"):
        cli.main(["export", "mae", f"--from={folder}", f"--to={back}", "--layout=referense"])
    with pytest.raises(UserError, match="ours holds 'mae', not 'vit'"):
        cli.main(["export", "vit", f"--from={folder}", f"--to={back}", "--layout=timm"])
    with pytest.raises(UserError, match=r"did you mean 'theirs\.safetensors'"):
        cli.main(["import", "mae", f"--from={tmp_path / 'their.safetensors'}", f"--to={folder}"])


def test_the_newest_checkpoint_of_a_run_is_read(tmp_path):
    module, ours = vit("mean", positions="sincos_2d"), filled("vit", vit("mean", positions="sincos_2d"))
    fields = {name: getattr(module, name) for name in ("depth", "width", "num_heads", "mlp_ratio", "num_classes")}
    fields |= dict(image_size=[4, 4], patch_size=[2, 2], pool="mean", class_token=False, qkv_bias=False)
    model = {"name": "vit", "positions": "sincos_2d", **fields}
    saved = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        params = jax.tree.map(lambda leaf, step=step: jnp.asarray(leaf * step), unflatten(ours)["params"])
        state = {"params": {"model": params}, "ema": {"model": params}, "step": jnp.asarray(step)}
        saved.save(step, state, {"config": {"model": model}})
    saved.close()
    found, variables, preprocessing = load("vit", "", tmp_path)
    assert found == module and preprocessing is None
    assert equal(variables, {path: array * 2 for path, array in ours.items()})
    assert equal(load("vit", "", saved.path(1))[1], ours)
    with pytest.raises(ValueError, match="is a checkpoint of 'vit', not of 'mae'"):
        load("mae", "", tmp_path)


def test_parameters_are_stored_under_our_paths(tmp_path):
    variables = unflatten(filled("vit", vit()))
    variables["batch_stats"] = {"norm": {"mean": np.arange(3, dtype=np.float32)}}
    save_parameters(variables, tmp_path / "all.safetensors")
    assert {"blocks/mlp/up/kernel", "batch_stats/norm/mean"} <= read_arrays(tmp_path / "all.safetensors").keys()
    again = load_parameters(tmp_path / "all.safetensors")
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(variables)))
    write_arrays(tmp_path / "other.safetensors", {"a": np.zeros(3)}, {"format": "pt"})
    with pytest.raises(ValueError, match="does not have our names"):
        load_parameters(tmp_path / "other.safetensors")


def test_the_exported_program_gives_the_same_for_any_batch(tmp_path):
    module = vit(depth=1)
    variables = jax.tree.map(jnp.asarray, unflatten(filled("vit", module)))
    export_stablehlo(module, variables, (1, 4, 4, 3), tmp_path / "vit.stablehlo")
    program = load_stablehlo(tmp_path / "vit.stablehlo")
    images = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 4, 3)), jnp.float32)
    ours = jax.jit(module.apply)(variables, images)[0]
    for batch in (1, 3):
        found = program(images[:batch])
        assert found.shape == (batch, 5) and np.abs(found - ours[:batch]).max() <= 1e-6 * np.abs(ours).max()
