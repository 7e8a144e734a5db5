"""An encoder of captions, trained with the network that reads them: the stand-in for T5 and CLIP on embedded data."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_zoo.layers.blocks import Block, drop_path_rates, scan_blocks
from transformer_zoo.layers.norms import layer_norm


class CaptionEncoder(nn.Module):
    """Word ids, 0 for padding, to a vector a word, and one for the whole caption: the state at its last word.

    Attributes:
        vocabulary_size: rows of the embedding.
        length: most words; positions are learned.
        deviation: at which words and positions start: CLIP's, where T5 has 1.
        depth, width, num_heads, unroll, dtype: see `Block` and `scan_blocks`.
    """

    vocabulary_size: int
    length: int
    depth: int = 2
    width: int = 128
    num_heads: int = 4
    deviation: float = 0.02
    unroll: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(
        self, ids: Int[Array, "batch words"]
    ) -> tuple[Float[Array, "batch words width"], Float[Array, "batch width"]]:
        normal = nn.initializers.normal(self.deviation)
        words = nn.Embed(self.vocabulary_size, self.width, embedding_init=normal, dtype=self.dtype, name="embed")
        places = self.param("positions", normal, (self.length, self.width))
        x = words(ids) + places[: ids.shape[1]].astype(self.dtype or jnp.float32)
        rates = drop_path_rates(0.0, self.depth)
        block = Block(self.num_heads, dtype=self.dtype)
        x, _ = scan_blocks(self, block, self.depth, x, rates, unroll=self.unroll)
        x = layer_norm(dtype=self.dtype, name="norm")(x)
        last = jnp.maximum((ids != 0).sum(axis=1) - 1, 0)
        return x, jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
