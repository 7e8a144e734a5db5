"""4M: Massively Multimodal Masked Modeling (Mizrahi, Bachmann et al., NeurIPS 2023, arXiv 2312.06647), and 4M-21.

All modalities become tokens in one sequence. An encoder sees a small random part of them, a decoder is asked for
another small part; whatever the masks, exactly `num_inputs` tokens are encoded and `num_targets` decoded, so that one
compilation serves all. Tokens on a grid are asked for by mask tokens that see each other, sequences are read in order,
and no modality's targets see another's. Reference: apple/ml-4m (Apache-2.0), `fourm/models/fm.py`; equal to it.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from transformer_zoo.layers.blocks import Block, DecoderBlock, DecoderCache, drop_path_rates, scan_blocks
from transformer_zoo.layers.mlp import mlp_width
from transformer_zoo.layers.norms import layer_norm
from transformer_zoo.masking.random import take_tokens
from transformer_zoo.models.multimodal.fourm.embeddings import InputEmbedding, OutputEmbedding, Tokens, take_ids
from transformer_zoo.models.multimodal.fourm.entropies import entropies
from transformer_zoo.models.multimodal.fourm.modalities import Modalities, read_modalities

PADDING = -1  # the modality of a slot that holds no token
Batch = Mapping[str, Tokens]


class Slots(flax.struct.PyTreeNode):
    """The tokens that were chosen, in a fixed number of slots a sample.

    Attributes:
        tokens: [batch, slots, width], what is there; 0 in empty slots.
        positions: [batch, slots, width], where it is, its modality included; 0 in empty slots.
        filled: bool [batch, slots].
        modality: int32 [batch, slots], the number among the network's modalities, PADDING where empty.
        place: int32 [batch, slots], the place within its modality.
        ids: int32 [batch, slots], what a target should turn out to be; None for inputs.
        sees: bool [batch, slots, slots], which targets see which; None for inputs.
    """

    tokens: Any
    positions: Any
    filled: Any
    modality: Any
    place: Any
    ids: Any = None
    sees: Any = None


class FourM(nn.Module):
    """Encoder and decoder over modalities; sizes are the paper's for B.

    Attributes:
        modalities: {name: options of `Modality`}, or the name of a published set.
        depth, decoder_depth: blocks of encoder and decoder.
        width, num_heads, mlp_ratio: of both; a gated MLP is two thirds as wide.
        activation, gated: of the MLPs, see `Mlp`.
        use_bias: whether attentions, MLPs and LayerNorms have biases; the map between encoder and decoder always does.
        qk_norm: whether queries and keys are normalised.
        tied: whether logits are products with the decoder's token embeddings.
        num_registers: learned tokens in front of the encoder's.
        drop_path_rate, decoder_drop_path_rate: of the last block of encoder and decoder.
        norm_epsilon: of the LayerNorms.
        embedding_deviation: with which the embeddings of ids and modalities, learned positions and the mask token
            start. Positions on a grid have one of 0.7, so that few steps suffice where it is 1.
        attention, remat, unroll: see `Block` and `scan_blocks`.
        dtype: of the computation; parameters stay float32.
    """

    modalities: Any = "4m7"
    depth: int = 12
    decoder_depth: int = 12
    width: int = 768
    num_heads: int = 12
    mlp_ratio: float = 4.0
    activation: str = "silu"
    gated: bool = True
    use_bias: bool = False
    qk_norm: bool = False
    tied: bool = True
    num_registers: int = 0
    drop_path_rate: float = 0.0
    decoder_drop_path_rate: float = 0.0
    norm_epsilon: float = 1e-6
    embedding_deviation: float = 0.02
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    def setup(self) -> None:
        shared = dict(model_width=self.width, deviation=self.embedding_deviation, dtype=self.dtype)
        normal = nn.initializers.normal(self.embedding_deviation)
        self.input_embeddings = {
            name: InputEmbedding(modality, name=f"input_embedding_{name}", **shared)
            for name, modality in self.inputs.items()
        }
        self.output_embeddings = {
            name: OutputEmbedding(modality, tied=self.tied, name=f"output_embedding_{name}", **shared)
            for name, modality in self.outputs.items()
        }
        self.modality_embeddings = {
            name: self.param(f"modality_embedding_{name}", normal, (self.width,)) for name in self.all_modalities
        }
        self.mask_token = self.param("mask_token", normal, (self.width,))
        if self.num_registers:
            self.registers = self.param("registers", normal, (self.num_registers, self.width))
        stack: dict[str, Any] = dict(
            num_heads=self.num_heads, activation=self.activation, gated=self.gated, use_bias=self.use_bias
        )
        stack |= dict(hidden=self.hidden, qk_norm=self.qk_norm, norm_epsilon=self.norm_epsilon)
        stack |= dict(attention=self.attention, remat=self.remat, unroll=self.unroll, dtype=self.dtype)
        self.encoder = Encoder(depth=self.depth, drop_path_rate=self.drop_path_rate, **stack)
        self.context = nn.Dense(self.width, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype)
        self.decoder = Decoder(depth=self.decoder_depth, drop_path_rate=self.decoder_drop_path_rate, **stack)

    @property
    def all_modalities(self) -> Modalities:
        """All, by name."""
        return read_modalities(self.modalities)

    @property
    def inputs(self) -> Modalities:
        """Those that the encoder takes."""
        return {name: modality for name, modality in self.all_modalities.items() if modality.input}

    @property
    def outputs(self) -> Modalities:
        """Those that the decoder predicts."""
        return {name: modality for name, modality in self.all_modalities.items() if modality.predicted}

    @property
    def decoder_block(self) -> DecoderBlock:
        """One of the decoder's blocks, on its own."""
        return DecoderBlock(**_block_options(self, self.width, train=False), parent=None)

    @property
    def hidden(self) -> int:
        """Width of the MLPs' hidden layer."""
        hidden = mlp_width(self.width, self.mlp_ratio)
        return int(2 * hidden / 3) if self.gated else hidden

    def __call__(
        self,
        batch: Batch,
        num_inputs: int = 128,
        num_targets: int = 128,
        order: Int[Array, "outputs"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[dict[str, Float[Array, "batch targets vocabulary"]], dict[str, Any]]:
        """Logits of every predicted modality at every target slot.

        Args:
            batch: masked modalities by name; those that are missing are neither seen nor asked for.
            num_inputs: slots of the encoder; further visible tokens are left out, the last modalities' first.
            num_targets: slots of the decoder.
            order: in which the decoder takes the modalities, a permutation; what does not fit is left out at its end.
            train: whether drop path applies.

        Returns:
            Logits by modality, and 'inputs' and 'targets' (see `Slots`), 'encoded', 'encoder_levels', 'decoded' and
            'decoder_levels'.
        """
        aux = self.run(batch, num_inputs, num_targets, order, train=train)
        return {name: self.logits(name, aux["decoded"]) for name in self.outputs if name in batch}, aux

    def run(
        self, batch: Batch, num_inputs: int, num_targets: int, order: Int[Array, "outputs"] | None, *, train: bool
    ) -> dict[str, Any]:
        """What `__call__` gives beside the logits."""
        seen = self.choose_inputs(batch, num_inputs)
        encoded, encoder_levels = self.encode(seen, train=train)
        asked = self.choose_targets(batch, num_targets, order)
        decoded, decoder_levels = self.decode(asked, encoded, seen, train=train)
        aux = {"inputs": seen, "targets": asked, "encoded": encoded, "encoder_levels": encoder_levels}
        return aux | {"decoded": decoded, "decoder_levels": decoder_levels}

    def entropies(
        self, batch: Batch, num_inputs: int, num_targets: int, order: Int[Array, "outputs"], *, train: bool = False
    ) -> tuple[Float[Array, "batch targets"], Slots]:
        """Cross-entropy of every target against its own modality's vocabulary, and the targets; see `__call__`."""
        aux = self.run(batch, num_inputs, num_targets, order, train=train)
        asked, outputs = aux["targets"], list(self.outputs)
        numbers = np.array([outputs.index(name) if name in outputs else PADDING for name in self.all_modalities])
        group = jnp.where(asked.filled, jnp.asarray(numbers)[asked.modality], PADDING)
        tables = [self.output_embeddings[name].logits_table() for name in outputs]
        x, *tables = nn.dtypes.promote_dtype(aux["decoded"], *tables, dtype=self.dtype)
        return entropies(x, asked.ids, group, tables), asked

    def choose_inputs(self, batch: Batch, num_inputs: int) -> Slots:
        """The visible tokens of all modalities, in order, behind the registers."""
        numbers = {name: number for number, name in enumerate(self.all_modalities)}
        tokens, positions, filled, modality, place = [], [], [], [], []
        for name in self.inputs:
            if name not in batch:
                continue
            x, where = self.input_embeddings[name](batch[name])
            tokens.append(x)
            positions.append(jnp.broadcast_to(where + self.modality_embeddings[name], x.shape))
            filled.append(batch[name].inputs)
            modality.append(jnp.full(x.shape[:2], numbers[name], jnp.int32))
            place.append(jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]))
        visible = jnp.concatenate(filled, axis=1)
        chosen = jnp.argsort(~visible, axis=1, stable=True)[:, :num_inputs]
        found = _gather(tokens, positions, visible, modality, place, chosen)
        if not self.num_registers:
            return found
        count = (visible.shape[0], self.num_registers)
        registers = jnp.broadcast_to(self.registers, (*count, self.width))
        in_front = Slots(
            registers,
            jnp.zeros_like(registers),
            jnp.ones(count, bool),
            jnp.full(count, PADDING),
            jnp.zeros(count, jnp.int32),
        )
        return _join(in_front, found)

    def choose_targets(self, batch: Batch, num_targets: int, order: Int[Array, "outputs"] | None = None) -> Slots:
        """The tokens asked for, one modality after the other in `order`, with what each is to become."""
        numbers = {name: number for number, name in enumerate(self.all_modalities)}
        outputs = [name for name in self.outputs if name in batch]
        rank = jnp.arange(len(outputs)) if order is None else jnp.argsort(order)
        tokens, positions, filled, modality, place, ids, spans, ranks = [], [], [], [], [], [], [], []
        for index, name in enumerate(outputs):
            given, targets = batch[name], batch[name].targets
            x, where = self.output_embeddings[name].embed(given, self.mask_token)
            where = jnp.broadcast_to(where + self.modality_embeddings[name], x.shape)
            wanted, span = given.values, _first_of(targets) * targets.sum(axis=1, keepdims=True)
            if self.outputs[name].kind == "sequence":  # each id is asked for by the one before it
                x, where, wanted, span = x[:, :-1], where[:, :-1], given.values[:, 1:], targets[:, :-1].astype(int)
                targets = targets[:, :-1] & targets[:, 1:]
            tokens.append(x)
            positions.append(where)
            filled.append(targets)
            modality.append(jnp.full(x.shape[:2], numbers[name], jnp.int32))
            place.append(jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]))
            ids.append(wanted)
            spans.append(span)
            ranks.append(jnp.broadcast_to(rank[index], x.shape[:2]))
        asked = jnp.concatenate(filled, axis=1)
        key = jnp.where(asked, 0, len(outputs)) + jnp.concatenate(ranks, axis=1)
        chosen = jnp.argsort(key, axis=1, stable=True)[:, :num_targets]
        found = _gather(tokens, positions, asked, modality, place, chosen)
        span, labels = (take_ids(jnp.concatenate(x, axis=1), chosen) for x in (spans, modality))
        wanted = jnp.where(found.filled, take_ids(jnp.concatenate(ids, axis=1), chosen), 0)
        return found.replace(ids=wanted, sees=visibility(span, labels))

    def encode(self, seen: Slots, *, train: bool = False) -> tuple[Float[Array, "batch inputs width"], Array]:
        """The encoder's output for the chosen inputs, and its levels [depth, batch, inputs, width]."""
        x = (seen.tokens + seen.positions).astype(self.dtype or jnp.float32)
        return self.encoder(x, seen.filled[:, None, None], train=train)

    def decode(
        self, asked: Slots, encoded: Float[Array, "batch inputs width"], seen: Slots, *, train: bool = False
    ) -> tuple[Float[Array, "batch targets width"], Array]:
        """The decoder's output for the chosen targets, and its levels; the context is told again what stands where."""
        context = self.told_context(encoded, seen)
        y = (asked.tokens + asked.positions).astype(encoded.dtype)
        return self.decoder(y, context, asked.sees[:, None], seen.filled[:, None, None], train=train)

    def told_context(self, encoded: Float[Array, "batch inputs width"], seen: Slots) -> Array:
        """What the decoder's cross-attention looks at."""
        return self.context(encoded) + seen.positions.astype(encoded.dtype)

    def decode_next(
        self, asked: Slots, index: Int[Array, ""], cache: DecoderCache, seen: Slots
    ) -> tuple[Float[Array, "batch 1 width"], DecoderCache]:
        """The decoder's output for target `index` of a sequence, all before which are in the cache."""
        y = jax.lax.dynamic_slice_in_dim(asked.tokens + asked.positions, index, 1, axis=1)
        y = y.astype(self.dtype or jnp.float32)
        y, tokens = self.decoder(y, y[:, :0], None, seen.filled[:, None, None], cache)
        return y, cache._replace(tokens=tokens)

    def logits(self, name: str, decoded: Float[Array, "batch targets width"]) -> Float[Array, "batch targets ids"]:
        """Logits of one modality's ids."""
        return self.output_embeddings[name].logits(decoded)

    def layer_numbers(self, params: Any) -> Any:
        """Layer number of every parameter: 0 embeddings, the encoder's blocks, the decoder's, then the rest."""
        last = self.depth + self.decoder_depth

        def number(path: tuple[Any, ...], leaf: Any) -> Any:
            name = "/".join(str(entry.key) for entry in path)
            if name.startswith(("encoder/blocks", "decoder/blocks")):
                first = 1 if name.startswith("encoder") else 1 + self.depth
                return first + jnp.arange(len(leaf))
            if name.startswith(("encoder/norm", "context")):
                return self.depth + 1
            return 0 if name.startswith(("input_", "modality_", "registers", "mask_token")) else last + 1

        return jax.tree_util.tree_map_with_path(number, params)

    def number(self, name: str) -> int:
        """The number by which `Slots.modality` means a modality."""
        return list(self.all_modalities).index(name)


