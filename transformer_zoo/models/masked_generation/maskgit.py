"""MaskGIT: Masked Generative Image Transformer (Chang et al., CVPR 2022, arXiv 2202.04200).

A bidirectional transformer sees the ids of an image's tokens, some of them hidden, behind a prefix that says what the
image shows, and predicts the hidden ids all at once. The share of hidden ones differs from sample to sample in
training, so that the same network fills an image from nothing in a few parallel steps (`decoding/masked.py`).

The prefix is one class in the paper; a caption's words serve as well. The objective is `tasks/masked_tokens.py`, the
tokenizer `models/tokenizers/maskgit_vqgan.py`. Reference: google-research/maskgit (Apache-2.0). Sizes stand in
`zoo/papers/maskgit.toml`.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_zoo.layers.bert import Bert


class MaskGIT(nn.Module):
    """Logits of the codes at every place of a grid.

    The vocabulary is that of the codes, then of the conditions, then the mask token.

    Attributes:
        grid: sides of the grid of ids, such as (rows, columns).
        num_codes: of the tokenizer.
        num_conditions: classes, or words of captions.
        prefix_length: tokens of the condition: 1 for a class.
        null_condition: what stands in the place of the condition where there is none; -1 where the network knows none.
        depth, width, num_heads, mlp_ratio, dropout_rate, attention, remat, unroll, dtype: see `Bert`.
    """

    grid: tuple[int, ...] = (16, 16)
    num_codes: int = 1024
    num_conditions: int = 1000
    prefix_length: int = 1
    null_condition: int = -1
    depth: int = 24
    width: int = 768
    num_heads: int = 16
    mlp_ratio: float = 4.0
    dropout_rate: float = 0.1
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    @property
    def mask_id(self) -> int:
        """The id that stands at hidden places: the last of the vocabulary."""
        return self.num_codes + self.num_conditions

    @property
    def condition_shape(self) -> tuple[int, ...]:
        """Of one sample's condition: () for a class."""
        return () if self.prefix_length == 1 else (self.prefix_length,)

    def setup(self) -> None:
        self.bert = Bert(
            vocabulary_size=self.mask_id + 1,
            length=self.prefix_length + math.prod(self.grid),
            depth=self.depth,
            width=self.width,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            dropout_rate=self.dropout_rate,
            attention=self.attention,
            remat=self.remat,
            unroll=self.unroll,
            dtype=self.dtype,
        )

    def __call__(
        self, ids: Int[Array, "batch *grid"], condition: Int[Array, "batch *prefix"], *, train: bool = False
    ) -> tuple[Float[Array, "batch *grid codes"], dict[str, Array]]:
        """Logits of the codes at every place, and the intermediates of `Bert` with 'logits', those of all tokens."""
        prefix = condition.reshape(ids.shape[0], -1) + self.num_codes
        tokens = jnp.concatenate([prefix, ids.reshape(ids.shape[0], -1)], axis=1)
        logits, aux = self.bert(tokens, train=train)
        places = logits[:, self.prefix_length :, : self.num_codes].reshape(*ids.shape, self.num_codes)
        return places, {"logits": logits, **aux}
