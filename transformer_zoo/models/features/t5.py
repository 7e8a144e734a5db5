"""T5's encoder: captions as vectors a word (Raffel et al. 2020, arXiv 1910.10683, section 2.1).

Pre-norm blocks without any bias: norms only scale (RMS), logits are not scaled by the head's width, and places are told
by a bias of the logits, one number a head for every class of distances, which all blocks share. Version 1.0 has MLPs
with ReLU, version 1.1 gates them by GELU (Shazeer 2020, arXiv 2002.05202). Weights come from transformers.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from transformer_zoo.layers.attention import Attention
from transformer_zoo.layers.blocks import scan_blocks
from transformer_zoo.layers.constraints import constrain_batch
from transformer_zoo.layers.mlp import Mlp

PAD = 0


def distance_classes(length: int, num_classes: int, max_distance: int) -> Int[np.ndarray, "length length"]:
    """Class of the distance from each query (rows) to each key.

    Half of the classes are for keys behind the query. Of a half, the first half is for single distances, the rest grows
    with the logarithm up to `max_distance`, beyond which all distances are in the last one.
    """
    apart = np.arange(length)[None] - np.arange(length)[:, None]
    half = num_classes // 2
    exact = half // 2
    size = np.abs(apart)
    ratio = np.log(np.maximum(size, 1).astype(np.float32) / exact) / math.log(max_distance / exact)
    large = np.minimum(exact + (ratio * (half - exact)).astype(np.int32), half - 1)
    return np.where(apart > 0, half, 0) + np.where(size < exact, size, large)


class T5Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Attributes:
        num_heads, head_dim: of the attention.
        hidden: width between the MLP's layers.
        activation, gated: of the MLP.
        norm_epsilon: of both norms.
        dtype: of the computation.
    """

    num_heads: int
    head_dim: int
    hidden: int
    activation: str
    gated: bool
    norm_epsilon: float
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        nothing: Any,
        bias: Float[Array, "1 heads tokens tokens"],
        mask: Bool[Array, "batch 1 1 tokens"],
    ) -> tuple[Float[Array, "batch tokens width"], Float[Array, "batch tokens width"]]:
        """Hands on x; `mask` is False for padding."""
        x = constrain_batch(x)
        attention = Attention(
            self.num_heads, self.head_dim, qkv_bias=False, out_bias=False, scale=1.0, dtype=self.dtype, name="attention"
        )
        y: Any = attention(nn.RMSNorm(self.norm_epsilon, self.dtype, name="norm1")(x), bias=bias, mask=mask)
        x = x + y
        mlp = Mlp(self.hidden, self.activation, self.gated, use_bias=False, dtype=self.dtype, name="mlp")
        x = x + mlp(nn.RMSNorm(self.norm_epsilon, self.dtype, name="norm2")(x))
        return x, x


class T5Encoder(nn.Module):
    """Word ids to a vector a word.

    Attributes:
        vocabulary_size: rows of the embedding.
        depth, width, num_heads, head_dim: of the blocks; heads need not share out the width.
        hidden: width between an MLP's layers.
        activation: 'relu' (1.0) or 'gelu_tanh' (1.1).
        gated: whether MLPs are gated (1.1).
        num_distances, max_distance: see `distance_classes`.
        norm_epsilon: of the norms.
        remat, unroll, dtype: see `scan_blocks`.
    """

    vocabulary_size: int = 32128
    depth: int = 24
    width: int = 4096
    num_heads: int = 64
    head_dim: int = 64
    hidden: int = 10240
    activation: str = "gelu_tanh"
    gated: bool = True
    num_distances: int = 32
    max_distance: int = 128
    norm_epsilon: float = 1e-6
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    fields = ("words",)  # of the outputs, what `text_features` gives
    length = 128  # of captions, unless told otherwise
    pad = PAD

    @nn.compact
    def __call__(
        self, ids: Int[Array, "batch tokens"]
    ) -> tuple[Float[Array, "batch tokens width"], dict[str, Float[Array, "depth batch tokens width"]]]:
        """Vectors of all words, those of padding included, and 'levels', all blocks' outputs; id 0 is padding."""
        normal = nn.initializers.normal(1.0)
        x = nn.Embed(self.vocabulary_size, self.width, embedding_init=normal, dtype=self.dtype, name="embed")(ids)
        table = self.param("distances", nn.initializers.normal(0.02), (self.num_distances, self.num_heads))
        classes = distance_classes(ids.shape[1], self.num_distances, self.max_distance)
        bias = table[classes].transpose(2, 0, 1)[None]
        mask = (ids != PAD)[:, None, None]
        block = T5Block(
            self.num_heads,
            self.head_dim,
            self.hidden,
            self.activation,
            self.gated,
            self.norm_epsilon,
            self.dtype,
        )
        options: dict[str, Any] = dict(remat=self.remat, unroll=self.unroll)
        x, levels = scan_blocks(self, block, self.depth, x, jnp.zeros(self.depth), bias, mask, **options)
        return nn.RMSNorm(self.norm_epsilon, self.dtype, name="norm")(x), {"levels": levels}

    def text_features(self, ids: Int[Array, "batch tokens"]) -> dict[str, Float[Array, "batch tokens width"]]:
        """'words': the vectors of words, zeros for padding, which a caption that is left out has everywhere."""
        words, _ = self(ids)
        return {"words": jnp.where((ids != PAD)[..., None], words, 0).astype(jnp.float32)}
