"""CLIP's text encoder (Radford et al. 2021, arXiv 2103.00020, section 2.4) at OpenAI's and OpenCLIP's sizes.

A causal transformer over 77 tokens; the state at the end token, which is the largest id, stands for the whole caption
and is projected to the space that pictures share. Generators read the states before the last block (Meissonic, Stable
Diffusion 2) or the last ones. Weights come from transformers, OpenAI and OpenCLIP.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_zoo.layers.blocks import Block, drop_path_rates, scan_blocks
from transformer_zoo.layers.norms import layer_norm


class CLIPText(nn.Module):
    """Token ids to a vector a token, and one for the whole.

    Attributes:
        vocabulary_size: rows of the embedding.
        length: most tokens.
        depth, width, num_heads, mlp_ratio: of the blocks.
        activation: 'quick_gelu' (OpenAI) or 'gelu' (OpenCLIP's ViT-H/14).
        projection_width: of the space that pictures share; 0 leaves the projection out.
        remat, unroll, dtype: see `scan_blocks`.
    """

    vocabulary_size: int = 49408
    length: int = 77
    depth: int = 12
    width: int = 768
    num_heads: int = 12
    mlp_ratio: float = 4.0
    activation: str = "quick_gelu"
    projection_width: int = 768
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    fields = ("words", "pooled")  # of the outputs, what `text_features` gives

    @property
    def pad(self) -> int:
        """The id that stands behind a caption's end: the end token again, the last of the vocabulary."""
        return self.vocabulary_size - 1

    @nn.compact
    def __call__(self, ids: Int[Array, "batch tokens"]) -> tuple[Float[Array, "batch tokens width"], dict[str, Array]]:
        """Normalised states, and 'levels', all blocks' outputs [depth, batch, tokens, width], and 'pooled'.

        Args:
            ids: with the end token, the largest id, in every row; what follows it is not seen by 'pooled', the state at
                its first place [batch, width], or where there is a projection [batch, projection_width].
        """
        normal = nn.initializers.normal(0.02)
        words = nn.Embed(self.vocabulary_size, self.width, embedding_init=normal, dtype=self.dtype, name="embed")
        places = self.param("positions", nn.initializers.normal(0.01), (self.length, self.width))
        x = words(ids) + places[: ids.shape[1]].astype(self.dtype or jnp.float32)
        block = Block(
            self.num_heads,
            self.mlp_ratio,
            self.activation,
            causal=True,
            norm_epsilon=1e-5,
            dtype=self.dtype,
        )
        rates = drop_path_rates(0.0, self.depth)
        x, levels = scan_blocks(self, block, self.depth, x, rates, remat=self.remat, unroll=self.unroll)
        x = layer_norm(1e-5, self.dtype, "norm")(x)
        pooled = jnp.take_along_axis(x, ids.argmax(axis=1)[:, None, None], axis=1)[:, 0]
        if self.projection_width:
            pooled = nn.Dense(self.projection_width, use_bias=False, dtype=self.dtype, name="projection")(pooled)
        return x, {"levels": levels, "pooled": pooled}

    def text_features(self, ids: Int[Array, "batch tokens"]) -> dict[str, Array]:
        """'words', the states before the last block, which no norm has seen, and 'pooled'."""
        _, aux = self(ids)
        return {"words": aux["levels"][-2].astype(jnp.float32), "pooled": aux["pooled"].astype(jnp.float32)}
