"""Memcodes: several heads, each choosing one value of a memory of its own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_zoo.layers.quantizers.interface import Latents, Quantized, Weights


class Memcodes(nn.Module):
    """Product codes by attention (4M's tokenizers of global features, arXiv 2312.06647, after Mama et al. 2021).

    A head's part of the latent is a query; keys and values are two learned maps of the head's table. Training samples
    by gumbel noise and passes the gradient of the softmax; otherwise the best key wins. There is no loss.

    Attributes:
        num_codes: of a head.
        width: channels of a latent, split evenly among the heads.
        num_heads: ids of a latent.
    """

    num_codes: int
    width: int
    num_heads: int = 8

    def setup(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} of Memcodes is no multiple of num_heads {self.num_heads}")
        dim = self.width // self.num_heads
        maps = nn.initializers.lecun_normal(batch_axis=0)
        self.embedding = self.param("embedding", nn.initializers.normal(1.0), (self.num_heads, self.num_codes, dim))
        self.key = self.param("key", maps, (self.num_heads, dim, dim))
        self.value = self.param("value", maps, (self.num_heads, dim, dim))

    def __call__(
        self,
        z: Latents,
        weights: Weights | None = None,
        *,
        train: bool = False,
        noise: Float[Array, "*places heads codes"] | None = None,
    ) -> Quantized:
        """Codes for latents [..., width]; ids are [..., heads]. `noise` stands in for the gumbel draws of training."""
        z = z.astype(jnp.float32)
        dim = self.width // self.num_heads
        queries = z.reshape(*z.shape[:-1], self.num_heads, dim) * dim**-0.5
        keys = jnp.einsum("hkd,hde->hke", self.embedding, self.key, precision="highest")
        logits = jnp.einsum("...hd,hkd->...hk", queries, keys, precision="highest")
        if train:
            noise = jax.random.gumbel(self.make_rng("dropout"), logits.shape) if noise is None else noise
            logits = logits + noise
        ids = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        soft, hard = jax.nn.softmax(logits), jax.nn.one_hot(ids, self.num_codes)
        chosen = hard + soft - jax.lax.stop_gradient(soft) if train else hard
        values = jnp.einsum("...hk,hkd->...hd", chosen, self._values(), precision="highest")
        return Quantized(values.reshape(z.shape), ids)

    def lookup(self, ids: Int[Array, "*places heads"]) -> Latents:
        """The codes of ids."""
        values = self._values()[jnp.arange(self.num_heads), ids]
        return values.reshape(*ids.shape[:-1], self.width)

    def _values(self) -> Float[Array, "heads codes dim"]:
        return jnp.einsum("hkd,hde->hke", self.embedding, self.value, precision="highest")
