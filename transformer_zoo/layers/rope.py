"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) over any number of axes."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Rope(flax.struct.PyTreeNode):
    """Cosines and sines by which `apply_rope` turns pairs of channels.

    Attributes:
        cos, sin: [..., tokens, heads, pairs], broadcast against [batch, tokens, heads, pairs]; heads is 1 where all
            heads turn alike. Rows are chosen by `jax.tree.map(lambda table: table[rows], rope)`.
        interleaved: pairs are channels (2i, 2i + 1), as in the paper, FLUX and LlamaGen; else (i, i + pairs), as in
            GPT-NeoX, LLaMA in transformers and DINOv3.
    """

    cos: Any
    sin: Any
    interleaved: bool = flax.struct.field(pytree_node=False, default=False)


def rope_tables(
    positions: np.ndarray,
    axis_widths: Sequence[int],
    *,
    theta: float = 10000.0,
    interleaved: bool = False,
    prefix: int = 0,
) -> Rope:
    """Tables for tokens at `positions`, computed in float64.

    Axis a turns `axis_widths[a]` channels, after those of the axes before it, by position * theta^(-2i/axis_widths[a]),
    i < axis_widths[a] / 2. Channels of the head past the sum of widths stay as they are.

    Args:
        positions: [tokens, axes], see `positions.grid_positions`; fractions are allowed.
        axis_widths: channels an axis; (head_dim / 2, head_dim / 2) for images.
        theta: the base of the wavelengths.
        interleaved: see `Rope`.
        prefix: tokens in front that have no position and are not turned (class token, registers).

    Raises:
        ValueError: an odd width, or another number of widths than of axes.
    """
    widths = tuple(axis_widths)
    if positions.shape[-1] != len(widths):
        raise ValueError(f"axis_widths {widths} must name one width for each of {positions.shape[-1]} axes")
    if any(width % 2 for width in widths):
        raise ValueError(f"axis_widths {widths} must be even")
    angles = np.concatenate(
        [
            positions[:, axis, None].astype(np.float64) * theta ** (-np.arange(0, width, 2) / width)
            for axis, width in enumerate(widths)
        ],
        axis=-1,
    )
    angles = np.pad(angles, ((prefix, 0), (0, 0)))[:, None]
    return Rope(jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32), interleaved)


def apply_rope(x: Float[Array, "batch tokens heads dim"], rope: Rope) -> Float[Array, "batch tokens heads dim"]:
    """Turns the first 2 * pairs channels of every head; float32 inside, the dtype of `x` outside.

    Raises:
        ValueError: the tables turn more channels than a head has.
    """
    pairs = rope.cos.shape[-1]
    if 2 * pairs > x.shape[-1]:
        raise ValueError(f"rope turns {2 * pairs} channels, but a head has {x.shape[-1]}; lower axis_widths")
    turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    if rope.interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned[..., :pairs], turned[..., pairs:]
    both = (first * rope.cos - second * rope.sin, second * rope.cos + first * rope.sin)
    y = jnp.stack(both, -1).reshape(turned.shape) if rope.interleaved else jnp.concatenate(both, -1)
    return jnp.concatenate([y.astype(x.dtype), rest], -1)
