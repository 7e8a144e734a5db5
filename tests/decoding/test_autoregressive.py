import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.decoding.autoregressive import decode_autoregressive
from transformer_zoo.layers.attention import Attention, empty_cache


class Causal(nn.Module):
    """One causal layer over tokens."""

    @nn.compact
    def __call__(self, tokens, cache=None):
        start = 0 if cache is None else cache.length
        places = jax.lax.dynamic_slice_in_dim(self.param("places", nn.initializers.normal(1.0), (9, 8)), start,
                                              tokens.shape[1])  # fmt: skip
        x = nn.Embed(7, 8, embedding_init=nn.initializers.normal(1.0), name="embed")(tokens) + places
        y = Attention(2, causal=True, name="attention")(x, cache=cache)
        y, cache = (y, None) if cache is None else y
        return nn.Dense(7, name="head")(x + y), cache


def test_the_cached_loop_draws_what_whole_passes_give():
    network = Causal()
    prompt = jnp.array([[1, 2], [3, 0]])
    params = network.init(jax.random.key(0), prompt)
    calls = []

    def logits(tokens, cache, index):
        jax.debug.callback(lambda _: calls.append(tokens.shape), index)
        found, cache = network.apply(params, tokens, cache)
        return found[:, -1], cache

    decode = jax.jit(functools.partial(decode_autoregressive, logits, length=6))
    key = jax.random.key(3)
    found = decode(prompt, empty_cache(2, 7, 2, 4), key)
    jax.effects_barrier()
    assert calls == [(2, 2)] + [(2, 1)] * 5
    whole, _ = network.apply(params, jnp.concatenate([prompt, found], axis=1))
    for index in range(6):
        noise = jax.random.gumbel(jax.random.fold_in(key, index), (2, 7))
        assert np.array_equal(found[:, index], jnp.argmax(whole[:, 1 + index] + noise, axis=-1))


def test_cold_draws_take_the_likeliest_and_ended_samples_are_padded():
    table = jnp.array([[0.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]])  # 0 1 2 3 0 ...

    def logits(tokens, cache, index):
        return table[tokens[:, -1]], cache + tokens.shape[1]

    options = dict(length=6, temperature=0.0)
    found = decode_autoregressive(logits, jnp.array([[0], [2]]), jnp.int32(0), jax.random.key(0), **options)
    assert found.tolist() == [[1, 2, 3, 0, 1, 2], [3, 0, 1, 2, 3, 0]]
    ended = decode_autoregressive(
        logits, jnp.array([[0], [2]]), jnp.int32(0), jax.random.key(0), end=3, padding=9, **options
    )
    assert ended.tolist() == [[1, 2, 3, 9, 9, 9], [3, 9, 9, 9, 9, 9]]
