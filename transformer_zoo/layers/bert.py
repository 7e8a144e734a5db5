"""A post-norm transformer over ids with its prediction head: BERT (Devlin et al. 2019, arXiv 1810.04805)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_zoo.layers.attention import Attention
from transformer_zoo.layers.blocks import scan_blocks
from transformer_zoo.layers.constraints import constrain_tokens
from transformer_zoo.layers.mlp import ACTIVATIONS, Mlp
from transformer_zoo.layers.norms import layer_norm

STD = 0.02  # of kernels and embeddings, normal and cut off at two deviations


class PostNormBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)).

    Attributes:
        num_heads, mlp_ratio, activation, attention, norm_epsilon, train, dtype: see `layers.blocks.Block`.
        dropout_rate: of both branches and of the attention's probabilities.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    activation: str = "gelu_tanh"
    attention: str = "auto"
    norm_epsilon: float = 1e-12
    dropout_rate: float = 0.0
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], scanned: Any = None
    ) -> tuple[Float[Array, "batch tokens width"], Float[Array, "batch tokens width"]]:
        drop = nn.Dropout(self.dropout_rate, deterministic=not self.train)
        x = constrain_tokens(x)
        batch, tokens, _ = x.shape
        kept = None
        if self.train and self.dropout_rate:
            shape = (batch, self.num_heads, tokens, tokens)
            kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.dropout_rate, shape)
            kept = kept.astype(jnp.float32) / (1 - self.dropout_rate)
        attention = Attention(self.num_heads, implementation=self.attention, dtype=self.dtype, name="attention")
        x = layer_norm(self.norm_epsilon, self.dtype, "norm1")(x + drop(attention(x, probability_mask=kept)))
        hidden = round(self.mlp_ratio * x.shape[-1])
        y = Mlp(hidden, activation=self.activation, dtype=self.dtype, name="mlp")(x)
        x = layer_norm(self.norm_epsilon, self.dtype, "norm2")(x + drop(y))
        return x, x


class Bert(nn.Module):
    """Ids to the logits of every id of the vocabulary; the head shares its last matrix with the embedding.

    Attributes:
        vocabulary_size: rows of the embedding.
        length: most tokens; positions are learned.
        depth, width, num_heads, mlp_ratio, dropout_rate: of the blocks.
        norm_epsilon: of all LayerNorms.
        attention, remat, unroll, dtype: see `Block` and `scan_blocks`.
    """

    vocabulary_size: int
    length: int
    depth: int = 12
    width: int = 768
    num_heads: int = 12
    mlp_ratio: float = 4.0
    dropout_rate: float = 0.0
    norm_epsilon: float = 1e-12
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(
        self, ids: Int[Array, "batch tokens"], *, train: bool = False
    ) -> tuple[Float[Array, "batch tokens vocabulary"], dict[str, Array]]:
        """Logits, and 'embedded', 'levels' (all blocks' outputs) and 'encoded' (the last one's).

        Raises:
            ValueError: more tokens than positions.
        """
        if ids.shape[1] > self.length:
            raise ValueError(f"{ids.shape[1]} tokens, but there are positions for {self.length}")
        init = nn.initializers.truncated_normal(STD)
        words = nn.Embed(self.vocabulary_size, self.width, embedding_init=init, dtype=self.dtype, name="embed")
        places = self.param("positions", init, (self.length, self.width))
        x = words(ids) + places[: ids.shape[1]].astype(self.dtype or jnp.float32)
        x = layer_norm(self.norm_epsilon, self.dtype, "embed_norm")(x)
        embedded = x
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        block = PostNormBlock(
            self.num_heads,
            mlp_ratio=self.mlp_ratio,
            attention=self.attention,
            norm_epsilon=self.norm_epsilon,
            dropout_rate=self.dropout_rate,
            train=train,
            dtype=self.dtype,
        )
        nothing = jnp.zeros(self.depth)
        x, levels = scan_blocks(self, block, self.depth, x, nothing, remat=self.remat, unroll=self.unroll)
        y = nn.Dense(self.width, kernel_init=init, dtype=self.dtype, name="head_hidden")(x)
        y = layer_norm(self.norm_epsilon, self.dtype, "head_norm")(ACTIVATIONS["gelu_tanh"](y))
        bias = self.param("head_bias", nn.initializers.zeros, (self.vocabulary_size,))
        logits = words.attend(y).astype(jnp.float32) + bias
        return logits, {"embedded": embedded, "levels": levels, "encoded": x}
