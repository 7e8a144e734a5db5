"""Phenaki: Variable Length Video Generation From Textual Description (Villegas et al., ICLR 2023, arXiv 2210.02399).

A MaskGIT over the tokens of clips that reads its caption by cross-attention. Because the tokenizer (C-ViViT,
`models/tokenizers/cvivit.py`) is causal in time, a clip can go on for ever: the last frames are encoded again, their
tokens stay fixed, those of the following frames are filled in, with another caption where the story takes a turn
(section 2.3). Stills train beside clips as clips of one frame.

No official code is released; this is built from the paper. It leaves open, and here are: pre-norm blocks with GELU and
biases, learned tables of positions for time steps, rows and columns, rotary positions in self-attention besides, the
guidance l_u + scale (l_c - l_u), and of a still the later time steps hidden and not judged. Sizes stand in
`zoo/papers/phenaki.toml`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from transformer_zoo.decoding.masked import extend_frames
from transformer_zoo.layers.blocks import Block, DecoderBlock, drop_path_rates, scan_blocks
from transformer_zoo.layers.norms import layer_norm
from transformer_zoo.layers.positions import grid_positions
from transformer_zoo.layers.rope import rope_tables
from transformer_zoo.layers.text import CaptionEncoder
from transformer_zoo.task import Aux, Batch, Context, Variables
from transformer_zoo.tasks.masked_tokens import MaskedTokens, token_loss
from transformer_zoo.tasks.networks import apply_frozen

ROPE_THETA = 100.0  # grids are a few places wide: waves of thousands would stand still


class Phenaki(nn.Module):
    """Logits of the codes at every place of a grid of time steps, rows and columns.

    Attributes:
        grid: time steps, rows and columns of ids; fewer time steps will do.
        num_codes: of the tokenizer.
        depth, width, num_heads, mlp_ratio: of the blocks.
        text_length, text_width: of the caption's features; length 0 is no caption at all.
        num_words: of the vocabulary of captions that an encoder inside reads; 0 takes features (T5's in the paper).
        text_depth, text_heads: of that encoder.
        null_word: stands at every place of no caption.
        attention, remat, unroll, dtype: see `Block` and `scan_blocks`.
    """

    grid: tuple[int, int, int] = (6, 16, 16)
    num_codes: int = 8192
    depth: int = 24
    width: int = 2048
    num_heads: int = 32
    mlp_ratio: float = 4.0
    text_length: int = 128
    text_width: int = 4096
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
        return self.num_codes

    @property
    def condition_shape(self) -> tuple[int, ...]:
        """Of one caption's word ids."""
        return (self.text_length,)

    @property
    def null_condition(self) -> int:
        """The word at every place of no caption; 0 where features are given."""
        return self.null_word if self.num_words else 0

    @property
    def axis_widths(self) -> tuple[int, int, int]:
        """Channels of a head that turn with the time step, the row and the column."""
        place = 2 * (self.width // self.num_heads // 6)
        return self.width // self.num_heads - 2 * place, place, place

    @nn.compact
    def __call__(
        self, ids: Int[Array, "batch times rows columns"], caption: Array | None, *, train: bool = False
    ) -> tuple[Float[Array, "batch times rows columns codes"], dict[str, Any]]:
        """Logits of the codes at every place.

        Args:
            ids: with `mask_id` where they are hidden.
            caption: word ids [batch, text_length], or features [batch, text_length, text_width], or None.
            train: unused.

        Returns:
            Logits, and 'embedded', 'levels' (all blocks' outputs), 'text'.
        """
        # From a deviation of 0.02, and with one table for all places, 5,000 steps of `small` told no left from right.
        normal = nn.initializers.normal(1.0)
        words = nn.Embed(self.num_codes + 1, self.width, embedding_init=normal, dtype=self.dtype, name="embed")
        times, rows, columns = (
            self.param(name, normal, (side, self.width)) for name, side in zip(("times", "rows", "columns"), self.grid)
        )
        where = times[: ids.shape[1], None, None] + rows[:, None] + columns
        x = words(ids) + where.astype(self.dtype or jnp.float32)
        x = x.reshape(ids.shape[0], -1, self.width)
        embedded, text = x, None
        if self.num_words:
            assert caption is not None
            encoder = CaptionEncoder(
                self.num_words,
                self.text_length,
                self.text_depth,
                self.text_width,
                self.text_heads,
                deviation=1.0,
                unroll=self.text_depth,
                dtype=self.dtype,
                name="text_encoder",
            )
            text, _ = encoder(caption)
        elif self.text_length:
            text = caption
        shared: dict[str, Any] = dict(mlp_ratio=self.mlp_ratio, attention=self.attention, dtype=self.dtype)
        rates = drop_path_rates(0.0, self.depth)
        options: dict[str, Any] = dict(remat=self.remat, unroll=self.unroll)
        rope = rope_tables(grid_positions(ids.shape[1:]), self.axis_widths, theta=ROPE_THETA)
        if text is None:
            x, levels = scan_blocks(self, Block(self.num_heads, **shared), self.depth, x, rates, rope, **options)
        else:
            block = DecoderBlock(self.num_heads, **shared)
            x, levels = scan_blocks(self, block, self.depth, x, rates, text, None, None, rope, **options)
        x = layer_norm(dtype=self.dtype, name="norm")(x)
        head = nn.Dense(self.num_codes, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="logits")
        logits = head(x).astype(jnp.float32).reshape(*ids.shape, self.num_codes)
        return logits, {"embedded": embedded, "levels": levels, "text": text}


@dataclasses.dataclass(frozen=True)
class PhenakiTokens(MaskedTokens):
    """Masked tokens of clips, some of which count as stills, and stories: clips that go on with other captions.

    Attributes:
        still_share: of the samples of which only the first frame is learned from.
        kept_frames: of pixels that a story's next part begins with, 1 + patch_frames * n.
    """

    condition: str = "caption"
    label_smoothing: float = 0.0
    condition_drop_rate: float = 0.1
    still_share: float = 0.0
    kept_frames: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        frames, patch = self.tokenizer.input_shape[0], self.tokenizer.patch_frames
        if (self.kept_frames - 1) % patch or not 0 < self.kept_frames < frames:
            raise ValueError(f"task.kept_frames is {self.kept_frames}, but must be 1 + {patch} n and below {frames}")

    def spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        found = super().spec(batch_size)
        if not self.network.text_length:
            return {self.pixels: found[self.pixels]}
        if not self.network.num_words:
            shape = (batch_size, self.network.text_length, self.network.text_width)
            found[self.condition] = jax.ShapeDtypeStruct(shape, jnp.float32)
        return found

    def condition_of(self, batch: Batch) -> Any:
        return batch[self.condition] if self.network.text_length else None

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], Aux]:
        mask_key, drop_key, still_key, key = jax.random.split(ctx.key, 4)
        ids = self.tokenize(variables, batch)
        condition = self.condition_of(batch)
        still = jnp.zeros(ids.shape[0], bool)
        if ctx.train:
            condition = condition if condition is None else self.drop(drop_key, condition)
            still = jax.random.bernoulli(still_key, self.still_share, still.shape)
        first = jnp.arange(ids.shape[1])[None, :, None, None] == 0
        later = still[:, None, None, None] & ~first
        alone = self.hide(mask_key, (ids.shape[0], 1, *ids.shape[2:]))  # a still's share is one of its own tokens
        hidden = jnp.where(still[:, None, None, None], first & alone, self.hide(mask_key, ids.shape))
        shown = jnp.where(hidden | later, self.network.mask_id, ids)
        logits = self.predict(variables, shown, condition, hidden, key=key, train=ctx.train)
        right = ((logits.argmax(axis=-1) == ids) & hidden).sum() / hidden.sum()
        return token_loss(logits, ids, hidden, self.label_smoothing), Aux(metrics={"accuracy": right})

    def story(
        self, variables: Variables, captions: tuple[Array, ...], key: Key[Array, ""]
    ) -> list[Float[Array, "batch frames height width channels"]]:
        """Clips whose parts follow one another, a caption each; all but the first begin with frames of the one before.

        Returns:
            The parts in pixels, each of as many frames as the tokenizer takes.
        """
        kept = 1 + (self.kept_frames - 1) // self.tokenizer.patch_frames

        def remember(ids: Array) -> Array:
            frames = self.detokenize(variables, ids)[:, -self.kept_frames :]
            return apply_frozen(self.tokenizer, variables.frozen["tokenizer"], frames, method="tokenize")

        def decode(ids: Array, unknown: Array, key: Array, number: int) -> Array:
            return self.sample(variables, captions[number], key, ids, unknown)

        first = self.sample(variables, captions[0], key)
        chunks = extend_frames(decode, first, key, chunks=len(captions) - 1, keep=kept, remember=remember)
        return [self.detokenize(variables, ids) for ids in chunks]
