"""4M's encoder as a ViT: pixels alone, every patch, and a head for what is to be learned (section 4.1).

A pretraining run gives its weights by name: `input_embedding_rgb` and `modality_embedding_rgb` of the modality that
holds pixels, and `encoder`. Reference: apple/ml-4m (Apache-2.0), `fourm/models/fm_vit.py`; equal to it.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo.layers.convolutions import map_of
from transformer_zoo.layers.depths import layer_depths
from transformer_zoo.layers.detection import DetectionHead, DetectionMaps
from transformer_zoo.layers.mlp import mlp_width
from transformer_zoo.layers.patches import PatchEmbed, grid_of
from transformer_zoo.models.multimodal.fourm.embeddings import grid_table
from transformer_zoo.models.multimodal.fourm.model import Encoder
from transformer_zoo.models.multimodal.fourm.tokenizers import ConvNeXtBlock

HEADS = ("none", "mean", "dense", "detection")
STEM = r"^(patches|modality_embedding|registers)(/|$)"


class FourMViT(nn.Module):
    """Patches, encoder, head.

    Attributes:
        image_size, patch_size: (height, width) in pixels.
        channels: of the image.
        head: 'none' gives all tokens, 'mean' classifies their mean, 'dense' predicts `num_classes` channels a pixel,
            'detection' boxes of `num_classes` classes, in another way than the paper's, see `Detector`.
        num_classes: of the head; 0 means that 'mean' gives the vector itself.
        dense_width, dense_blocks: channels and ConvNeXt blocks of a map 4 times as fine as patches, on which 'dense'
            and 'detection' stand.
        tower_depth: of 'detection', see `DetectionHead`.
        depth, width, num_heads, mlp_ratio, activation, gated, use_bias, qk_norm, num_registers, drop_path_rate,
            norm_epsilon, attention, remat, unroll, dtype: see `FourM`.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    channels: int = 3
    head: str = "mean"
    num_classes: int = 1000
    dense_width: int = 384
    dense_blocks: int = 4
    tower_depth: int = 4
    depth: int = 12
    width: int = 768
    num_heads: int = 12
    mlp_ratio: float = 4.0
    activation: str = "silu"
    gated: bool = True
    use_bias: bool = False
    qk_norm: bool = False
    num_registers: int = 0
    drop_path_rate: float = 0.0
    norm_epsilon: float = 1e-6
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    def layer_numbers(self, params: Any) -> Any:
        """Layer number of every parameter: 0 the embeddings, 1 to depth the blocks, depth + 1 the rest."""
        return layer_depths(params, self.depth, STEM)

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> tuple[Float[Array, "batch *out"] | DetectionMaps, dict[str, Any]]:
        """What the head says, and 'patches', 'positions', 'levels', 'tokens' (after the last norm) and 'pooled'.

        Raises:
            ValueError: an unknown head, or an image that patches do not tile.
        """
        if self.head not in HEADS:
            raise ValueError(f"head {self.head!r} is none of {', '.join(HEADS)}")
        size = (images.shape[1], images.shape[2])
        grid, normal = grid_of(size, self.patch_size), nn.initializers.normal(0.02)
        patches = PatchEmbed(self.width, self.patch_size, use_bias=False, dtype=self.dtype, name="patches")(images)
        positions = grid_table(grid, self.width) + self.param("modality_embedding", normal, (self.width,))
        x = patches + positions.astype(patches.dtype)
        if self.num_registers:
            registers = self.param("registers", normal, (self.num_registers, self.width)).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(registers, (len(x), *registers.shape)), x], axis=1)
        hidden = mlp_width(self.width, self.mlp_ratio)
        encoder = Encoder(
            depth=self.depth,
            num_heads=self.num_heads,
            hidden=int(2 * hidden / 3) if self.gated else hidden,
            activation=self.activation,
            gated=self.gated,
            use_bias=self.use_bias,
            qk_norm=self.qk_norm,
            drop_path_rate=self.drop_path_rate,
            norm_epsilon=self.norm_epsilon,
            attention=self.attention,
            remat=self.remat,
            unroll=self.unroll,
            dtype=self.dtype,
            name="encoder",
        )
        x, levels = encoder(x, jnp.ones((len(x), 1, 1, x.shape[1]), bool), train=train)
        tokens = x[:, self.num_registers :]
        pooled = tokens.mean(axis=1)
        aux = {"patches": patches, "positions": positions, "levels": levels, "tokens": tokens, "pooled": pooled}
        if self.head == "none":
            return tokens, aux
        if self.head == "dense":
            head = DenseHead(self.num_classes, self.dense_width, self.dense_blocks, dtype=self.dtype, name="head")
            return head(map_of(tokens, grid), size), aux
        if self.head == "detection":
            fine = self.dense_width, self.dense_blocks, self.tower_depth
            detector = Detector(self.num_classes, *fine, dtype=self.dtype, name="head")
            return detector(map_of(tokens, grid), size), aux
        if not self.num_classes:
            return pooled, aux
        classify = nn.Dense(self.num_classes, kernel_init=normal, dtype=self.dtype, name="head")
        return classify(pooled).astype(jnp.float32), aux


class DenseHead(nn.Module):
    """A linear map of every token to 4 x 4 finer places, ConvNeXt blocks, and logits enlarged to the image.

    Attributes:
        channels: of the result: classes, or one for depth.
        width: of the fine map.
        depth: ConvNeXt blocks.
        dtype: of the computation.
    """

    channels: int
    width: int = 384
    depth: int = 4
    dtype: Any = None

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch rows columns dim"], size: tuple[int, int]
    ) -> Float[Array, "batch height width channels"]:
        x = fine_map(tokens, self.width, self.depth, self.dtype)
        y = nn.Dense(self.channels, dtype=self.dtype, name="logits")(x).astype(jnp.float32)
        return jax.image.resize(y, (len(tokens), *size, self.channels), "bilinear")


class Detector(nn.Module):
    """FCOS on the fine map of `DenseHead`.

    The paper fine-tunes for COCO with ViTDet's pyramid and Cascade Mask R-CNN (section 4.1): anchors, three stages of
    boxes, and masks. This is none of that: one map, one stage and no masks, small enough to train in a minute. Its
    figures compare encoders with each other, not with the paper's.

    Attributes:
        num_classes: of objects.
        width: of the fine map.
        depth: ConvNeXt blocks.
        tower_depth: see `DetectionHead`.
        dtype: of the computation.
    """

    num_classes: int
    width: int = 384
    depth: int = 4
    tower_depth: int = 4
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: Float[Array, "batch rows columns dim"], size: tuple[int, int]) -> DetectionMaps:
        x = fine_map(tokens, self.width, self.depth, self.dtype)
        return DetectionHead(self.num_classes, self.tower_depth, dtype=self.dtype, name="detection")(x, size)


def fine_map(
    tokens: Float[Array, "batch rows columns dim"], width: int, depth: int, dtype: Any
) -> Float[Array, "batch fine_rows fine_columns width"]:
    """A linear map of every token to 4 x 4 finer places, and ConvNeXt blocks; parameters are the calling module's."""
    batch, rows, columns, _ = tokens.shape
    x = nn.Dense(16 * width, dtype=dtype, name="spread")(tokens)
    x = x.reshape(batch, rows, columns, 4, 4, width).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(batch, 4 * rows, 4 * columns, width)
    for number in range(depth):
        x = ConvNeXtBlock(dtype=dtype, name=f"block{number}")(x)
    return x
