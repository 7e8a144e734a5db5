"""Blocks in which two kinds of tokens, such as words and image tokens, attend together: MMDiT's and FLUX's.

Two-stream blocks (Esser et al. 2024, arXiv 2403.03206, section 4) keep weights of their own for each kind and share
only the attention; single-stream blocks (Dehghani et al. 2023, arXiv 2302.05442, section 2.1; FLUX.1) treat all tokens
alike, attention and MLP side by side. Both are modulated by a vector (AdaLN-Zero).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo.layers.attention import HeadProjection, attend
from transformer_zoo.layers.constraints import constrain_tokens
from transformer_zoo.layers.mlp import ACTIVATIONS, Mlp
from transformer_zoo.layers.norms import layer_norm
from transformer_zoo.layers.rope import Rope, apply_rope

Heads = Float[Array, "batch tokens heads dim"]


def modulation(
    condition: Float[Array, "batch width"], parts: int, width: int, dtype: Any, name: str
) -> list[Float[Array, "batch 1 width"]]:
    """`parts` vectors for every sample, zero at first; called inside of a compact method."""
    dense = nn.Dense(parts * width, kernel_init=nn.initializers.zeros, dtype=dtype, name=name)
    return jnp.split(dense(jax.nn.silu(condition))[:, None], parts, axis=-1)


class StreamAttention(nn.Module):
    """Queries, keys and values of one kind of tokens, queries and keys normalised by RMS, and their output projection.

    Attributes:
        width: of the tokens.
        num_heads, head_dim: of the attention.
        use_out: whether there is an output projection.
        dtype: of the computation.
    """

    width: int
    num_heads: int
    head_dim: int
    use_out: bool = True
    dtype: Any = None

    def setup(self) -> None:
        self.qkv = HeadProjection(3, self.num_heads, self.head_dim, dtype=self.dtype)
        self.q_norm = nn.RMSNorm(dtype=self.dtype)
        self.k_norm = nn.RMSNorm(dtype=self.dtype)
        if self.use_out:
            self.out = nn.DenseGeneral(
                self.width, axis=(-2, -1), kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype
            )

    def project(self, x: Float[Array, "batch tokens width"]) -> tuple[Heads, Heads, Heads]:
        """Queries, keys, values."""
        query, key, value = self.qkv(x)
        return self.q_norm(query), self.k_norm(key), value

    def output(self, y: Heads) -> Float[Array, "batch tokens width"]:
        """What goes back into the stream."""
        return self.out(y)


def joint_attention(
    query: Heads, key: Heads, value: Heads, rope: Rope | None, implementation: str
) -> Float[Array, "batch tokens heads dim"]:
    """Attention of all tokens to all, turned by their places."""
    if rope is not None:
        query, key = apply_rope(query, rope), apply_rope(key, rope)
    return attend(query, key, value, implementation=implementation)


class TwoStreamBlock(nn.Module):
    """Joint attention of (text, image), each with its own projections, modulation and MLP.

    Attributes:
        num_heads, head_dim, mlp_ratio, attention, dtype: see `layers.blocks.Block`.
    """

    num_heads: int
    head_dim: int
    mlp_ratio: float = 4.0
    attention: str = "auto"
    dtype: Any = None

    @nn.compact
    def __call__(
        self, streams: tuple[Array, Array], scanned: Any, condition: Float[Array, "batch width"], rope: Rope | None
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """(text [batch, words, width], image [batch, tokens, width]); `rope` is of text, then image."""
        norm = layer_norm(1e-6, self.dtype, affine=False)
        names, given, halves, projected = ("text_", ""), [], [], []
        for name, x in zip(names, streams):
            x = constrain_tokens(x)
            parts = modulation(condition, 6, x.shape[-1], self.dtype, f"{name}modulation")
            half = StreamAttention(
                x.shape[-1], self.num_heads, self.head_dim, dtype=self.dtype, name=f"{name}attention"
            )
            given.append((x, parts))
            halves.append(half)
            projected.append(half.project(norm(x) * (1 + parts[1]) + parts[0]))
        query, key, value = (jnp.concatenate(parts, axis=1) for parts in zip(*projected))
        y = joint_attention(query, key, value, rope, self.attention)
        words = streams[0].shape[1]
        found = []
        for name, half, (x, parts), own in zip(names, halves, given, (y[:, :words], y[:, words:])):
            x = x + parts[2] * half.output(own)
            hidden = round(self.mlp_ratio * x.shape[-1])
            mlp = Mlp(hidden, activation="gelu_tanh", dtype=self.dtype, name=f"{name}mlp")
            found.append(x + parts[5] * mlp(norm(x) * (1 + parts[4]) + parts[3]))
        return (found[0], found[1]), (found[0], found[1])


class SingleStreamBlock(nn.Module):
    """X + gate * out([attention(y), mlp(y)]), y the modulated norm of all tokens.

    Attributes:
        num_heads, head_dim, mlp_ratio, attention, dtype: see `layers.blocks.Block`.
    """

    num_heads: int
    head_dim: int
    mlp_ratio: float = 4.0
    attention: str = "auto"
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        scanned: Any,
        condition: Float[Array, "batch width"],
        rope: Rope | None,
    ) -> tuple[Float[Array, "batch tokens width"], Float[Array, "batch tokens width"]]:
        width = x.shape[-1]
        x = constrain_tokens(x)
        shift, scale, gate = modulation(condition, 3, width, self.dtype, "modulation")
        y = layer_norm(1e-6, self.dtype, affine=False)(x) * (1 + scale) + shift
        half = StreamAttention(width, self.num_heads, self.head_dim, False, self.dtype, name="attention")
        attended = joint_attention(*half.project(y), rope, self.attention)

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name=name)

        hidden = ACTIVATIONS["gelu_tanh"](dense(round(self.mlp_ratio * width), "up")(y))
        both = jnp.concatenate([attended.reshape(*x.shape[:2], -1), hidden], axis=-1)
        x = x + gate * dense(width, "down")(both)
        return x, x
