import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.layers.positions import sincos_2d
from transformer_zoo.masking.random import Mask, mask_from_scores, num_kept, random_mask
from transformer_zoo.models.backbones.vit import ViT
from transformer_zoo.models.pretraining.mae import MAE
from transformer_zoo.task import Context, Variables
from transformer_zoo.tasks.masked_pixels import MaskedPixels
from transformer_zoo.training.flops import macs
from transformer_zoo.training.tree import paths

ENCODER = dict(image_size=(8, 12), patch_size=(4, 4), channels=2, depth=2, width=16, num_heads=2, mlp_ratio=2.0)
NETWORK = MAE(**ENCODER, decoder_depth=2, decoder_width=8, decoder_num_heads=2)
BATCH, TOKENS, KEPT = 3, 6, 2
KEY = jax.random.key(1, impl="unsafe_rbg")


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def fixed_mask():
    """Another random order for every sample, in numpy."""
    shuffle = np.stack([np.random.default_rng(seed).permutation(TOKENS) for seed in range(BATCH)])
    restore = np.argsort(shuffle, axis=1)
    return Mask(*map(jnp.asarray, (shuffle[:, :KEPT], restore, (restore >= KEPT).astype(np.float32))))


IMAGES, MASK = jnp.asarray(normal(50, BATCH, 8, 12, 2)), fixed_mask()
SHAPES = jax.eval_shape(NETWORK.init, KEY, IMAGES, MASK)["params"]


@pytest.fixture(scope="module")
def params():
    leaves, structure = jax.tree.flatten(SHAPES)
    return jax.tree.unflatten(structure, [0.3 * normal(n, *leaf.shape) for n, leaf in enumerate(leaves)])


@pytest.fixture(scope="module")
def apply():
    return jax.jit(lambda params, images, mask: NETWORK.apply({"params": params}, images, mask))


def difference(ours, expected):
    return np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max()


def norm(params, x):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]


def test_the_decoder_puts_every_visible_token_at_its_place_and_mask_tokens_at_all_others(params, apply):
    blocks = params["decoder"]["blocks"]
    nothing = {
        "attention": blocks["attention"] | {"out": jax.tree.map(np.zeros_like, blocks["attention"]["out"])},
        "mlp": blocks["mlp"] | {"down": jax.tree.map(np.zeros_like, blocks["mlp"]["down"])},
    }
    silent = params | {"decoder": params["decoder"] | {"blocks": blocks | nothing}}  # blocks that add nothing
    prediction, aux = apply(silent, IMAGES, MASK)
    embedded, encoded = np.asarray(aux["decoder"]["embedded"]), np.asarray(aux["encoder"]["encoded"])
    embed = params["decoder"]["embed"]
    assert difference(embedded, encoded @ embed["kernel"] + embed["bias"]) < 1e-5
    tokens = np.empty((BATCH, 1 + TOKENS, 8), np.float32)
    tokens[:, 0] = embedded[:, 0]
    positions = np.asarray(sincos_2d((2, 3), 8))
    for sample, keep in enumerate(np.asarray(MASK.keep)):
        for place in range(TOKENS):
            seen = [number for number, kept in enumerate(keep) if kept == place]
            content = embedded[sample, 1 + seen[0]] if seen else params["decoder"]["mask_token"][0, 0]
            tokens[sample, 1 + place] = content + positions[place]
    assert difference(aux["decoder"]["levels"][-1], tokens) < 1e-5
    head = params["decoder"]["prediction"]
    expected = norm(params["decoder"]["norm"], tokens[:, 1:]) @ head["kernel"] + head["bias"]
    assert expected.shape == (BATCH, TOKENS, 4 * 4 * 2) and difference(prediction, expected) < 1e-5


def test_predictions_read_the_pixels_of_visible_patches_only(params, apply):
    hidden = np.asarray(MASK.hidden).reshape(BATCH, 2, 3).repeat(4, axis=1).repeat(4, axis=2)[..., None]
    noise = normal(51, *IMAGES.shape)
    prediction, _ = apply(params, IMAGES, MASK)
    assert np.array_equal(apply(params, IMAGES + noise * hidden, MASK)[0], prediction)
    changed = np.abs(apply(params, IMAGES + noise * (1 - hidden), MASK)[0] - prediction).max(axis=-1)
    assert changed.min() > 1e-3  # at every patch, so at the hidden ones too


