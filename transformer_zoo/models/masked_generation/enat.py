"""ENAT: Rethinking Spatial-temporal Interactions in Token-based Image Synthesis (Ni et al. 2024, arXiv 2411.06959).

A MaskGIT whose work is split in space and in time. Space: a deep encoder sees the visible tokens alone; a shallow
decoder computes the mask tokens, which look at the encoded visible ones. Time: in sampling only tokens revealed by the
last step go through the encoder; the features of older ones are taken over from the step before (sections 4.1, 4.2).

Reference: LeapLabTHU/ENAT (no licence stated: compared with, not copied). The tokenizer is MaskGIT's. Sizes stand in
`zoo/papers/enat.toml`.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from transformer_zoo.decoding.masked import Step, decode_masked
from transformer_zoo.decoding.sampling import guide
from transformer_zoo.decoding.schedules import hidden_after
from transformer_zoo.layers.attention import HeadProjection, attend
from transformer_zoo.layers.blocks import scan_blocks
from transformer_zoo.layers.constraints import constrain_tokens
from transformer_zoo.layers.mlp import ACTIVATIONS, Mlp
from transformer_zoo.layers.norms import layer_norm
from transformer_zoo.masking.random import take_tokens
from transformer_zoo.masking.tokens import lowest
from transformer_zoo.task import Aux, Batch, Context, Variables
from transformer_zoo.tasks.masked_tokens import MaskedTokens

Tokens = Float[Array, "batch tokens width"]


class Previous(flax.struct.PyTreeNode):
    """What a step leaves to the next: features [batch, tokens, width] and which tokens [batch, tokens] were hidden."""

    features: Any
    hidden: Any


class Part(flax.struct.PyTreeNode):
    """Some of the tokens: all of them with a mask [batch, tokens] of those that count, or, without one, only those."""

    tokens: Any
    counts: Any = None


def modulate(x: Tokens, shift: Float[Array, "batch 1 width"], scale: Float[Array, "batch 1 width"]) -> Tokens:
    """X * (1 + scale) + shift."""
    return x * (1 + scale) + shift


class ENATBlock(nn.Module):
    """AdaLN-Zero block whose keys are the tokens themselves and, with projections of their own, a context.

    Attributes:
        num_heads, mlp_ratio, attention, dtype: see `layers.blocks.Block`.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    attention: str = "auto"
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Tokens, scanned: Any, condition: Float[Array, "batch width"], counts: Any, context: Part | None
    ) -> tuple[Tokens, Tokens]:
        width = x.shape[-1]
        x = constrain_tokens(x)
        modulation = nn.Dense(8 * width, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="modulation")
        shift, scale, shift_context, scale_context, gate, shift_mlp, scale_mlp, gate_mlp = jnp.split(
            modulation(jax.nn.silu(condition))[:, None], 8, axis=-1
        )
        norm = layer_norm(1e-6, self.dtype, affine=False)
        asking = modulate(norm(x), shift, scale)
        given = None if context is None else modulate(norm(context.tokens), shift_context, scale_context)
        mask = None
        if counts is not None:
            parts = [counts] if context is None else [context.counts, counts]
            mask = jnp.concatenate(parts, axis=1)[:, None, None]
        y = TwoSourceAttention(self.num_heads, self.attention, self.dtype, name="attention")(asking, given, mask)
        x = x + gate * y
        mlp = Mlp(round(self.mlp_ratio * width), activation="gelu_tanh", dtype=self.dtype, name="mlp")
        x = x + gate_mlp * mlp(modulate(norm(x), shift_mlp, scale_mlp))
        return x, x


