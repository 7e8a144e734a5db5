"""From tokens to one vector an image."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo.layers.attention import Attention
from transformer_zoo.layers.mlp import Mlp
from transformer_zoo.layers.norms import layer_norm


class AttentionPool(nn.Module):
    """A learned probe attends to all tokens, then an MLP (the MAP head of Zhai et al. 2022, arXiv 2106.04560)."""

    num_heads: int
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    norm_epsilon: float = 1e-6
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
        batch, _, width = tokens.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, width))
        query = jnp.broadcast_to(probe.astype(tokens.dtype), (batch, 1, width))
        y: Any = Attention(self.num_heads, dtype=self.dtype, name="attention")(query, tokens)
        normed = layer_norm(self.norm_epsilon, self.dtype, "norm")(y)
        hidden = round(self.mlp_ratio * width)
        y = y + Mlp(hidden, activation=self.activation, dtype=self.dtype, name="mlp")(normed)
        return y[:, 0]