def test_features_are_the_normalised_tokens_of_the_whole_image(params):
    task, ctx = MaskedPixels(NETWORK), Context(KEY, jnp.int32(0), train=False)
    features = jax.jit(task.features)(Variables({"model": params}), {"image": IMAGES}, ctx)
    assert features["levels"].shape == (2, BATCH, 1 + TOKENS, 16)
    tokens = norm(params["encoder"]["norm"], np.asarray(features["levels"][-1]))
    assert difference(features["class_token"], tokens[:, 0]) < 1e-5
    assert difference(features["pooled"], tokens[:, 1:].mean(axis=1)) < 1e-5


def test_the_encoder_has_the_parameters_of_a_vit_that_is_fine_tuned_from_it():
    vit = ViT(**ENCODER, num_classes=3, pool="mean", positions="sincos_2d", final_norm="pooled")
    tuned = jax.eval_shape(vit.init, KEY, IMAGES)["params"]
    named = [dict(zip(jax.tree.leaves(paths(tree)), jax.tree.leaves(tree))) for tree in (SHAPES["encoder"], tuned)]
    assert set(named[1]) - set(named[0]) == {"head/kernel", "head/bias"} and set(named[0]) < set(named[1])
    assert all(leaf.shape == named[1][path].shape for path, leaf in named[0].items())
    decoder = {path.split("/")[0] for path in jax.tree.leaves(paths(SHAPES["decoder"]))}
    assert decoder == {"embed", "mask_token", "blocks", "norm", "prediction"}


def test_the_encoder_computes_visible_tokens_only():
    patches, pixels, width = 16, 4 * 4 * 2, 16
    vit = ViT(**ENCODER | dict(image_size=(16, 16)), num_classes=0, pool="none", positions="sincos_2d")
    images = jax.ShapeDtypeStruct((1, 16, 16, 2), jnp.float32)
    params = jax.eval_shape(vit.init, KEY, images)

    def counted(ratio):
        keep = jax.ShapeDtypeStruct((1, num_kept(patches, ratio)), jnp.int32)
        return macs(vit.apply, params, images, keep)

    def by_hand(visible):
        tokens = visible + 1  # the class token
        block = tokens * (4 + 2 * 2) * width**2 + 2 * tokens**2 * width
        return patches * pixels * width + 2 * block

    assert counted(0.75) == by_hand(4)
    assert counted(0.0) == by_hand(16)
    assert by_hand(4) < 0.35 * by_hand(16)


def test_the_prediction_is_float32_also_of_bfloat16_computation():
    network = NETWORK.clone(dtype="bfloat16")
    prediction, aux = jax.eval_shape(network.apply, {"params": SHAPES}, IMAGES, MASK)
    assert prediction.dtype == jnp.float32 and aux["decoder"]["levels"].dtype == jnp.bfloat16


# Masks


@pytest.mark.parametrize(
    "tokens, ratio, kept", [(196, 0.75, 49), (9, 0.65, 3), (10, 0.75, 2), (7, 0.5, 3), (16, 0.99, 0)]
)
def test_the_number_of_kept_tokens_is_rounded_down(tokens, ratio, kept):
    assert num_kept(tokens, ratio) == kept


def test_a_mask_keeps_the_lowest_scores_in_their_order_and_ties_go_to_the_earlier_token():
    mask = mask_from_scores(jnp.array([[0.5, 0.2, 0.5, 0.9, 0.2], [1.0, 1.0, 1.0, 1.0, 1.0]]), 3)
    assert np.array_equal(mask.keep, [[1, 4, 0], [0, 1, 2]])
    assert np.array_equal(mask.hidden, [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]])
    assert np.array_equal(mask.restore, [[2, 0, 3, 4, 1], [0, 1, 2, 3, 4]])


def test_random_masks_hide_a_share_of_every_sample_differently_and_restore_undoes_the_shuffle():
    masks = [jax.jit(random_mask, static_argnums=(1, 2, 3))(jax.random.key(seed), 200, 12, 0.75) for seed in (0, 1)]
    for mask in masks:
        keep, restore, hidden = map(np.asarray, (mask.keep, mask.restore, mask.hidden))
        assert np.array_equal(hidden.sum(axis=1), [9] * 200)
        assert np.array_equal(np.sort(restore, axis=1), np.tile(np.arange(12), (200, 1)))
        assert np.array_equal(np.take_along_axis(restore, keep, axis=1), np.tile(np.arange(3), (200, 1)))
        assert np.array_equal(hidden, restore >= 3)
        share = 1 - hidden.mean(axis=0)  # of the samples that see each token: a quarter
        assert np.abs(share - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 200)
        assert len({tuple(row) for row in keep}) > 100
    assert not np.array_equal(masks[0].keep, masks[1].keep)
