"""Quantizers without a table: every channel is rounded on its own, and an id is the number its digits spell."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from transformer_zoo.layers.quantizers.interface import (
    Ids,
    Latents,
    Quantized,
    Weights,
    mean_where,
    squared_error,
    straight_through,
)

LARGEST = 2**31 - 1  # of an id in int32
EPSILON = 1e-5  # in the logarithm of codes' shares, as the reference has it


class FiniteScalarQuantizer(nn.Module):
    """FSQ (Mentzer et al. 2023, arXiv 2309.15505): tanh bounds a channel, rounding leaves `levels[i]` values of it.

    Values are multiples of 1 / (levels // 2) within [-1, 1]; even levels lie asymmetrically, from -1 on, and z = 0 is
    a level of its own. Ids count with the first channel as the lowest digit. There is nothing to train and no loss.

    Attributes:
        levels: how many values each channel has.
    """

    levels: tuple[int, ...]

    def setup(self) -> None:
        if min(self.levels) < 2 or math.prod(self.levels) > LARGEST:
            raise ValueError(f"levels is {self.levels}; each must be at least 2, and their product below 2^31")

    @property
    def num_codes(self) -> int:
        """How many codes there are."""
        return math.prod(self.levels)

    @property
    def width(self) -> int:
        """Channels of a latent."""
        return len(self.levels)

    def __call__(self, z: Latents, weights: Weights | None = None, *, train: bool = False) -> Quantized:
        """Codes for latents [..., width]."""
        z = z.astype(jnp.float32)
        levels = np.asarray(self.levels)
        half = (levels - 1) * 1.001 / 2  # a little wider, so that the outermost values can be reached
        offset = np.where(levels % 2 == 0, 0.5, 0.0)
        bounded = jnp.tanh(z + np.arctanh(offset / half)) * half - offset
        digits = straight_through(bounded, jnp.round(bounded))
        steps = jnp.round(bounded).astype(jnp.int32) + levels // 2
        ids = (steps * self._places()).sum(-1).astype(jnp.int32)
        return Quantized(digits / (levels // 2), ids)

    def lookup(self, ids: Ids) -> Latents:
        """The codes of ids."""
        levels = np.asarray(self.levels)
        steps = ids[..., None] // self._places() % levels
        return ((steps - levels // 2) / (levels // 2)).astype(jnp.float32)

    def _places(self) -> Any:
        return np.cumprod((1, *self.levels[:-1])).astype(np.int32)


def bit_entropy(logits: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Entropy of a bit that is one with probability sigmoid(logits), exact also where that is all but 0 or 1."""
    size = jnp.abs(logits)
    return jax.nn.softplus(-size) + size * jax.nn.sigmoid(-size)


def group_shares(logits: Float[Array, "*places bits"]) -> Float[Array, "*places codes"]:
    """Probabilities of all 2^bits codes of independent bits, the first bit the lowest."""
    shares = jnp.ones((*logits.shape[:-1], 1), logits.dtype)
    for bit in range(logits.shape[-1]):
        zero, one = jax.nn.sigmoid(-logits[..., bit, None]), jax.nn.sigmoid(logits[..., bit, None])
        shares = jnp.concatenate([shares * zero, shares * one], axis=-1)
    return shares


class LookupFreeQuantizer(nn.Module):
    """LFQ (Yu et al. 2023, arXiv 2310.05737, section 3.1): a channel's sign is a bit of the id, the lowest first.

    The entropy loss is `sample_weight` times the mean entropy of a place's soft code minus `batch_weight` times the
    entropy of the batch's mean soft code, where p(code) is the softmax of 2 z . code / temperature. Its bits are
    independent, so the first term is a sum over bits; the second is taken over groups of `group_bits` bits and added
    up (equation 6 and what follows it), so that 2^18 codes are never laid out. It is exact with one group, and an upper
    bound of the joint entropy with several.

    Attributes:
        bits: channels of a latent; there are 2^bits codes.
        entropy_weight: of the entropy loss.
        commitment_weight: of mean((z - sg(code))^2).
        temperature: of the soft codes; 4 z / 0.01 saturates fast, so the logarithms are exact.
        sample_weight, batch_weight: see above.
        group_bits: bits of a group; 2^group_bits values a place are held.
    """

    bits: int
    entropy_weight: float = 0.1
    commitment_weight: float = 0.25
    temperature: float = 0.01
    sample_weight: float = 1.0
    batch_weight: float = 1.0
    group_bits: int = 9

    def setup(self) -> None:
        if not 1 <= self.bits <= 30:
            raise ValueError(f"bits is {self.bits}, but must lie within 1 and 30")

    @property
    def num_codes(self) -> int:
        """How many codes there are."""
        return 2**self.bits

    @property
    def width(self) -> int:
        """Channels of a latent."""
        return self.bits

    def __call__(self, z: Latents, weights: Weights | None = None, *, train: bool = False) -> Quantized:
        """Codes for latents [..., bits]."""
        z = z.astype(jnp.float32)
        ones = z > 0
        values = jnp.where(ones, 1.0, -1.0)
        ids = (ones * 2 ** np.arange(self.bits)).sum(-1).astype(jnp.int32)
        logits = 4 * z / self.temperature
        sample = mean_where(bit_entropy(logits).sum(-1), weights)
        batch = self._batch_entropy(logits, weights)
        losses = {
            "commitment": self.commitment_weight * squared_error(z, values, weights),
            "entropy": self.entropy_weight * (self.sample_weight * sample - self.batch_weight * batch),
        }
        return Quantized(straight_through(z, values), ids, losses, {"sample_entropy": sample, "batch_entropy": batch})

    def lookup(self, ids: Ids) -> Latents:
        """The codes of ids: signs [..., bits]."""
        return jnp.where(ids[..., None] >> np.arange(self.bits) & 1, 1.0, -1.0)

    def _batch_entropy(self, logits: Latents, weights: Weights | None) -> Float[Array, ""]:
        entropy = jnp.zeros(())
        for first in range(0, self.bits, self.group_bits):
            shares = group_shares(logits[..., first : first + self.group_bits])
            mean = jax.vmap(lambda column: mean_where(column, weights), in_axes=-1)(shares)
            entropy -= (mean * jnp.log(mean + EPSILON)).sum()
        return entropy
