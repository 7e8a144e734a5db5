"""Swin Transformer: Hierarchical Vision Transformer using Shifted Windows (Liu et al., ICCV 2021, arXiv 2103.14030).

Attention stays inside windows of 7 x 7 tokens, so its cost grows with the image's area and not with the square of it;
every second block shifts the windows by half, so that neighbours meet; between stages 2 x 2 tokens merge into one of
twice the width.
Reference: microsoft/Swin-Transformer (MIT); equal to timm's `swin_*` and transformers' `SwinModel` on equal weights.
Sizes stand in `zoo/papers/swin.toml`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from transformer_zoo.layers.blocks import drop_path_rates, scan_blocks
from transformer_zoo.layers.constraints import constrain_batch
from transformer_zoo.layers.convolutions import PatchMerging, map_of, tokens_of
from transformer_zoo.layers.depths import pyramid_depths
from transformer_zoo.layers.mlp import Mlp
from transformer_zoo.layers.norms import DropPath, layer_norm
from transformer_zoo.layers.patches import PatchEmbed, grid_of
from transformer_zoo.layers.windows import WindowAttention

Map = Float[Array, "batch height width channels"]


class SwinBlock(nn.Module):
    """x + window_attention(norm(x)), then x + mlp(norm(x)), on a map (equation 3).

    Attributes:
        num_heads, window_size, relative_bias, attention: see `WindowAttention`.
        mlp_ratio: hidden width of the MLP over the block's.
        norm_epsilon: of the LayerNorms.
        train: whether drop path applies.
        dtype: of the computation.
    """

    num_heads: int
    window_size: int
    relative_bias: bool = True
    mlp_ratio: float = 4.0
    attention: str = "auto"
    norm_epsilon: float = 1e-5
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Map, scanned: tuple[Any, Any]) -> tuple[Map, None]:
        """`scanned` is this block's drop path rate, and whether its windows are shifted."""
        drop_path_rate, shifted = scanned
        x = constrain_batch(x)
        y = WindowAttention(
            self.num_heads,
            (self.window_size, self.window_size),
            relative_bias=self.relative_bias,
            implementation=self.attention,
            dtype=self.dtype,
            name="window",
        )(layer_norm(self.norm_epsilon, self.dtype, "norm1")(x), shifted)
        x = x + DropPath(self.train, name="attention_drop")(y, drop_path_rate)
        y = layer_norm(self.norm_epsilon, self.dtype, "norm2")(x)
        y = Mlp(round(self.mlp_ratio * x.shape[-1]), dtype=self.dtype, name="mlp")(y)
        return x + DropPath(self.train, name="mlp_drop")(y, drop_path_rate), None


class Swin(nn.Module):
    """The pyramid, with a linear head where `num_classes` is not 0.

    Attributes:
        num_classes: width of the head; 0 leaves it out.
        image_size: (height, width) in pixels that it is made for; other inputs work, as no parameter depends on it.
        patch_size: (height, width) in pixels of the first tokens.
        channels: of the image.
        depths: blocks a stage.
        width: of the first stage; each further stage has twice that of the one before.
        num_heads: a stage.
        window_size: rows and columns of a window in tokens.
        mlp_ratio, norm_epsilon, attention: see `SwinBlock`.
        relative_bias, shifted: relative position biases and shifted windows, the paper's two ablations (table 4).
        level_norms: whether each level in `aux` has a LayerNorm of its own, as dense heads want it.
        drop_path_rate: of the last block, growing linearly from 0 in the first.
        remat, unroll: see `scan_blocks`.
        dtype: of the computation; parameters stay float32.
    """

    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (4, 4)
    channels: int = 3
    depths: tuple[int, ...] = (2, 2, 6, 2)
    width: int = 96
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    relative_bias: bool = True
    shifted: bool = True
    level_norms: bool = False
    norm_epsilon: float = 1e-5
    attention: str = "auto"
    drop_path_rate: float = 0.0
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    def layer_numbers(self, params: Any) -> Any:
        """Layer number of every parameter, see `pyramid_depths`."""
        return pyramid_depths(params, self.depths)

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> tuple[Float[Array, "batch out"], dict[str, Any]]:
        """Logits [batch, num_classes], or with no head the pooled vector; and named intermediates.

        Of these 'patches' are the first tokens, 'levels' the maps [batch, rows, columns, width] that the stages end
        with, 'tokens' the last of them normalised, as a sequence, and 'pooled' what the head reads.

        Raises:
            ValueError: an image that patches do not tile, or stages whose depths and heads differ in number.
        """
        if len(self.depths) != len(self.num_heads):
            raise ValueError(f"depths {self.depths} and num_heads {self.num_heads} must have one entry a stage each")
        grid = grid_of((images.shape[1], images.shape[2]), self.patch_size)
        x = map_of(PatchEmbed(self.width, self.patch_size, dtype=self.dtype, name="patch_embed")(images), grid)
        x = layer_norm(self.norm_epsilon, self.dtype, "patch_norm")(x)
        aux: dict[str, Any] = {"patches": tokens_of(x)}
        rates = drop_path_rates(self.drop_path_rate, sum(self.depths))
        levels = []
        for stage, (depth, num_heads) in enumerate(zip(self.depths, self.num_heads)):
            if stage:
                x = PatchMerging(self.norm_epsilon, self.dtype, name=f"stage{stage}_merging")(x)
            block = SwinBlock(
                num_heads,
                self.window_size,
                relative_bias=self.relative_bias,
                mlp_ratio=self.mlp_ratio,
                attention=self.attention,
                norm_epsilon=self.norm_epsilon,
                train=train,
                dtype=self.dtype,
            )
            first = sum(self.depths[:stage])
            scanned = rates[first : first + depth], self.shifted & (np.arange(depth) % 2 == 1)
            name = f"stage{stage}_blocks"
            x, _ = scan_blocks(self, block, depth, x, scanned, name=name, remat=self.remat, unroll=self.unroll)
            normed = layer_norm(self.norm_epsilon, self.dtype, f"stage{stage}_norm")(x) if self.level_norms else x
            levels.append(normed)
        tokens = layer_norm(self.norm_epsilon, self.dtype, "norm")(tokens_of(x))
        pooled = tokens.mean(axis=1)
        aux |= {"levels": tuple(levels), "tokens": tokens, "pooled": pooled}
        if not self.num_classes:
            return pooled, aux
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="head")
        return head(pooled).astype(jnp.float32), aux
