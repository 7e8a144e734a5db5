"""Attention: one function for every implementation, one module for every transformer block."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from transformer_zoo.layers.norms import layer_norm


def attend(
    query: Float[Array, "batch queries heads dim"],
    key: Float[Array, "batch keys heads dim"],
    value: Float[Array, "batch keys heads value_dim"],
    *,
    bias: Float[Array, "#batch #heads #queries keys"] | None = None,
    mask: Bool[Array, "#batch #heads #queries keys"] | None = None,
    scale: float | None = None,
    implementation: str = "auto",
) -> Float[Array, "batch queries heads value_dim"]:
    """softmax(query key^T * scale + bias) value, softmax in float32; `mask` is True where a key may be seen."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32) * scale
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(logits).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", probabilities, value)


class HeadProjection(nn.Module):
    """Dense layer to `parts` x heads x head_dim: kernel [width, parts, heads, head_dim], initialised part by part."""

    parts: int
    num_heads: int
    head_dim: int
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> tuple[Float[Array, "batch tokens heads dim"], ...]:
        shape = (self.parts, self.num_heads, self.head_dim)
        initializer = nn.initializers.variance_scaling(1, "fan_avg", "uniform", 0, (2, 3), (1,))
        kernel = self.param("kernel", initializer, (x.shape[-1], *shape))
        bias = self.param("bias", nn.initializers.zeros, shape) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = jnp.einsum("bnd,dphk->bnphk", x, kernel)
        y = y if bias is None else y + bias
        return tuple(y[:, :, part] for part in range(self.parts))


class Attention(nn.Module):
    """Multi-head self-attention, or cross-attention where `context` is given.

    Attributes:
        num_heads: number of heads; `width % num_heads == 0` unless `head_dim` is given.
        head_dim: width of a head; 0 means width / num_heads.
        qkv_bias: whether query, key and value projections have biases.
        out_bias: whether the output projection has one.
        qk_norm: LayerNorm over the head axis of queries and keys.
        scale: of the logits; None means head_dim^-0.5.
        implementation: see `attend`.
        dtype: of the computation; parameters and the softmax stay float32.
    """

    num_heads: int
    head_dim: int = 0
    qkv_bias: bool = True
    out_bias: bool = True
    qk_norm: bool = False
    scale: float | None = None
    implementation: str = "auto"
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch queries width"],
        context: Float[Array, "batch keys context_width"] | None = None,
        *,
        bias: Float[Array, "#batch #heads #queries keys"] | None = None,
        mask: Bool[Array, "#batch #heads #queries keys"] | None = None,
    ) -> Float[Array, "batch queries width"]:
        width = x.shape[-1]
        head_dim = self.head_dim or width // self.num_heads
        shared = dict(num_heads=self.num_heads, head_dim=head_dim, use_bias=self.qkv_bias, dtype=self.dtype)
        if context is None:
            query, key, value = HeadProjection(3, name="qkv", **shared)(x)
        else:
            (query,) = HeadProjection(1, name="q", **shared)(x)
            key, value = HeadProjection(2, name="kv", **shared)(context)
        if self.qk_norm:
            query = layer_norm(dtype=self.dtype, name="q_norm")(query)
            key = layer_norm(dtype=self.dtype, name="k_norm")(key)
        y = attend(query, key, value, bias=bias, mask=mask, scale=self.scale, implementation=self.implementation)
        return nn.DenseGeneral(
            width,
            axis=(-2, -1),
            use_bias=self.out_bias,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            name="out",
        )(y)
