"""Uniformly random masks, and the index form in which every masked encoder takes its mask."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


class Mask(flax.struct.PyTreeNode):
    """Which tokens are hidden, as indices, so that an encoder can leave the hidden ones out.

    Attributes:
        keep: [batch, kept] indices of the visible tokens, in the order in which the encoder sees them.
        restore: [batch, tokens] where each token stands in (visible tokens, hidden tokens).
        hidden: [batch, tokens] 1.0 where a token is hidden.
    """

    keep: Any
    restore: Any
    hidden: Any


def num_kept(num_tokens: int, mask_ratio: float) -> int:
    """Visible tokens: the count of kept ones is rounded down, not that of hidden ones (MAE's rule)."""
    return int(num_tokens * (1 - mask_ratio))


def mask_from_scores(scores: Float[Array, "batch tokens"], kept: int) -> Mask:
    """Keeps the `kept` tokens of lowest score, in order of their scores; ties go to the earlier token."""
    shuffle = jnp.argsort(scores, axis=1, stable=True)
    restore = jnp.argsort(shuffle, axis=1, stable=True)
    return Mask(keep=shuffle[:, :kept], restore=restore, hidden=(restore >= kept).astype(jnp.float32))


def random_mask(key: Key[Array, ""], batch: int, num_tokens: int, mask_ratio: float) -> Mask:
    """Hides a random `mask_ratio` of the tokens of every sample (He et al. 2022, arXiv 2111.06377, section 3)."""
    return mask_from_scores(jax.random.uniform(key, (batch, num_tokens)), num_kept(num_tokens, mask_ratio))


def take_tokens(tokens: Float[Array, "batch tokens width"], indices: Int[Array, "batch taken"]) -> Array:
    """The tokens at `indices`, sample by sample: [batch, taken, width]."""
    return jnp.take_along_axis(tokens, indices[:, :, None], axis=1)
