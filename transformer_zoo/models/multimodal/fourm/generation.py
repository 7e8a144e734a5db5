"""Chained generation: known modalities give one after the other of those that are not (sections 2.4 and 3.2).

Every step encodes what is known by then and decodes the target alone. Tokens on a grid are filled by MaskGIT or in
random order (ROAR), a few at a time; sequences are read on from their first sentinel. Guidance compares with a pass
from which conditions are taken away. What is encoded does not change while a sequence is read, nor from one modality
to another that is predicted from the same, so `encode` is called once there.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from transformer_zoo.decoding import sampling
from transformer_zoo.decoding.masked import Step, decode_masked
from transformer_zoo.layers.attention import empty_cache
from transformer_zoo.layers.blocks import DecoderCache, context_keys
from transformer_zoo.models.multimodal.fourm.embeddings import Tokens
from transformer_zoo.models.multimodal.fourm.masking import absent
from transformer_zoo.models.multimodal.fourm.modalities import Modality
from transformer_zoo.models.multimodal.fourm.model import FourM, Slots
from transformer_zoo.models.multimodal.fourm.schedules import Target, temperatures, token_counts
from transformer_zoo.task import Tree

Known = Mapping[str, Tokens]
Ids = Int[Array, "batch places"]


class Encoded(NamedTuple):
    """What the encoder made of the known tokens, and where they stand."""

    seen: Slots
    encoded: Array


class Pass(NamedTuple):
    """One of the passes that guidance combines: its known modalities, and its weight."""

    known: Known
    weight: float


def encode(network: FourM, params: Tree, known: Known) -> Encoded:
    """Encodes all known tokens."""
    slots = sum(_most(network.all_modalities[name], tokens) for name, tokens in known.items())
    seen: Any = network.apply({"params": params}, known, slots, method="choose_inputs")
    encoded, _ = network.apply({"params": params}, seen, method="encode")
    return Encoded(seen, encoded)


def predict(
    network: FourM, params: Tree, context: Encoded, name: str, tokens: Tokens, slots: int = 0
) -> tuple[Float[Array, "batch slots ids"], Slots]:
    """Logits of one modality's targets, and which they are.

    Args:
        network: the transformer.
        params: its parameters.
        context: what it has encoded.
        name: of the modality.
        tokens: with what is asked for as targets.
        slots: how many at most; 0 means as many as there are places.
    """
    slots = slots or tokens.targets.shape[1]
    asked: Any = network.apply({"params": params}, {name: tokens}, slots, method="choose_targets")
    decoded, _ = network.apply({"params": params}, asked, *context[::-1], method="decode")
    values: Any = network.apply({"params": params}, name, decoded, method="logits")
    return values, asked


def remember(network: FourM, params: Tree, one: Encoded, length: int) -> DecoderCache:
    """What the decoder's blocks, stacked, need not compute again to read `length` ids from what is encoded."""
    context: Any = network.apply({"params": params}, one.encoded, one.seen, method="told_context")
    keys = functools.partial(context_keys, network.decoder_block)
    keys_values = jax.vmap(keys, (0, None))(params["decoder"]["blocks"], context)
    depth, batch, _, num_heads, head_dim = keys_values[0].shape
    empty = empty_cache(batch, length, num_heads, head_dim, context.dtype)
    return DecoderCache(jax.tree.map(lambda leaf: jnp.stack([leaf] * depth), empty), keys_values)


def emptied(modality: Modality, tokens: Tokens) -> Tokens:
    """A condition taken away: no token of a grid, the one sentinel of an empty sequence, one vector of zeros."""
    nothing = jnp.zeros_like(tokens.inputs)
    if modality.kind in ("pixels", "tokens"):
        return tokens.replace(inputs=nothing, targets=nothing)
    first = jnp.zeros_like(tokens.values)
    if modality.kind == "sequence":
        first = first.at[:, 0].set(modality.first_sentinel)
    return Tokens(first, nothing.at[:, 0].set(True), nothing)


def guided_passes(network: FourM, known: Known, conditions: Sequence[str], scale: Any) -> list[Pass]:
    """What is encoded for each pass: all that is known, and without conditions, or with one of them at a time.

    The result's logits are the weighted sum of the passes': for one scale g of all conditions g and 1 - g; for weights
    w by condition those, and 1 - sum(w) for the pass with none.
    """

    def without(names: Sequence[str]) -> dict[str, Tokens]:
        empty = {name: emptied(network.all_modalities[name], known[name]) for name in names if name in known}
        return {**known, **empty}

    if isinstance(scale, Mapping):
        found = [Pass(without([one for one in conditions if one != name]), weight) for name, weight in scale.items()]
        return [*found, Pass(without(conditions), 1 - sum(scale.values()))]
    if isinstance(scale, int | float) and scale == 1:
        return [Pass(known, 1.0)]
    return [Pass(known, scale), Pass(without(conditions), 1 - scale)]


