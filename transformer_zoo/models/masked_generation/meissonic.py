"""Meissonic: Revitalizing Masked Generative Transformers (Bai et al., ICLR 2025, arXiv 2410.08261).

Text to image by masked tokens with the blocks of a modern diffusion transformer: two-stream blocks of words and image
tokens, then single-stream blocks, rotary positions, all modulated by how much is hidden, by the pooled caption and by
micro-conditions (sizes, crop, a score of quality). Four tokens become one inside (compression), so that a grid of 64 x
64 costs what 32 x 32 does.

Reference: viiika/Meissonic (Apache-2.0). It feeds 1000 times the share of hidden tokens as time in training and the
number of the step in sampling; here the share of hidden tokens itself is fed in both. Captions come as features of a
frozen encoder (CLIP ViT-H/14's text tower in the paper), or as word ids to a small encoder of our own. Sizes stand in
`zoo/papers/meissonic.toml`.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from transformer_zoo.layers.blocks import scan_blocks
from transformer_zoo.layers.positions import grid_positions
from transformer_zoo.layers.rope import rope_tables
from transformer_zoo.layers.streams import SingleStreamBlock, TwoStreamBlock
from transformer_zoo.layers.text import CaptionEncoder
from transformer_zoo.masking.schedules import hidden_share
from transformer_zoo.masking.tokens import lowest
from transformer_zoo.task import Batch
from transformer_zoo.tasks.masked_tokens import MaskedTokens

SINUSOIDS = 256
TIME_SCALE = 1000.0


def sinusoids(values: Float[Array, "*shape"], width: int = SINUSOIDS) -> Float[Array, "*shape width"]:
    """Cosines, then sines, of value * 10000^(-i / half), i < half = width / 2."""
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(width // 2) / (width // 2))
    angles = values[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class Projection(nn.Module):
    """Dense, SiLU, dense."""

    width: int
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"]) -> Float[Array, "batch width"]:
        for name in ("up", "down"):
            x = x if name == "up" else jax.nn.silu(x)
            x = nn.Dense(self.width, use_bias=self.use_bias, dtype=self.dtype, name=name)(x)
        return x


class Meissonic(nn.Module):
    """Logits of the codes at every place of a grid.

    Attributes:
        grid: rows and columns of ids.
        num_codes: of the tokenizer.
        vocabulary_size: rows of the embedding, the last of which is the mask token.
        double_depth, single_depth: two-stream and single-stream blocks.
        width, num_heads, mlp_ratio: of the blocks.
        axis_widths: channels of a head that text, rows and columns turn.
        compression: whether 2 x 2 tokens are one inside.
        text_length, text_width, pooled_width: of the caption's features, by word and all in one.
        num_words: of the vocabulary of captions that an encoder inside reads; 0 takes features.
        text_depth, text_heads: of that encoder.
        null_word: stands at every place of no caption.
        attention, remat, unroll, dtype: see `Block` and `scan_blocks`.
    """

    grid: tuple[int, int] = (64, 64)
    num_codes: int = 8192
    vocabulary_size: int = 8256
    double_depth: int = 14
    single_depth: int = 28
    width: int = 1024
    num_heads: int = 8
    mlp_ratio: float = 4.0
    axis_widths: tuple[int, int, int] = (16, 56, 56)
    compression: bool = True
    text_length: int = 77
    text_width: int = 1024
    pooled_width: int = 1024
    num_words: int = 0
    text_depth: int = 2
    text_heads: int = 4
    null_word: int = 6
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    @property
    def mask_id(self) -> int:
        """The id that stands at hidden places."""
        return self.vocabulary_size - 1

    @property
    def condition_shape(self) -> tuple[int, ...]:
        """Of one caption's word ids."""
        return (self.text_length,)

    @property
    def null_condition(self) -> int:
        """The word at every place of no caption."""
        return self.null_word if self.num_words else 0

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "batch rows columns"],
        caption: Any,
        hidden: Float[Array, " batch"],
        micro_conditions: Float[Array, "batch 5"],
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "batch rows columns codes"], dict[str, Any]]:
        """Logits of the codes at every place.

        Args:
            ids: with `mask_id` where they are hidden.
            caption: word ids [batch, text_length], or (features [batch, text_length, text_width], pooled [batch,
                pooled_width]).
            hidden: share of the tokens that is.
            micro_conditions: width, height, upper and left edge of the crop in pixels, score of quality.
            train: unused.

        Returns:
            Logits, and 'embedded', 'down', 'condition', 'pooled', 'text', 'double' and 'single' (all blocks' outputs),
            'up'.
        """
        init = nn.initializers.xavier_uniform()
        norm = lambda name: nn.RMSNorm(dtype=self.dtype, name=name)  # noqa: E731

        def dense(features: int, name: str, use_bias: bool = False) -> nn.Dense:
            return nn.Dense(features, use_bias=use_bias, kernel_init=init, dtype=self.dtype, name=name)

        if self.num_words:
            encoder = CaptionEncoder(
                self.num_words,
                self.text_length,
                self.text_depth,
                self.text_width,
                self.text_heads,
                unroll=self.text_depth,
                dtype=self.dtype,
                name="text_encoder",
            )
            features, pooled = encoder(caption)
        else:
            features, pooled = caption
        micro = sinusoids(micro_conditions).reshape(ids.shape[0], -1)
        pooled = Projection(self.width, False, self.dtype, name="condition")(jnp.concatenate([pooled, micro], axis=-1))
        condition = Projection(self.width, dtype=self.dtype, name="time")(sinusoids(hidden * TIME_SCALE))
        condition = condition + Projection(self.width, dtype=self.dtype, name="pooled")(pooled)
        text = norm("text_norm")(dense(self.width, "text", use_bias=True)(features))

        words = nn.Embed(
            self.vocabulary_size,
            self.width,
            embedding_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name="embed",
        )
        x = dense(self.width, "embed_projection")(norm("embed_norm")(words(ids)))
        embedded = down = x
        if self.compression:
            x = norm("down_norm")(x)
            x = nn.Conv(self.width, (2, 2), (2, 2), "VALID", use_bias=False, dtype=self.dtype, name="down")(x)
            down = x
        grid = x.shape[1:3]
        x = dense(self.width, "inner")(norm("inner_norm")(x.reshape(ids.shape[0], -1, self.width)))

        places = np.concatenate([np.zeros((text.shape[1], 2)), grid_positions(grid)])
        rope = rope_tables(np.pad(places, ((0, 0), (1, 0))), self.axis_widths, interleaved=True)
        shared = dict(
            num_heads=self.num_heads,
            head_dim=self.width // self.num_heads,
            mlp_ratio=self.mlp_ratio,
            attention=self.attention,
            dtype=self.dtype,
        )
        streams, double = scan_blocks(
            self,
            TwoStreamBlock(**shared),
            self.double_depth,
            (text, x),
            jnp.zeros(self.double_depth),
            condition,
            rope,
            name="double_blocks",
            remat=self.remat,
            unroll=min(self.unroll, self.double_depth),
        )
        x, single = scan_blocks(
            self,
            SingleStreamBlock(**shared),
            self.single_depth,
            jnp.concatenate(streams, axis=1),
            jnp.zeros(self.single_depth),
            condition,
            rope,
            name="single_blocks",
            remat=self.remat,
            unroll=min(self.unroll, self.single_depth),
        )
        x = dense(self.width, "outer")(norm("outer_norm")(x[:, text.shape[1] :]))
        x = x.reshape(ids.shape[0], *grid, self.width)
        if self.compression:
            up = nn.ConvTranspose(
                self.width, (2, 2), (2, 2), "VALID", use_bias=False, dtype=self.dtype, name="up", transpose_kernel=True
            )
            x = up(norm("up_norm")(x))
        raised = x
        x = norm("head_norm")(dense(self.width, "head_hidden")(x))
        logits = dense(self.num_codes, "logits")(x).astype(jnp.float32)
        return logits, {
            "embedded": embedded,
            "down": down,
            "condition": condition,
            "pooled": pooled,
            "text": text,
            "double": double,
            "single": single,
            "up": raised,
        }