class TwoSourceAttention(nn.Module):
    """Attention to the context's tokens, if there is one, and to the own ones, with projections for each."""

    num_heads: int
    implementation: str = "auto"
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        context: Float[Array, "batch others width"] | None,
        mask: Bool[Array, "batch 1 1 keys"] | None,
    ) -> Tokens:
        width = x.shape[-1]
        shared = dict(num_heads=self.num_heads, head_dim=width // self.num_heads, dtype=self.dtype)
        (query,) = HeadProjection(1, name="q", **shared)(x)
        sources = [HeadProjection(2, name="own_kv", **shared)(x)]
        project = HeadProjection(2, name="context_kv", **shared)
        if context is not None:
            sources.insert(0, project(context))
        elif self.is_initializing():
            project(x)
        key, value = (jnp.concatenate(parts, axis=1) for parts in zip(*sources))
        y = attend(query, key, value, mask=mask, implementation=self.implementation)
        out = nn.DenseGeneral(
            width, axis=(-2, -1), kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="out"
        )
        return out(y)


class ENAT(nn.Module):
    """Logits of the codes at every place of a grid.

    Attributes:
        grid: sides of the grid of ids.
        num_codes: of the tokenizer.
        num_classes: of the condition; one more stands for none.
        encoder_depth, decoder_depth: blocks for visible tokens, and for mask tokens.
        width, num_heads, mlp_ratio: of the blocks.
        dropout_rate: of the embedded tokens.
        attention, remat, unroll, dtype: see `Block` and `scan_blocks`.
    """

    grid: tuple[int, ...] = (16, 16)
    num_codes: int = 1024
    num_classes: int = 1000
    encoder_depth: int = 22
    decoder_depth: int = 2
    width: int = 1024
    num_heads: int = 16
    mlp_ratio: float = 4.0
    dropout_rate: float = 0.1
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    @property
    def mask_id(self) -> int:
        """The id that stands at hidden places."""
        return self.num_codes

    @property
    def condition_shape(self) -> tuple[int, ...]:
        """Of one sample's condition, a class."""
        return ()

    @property
    def null_condition(self) -> int:
        """The class that stands for none."""
        return self.num_classes

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "batch *grid"],
        condition: Int[Array, " batch"],
        previous: Previous | None = None,
        counts: tuple[int, int] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "batch *grid codes"], dict[str, Any]]:
        """Logits of the codes at every place.

        Args:
            ids: with `mask_id` where they are hidden.
            condition: classes.
            previous: of the step before; tokens that were visible there are not encoded again.
            counts: how many tokens of every sample were visible before, and how many are visible now and were not
                before, where that is known: then only those are computed. Otherwise all are, and masks leave out.
            train: whether dropout applies.

        Returns:
            Logits, and 'embedded', 'reused', 'encoder' and 'decoder' (all blocks' outputs), 'features' of all tokens.
        """
        flat = ids.reshape(ids.shape[0], -1)
        hidden = flat == self.mask_id
        old = jnp.zeros_like(hidden) if previous is None else ~hidden & ~previous.hidden
        words = nn.Embed(
            self.num_codes + 1, self.width, embedding_init=nn.initializers.normal(0.02), dtype=self.dtype, name="embed"
        )
        places = self.param("positions", nn.initializers.normal(0.02), (math.prod(self.grid), self.width))
        x = layer_norm(1e-6, self.dtype, "embed_norm")(words(flat) + places.astype(self.dtype or jnp.float32))
        embedded = x
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        classes = nn.Embed(
            self.num_classes + 1, self.width, embedding_init=nn.initializers.normal(0.02), name="class_embed"
        )
        given = classes(condition).astype(x.dtype)

        block = ENATBlock(self.num_heads, self.mlp_ratio, self.attention, self.dtype)
        order = jnp.argsort(jnp.where(hidden, 2, jnp.where(old, 0, 1)), axis=1, stable=True)
        first, second = (0, 0) if counts is None else (counts[0], sum(counts))

        def part(tokens: Tokens, number: int, which: Bool[Array, "batch tokens"]) -> Part:
            """The tokens that were visible before (0), are visible now (1), or are hidden (2)."""
            if counts is None:
                return Part(tokens, which)
            bounds = (0, first, second, flat.shape[1])
            return Part(take_tokens(tokens, order[:, bounds[number] : bounds[number + 1]]))

        def blocks(name: str, depth: int, own: Part, context: Part | None) -> tuple[Tokens, Any]:
            return scan_blocks(
                self,
                block,
                depth,
                own.tokens,
                jnp.zeros(depth),
                given,
                own.counts,
                context,
                name=name,
                remat=self.remat,
                unroll=min(self.unroll, depth),
            )

        new, masked = part(x, 1, ~hidden & ~old), part(x, 2, hidden)
        reused = None
        if previous is not None and not (counts and not counts[0]):
            reused = part(previous.features.astype(x.dtype), 0, old)
        if reused is not None or self.is_initializing():
            norm = layer_norm(1e-5, self.dtype, "reuse_norm")
            project = Mlp(4 * self.width, activation="gelu_tanh", dtype=self.dtype, name="reuse")
            base = x if reused is None else reused.tokens
            projected = base + project(norm(base))
            reused = None if reused is None else reused.replace(tokens=projected)
        if new.tokens.shape[1]:
            encoded, levels = blocks("encoder_blocks", self.encoder_depth, new, reused)
        else:
            encoded, levels = new.tokens, None

        if counts is None:
            visible = encoded if reused is None else jnp.where(old[:, :, None], reused.tokens, encoded)
            context = Part(visible, ~hidden)
        else:
            context = Part(encoded if reused is None else jnp.concatenate([reused.tokens, encoded], axis=1))
        some = None if counts is not None and not second else context
        decoded, decoder_levels = blocks("decoder_blocks", self.decoder_depth, masked, some)
        if counts is None:
            features = jnp.where(hidden[:, :, None], decoded, context.tokens)
        else:
            restore = jnp.argsort(order, axis=1, stable=True)
            features = take_tokens(jnp.concatenate([context.tokens, decoded], axis=1), restore)

        y = layer_norm(1e-5, self.dtype, "norm")(features)
        y = nn.Dense(self.width, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="head_hidden")(y)
        y = layer_norm(1e-5, self.dtype, "head_norm")(ACTIVATIONS["gelu"](y))
        bias = self.param("head_bias", nn.initializers.zeros, (self.num_codes + 1,))
        table = jax.lax.stop_gradient(words.embedding).astype(y.dtype)  # tied, but trained as an input only
        logits = (y @ table.T).astype(jnp.float32) + bias
        aux = {
            "embedded": embedded,
            "reused": None if reused is None else reused.tokens,
            "encoder": levels,
            "encoded": encoded,
            "decoder": decoder_levels,
            "features": features,
        }
        return logits[..., : self.num_codes].reshape(*ids.shape, self.num_codes), aux