def visibility(
    spans: Int[Array, "batch targets"], modality: Int[Array, "batch targets"]
) -> Bool[Array, "batch targets targets"]:
    """Which targets see which: those before the running sum of `spans`, of their own modality.

    A span of n in front of n - 1 zeros lets n targets see each other; ones read in order (section 2.2).
    """
    before = jnp.arange(spans.shape[1]) < jnp.cumsum(spans, axis=1)[..., None]
    return before & (modality[:, :, None] == modality[:, None, :])


def _first_of(targets: Bool[Array, "batch places"]) -> Bool[Array, "batch places"]:
    return targets & (jnp.cumsum(targets, axis=1) == 1)


def _gather(tokens: Any, positions: Any, filled: Any, modality: Any, place: Any, chosen: Array) -> Slots:
    """The chosen places of all modalities as slots, empty ones zeroed."""
    there = jnp.take_along_axis(filled, chosen, axis=1)
    labels, places = (take_ids(jnp.concatenate(x, axis=1), chosen) for x in (modality, place))
    x, where = (take_tokens(jnp.concatenate(parts, axis=1), chosen) for parts in (tokens, positions))
    return Slots(
        tokens=jnp.where(there[..., None], x, 0),
        positions=jnp.where(there[..., None], where, 0),
        filled=there,
        modality=jnp.where(there, labels, PADDING),
        place=places,
    )


