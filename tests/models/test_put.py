"""PUT where the golden file does not reach: what is read, what is filled, what stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.models.masked_generation.put import InpaintingTokens, UQTransformer, hole_loss
from transformer_zoo.models.tokenizers.pvqvae import PVQVAE
from transformer_zoo.task import Context, Variables
from transformer_zoo.tasks.masked_tokens import Sampling

KEY = jax.random.key(0)
CODEC = PVQVAE(image_size=(8, 12), patch_size=4, width=6, num_blocks=1, num_codes=5, num_hole_codes=4)
NETWORK = UQTransformer(grid=(2, 3), feature_width=6, num_codes=5, depth=1, width=8, num_heads=2)


def task(**options):
    return InpaintingTokens(network=NETWORK, tokenizer=CODEC, **options)


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(lambda: task().init(KEY).replace(frozen={}))
    codec = jax.eval_shape(CODEC.init, KEY, jnp.zeros((1, 8, 12, 3)))
    rng = np.random.default_rng(0)

    def filled(tree):
        return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape).astype(np.float32)), tree)

    codec = filled(codec)
    return Variables(
        filled(shapes.params), {}, {"tokenizer": {"params": codec["params"], "state": {"codebook": codec["codebook"]}}}
    )


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (3, 8, 12, 3)).astype(np.float32))


KNOWN = jnp.ones((3, 8, 12), bool).at[0, 2:6, 3:9].set(False).at[1, :, :6].set(False).at[2, :4, :4].set(False)


def test_known_pixels_stay_exactly_and_only_holes_get_other_tokens(variables, images):
    complete = jax.jit(task(tokens_per_step=2).complete)
    first, second = (complete(variables, images, KNOWN, jax.random.key(seed)) for seed in (0, 1))
    known = np.broadcast_to(np.asarray(KNOWN)[..., None], images.shape)
    assert np.array_equal(np.asarray(first)[known], np.asarray(images)[known])
    assert np.array_equal(np.asarray(second)[known], np.asarray(images)[known])
    assert not np.array_equal(first, second)  # pluralistic
    ids = jax.jit(task().fill)(variables, images, KNOWN, KEY)
    _, kept, whole = task().look(variables, images, KNOWN)
    assert np.array_equal(np.where(whole, ids, 0), np.where(whole, kept, 0)) and (ids < 5).all() and (ids >= 0).all()


def test_what_is_hidden_is_not_read(variables, images):
    fill = jax.jit(task(sampling=Sampling(temperature=0.0)).fill)
    changed = jnp.where(KNOWN[..., None], images, 0.3)
    assert np.array_equal(fill(variables, images, KNOWN, KEY), fill(variables, changed, KNOWN, KEY))


def test_features_are_not_quantized_but_for_some_whole_patches(variables, images):
    noise = jnp.asarray(np.random.default_rng(2).random((3, 2, 3)).astype(np.float32))
    features, ids, whole = task().look(variables, images, KNOWN)
    mixed, _ = task().mixed_features(variables, images, KNOWN, noise)
    quantized = np.asarray(whole & (noise < 0.3))
    assert quantized.any() and not quantized.all()
    vectors = np.asarray(task().vectors(variables, ids))
    assert np.array_equal(np.asarray(mixed)[quantized], vectors[quantized])
    assert np.array_equal(np.asarray(mixed)[~quantized], np.asarray(features)[~quantized])


def test_the_loss_is_of_patches_with_holes(variables, images):
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(2, 1, 2, 5)), jnp.float32)
    ids, whole = jnp.array([[[1, 2]], [[0, 4]]]), jnp.array([[[True, False]], [[False, False]]])
    logs = np.asarray(jax.nn.log_softmax(logits))
    expected = -(logs[0, 0, 1, 2] + logs[1, 0, 0, 0] + logs[1, 0, 1, 4]) / 3
    assert float(hole_loss(logits, ids, whole)[0]) == pytest.approx(expected, rel=1e-5)
    value, aux = task().loss(variables, {"image": images}, Context(KEY, jnp.int32(0)))
    assert np.isfinite(value) and 0 <= float(aux.metrics["accuracy"]) <= 1


def test_figures_stand_beside_the_mean_and_the_ceiling(variables, images):
    judge = task(tokens_per_step=3).evaluators()[""]
    ctx = Context(KEY, jnp.int32(0), train=False)
    arrays = jax.device_get(jax.jit(judge.compute)(variables, {"image": images}, ctx))
    state = judge.update(None, arrays, {"weight": np.array([1.0, 1.0, 0.0])})
    result = judge.result(judge.update(state, arrays, {"weight": np.ones(3)}))
    assert result.metrics["known_change"] == 0.0 and result.metrics["spread"] > 0
    assert set(result.metrics) == {
        *("hole_error", "hole_error_of_mean", "hole_error_ceiling", "known_change", "spread")
    }
    assert result.images["given_completed_again_original"].shape == (3, 8, 4 * 12 + 3, 3)


def test_networks_that_do_not_fit_their_tokenizer_are_refused():
    with pytest.raises(ValueError, match=r"model\.num_codes is 7, but the tokenizer's is 5"):
        InpaintingTokens(network=NETWORK.clone(num_codes=7), tokenizer=CODEC)
