"""T5's distances and padding, CLIP's end token: what generators read of captions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.convert.samples import filled
from transformer_zoo.convert.table import unflatten
from transformer_zoo.models.features.clip_text import CLIPText
from transformer_zoo.models.features.t5 import T5Encoder, distance_classes

T5 = T5Encoder(vocabulary_size=11, depth=1, width=6, num_heads=2, head_dim=4, hidden=10, num_distances=8)
CLIP = CLIPText(vocabulary_size=11, length=7, depth=3, width=8, num_heads=2, projection_width=5)


@pytest.mark.parametrize("num_classes, max_distance", [(32, 128), (8, 20)])
def test_far_distances_share_classes(num_classes, max_distance):
    found = distance_classes(150, num_classes, max_distance)
    half, exact = num_classes // 2, num_classes // 4
    for query, key in [(i, j) for i in range(0, 150, 7) for j in range(0, 150, 5)]:
        size = abs(key - query)
        place = size
        if size >= exact:
            growth = math.log(size / exact) / math.log(max_distance / exact)
            place = min(exact + int(growth * (half - exact) + 1e-6), half - 1)
        assert found[query, key] == place + (half if key > query else 0), (query, key)


def test_padding_changes_no_word_and_is_zero_where_generators_read_it():
    variables = jax.tree.map(jnp.asarray, unflatten(filled("t5", T5)))
    ids = jnp.array([[3, 7, 1, 0, 0], [4, 4, 9, 2, 1]])
    words = jax.jit(lambda ids: T5.apply(variables, ids, method="text_features"))(ids)["words"]
    alone = jax.jit(lambda ids: T5.apply(variables, ids)[0])(ids[:1, :3])
    np.testing.assert_allclose(words[0, :3], alone[0], rtol=2e-5, atol=2e-5)
    assert not np.any(words[0, 3:]) and np.all(np.any(words[1], axis=-1))


def test_logits_of_t5_are_not_scaled():
    """One block by loops over heads, from the formulas of the paper and of its appendix."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in filled("t5", T5).items()}
    ids = np.array([3, 7, 1])

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale

    x = p["embed/embedding"][ids]
    normed, classes = norm(x, p["blocks/norm1/scale"][0]), distance_classes(3, 8, 128)
    kernel, out = p["blocks/attention/qkv/kernel"][0], p["blocks/attention/out/kernel"][0]
    for head in range(2):
        query, key, value = (normed @ kernel[:, part, head] for part in range(3))
        logits = query @ key.T + p["distances"][classes, head]
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        x = x + weights / weights.sum(-1, keepdims=True) @ value @ out[head]
    normed = norm(x, p["blocks/norm2/scale"][0])
    gate, up = (normed @ p[f"blocks/mlp/{name}/kernel"][0] for name in ("gate", "up"))
    gate = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    x = norm(x + (gate * up) @ p["blocks/mlp/down/kernel"][0], p["norm/scale"])
    found = jax.jit(lambda ids: T5.apply(jax.tree.map(jnp.asarray, unflatten(filled("t5", T5))), ids)[0])(
        jnp.asarray(ids)[None]
    )
    np.testing.assert_allclose(found[0], x, rtol=1e-4, atol=1e-4)


def test_the_first_end_token_stands_for_the_caption_and_sees_nothing_behind_it():
    variables = unflatten(filled("clip_text", CLIP))
    ids = jnp.array([[2, 5, 10, 10, 10, 10, 10], [2, 5, 10, 0, 0, 0, 0], [2, 6, 5, 5, 10, 10, 10]])

    @jax.jit
    def run(ids):
        states, aux = CLIP.apply(variables, ids)
        return states, aux, CLIP.apply(variables, ids, method="text_features")

    states, aux, read = run(ids)
    np.testing.assert_allclose(aux["pooled"][0], aux["pooled"][1], rtol=1e-5)
    projection = variables["params"]["projection"]["kernel"]
    np.testing.assert_allclose(aux["pooled"][2], states[2, 4] @ projection, rtol=1e-4, atol=1e-4)
    assert np.array_equal(read["words"], aux["levels"][1]) and np.array_equal(read["pooled"], aux["pooled"])
    assert CLIP.pad == 10 and T5.pad == 0
