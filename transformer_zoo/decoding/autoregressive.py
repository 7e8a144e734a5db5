"""Autoregressive decoding: a token a call, with what earlier calls computed kept in a cache; one compiled loop."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from transformer_zoo.decoding import sampling
from transformer_zoo.decoding.schedules import ramp
from transformer_zoo.layers.constraints import constrain_batch

# (tokens [batch, new], cache, index of the step) to (logits of the token after the last one [batch, codes], cache).
NextLogits = Callable[[Array, Any, Any], tuple[Array, Any]]


def decode_autoregressive(
    logits: NextLogits,
    prompt: Int[Array, "batch prompt"],
    cache: Any,
    key: Key[Array, ""],
    *,
    length: int,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | float = 0,
    top_p: float = 0.0,
    end: int | None = None,
    padding: int = 0,
) -> Int[Array, "batch length"]:
    """Draws `length` tokens in as many calls: one with the whole prompt, then one with each new token but the last.

    Args:
        logits: gives the logits of the next token and the cache with the tokens it was given; for layers a `KVCache`
            each, see `layers.attention.empty_cache`. Its index is the plain number 0 for the prompt, then traced.
        prompt: at least one token a sample: a start token, a class, text.
        cache: for prompt and new tokens, empty.
        key: of all draws.
        length: new tokens.
        temperature: of the draws, one number, or one a step; 0 takes the likeliest token.
        top_k: codes to draw from, see `keep_top_k`.
        top_p: likewise, see `keep_top_p`.
        end: a sample that drew this token gets `padding` from then on.
        padding: see `end`.

    Returns:
        The new tokens, without the prompt.
    """
    temperatures = jnp.asarray(ramp("constant", temperature, length))

    def choose(found: Array, index: Any) -> Array:
        filtered = sampling.temper(sampling.filter_logits(found.astype(jnp.float32), top_k, top_p), temperatures[index])
        return sampling.draw(filtered, jax.random.gumbel(jax.random.fold_in(key, index), found.shape))

    def step(state: tuple[Array, Array, Any], index: Any) -> tuple[tuple[Array, Array, Any], Array]:
        token, ended, cache = state
        found, cache = logits(constrain_batch(token)[:, None], cache, index)
        following = choose(found, index)
        if end is not None:
            ended = ended | (token == end)
            following = jnp.where(ended, padding, following)
        return (following, ended, cache), following

    found, cache = logits(constrain_batch(prompt), cache, 0)
    first = choose(found, 0)
    state = (first, jnp.zeros(first.shape, bool), cache)
    _, others = jax.lax.scan(step, state, jnp.arange(1, length))
    return jnp.concatenate([first[:, None], others.T], axis=1)