def weighted(logits: Sequence[Array], passes: Sequence[Pass]) -> Array:
    """Logits of all passes as one."""
    total = jnp.zeros_like(logits[0])
    for one, (_, weight) in zip(logits, passes, strict=True):
        total = total + weight * one
    return total


def fill_grid(
    network: FourM,
    params: Tree,
    known: Known,
    target: Target,
    key: Key[Array, ""],
    conditions: Sequence[str] = (),
    noise: Any = None,
) -> Tokens:
    """Generates a modality on a grid; what is known of it already stays.

    Args:
        network: the transformer.
        params: its parameters.
        known: modalities with what is known as inputs; the target's may be among them.
        target: which, and how.
        key: of all draws.
        conditions: what guidance takes away.
        noise: see `decode_masked`.
    """
    name = target.modality
    modality = network.all_modalities[name]
    batch = next(iter(known.values())).inputs.shape[0]
    start = known.get(name, absent(modality, batch))
    passes = guided_passes(network, {k: v for k, v in known.items() if k != name}, conditions, target.guidance_scale)
    counts = token_counts(target.counts if target.scheme == "maskgit" else "linear", target.steps, modality.places)
    heat = temperatures(target.temperature_schedule, target.temperature, counts)
    slots = int(counts.max()) if target.scheme == "roar" and name not in known else modality.places

    def logits(ids: Ids, step: Step) -> Float[Array, "batch places ids"]:
        here = Tokens(ids, ~step.unknown, step.asked)
        found = []
        for one in passes:
            values, asked = predict(
                network, params, encode(network, params, {**one.known, name: here}), name, here, slots
            )
            found.append(_to_places(values, asked, modality.places))
        return weighted(found, passes)

    decoded = decode_masked(
        logits,
        start.values,
        ~start.inputs,
        key,
        hidden=0,
        steps=len(counts),
        schedule=modality.places - np.cumsum(counts),
        order="random" if target.scheme == "roar" else "filtered_confidence",
        choice_temperature=0.0,
        temperature=list(heat),
        top_k=target.top_k,
        top_p=target.top_p,
        noise=noise,
    )
    everywhere = jnp.ones_like(start.inputs)
    return Tokens(decoded.ids, everywhere, ~everywhere)


def read_on(
    network: FourM,
    params: Tree,
    known: Known,
    target: Target,
    key: Key[Array, ""],
    conditions: Sequence[str] = (),
    contexts: Sequence[Encoded] | None = None,
) -> Int[Array, "batch length"]:
    """Generates a sequence's masked spans: the first sentinel, then ids up to the closing one, 0 behind it.

    Keys and values of the context and of the ids so far are kept, so that each id costs one place of the decoder.

    Args:
        network: the transformer.
        params: its parameters.
        known: modalities with what is known as inputs; the target's own may hold sentinels to be spelled out.
        target: which, and how; a temperature of 0 takes the best id.
        key: of all draws.
        conditions: what guidance takes away.
        contexts: of the passes where they are encoded already.
    """
    name = target.modality
    modality = network.all_modalities[name]
    passes = guided_passes(network, known, conditions, target.guidance_scale)
    if contexts is None:
        contexts = [encode(network, params, one.known) for one in passes]
    batch, length = next(iter(known.values())).inputs.shape[0], modality.length + 2
    last = modality.first_sentinel + jnp.maximum(_num_spans(modality, known.get(name)), 1)
    ids = jnp.zeros((batch, length), jnp.int32).at[:, 0].set(modality.first_sentinel)
    everywhere = jnp.ones(ids.shape, bool)

    def call(method: str, *inputs: Any) -> Any:
        return network.apply({"params": params}, *inputs, method=method)

    def step(state: tuple[Array, Array, list[Any]], index: Array) -> tuple[tuple[Array, Array, list[Any]], None]:
        ids, done, caches = state
        asked = call("choose_targets", {name: Tokens(ids, ~everywhere, everywhere)}, length - 1)
        read = [call("decode_next", asked, index, cache, one.seen) for cache, one in zip(caches, contexts)]
        found = [call("logits", name, decoded) for decoded, _ in read]
        values = weighted(found, passes)[:, 0]
        filtered = sampling.temper(sampling.filter_logits(values, target.top_k, target.top_p), target.temperature)
        noise = jax.random.gumbel(jax.random.fold_in(key, index), values.shape) * (target.temperature > 0)
        new = jnp.where(done, 0, sampling.draw(filtered, noise))
        return (ids.at[:, index + 1].set(new), done | (new == last), [cache for _, cache in read]), None

    caches = [remember(network, params, one, length - 1) for one in contexts]
    start = ids, jnp.zeros((batch,), bool), caches
    last_state, _ = jax.lax.scan(step, start, jnp.arange(length - 1))
    return last_state[0]


