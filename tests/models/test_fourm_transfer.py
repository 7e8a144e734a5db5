"""What 4M's encoder and network are used for after pretraining: dense heads, new modalities with the rest frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo import zoo
from transformer_zoo.models.multimodal.fourm.transfer import DenseFigures, DensePrediction, mean_overlap
from transformer_zoo.models.multimodal.fourm.vit import FourMViT
from transformer_zoo.task import Context
from transformer_zoo.training import checkpoints, stages
from transformer_zoo.training.config import load_config
from transformer_zoo.training.optimizer import make_optimizer
from transformer_zoo.training.sharding import path_of
from transformer_zoo.training.state import abstract_variables
from transformer_zoo.training.tree import partition

VIT = dict(image_size=(8, 8), patch_size=(4, 4), width=8, depth=1, num_heads=2, head="dense", dense_width=4)


def built(spec):
    config = load_config(spec)
    return config, zoo.build_task(config, {name: load_config(one) for name, one in config.requires.items()})


def by_path(tree):
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("variant", ["segmentation_tiny", "depth_tiny", "detection_tiny"])
def test_heads_stand_on_the_pretrained_encoder(variant):
    config, task = built(f"configs/fourm.py:{variant}")
    _, pretrained = built("configs/fourm.py")
    stored, targets = (
        {f"params/{path}": leaf for path, leaf in by_path(abstract_variables(one).params).items()}
        for one in (pretrained, task)
    )
    plan, _ = checkpoints.plan_transfer(stored, targets, config.init_from.table, "the pretrained run")
    assert {path.split("/")[2] for path in set(targets) - set(plan)} == {"head"}
    variables = jax.eval_shape(task.init, jax.random.key(0))
    ctx = jax.eval_shape(lambda: Context(jax.random.key(0), jnp.int32(0)))
    assert jax.eval_shape(task.loss, variables, task.spec(2), ctx)[0].shape == ()


def test_figures_of_dense_predictions_beside_blind_ones():
    task = DensePrediction(FourMViT(num_classes=3, **VIT), ignored=2)
    wanted = np.random.default_rng(0).integers(0, 2, (6, 4, 4))
    batch = {"semseg": np.where(np.arange(4) == 3, 2, wanted), "weight": np.array([1, 1, 1, 1, 1, 0])}
    judge = DenseFigures(task=task)
    found = judge.result(judge.update(None, np.where(wanted == 2, 0, wanted), batch)).metrics
    assert found["miou"] == 1 and found["miou_marginal"] < 0.8
    assert mean_overlap(np.array([[3, 1], [0, 0]])) == 0.75  # a class that does not occur does not count
    task = DensePrediction(FourMViT(num_classes=1, **VIT), field="depth", kind="values")
    depth = np.random.default_rng(0).random((6, 4, 4)) + 1
    judge = DenseFigures(task=task)
    found = judge.result(judge.update(None, depth + 0.5, {"depth": depth, "weight": np.ones(6)})).metrics
    assert found["rmse"] == pytest.approx(0.5) and found["delta1"] == pytest.approx((depth > 2 - 1e-9).mean(), abs=0.02)
    assert found["rmse_marginal"] == pytest.approx(np.sqrt(depth.var(axis=0).mean()))
    with pytest.raises(ValueError, match="needs 1"):
        DensePrediction(FourMViT(num_classes=2, **VIT), kind="values")


def test_only_what_is_new_is_trained_where_a_modality_is_added():
    config, task = built("configs/fourm.py:new_modality_tiny")
    params = abstract_variables(task).params["model"]
    optimizer = make_optimizer(config.optimizer, params, total_steps=config.total_steps)
    trained = {path for path, on in by_path(optimizer.trainable).items() if on}
    new = {"input_embedding_det/embedding", "output_embedding_det/embedding", "modality_embedding_det"}
    assert trained == new
    _, pretrained = built("configs/fourm.py")
    assert set(by_path(params)) - set(by_path(abstract_variables(pretrained).params["model"])) == new
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), partition(params, optimizer.trainable)[0])
    updates, _ = optimizer.transform.update(ones, optimizer.transform.init(ones), ones)
    assert set(by_path(updates)) == new  # no update, so no movement, of anything else


def test_what_was_frozen_is_trained_in_the_next_stage(tmp_path):
    first, second = load_config("configs/fourm.py:new_modality_stages_tiny").stages
    config = stages.stage_run_config(second, tmp_path, [first["name"]])
    *tokenizers, taken = config.init_from
    assert [source["requires"] for source in tokenizers] == ["rgb", "depth", "semseg"]  # still frozen, still filled
    assert taken["workdir"] == str(tmp_path / "embeddings")
    task = zoo.build_task(config, {name: load_config(one) for name, one in config.requires.items()})
    params = abstract_variables(task).params["model"]
    optimizer = make_optimizer(config.optimizer, params, total_steps=config.total_steps)
    assert all(jax.tree.leaves(optimizer.trainable))
    paths = {f"params/model/{path}": leaf for path, leaf in by_path(params).items()}
    plan, _ = checkpoints.plan_transfer(paths, paths, taken["table"], "the first stage")
    assert plan.keys() == paths.keys()
    alone = stages.stage_run_config(first, tmp_path, [])
    assert [source["requires"] for source in alone.init_from][-1] == "pretrained"


@pytest.mark.parametrize("part", ["encoder", "decoder", "(input|output|modality)_embedding_.*"])
def test_parts_are_frozen_each_on_their_own(part):
    _, task = built("configs/fourm.py")
    params = abstract_variables(task).params["model"]
    settings = {"learning_rate": 1e-3, "freeze": (f"{part}(/.*)?",)}
    trainable = by_path(make_optimizer(settings, params, total_steps=10).trainable)
    frozen = {path.split("/")[0] for path, on in trainable.items() if not on}
    kept = {path.split("/")[0] for path, on in trainable.items() if on}
    assert frozen and not frozen & kept and {"encoder", "decoder", "input_embedding_rgb"} & kept
