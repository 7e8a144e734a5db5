"""Residual quantization: every level quantizes what the levels before it left over."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_zoo.layers.quantizers.interface import Latents, Quantized, Weights, straight_through

LevelIds = Int[Array, "*places levels"]


class ResidualQuantizer(nn.Module):
    """The sum of several quantizers' codes (Zeghidour et al. 2021, arXiv 2107.03312, section III-C).

    The gradient passes once, from the sum to the latents. A level that is dropped for a sample has the id -1 there and
    takes no part in its losses and averages.

    Attributes:
        quantizers: one a level; of one and the same width.
        dropout: the share of a training batch's samples that keep only the first n levels, n uniform from 1 to all.
    """

    quantizers: tuple[nn.Module, ...]
    dropout: float = 0.0

    def __call__(self, z: Latents, weights: Weights | None = None, *, train: bool = False) -> Quantized:
        """Codes for latents [batch, ..., width]; ids are [batch, ..., levels]; losses are sums over levels."""
        z = z.astype(jnp.float32)
        kept = self._kept(z.shape[0]) if train and self.dropout else None
        residual, total = z, jnp.zeros_like(z)
        ids: list[Array] = []
        losses: dict[str, Array] = {}
        for level, quantizer in enumerate(self.quantizers):
            used, counted = None, weights
            if kept is not None:
                used = jnp.broadcast_to((level < kept).reshape(-1, *(1,) * (z.ndim - 2)), z.shape[:-1])
                counted = used.astype(jnp.float32) if weights is None else used * weights
            found = quantizer(residual, counted, train=train)
            codes, chosen = jax.lax.stop_gradient(found.values), found.ids
            if used is not None:
                codes, chosen = jnp.where(used[..., None], codes, 0.0), jnp.where(used, chosen, -1)
            residual, total = residual - codes, total + codes
            ids.append(chosen)
            losses = {name: losses.get(name, 0.0) + loss for name, loss in found.losses.items()}
        return Quantized(straight_through(z, total), jnp.stack(ids, axis=-1), losses)

    def lookup(self, ids: LevelIds) -> Latents:
        """The sum of the codes of ids [..., levels]; ids of -1, and levels that are not there, add nothing."""
        total: Float[Array, "..."] = jnp.zeros(())
        for level in range(ids.shape[-1]):
            chosen = ids[..., level]
            codes = self.quantizers[level].lookup(jnp.maximum(chosen, 0))
            total = total + jnp.where(chosen[..., None] < 0, 0.0, codes)
        return total

    def _kept(self, batch: int) -> Int[Array, "batch"]:
        levels = len(self.quantizers)
        which, how_many = jax.random.split(self.make_rng("dropout"))
        dropped = jax.random.bernoulli(which, self.dropout, (batch,))
        return jnp.where(dropped, jax.random.randint(how_many, (batch,), 1, levels + 1), levels)
