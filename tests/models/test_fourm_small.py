"""The small config of all modalities of the world, and a modality that is added to it as data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import zoo
from transformer_zoo.data.scenes import grammar, source
from transformer_zoo.models.multimodal.fourm import scores
from transformer_zoo.models.multimodal.fourm.modalities import Modality
from transformer_zoo.models.multimodal.fourm.pages import main_directions, tile
from transformer_zoo.task import Context, Variables
from transformer_zoo.training.config import load_config

POSES = {"kind": "sequence", "length": 14, "vocabulary": 256, "field": "poses"}


def small(**overrides):
    config = load_config("configs/fourm.py:small", overrides)
    required = {name: load_config(spec) for name, spec in config.requires.items()}
    return config, zoo.build_task(config, required)


def test_every_modality_of_the_world_is_there_with_its_tokenizer():
    config, task = small()
    assert set(config.data.options.fields) >= set(task.spec())
    variables = jax.eval_shape(task.init, jax.random.key(0))
    ids = jax.eval_shape(task.values, variables, task.spec(2))
    assert {name: leaf.shape for name, leaf in ids.items()} == {n: m.shape(2) for n, m in task.modalities.items()}
    assert len(ids) == 13 and set(task.tokenizers) == set(config.requires)


def test_one_step_with_real_words_and_a_modality_that_is_only_data():
    _, task = small()
    modalities = {"human_poses": POSES}
    kept = ("rgb", "tok_rgb", "tok_mae_global", "caption", "det", "metadata", "color_palette")
    for name in kept:  # here ids of a tokenizer stand in fields of their own
        one = task.modalities[name]
        own = {"tokenizer": "", "features": ""} | ({} if one.kind == "sequence" else {"field": name})
        modalities[name] = vars(one) | own
    network = task.network.clone(modalities=modalities, depth=1, decoder_depth=1, width=16, num_heads=2)
    task = dataclasses.replace(task, network=network, tokenizers={})
    fields = ("caption", "det_seq", "meta_seq", "palette_seq")
    batch = source.Still("train", fields=fields).read(np.arange(16), np.zeros(16, np.uint64))
    draws = np.random.default_rng(0)
    for name, one in task.modalities.items():
        if one.kind != "sequence":
            shape = one.shape(16)
            batch[name] = draws.integers(0, one.vocabulary, shape) if one.is_ids else draws.random(shape, np.float32)
    batch["poses"] = np.pad(draws.integers(grammar.COORDINATE, grammar.LETTER, (16, 10)), ((0, 0), (0, 4)))
    task.check(batch)

    def loss(params):
        return task.loss(Variables(params), batch, Context(jax.random.key(1), jnp.int32(0)))

    abstract = jax.eval_shape(task.init, jax.random.key(0)).params
    params = jax.tree.map(lambda leaf: jnp.asarray(draws.normal(size=leaf.shape) * 0.1, leaf.dtype), abstract)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (total, aux), gradients = step(params)
    assert np.isfinite(float(total)) and set(aux.metrics) == {f"{name}_loss" for name in (*kept[1:], "human_poses")}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.abs(gradients["model"]["output_embedding_human_poses"]["embedding"]).sum() > 0


def spoken(words, first=8):
    return np.array([first, *words, first + 1])


def test_boxes_normals_and_metadata_beside_blind_guesses_and_ceilings():
    fields = ("boxes", "obj", "semseg", "normal", "det_seq", "meta_seq")
    truth = source.Still("test", fields=fields).read(np.arange(40), np.zeros(40, np.uint64))
    one = Modality(kind="sequence", length=25, vocabulary=256)
    right = np.stack([spoken(np.where(words == grammar.EOS, 0, words)) for words in truth["det_seq"]])
    sums = scores.det_seq(right, truth["det_seq"], truth, one)
    sums |= scores.normal(truth["normal"].astype(float), 255.0 - truth["normal"], truth, one)
    sums |= scores.meta_seq(np.stack([spoken(words[:-1]) for words in truth["meta_seq"]]), right, truth, one)
    found = scores.figures(sums)
    assert found["rgb_to_box_iou"] == found["rgb_to_box_iou_ceiling"] == found["rgb_to_box_recall"] == 1
    assert 0 < found["rgb_to_box_iou_marginal"] < 0.7
    assert found["rgb_to_normal_angle"] < 1e-4 and found["rgb_to_normal_angle_ceiling"] > 170
    assert 0 < found["rgb_to_normal_angle_marginal"] < found["rgb_to_normal_object_angle_marginal"]
    assert found["rgb_to_metadata_accuracy"] == 1 and found["rgb_to_metadata_accuracy_marginal"] < 0.8
    lost = scores.figures(scores.det_seq(np.zeros_like(right), truth["det_seq"], truth, one))
    assert lost["rgb_to_box_iou"] == 0


def test_a_found_box_counts_for_one_true_box_only():
    boxes = np.array([[0.0, 0, 4, 4], [0, 0, 4, 2]])
    assert scores.matches(boxes[:1], boxes).tolist() == [1, 0]
    assert scores.matches(boxes, boxes).tolist() == [1, 1] and scores.matches(boxes[:0], boxes).tolist() == [0, 0]
    assert scores.boxes_of(np.array([200, 24, 24, 87, 30, 201, 5, 5, 5, 5]), 32).tolist() == [[0, 0, 32, 3.5]]


def test_features_normals_and_edges_have_pictures():
    draws = np.random.default_rng(0)
    features = draws.normal(size=(4, 8, 8, 6))
    basis = main_directions(features)
    modality = Modality(kind="tokens", vocabulary=4)
    maps = tile(modality, "image", features[0], spoken=True, basis=basis)
    vectors = tile(modality, "image", features[0, 0, 0], spoken=True, basis=basis)
    assert maps.shape == vectors.shape == (96, 96, 3) and maps.std() > 20 and (vectors == vectors[0, 0]).all()
    assert tile(modality, "normal", np.full((32, 32, 3), 128.0), spoken=True)[0, 0].tolist() == [128] * 3
    assert tile(modality, "sam_edge", np.eye(32, dtype=np.uint8), spoken=False).max() == 255
