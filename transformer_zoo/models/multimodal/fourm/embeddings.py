"""From a modality's values to the encoder's tokens and positions, and from the decoder's tokens to logits."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transformer_zoo.layers.patches import PatchEmbed
from transformer_zoo.layers.positions import grid_positions, sincos_1d, sincos_nd
from transformer_zoo.models.multimodal.fourm.modalities import Modality, Places

Embedded = Float[Array, "#batch places width"]


class Tokens(flax.struct.PyTreeNode):
    """One modality of a batch, masked.

    Attributes:
        values: pixels [batch, height, width, channels], ids [batch, places] or vectors [batch, places, width].
        inputs: bool [batch, places], what the encoder sees.
        targets: bool [batch, places], what is asked; of a sequence the first target is where it starts to be read.
    """

    values: Any
    inputs: Any
    targets: Any


def grid_table(grid: tuple[int, int], width: int) -> Float[Array, "places width"]:
    """Positions of a grid's places as the reference has them: [sin a, cos a, sin b, cos b] with a the slower index.

    Places run along rows, the table along columns, so that on a square grid `a` is the row; on others rows and columns
    are mixed up, which the reference does too.
    """
    return sincos_nd(grid_positions(grid[::-1]), width)


def counted_positions(visible: Places, table: Float[Array, "rows width"], limit: int) -> Float[Array, "batch n width"]:
    """The table's row for the how-manieth visible place each one is; 0 where hidden, row 0 from `limit` on."""
    number = jnp.cumsum(visible, axis=1) - 1
    rows = jnp.where(visible & (number < limit), number, 0)
    return jnp.where(visible[..., None], table[rows], 0.0)


class InputEmbedding(nn.Module):
    """A modality's tokens for the encoder.

    Attributes:
        modality: which.
        model_width: channels of the transformer.
        deviation: with which embeddings of ids and learned positions start.
        dtype: of the computation.
    """

    modality: Modality
    model_width: int
    deviation: float = 0.02
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: Tokens) -> tuple[Embedded, Embedded]:
        """What is there, and where it is."""
        modality, width = self.modality, self.model_width

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name=name)

        if modality.kind == "pixels":
            x = PatchEmbed(width, modality.patch_size, use_bias=False, dtype=self.dtype, name="patches")(tokens.values)
        elif modality.kind == "embeddings":
            values = dense(modality.bottleneck, "bottleneck")(tokens.values) if modality.bottleneck else tokens.values
            x = dense(width, "projection")(values)
        else:
            table = self.param("embedding", nn.initializers.normal(self.deviation), (modality.vocabulary, width))
            x = table[tokens.values]
        return x, positions(self, modality, width, tokens.inputs, modality.max_positions)


class OutputEmbedding(nn.Module):
    """A modality's target tokens for the decoder, and its logits.

    Attributes:
        modality: which.
        model_width: channels of the transformer.
        tied: whether logits are products with the table of token embeddings.
        deviation: with which embeddings of ids, if not tied, and learned positions start.
        dtype: of the computation.
    """

    modality: Modality
    model_width: int
    tied: bool = True
    deviation: float = 0.02
    dtype: Any = None

    def setup(self) -> None:
        shape, xavier = (self.modality.vocabulary, self.model_width), nn.initializers.xavier_uniform()
        normal = nn.initializers.normal(self.deviation)
        if self.tied or self.modality.kind == "sequence":  # nobody reads the embeddings of what is all masked
            self.embedding = self.param("embedding", xavier if self.tied else normal, shape)
        if not self.tied:
            self.logits_kernel = self.param("logits", xavier, shape[::-1])
        if self.modality.positions == "learned":
            table = (self.modality.places, self.model_width)
            self.position_table = self.param("positions", normal, table)

    def embed(
        self, tokens: Tokens, mask_token: Float[Array, "width"]
    ) -> tuple[Float[Array, "batch places width"], Float[Array, "#batch places width"]]:
        """What the decoder knows of each place, and where it is: ids of a sequence, mask tokens on a grid."""
        modality, width = self.modality, self.model_width
        if modality.kind == "sequence":
            limit = modality.decoder_length or modality.length
            table = sincos_1d(np.arange(modality.max_positions), width)
            return self.embedding[tokens.values], counted_positions(tokens.targets, table, limit)
        places = self.position_table if modality.positions == "learned" else grid_table(modality.grid, width)
        return jnp.broadcast_to(mask_token, (*tokens.values.shape, width)), places[None]

    def logits(self, x: Float[Array, "batch targets width"]) -> Float[Array, "batch targets vocabulary"]:
        """Logits of all ids at every target."""
        x, table = nn.dtypes.promote_dtype(x, self.logits_table(), dtype=self.dtype)
        return (x @ table.T).astype(jnp.float32)

    def logits_table(self) -> Float[Array, "vocabulary width"]:
        """A row for every id, whose products with the decoder's output are the logits."""
        return self.embedding if self.tied else self.logits_kernel.T


def positions(
    module: InputEmbedding, modality: Modality, width: int, visible: Places, limit: int
) -> Float[Array, "#batch places width"]:
    """Where a modality's places are; a learned table belongs to `module`."""
    if modality.kind in ("sequence", "embeddings"):
        return counted_positions(visible, sincos_1d(np.arange(modality.max_positions), width), limit)
    if modality.positions == "learned":
        return module.param("positions", nn.initializers.normal(module.deviation), (modality.places, width))[None]
    return grid_table(modality.grid, width)[None]


def take_ids(ids: Int[Array, "batch places"], indices: Int[Array, "batch taken"]) -> Int[Array, "batch taken"]:
    """The ids at `indices`, sample by sample."""
    return jnp.take_along_axis(ids, indices, axis=1)