def _join(first: Slots, second: Slots) -> Slots:
    parts = zip((first.tokens, first.positions, first.filled, first.modality, first.place), _fields(second))
    return Slots(*(jnp.concatenate(pair, axis=1) for pair in parts))


def _fields(slots: Slots) -> tuple[Any, ...]:
    return slots.tokens, slots.positions, slots.filled, slots.modality, slots.place


class Stack(nn.Module):
    """What encoder and decoder are told: see `Block`, `hidden` the width of the MLPs, and `scan_blocks`."""

    depth: int
    num_heads: int
    hidden: int
    activation: str = "silu"
    gated: bool = True
    use_bias: bool = False
    qk_norm: bool = False
    drop_path_rate: float = 0.0
    norm_epsilon: float = 1e-6
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None


class Encoder(Stack):
    """Blocks of self-attention over all filled slots, and a last LayerNorm."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch inputs width"], mask: Bool[Array, "batch 1 1 inputs"], *, train: bool = False
    ) -> tuple[Float[Array, "batch inputs width"], Float[Array, "depth batch inputs width"]]:
        block = Block(qkv_bias=self.use_bias, **_block_options(self, x.shape[-1], train))
        rates = drop_path_rates(self.drop_path_rate, self.depth)
        x, levels = scan_blocks(self, block, self.depth, x, rates, None, mask, remat=self.remat, unroll=self.unroll)
        return layer_norm(self.norm_epsilon, self.dtype, "norm", use_bias=self.use_bias)(x), levels


class Decoder(Stack):
    """Blocks of self-attention among targets and cross-attention to the context, and a last LayerNorm."""

    @nn.compact
    def __call__(
        self,
        y: Float[Array, "batch targets width"],
        context: Float[Array, "batch keys width"],
        sees: Bool[Array, "batch 1 targets targets"] | None,
        mask: Bool[Array, "batch 1 1 inputs"],
        cache: DecoderCache | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "batch targets width"], Any]:
        """The output, and its levels [depth, batch, targets, width], or with a cache the tokens' keys and values."""
        block = DecoderBlock(**_block_options(self, y.shape[-1], train))
        scanned = drop_path_rates(self.drop_path_rate, self.depth) if cache is None else cache
        y, levels = scan_blocks(
            self, block, self.depth, y, scanned, context, sees, mask, remat=self.remat, unroll=self.unroll
        )
        return layer_norm(self.norm_epsilon, self.dtype, "norm", use_bias=self.use_bias)(y), levels


def _block_options(stack: Stack | FourM, width: int, train: bool) -> dict[str, Any]:
    return dict(
        num_heads=stack.num_heads,
        mlp_ratio=stack.hidden / width,
        activation=stack.activation,
        gated=stack.gated,
        use_bias=stack.use_bias,
        qk_norm=stack.qk_norm,
        attention=stack.attention,
        norm_epsilon=stack.norm_epsilon,
        norm_bias=stack.use_bias,
        train=train,
        dtype=stack.dtype,
    )
