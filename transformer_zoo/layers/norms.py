"""Normalisations, layer scale and drop path. Statistics are float32 whatever the compute dtype."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def layer_norm(
    epsilon: float = 1e-6, dtype: Any = None, name: str | None = None, affine: bool = True, use_bias: bool = True
) -> nn.LayerNorm:
    """LayerNorm over the last axis with the two-pass variance, which stays equal to torch's for large means."""
    return nn.LayerNorm(
        epsilon, dtype=dtype, name=name, use_fast_variance=False, use_bias=affine and use_bias, use_scale=affine
    )


def unit_length(x: Float[Array, "*batch width"], epsilon: float) -> Float[Array, "*batch width"]:
    """Vectors by their length plus `epsilon`; one of zeros stays, and has a gradient of zero rather than none."""
    return x / (jnp.sqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-30)) + epsilon)


class LayerScale(nn.Module):
    """Multiplies by a learned vector (Touvron et al. 2021, arXiv 2103.17239)."""

    initial: float
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        scale = self.param("scale", nn.initializers.constant(self.initial), (x.shape[-1],))
        return x * scale.astype(x.dtype)


class DropPath(nn.Module):
    """Drops whole samples of a residual branch and scales up the rest (Huang et al. 2016, arXiv 1603.09382)."""

    train: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch *rest"], rate: Float[Array, ""] | float) -> Float[Array, "batch *rest"]:
        if not self.train:
            return x
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
        return jnp.where(kept, x / (1 - jnp.asarray(rate, x.dtype)), 0).astype(x.dtype)
