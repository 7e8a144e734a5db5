"""MaskGIT's transformer where the golden file does not reach: the prefix, the vocabulary, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.layers.bert import Bert
from transformer_zoo.models.masked_generation.maskgit import MaskGIT

SMALL = dict(num_codes=4, num_conditions=6, depth=2, width=8, num_heads=2)
NETWORK = MaskGIT(grid=(2, 3), prefix_length=3, dropout_rate=0.5, **SMALL)
IDS = jnp.asarray(np.random.default_rng(1).integers(0, 4, (2, 2, 3)))
WORDS = jnp.array([[0, 1, 2], [0, 1, 5]])


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), IDS, WORDS)["params"]
    leaves, structure = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(structure, [0.5 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])


@pytest.fixture(scope="module")
def apply(params):
    return jax.jit(lambda ids, words: NETWORK.apply({"params": params}, ids, words))


def test_every_word_of_the_prefix_reaches_every_place(apply):
    logits, aux = apply(IDS, WORDS)
    assert logits.shape == (2, 2, 3, 4) and aux["logits"].shape == (2, 9, 11)
    for place in range(3):
        other, _ = apply(IDS, WORDS.at[:, place].set(3))
        assert (np.abs(other - logits).max(axis=-1) > 1e-6).all()


def test_codes_conditions_and_the_mask_have_rows_of_their_own(params, apply):
    assert NETWORK.mask_id == 10 and params["bert"]["embed"]["embedding"].shape == (11, 8)
    rows = params["bert"]["embed"]["embedding"]
    tokens = jnp.concatenate([WORDS + 4, IDS.reshape(2, -1)], axis=1)
    x = rows[tokens] + params["bert"]["positions"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    norm = params["bert"]["embed_norm"]
    assert np.abs(apply(IDS, WORDS)[1]["embedded"] - (x * norm["scale"] + norm["bias"])).max() < 1e-4


def test_dropout_is_of_training_only(params):
    def drawn(seed, train):
        rngs = {"dropout": jax.random.key(seed)}
        return NETWORK.apply({"params": params}, IDS, WORDS, train=train, rngs=rngs)[0]

    assert np.array_equal(drawn(0, False), drawn(1, False))
    assert not np.array_equal(drawn(0, True), drawn(1, True))


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ValueError, match="5 tokens, but there are positions for 4"):
        jax.eval_shape(Bert(7, 4, depth=1, width=4, num_heads=1).init, jax.random.key(0), jnp.zeros((1, 5), jnp.int32))