@dataclasses.dataclass(frozen=True)
class ENATTokens(MaskedTokens):
    """Masked tokens, half of the time with the features of a more masked input as if of the step before (section 4.2).

    Attributes:
        ratio_alpha, ratio_beta: of the beta distribution of the share of hidden tokens, one share a batch.
        reuse_probability: of a sample to train with reused features, which the averaged network gives without gradient
            (the reference draws once a batch).
    """

    ratio_alpha: float = 12.0
    ratio_beta: float = 3.0
    reuse_probability: float = 0.5

    def hide(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Bool[Array, "batch *grid"]:
        ratio_key, place_key = jax.random.split(key)
        total = math.prod(shape[1:])
        ratio = jax.random.beta(ratio_key, self.ratio_alpha, self.ratio_beta)
        count = jnp.clip(jnp.round(ratio * total), 1, total - 1).astype(jnp.int32)
        return lowest(jax.random.uniform(place_key, shape), count[None])

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], Aux]:
        mask_key, drop_key, more_key, place_key, reuse_key, key = jax.random.split(ctx.key, 6)
        ids = self.tokenize(variables, batch)
        hidden = self.hide(mask_key, ids.shape)
        condition = self.drop(drop_key, batch[self.condition]) if ctx.train else batch[self.condition]
        shown = jnp.where(hidden, self.network.mask_id, ids)
        visible = (~hidden).sum(axis=tuple(range(1, ids.ndim)))
        more = jnp.round(jax.random.uniform(more_key, visible.shape) * visible).astype(jnp.int32)
        scores = jax.random.uniform(place_key, ids.shape)
        further = lowest(jnp.where(hidden, jnp.inf, scores), more)
        reuse = jax.random.bernoulli(reuse_key, self.reuse_probability if ctx.train else 0.0, visible.shape)
        reuse = reuse.reshape((-1,) + (1,) * (ids.ndim - 1))
        hidden_before = hidden | further | ~reuse  # nothing to reuse where everything was hidden
        teacher = (variables.params if ctx.ema is None else ctx.ema)["model"]
        before = jnp.where(hidden_before, self.network.mask_id, ids)
        _, aux = self.network.apply({"params": teacher}, before, condition)
        flat = hidden_before.reshape(hidden_before.shape[0], -1)
        previous = Previous(jax.lax.stop_gradient(aux["features"]), flat)
        logits, _ = self.network.apply(
            {"params": variables.params["model"]}, shown, condition, previous, train=ctx.train, rngs={"dropout": key}
        )
        right = ((logits.argmax(axis=-1) == ids) & hidden).sum() / hidden.sum()
        return self.token_loss(logits, ids, hidden), Aux(metrics={"accuracy": right})

    def sample(
        self,
        variables: Variables,
        condition: Array,
        key: Key[Array, ""],
        ids: Int[Array, "batch *grid"] | None = None,
        unknown: Bool[Array, "batch *grid"] | None = None,
    ) -> Int[Array, "batch *grid"]:
        """See `MaskedTokens.sample`; where all tokens are unknown, each step computes only what is new to it."""
        chosen, network, total = self.sampling, self.network, math.prod(self.network.grid)
        shape = (condition.shape[0], *network.grid)
        scales = self.guidance_scales
        left = None if unknown is not None else [total, *hidden_after(chosen.steps, chosen.schedule, total).tolist()]
        if self.guided:
            condition = jnp.concatenate([condition, jnp.full_like(condition, network.null_condition)])

        def logits(shown: Array, step: Step) -> tuple[Array, Previous]:
            shown = jnp.concatenate([shown, shown]) if self.guided else shown
            counts = None
            if left is not None:
                before = left[max(step.index - 1, 0)]
                counts = (total - before, before - left[step.index])
            found, aux = network.apply({"params": variables.params["model"]}, shown, condition, step.carry, counts)
            flat = shown.reshape(shown.shape[0], -1)
            carry = Previous(aux["features"], flat == network.mask_id)
            if not self.guided:
                return found, carry
            with_it, without_it = jnp.split(found, 2)
            return guide(with_it, without_it, scales[step.index]), carry

        nothing = Previous(
            jnp.zeros((condition.shape[0], total, network.width)), jnp.ones((condition.shape[0], total), bool)
        )
        return decode_masked(
            logits,
            jnp.zeros(shape, jnp.int32) if ids is None else ids,
            jnp.ones(shape, bool) if unknown is None else unknown,
            key,
            hidden=network.mask_id,
            carry=nothing,
            unroll=left is not None,
            **self.decoding_options,
        ).ids
