"""SPAE: words of captions as codes, the semantic loss, and how many of the top words the caption holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tasks.test_tasks import CTX, judged
from transformer_zoo.data import sources
from transformer_zoo.data.scenes import grammar
from transformer_zoo.models.tokenizers import spae
from transformer_zoo.models.tokenizers.spae import SPAE, SemanticTokenization

NETWORK = SPAE(image_size=(8, 8), width=4, multipliers=(1,), num_blocks=1, patch=2, layers=(1, 2, 4), latent_width=6)
WORDS = [grammar.WORDS[word] for word in spae.caption_words()[0]]


def batch(count=4):
    source = sources.open_source("scenes:still", "test", {"fields": ("image", "caption")})
    fields = source.read(np.arange(count), np.arange(count, dtype=np.uint64))
    return {"image": fields["image"][:, ::4, ::4].astype(np.float32) / 255, "caption": fields["caption"]}


def test_words_that_captions_use_alike_lie_close():
    assert "red" in WORDS and "the" not in WORDS and "," not in WORDS
    vectors = spae.word_vectors(16)
    np.testing.assert_allclose(vectors.mean(axis=0), 0, atol=1e-5)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def cosine(first, second):
        return unit[WORDS.index(first)] @ unit[WORDS.index(second)]

    assert cosine("left", "right") > 0.8 > cosine("left", "red")
    assert cosine("red", "yellow") > 0.7 > cosine("red", "grass")


def test_the_semantic_loss_is_the_mean_surprise_at_the_captions_words():
    fields = batch(2)
    stated = np.asarray(spae.stated(jnp.asarray(fields["caption"])))
    for caption, flags in zip(fields["caption"], stated):
        assert {WORDS[n] for n in np.flatnonzero(flags)} == set(grammar.decode(caption).split()) & set(WORDS)
    vectors = spae.word_vectors(6)
    asked = [np.random.default_rng(n).normal(size=(2, n, n, 6)).astype(np.float32) for n in (1, 2)]
    expected = []
    for target in asked:
        logits = -np.square(target[..., None, :] - vectors).sum(axis=-1)
        logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        expected.append(np.mean([logs[image][..., stated[image]].mean() for image in range(2)]))
    found = jax.jit(spae.semantic_loss)([jnp.asarray(one) for one in asked], jnp.asarray(vectors), jnp.asarray(stated))
    np.testing.assert_allclose(found, -np.mean(expected), rtol=1e-4)


def test_latents_are_as_long_as_words_are_in_the_mean():
    variables = jax.eval_shape(NETWORK.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), variables)
    image = jnp.asarray(batch()["image"])
    latents = NETWORK.apply(variables, image, method=lambda network, x: network.encode(x)[1]["latents"])
    lengths = np.linalg.norm(latents, axis=-1)
    np.testing.assert_allclose(lengths, np.sqrt(np.square(spae.word_vectors(6)).sum(axis=1).mean()), rtol=1e-4)


def test_the_semantic_loss_weighs_as_much_as_all_others_and_words_are_shown():
    task, fields = SemanticTokenization(NETWORK, semantic_layers=2), batch()
    variables = jax.jit(task.init)(jax.random.key(0))
    assert variables.state["model"]["vocabulary"]["quantizer"]["embedding"].shape == (len(WORDS), 6)
    value, aux = jax.jit(task.loss)(variables, fields, CTX)
    alone = aux.metrics["pixel_loss"] + aux.metrics["commitment_loss"]
    np.testing.assert_allclose(value, 2 * alone, rtol=1e-4)
    result = judged(task, "words", variables, [fields | {"weight": np.ones(4, np.float32)}])
    assert 0 <= result.metrics["in_caption"] <= 1 and len(result.texts["top_words_and_caption"]) == 4
    judged(task, "reconstruction", variables, [fields | {"weight": np.ones(4, np.float32)}])


def test_tables_of_files_and_layers_must_fit(tmp_path):
    np.save(tmp_path / "words.npy", np.random.default_rng(0).normal(size=(9, 6)))
    assert spae.table(str(tmp_path / "words.npy"), 9, 6).std() == pytest.approx(1, rel=1e-3)
    with pytest.raises(ValueError, match=r"has shape \(9, 6\), but \(model.num_words 9, model.latent_width 5\)"):
        spae.table(str(tmp_path / "words.npy"), 9, 5)
    with pytest.raises(ValueError, match="do not fit latents of 4 x 4"):
        NETWORK.clone(layers=(1, 2)).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
