"""TNT's formulas one by one: words, their fold into sentences, what it leaves of an ordinary ViT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.layers.blocks import Block
from transformer_zoo.models.backbones.tnt import TNT, TNTBlock, TokenEmbed

SMALL = dict(num_classes=5, image_size=(8, 12), patch_size=(4, 4), depth=2, width=8, num_heads=2)
SMALL |= dict(inner_width=6, inner_heads=2, stride=2)
INNER = Block(2, qkv_bias=False, norm_epsilon=1e-5)
OUTER = Block(2, qkv_bias=False, norm_epsilon=1e-5)


def filled(module, *inputs):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32), shapes)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def normed(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * params["scale"] + params["bias"]


def fold_by_hand(words, sentences, params, legacy):
    """Sentence by sentence: its words in a row, channel fastest; the class token has none."""
    folded = np.array(sentences)
    for sample, sentence in np.ndindex(sentences.shape[0], sentences.shape[1] - 1):
        own = np.asarray(words[sample * (sentences.shape[1] - 1) + sentence])
        if legacy:
            own = normed(own, params["fold_norm1"])
        vector = np.array([own[index // own.shape[1], index % own.shape[1]] for index in range(own.size)])
        if legacy:
            new = vector @ params["fold"]["kernel"] + params["fold"]["bias"]
        else:
            new = normed(normed(vector, params["fold_norm1"]) @ params["fold"]["kernel"], params["fold_norm2"])
        folded[sample, 1 + sentence] += new
    return jnp.asarray(folded)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_block_folds_new_words_into_their_sentence_and_never_into_the_class_token(legacy):
    words, sentences = normal(0, 2 * 3, 4, 6), normal(1, 2, 4, 8)
    block = TNTBlock(2, 2, legacy=legacy)
    variables = filled(block, (words, sentences), 0.0)
    params = variables["params"]
    with jax.default_matmul_precision("highest"):
        (new_words, found), _ = block.apply(variables, (words, sentences), 0.0)
        inner, _ = INNER.apply({"params": params["inner"]}, words)
        folded = fold_by_hand(inner, sentences, jax.tree.map(np.asarray, params), legacy)
        outer, _ = OUTER.apply({"params": params["outer"]}, folded)
    np.testing.assert_allclose(new_words, inner, atol=1e-5)
    np.testing.assert_allclose(found, outer, atol=1e-4)
    assert ("bias" in params["fold"]) == legacy and ("fold_norm2" in params) != legacy


def test_drop_path_drops_both_transformers_and_not_the_fold():
    words, sentences = normal(0, 2 * 3, 4, 6), normal(1, 2, 4, 8)
    block = TNTBlock(2, 2, train=True)
    variables = filled(block, (words, sentences), 0.0)
    (new_words, found), _ = block.apply(variables, (words, sentences), 1.0, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(new_words, words)
    expected = fold_by_hand(words, sentences, jax.tree.map(np.asarray, variables["params"]), False)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_without_the_fold_it_is_an_ordinary_vit_over_patches():
    network, images = TNT(**SMALL), normal(0, 2, 8, 12, 3)
    variables = filled(network, images)
    params = variables["params"]
    for module, name in (("fold", "kernel"), ("fold_norm2", "bias")):
        params["blocks"][module][name] = jnp.zeros_like(params["blocks"][module][name])
    logits, aux = network.apply(variables, images)
    token = jnp.broadcast_to(params["class_token"], (2, 1, 8))
    x = jnp.concatenate([token, aux["patches"]], axis=1) + params["positions"]["table"]
    for number in range(2):
        x, _ = OUTER.apply({"params": jax.tree.map(lambda leaf, n=number: leaf[n], params["blocks"]["outer"])}, x)
    pooled = normed(x, params["norm"])[:, 0]
    np.testing.assert_allclose(logits, pooled @ params["head"]["kernel"] + params["head"]["bias"], atol=1e-4)


def embedded(legacy, images, **options):
    embed = TokenEmbed(8, 6, (4, 4), 2, legacy=legacy, **options)
    variables = filled(embed, images)
    return embed, variables, embed.apply(variables, images)[0]


def test_words_are_convolved_inside_their_patch_and_in_the_older_form_across_patches():
    images = normal(0, 1, 8, 12, 3)
    for legacy in (False, True):
        _, variables, words = embedded(legacy, images)
        params = jax.tree.map(np.asarray, variables["params"])
        kernel, bias = params["words"]["convolution"]["kernel"], params["words"]["convolution"]["bias"]
        patch, row, column = 4, 1, 0  # the fifth of 2 x 3 patches, its third of 2 x 2 words
        top, left = 4, 4
        source = np.asarray(images[0]) if legacy else np.asarray(images[0, top : top + 4, left : left + 4])
        y, x = (top + 2 * row, left + 2 * column) if legacy else (2 * row, 2 * column)
        window = np.pad(source, ((3, 3), (3, 3), (0, 0)))[y : y + 7, x : x + 7]
        expected = np.einsum("ijc,ijcd->d", window, kernel) + bias + params["word_positions"]["table"][2]
        np.testing.assert_allclose(words[patch, 2 * row + column], expected, atol=1e-4)


def test_positions_of_words_are_the_same_in_every_sentence_and_can_be_left_out():
    images = normal(0, 1, 8, 12, 3)
    _, variables, words = embedded(False, images)
    embed, without, _ = embedded(False, images, word_positions=False)
    assert "word_positions" not in without["params"]
    shared = {name: variables["params"][name] for name in without["params"]}
    plain, _ = embed.apply({"params": shared}, images)
    table = np.broadcast_to(variables["params"]["word_positions"]["table"], words.shape)
    np.testing.assert_allclose(words - plain, table, atol=1e-5)


def test_patches_that_do_not_tile_the_image_are_refused():
    with pytest.raises(ValueError, match=r"image_size \(8, 10\) is not a multiple of patch_size \(4, 4\)"):
        jax.eval_shape(TNT(**SMALL).init, jax.random.key(0), jnp.zeros((1, 8, 10, 3)))