def merge_spans(modality: Modality, known: Tokens | None, spoken: Int[Array, "batch length"]) -> Tokens:
    """A sequence whose sentinels are replaced by what was generated for them, as input.

    Args:
        modality: a sequence.
        known: its input with sentinels; None means that all of it was masked.
        spoken: what `read_on` gives.
    """
    batch, room = spoken.shape
    if known is None:
        known = emptied(modality, absent(modality, batch))
    places = known.values.shape[1]
    first, end = modality.first_sentinel, modality.first_sentinel + modality.num_sentinels
    mine = (spoken >= first) & (spoken < end)
    span = jnp.maximum.accumulate(jnp.where(mine, spoken, 0), axis=1)  # the sentinel each id stands behind
    gap = known.inputs & (known.values >= first) & (known.values < end)
    matches = gap[:, None] & (known.values[:, None] == span[..., None])
    where = jnp.argmax(matches, axis=-1)
    belongs = matches.any(axis=-1) & ~mine & (spoken != 0)
    behind = jnp.where(belongs, where * (room + 1) + 1 + jnp.arange(room), places * (room + 1))
    before = jnp.where(known.inputs & ~gap, jnp.arange(places) * (room + 1), places * (room + 1))
    keys, ids = jnp.concatenate([before, behind], axis=1), jnp.concatenate([known.values, spoken], axis=1)
    order = jnp.argsort(keys, axis=1, stable=True)[:, :places]
    shown = jnp.take_along_axis(keys, order, axis=1) < places * (room + 1)
    return Tokens(jnp.where(shown, jnp.take_along_axis(ids, order, axis=1), 0), shown, jnp.zeros_like(shown))


def generate(
    network: FourM,
    params: Tree,
    known: Known,
    targets: Sequence[Target],
    key: Key[Array, ""],
    *,
    conditions: Sequence[str] | None = None,
    grow: bool = False,
) -> dict[str, Tokens]:
    """Generates the targets one after the other, each from all that is known by then.

    Args:
        network: the transformer.
        params: its parameters.
        known: modalities with what is known as inputs.
        targets: in order, each with its own way of generation.
        key: of all draws.
        conditions: what guidance takes away; None means all that was known at first.
        grow: whether it also takes away what was generated (by weights: each becomes a condition of weight 1).

    Returns:
        The known modalities and the generated ones.
    """
    found = dict(known)
    conditions, made = list(known if conditions is None else conditions), list[str]()
    for number, target in enumerate(targets):
        if isinstance(target.guidance_scale, Mapping):
            weights = {**dict.fromkeys(made, 1.0), **target.guidance_scale}
            target = dataclasses.replace(target, guidance_scale=weights)
        modality, one = network.all_modalities[target.modality], jax.random.fold_in(key, number)
        if modality.kind == "sequence":
            spoken = read_on(network, params, found, target, one, conditions)
            found[target.modality] = merge_spans(modality, found.get(target.modality), spoken)
        else:
            found[target.modality] = fill_grid(network, params, found, target, one, conditions)
        if grow:
            conditions.append(target.modality)
            made.append(target.modality)
    return found


def _most(modality: Modality, tokens: Tokens) -> int:
    """The most tokens that can be visible of a modality."""
    return min(modality.most_tokens, tokens.inputs.shape[1])


def _num_spans(modality: Modality, tokens: Tokens | None) -> Any:
    """Sentinels in a sequence's input, [batch]."""
    if tokens is None:
        return 0
    first = modality.first_sentinel
    return (tokens.inputs & (tokens.values >= first) & (tokens.values < first + modality.num_sentinels)).sum(axis=1)


def _to_places(values: Float[Array, "batch slots ids"], asked: Slots, places: int) -> Float[Array, "batch places ids"]:
    """Logits at the places that were asked for, 0 elsewhere."""
    where = jnp.where(asked.filled, asked.place, places)
    empty = jnp.zeros((values.shape[0], places, values.shape[-1]), values.dtype)
    return empty.at[jnp.arange(len(values))[:, None], where].set(values, mode="drop")