@dataclasses.dataclass(frozen=True)
class MeissonicTokens(MaskedTokens):
    """Masked tokens with the share of hidden ones and micro-conditions as further inputs.

    Attributes:
        score: of quality, that of all training images and of what is asked for.
    """

    score: float = 6.0

    def spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        if self.network.num_words:
            return super().spec(batch_size)
        features = (batch_size, self.network.text_length, self.network.text_width)
        return {
            self.pixels: jax.ShapeDtypeStruct((batch_size, *self.tokenizer.input_shape), jnp.float32),
            "text": jax.ShapeDtypeStruct(features, jnp.float32),
            "pooled": jax.ShapeDtypeStruct((batch_size, self.network.pooled_width), jnp.float32),
        }

    def condition_of(self, batch: Batch) -> Any:
        return super().condition_of(batch) if self.network.num_words else (batch["text"], batch["pooled"])

    def inputs(self, shown: Array, condition: Any, hidden: Bool[Array, "batch *grid"]) -> tuple[Any, ...]:
        height, width = self.tokenizer.input_shape[:2]
        micro = jnp.broadcast_to(jnp.array([width, height, 0.0, 0.0, self.score]), (shown.shape[0], 5))
        return shown, condition, hidden.mean(axis=(1, 2), dtype=jnp.float32), micro

    def hide(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Bool[Array, "batch *grid"]:
        ratio_key, place_key = jax.random.split(key)
        total = math.prod(shape[1:])
        share = hidden_share(jax.random.uniform(ratio_key, shape[:1]), self.schedule, total)
        counts = jnp.maximum(jnp.round(total * share), 1).astype(jnp.int32)
        return lowest(jax.random.uniform(place_key, shape), counts)

    def token_loss(self, logits: Array, ids: Array, hidden: Bool[Array, "batch *grid"]) -> Float[Array, ""]:
        """The mean over the hidden tokens of all samples together."""
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
        return (losses * hidden).sum() / hidden.sum()

    @property
    def decoding_options(self) -> dict[str, Any]:
        noise = np.linspace(self.sampling.choice_temperature, 0.0, self.sampling.steps)
        return super().decoding_options | {"choice_temperature": noise.tolist()}
