"""4M's tokenizers: what each reads, the error that it learns from, and how the model stands on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.models.multimodal.fourm import retrieval
from transformer_zoo.models.multimodal.fourm.divae import FourMDiVAE
from transformer_zoo.models.multimodal.fourm.embeddings import Tokens
from transformer_zoo.models.multimodal.fourm.features import features_of
from transformer_zoo.models.multimodal.fourm.model import FourM
from transformer_zoo.models.multimodal.fourm.task import FourMTask
from transformer_zoo.models.multimodal.fourm.tokenization import FourMDiffusion, FourMTokenization, MapReconstruction
from transformer_zoo.models.multimodal.fourm.tokenizers import FourMTokenizer, FourMVectorTokenizer
from transformer_zoo.models.multimodal.fourm.unet import repeat_to
from transformer_zoo.models.multimodal.fourm.uvit import UViT
from transformer_zoo.models.pretraining.mae import MAE
from transformer_zoo.task import Context

SMALL = dict(image_size=(4, 4), patch_size=(2, 2), depth=0, width=8, num_heads=2)
SMALL |= dict(decoder_depth=1, decoder_width=8, decoder_num_heads=2, latent_width=3, num_codes=5)


def tokenizer(reads, channels=1, **options):
    return FourMTokenizer(reads=reads, channels=channels, **SMALL | options)


def test_maps_are_standardised_and_come_back_as_they_were():
    network = tokenizer("map", offset=0.75, scale=0.25)
    values = jnp.asarray(np.random.default_rng(0).random((2, 4, 4)), jnp.float32)
    taken = network.channels_of(values)
    assert taken.shape == (2, 4, 4, 1) and np.allclose(taken[..., 0], (values - 0.75) / 0.25, atol=1e-6)
    assert np.allclose(network.values_of(taken), values, atol=1e-6)


def test_classes_are_written_as_logits():
    network = tokenizer("classes", channels=3)
    values = jnp.asarray([[[0, 2], [1, 1]]])
    assert np.array_equal(network.values_of(network.channels_of(values)), values)
    task = FourMTokenization(network, field="semseg")
    right = 10.0 * network.channels_of(values)
    assert float(task.pixel_errors(network.channels_of(values), right).mean()) < 1e-3
    with pytest.raises(ValueError, match=r"class 3, but model\.channels is 3"):
        task.check({"semseg": np.full((1, 4, 4), 3)})


def test_masks_are_written_as_the_logit_of_one():
    network = tokenizer("mask")
    values = jnp.asarray([[[0, 1], [1, 1]]])
    taken = network.channels_of(values)
    assert taken.shape == (1, 2, 2, 1) and np.array_equal(network.values_of(taken - 0.5), values)
    task = FourMTokenization(network, field="mask")
    found = task.pixel_errors(taken, jnp.full(taken.shape, 2.0))
    assert np.allclose(found, np.where(values, np.log1p(np.exp(-2.0)), np.log1p(np.exp(2.0))), atol=1e-6)
    with pytest.raises(ValueError, match="mask has values beside 0 and 1"):
        task.check({"mask": np.full((1, 4, 4), 2)})


@pytest.mark.parametrize(("loss", "error"), [("smooth_l1", 0.125), ("cosine", 0.0)])
def test_features_have_two_errors(loss, error):
    task = FourMTokenization(FourMVectorTokenizer(channels=4), feature_loss=loss)
    found = task.pixel_errors(jnp.full((2, 4), 0.5), jnp.full((2, 4), 1.0))
    assert float(found.mean()) == pytest.approx(error, abs=1e-6)


def test_what_is_compared_by_angle_is_judged_by_angle():
    network = FourMVectorTokenizer(channels=2, num_codes=7)
    judge = MapReconstruction(task=FourMTokenization(network, feature_loss="cosine"))
    ids = np.zeros((3, network.num_codebooks), int)
    found = np.asarray([[1.0, 0.0], [0.0, 5.0], [9.0, 9.0]])
    values = np.asarray([[2.0, 0.0], [1.0, 1.0], [9.0, 9.0]])
    arrays = {"ids": ids, "found": found, "values": values}
    states = [judge.update(None, arrays, {"weight": np.asarray(weight)}) for weight in ([1, 1, 0], [0, 0, 1])]
    metrics = judge.result(judge.merge(*states)).metrics
    assert metrics["cosine"] == pytest.approx((1 + np.sqrt(0.5) + 1) / 3)
    # Two vectors at 45 degrees and one on the axis: the length of their mean.
    assert metrics["mean_cosine"] == pytest.approx(np.hypot(1 + 2 * np.sqrt(0.5), 2 * np.sqrt(0.5)) / 3)
    assert "rmse" not in metrics


def test_unknown_kinds_give_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        FourMTokenization(tokenizer("map"), feature_loss="cosin")
    with pytest.raises(ValueError, match="reads is 'pixel'"):
        tokenizer("pixel").init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))


def test_without_blocks_a_code_depends_on_its_patch_alone():
    network = tokenizer("map")
    pixels = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 1)), jnp.float32)
    variables = network.init(jax.random.key(0), pixels)
    latents = network.apply(variables, pixels, method="encode")[1]["latents"]
    turned = jnp.concatenate([pixels[:, 2:], pixels[:, :2]], axis=1)
    other = network.apply(variables, turned, method="encode")[1]["latents"]
    assert np.allclose(latents[:, ::-1], other, atol=1e-6)


def test_the_model_stands_on_tokenizers_of_maps_and_of_vectors():
    modalities = {
        "tok_map": {"kind": "tokens", "field": "depth", "tokenizer": "maps", "grid": (2, 2), "vocabulary": 5},
        "tok_global": {"kind": "tokens", "field": "feature", "tokenizer": "vectors", "grid": (1, 2), "vocabulary": 7}
        | {"positions": "learned"},
    }
    vectors = FourMVectorTokenizer(channels=6, depth=1, width=8, latent_width=4, num_codes=7, num_heads=2)
    task = FourMTask(
        FourM(modalities=modalities, width=8, num_heads=2, depth=1, decoder_depth=1),
        tokenizers={"maps": tokenizer("map"), "vectors": vectors, "other": vectors},
        num_inputs=4,
        num_targets=4,
    )
    assert set(task.tokenizers) == {"maps", "vectors"}
    assert {name: leaf.shape for name, leaf in task.spec(3).items()} == {"depth": (3, 4, 4), "feature": (3, 6)}
    variables = jax.eval_shape(task.init, jax.random.key(0))
    ctx = jax.eval_shape(lambda: Context(jax.random.key(0), jnp.int32(0)))
    total, aux = jax.eval_shape(task.loss, variables, task.spec(3), ctx)
    assert total.shape == () and set(aux.metrics) == {"tok_map_loss", "tok_global_loss"}

    def features(variables, ids):
        shown = jnp.ones(ids.shape, bool)
        known = {"tok_map": Tokens(ids, shown, ~shown)}
        return retrieval.global_features(task, variables, known, "tok_global", jax.random.key(0))

    found = jax.eval_shape(features, variables, jax.ShapeDtypeStruct((3, 4), jnp.int32))
    assert found.shape == (3, 6)


def test_the_nearest_are_those_of_the_smallest_angle():
    gallery = jnp.asarray([[1.0, 0.0], [0.0, 5.0], [1.0, 1.0]])
    assert retrieval.nearest(jnp.asarray([[0.1, 1.0], [3.0, 0.1]]), gallery, 2).tolist() == [[1, 2], [0, 2]]


def test_codes_spread_to_finer_grids():
    codes = jnp.arange(6.0).reshape(1, 2, 3, 1)
    assert repeat_to(codes, (4, 3))[0, :, :, 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]]


def test_divae_trains_and_decodes():
    fields = {name: SMALL[name] for name in ("width", "num_heads", "latent_width", "num_codes")}
    network = FourMDiVAE(image_size=(8, 8), patch_size=(4, 4), channels=1, depth=1, decoder_patch_size=(2, 2))
    network = network.clone(decoder_width=32, multipliers=(1, 2), num_blocks=1, attention_levels=(1,), **fields)
    task = FourMDiffusion(network, drop_share=0.5, steps=3)
    variables = jax.eval_shape(task.init, jax.random.key(0))
    ctx = jax.eval_shape(lambda: Context(jax.random.key(0), jnp.int32(0)))
    total, aux = jax.eval_shape(task.loss, variables, task.spec(2), ctx)
    assert total.shape == () and "quantizer" in aux.state["model"]["codebook"]
    ids = jax.ShapeDtypeStruct((2, 2, 2), jnp.int32)
    decoded = jax.eval_shape(task.decode, variables, ids, jax.eval_shape(lambda: jax.random.key(0)))
    assert decoded.shape == (2, 8, 8, 1)


def test_bytes_come_back_as_they_were():
    network = tokenizer("bytes", channels=3)
    values = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)), jnp.uint8)
    taken = network.channels_of(values)
    assert float(abs(taken).max()) <= 1 and np.allclose(network.values_of(taken), values, atol=1e-3)
    assert network.field.dtype == jnp.uint8


def test_features_of_a_frozen_network_are_tokenized_as_maps_and_as_vectors():
    teacher = MAE((4, 4), (2, 2), 3, depth=1, width=8, num_heads=2, decoder_depth=1, decoder_width=4)
    maps = tokenizer("features", channels=8, **dict(image_size=(2, 2), patch_size=(1, 1)))
    vectors = FourMVectorTokenizer(channels=8, depth=1, width=8, latent_width=4, num_codes=7, num_heads=2)
    task = FourMTokenization(maps, feature_network=teacher)
    frozen = jax.eval_shape(task.init, jax.random.key(0)).frozen["feature_network"]
    assert set(frozen["params"]) == {"encoder"}  # the decoder is not needed
    rng = np.random.default_rng(0)
    frozen = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), frozen)
    images = jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32)
    found, pooled = (features_of(teacher, frozen, images, one) for one in (maps, vectors))
    assert found.shape == (2, 2, 2, 8) and np.allclose(found.mean(axis=(1, 2)), pooled, atol=1e-6)
    features = {"kind": "tokens", "field": "image", "features": "teacher"}
    modalities = {
        "tok": features | {"tokenizer": "maps", "grid": (2, 2), "vocabulary": 5},
        "tok_global": features | {"tokenizer": "vectors", "grid": (1, 2), "vocabulary": 7, "positions": "learned"},
    }
    network = FourM(modalities=modalities, width=8, num_heads=2, depth=1, decoder_depth=1)
    networks = {"maps": maps, "vectors": vectors, "teacher": teacher}
    model = FourMTask(network, tokenizers=networks, num_inputs=4, num_targets=4)
    assert model.spec(3)["image"].shape == (3, 4, 4, 3)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    ids = jax.eval_shape(model.values, variables, model.spec(3))
    assert {name: leaf.shape for name, leaf in ids.items()} == {"tok": (3, 4), "tok_global": (3, 2)}
    with pytest.raises(ValueError, match="features 'teacher', which"):
        FourMTask(network, tokenizers={"maps": maps, "vectors": vectors})


@pytest.mark.parametrize("conditioning", ["concat", "cross_attention"])
def test_uvit_is_told_the_codes_and_forgets_what_is_dropped(conditioning):
    network = UViT(1, (2, 2), 32, (1,), 1, False, 1, 8, 2, conditioning=conditioning, position_grid=(2, 2))
    rng = np.random.default_rng(0)
    noised, codes = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((1, 4, 4, 1), (1, 2, 2, 3)))
    variables = jax.eval_shape(network.init, jax.random.key(0), noised, jnp.zeros(1), codes)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, leaf.dtype), variables)
    dropped = jnp.zeros((1, 2, 2), bool).at[0, 0, 1].set(True)
    run = jax.jit(lambda codes, dropped: network.apply(variables, noised, jnp.asarray([5.0]), codes, dropped)[0])
    other = jnp.asarray([1.0, -2.0, 0.5])
    told, untold = (run(one, dropped) for one in (codes, codes.at[0, 0, 1].add(other)))
    assert np.allclose(told, untold, atol=1e-6)
    assert not np.allclose(told, run(codes.at[0, 1, 1].add(other), dropped), atol=1e-3)


@pytest.mark.parametrize(("conditioning", "parameters"), [("concat", 126_750_979), ("cross_attention", 155_709_955)])
def test_uvits_of_the_reference_have_as_many_parameters(conditioning, parameters):
    images, codes = (
        jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32),
        jax.ShapeDtypeStruct((1, 14, 14, 32), jnp.float32),
    )
    network = UViT(conditioning=conditioning)
    times = jax.ShapeDtypeStruct((1,), jnp.float32)
    variables = jax.eval_shape(network.init, jax.eval_shape(lambda: jax.random.key(0)), images, times, codes)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == parameters
    assert jax.eval_shape(network.apply, variables, images, times, codes)[0].shape == images.shape


def test_a_divae_may_have_either_decoder():
    fields = {name: SMALL[name] for name in ("width", "num_heads", "latent_width", "num_codes")}
    network = FourMDiVAE(image_size=(8, 8), patch_size=(4, 4), channels=1, depth=1, decoder_kind="uvit", **fields)
    network = network.clone(decoder_patch_size=(2, 2), decoder_width=32, multipliers=(1,), num_blocks=1)
    network = network.clone(middle_depth=1, middle_width=8, middle_num_heads=2, halve_middle=False)
    task = FourMDiffusion(network, drop_share=0.5)
    variables = jax.eval_shape(task.init, jax.random.key(0))
    ctx = jax.eval_shape(lambda: Context(jax.random.key(0), jnp.int32(0)))
    assert jax.eval_shape(task.loss, variables, task.spec(2), ctx)[0].shape == ()
    with pytest.raises(ValueError, match="did you mean 'unet'"):
        jax.eval_shape(FourMDiffusion(network.clone(decoder_kind="net")).init, jax.random.key(0))
