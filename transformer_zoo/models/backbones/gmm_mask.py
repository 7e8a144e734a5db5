"""GMM mask: Toward a Deeper Understanding: RetNet Viewed through Convolution (Li et al. 2024, arXiv 2309.05375).

A small ViT whose attention logits are MULTIPLIED, before the softmax, by a mixture of Gaussians of the distance between
two tokens. Two numbers a Gaussian and head are learned, a spread sigma and an amplitude alpha: locality for almost no
parameters, which helps where images are few. A mask of zero means attention to everything alike, not to nothing. The
paper's baseline `slm` learns a free number for every pair of tokens instead. Reference:
CatworldLee/Gaussian-Mixture-Mask-Attention. Sizes stand in `zoo/papers/gmm_mask.toml`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo.layers.attention import Attention
from transformer_zoo.layers.blocks import scan_blocks
from transformer_zoo.layers.constraints import constrain_tokens
from transformer_zoo.layers.depths import layer_depths
from transformer_zoo.layers.distances import grid_distances
from transformer_zoo.layers.mlp import Mlp
from transformer_zoo.layers.norms import DropPath, layer_norm
from transformer_zoo.layers.patches import PatchEmbed, grid_of
from transformer_zoo.layers.positions import LearnedPositions

MASKS = ("gmm", "slm", "none")
EPSILON = 1e-5  # added to sigma^2, as in the reference


class GaussianMixtureMask(nn.Module):
    """Sum over kernels k of alpha_k exp(-d^2 / (2 (sigma_k^2 + 1e-5))), d in grid units (equation 8).

    Attributes:
        num_heads: each has sigmas and alphas of its own.
        num_kernels: Gaussians a head.
    """

    num_heads: int
    num_kernels: int

    @nn.compact
    def __call__(self, squared_distances: Float[Array, "tokens tokens"]) -> Float[Array, "heads tokens tokens"]:
        shape = (self.num_kernels, self.num_heads)
        sigma = self.param("sigma", lambda key, shape: 10 + 10 * nn.initializers.normal(1.0)(key, shape), shape)
        alpha = self.param("alpha", nn.initializers.normal(2.0), shape)
        spread = 2 * (jnp.square(sigma) + EPSILON)
        return (alpha[..., None, None] * jnp.exp(-squared_distances / spread[..., None, None])).sum(axis=0)


class MaskedAttentionBlock(nn.Module):
    """x + attention(norm(x)) with multiplied logits, then x + mlp(norm(x)).

    Attributes:
        num_heads, mlp_ratio, attention: see `Block`.
        mask, num_kernels: what multiplies the logits, see `GMMViT`.
        drop_path_rate: the same in every block.
        train: whether drop path applies.
        dtype: of the computation.
    """

    num_heads: int
    mlp_ratio: float
    mask: str
    num_kernels: int
    drop_path_rate: float = 0.0
    attention: str = "auto"
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        scanned: None,
        squared_distances: Float[Array, "places places"],
    ) -> tuple[Float[Array, "batch tokens width"], tuple[Array, Array]]:
        """The block's output; and again, with the output of its attention before the sum."""
        x = constrain_tokens(x)
        multiplier = None
        if self.mask == "gmm":
            multiplier = GaussianMixtureMask(self.num_heads, self.num_kernels, name="mask")(squared_distances)[None]
        elif self.mask == "slm":
            multiplier = self.param("pair_mask", nn.initializers.zeros, squared_distances.shape)[None, None]
        attended: Any = Attention(
            self.num_heads, qkv_bias=False, implementation=self.attention, dtype=self.dtype, name="attention"
        )(layer_norm(1e-5, self.dtype, "norm1")(x), logit_multiplier=multiplier)
        x = x + DropPath(self.train, name="attention_drop")(attended, self.drop_path_rate)
        y = layer_norm(1e-5, self.dtype, "norm2")(x)
        y = Mlp(round(self.mlp_ratio * x.shape[-1]), dtype=self.dtype, name="mlp")(y)
        x = x + DropPath(self.train, name="mlp_drop")(y, self.drop_path_rate)
        return x, (x, attended)


class GMMViT(nn.Module):
    """The encoder with a linear head on the mean of its tokens.

    Attributes:
        num_classes: width of the head; 0 leaves it out.
        image_size: (height, width) in pixels for which positions are stored; other inputs have them resized.
        patch_size: (height, width) in pixels.
        channels: of the image.
        depth, width, num_heads, mlp_ratio: of the encoder.
        mask: 'gmm', 'slm' (a learned number a pair, shared by heads, from 0) or 'none'.
        num_kernels: Gaussians a head.
        class_token: pool by a class token instead of the mean, as the paper's unmasked baseline does.
        drop_path_rate: of every block, no ramp.
        attention: implementation, see `attend`.
        remat, unroll: see `scan_blocks`.
        dtype: of the computation; parameters stay float32.
    """

    num_classes: int = 10
    image_size: tuple[int, int] = (32, 32)
    patch_size: tuple[int, int] = (4, 4)
    channels: int = 3
    depth: int = 9
    width: int = 192
    num_heads: int = 12
    mlp_ratio: float = 2.0
    mask: str = "gmm"
    num_kernels: int = 5
    class_token: bool = False
    drop_path_rate: float = 0.1
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    def layer_numbers(self, params: Any) -> Any:
        """Layer number of every parameter, see `layer_depths`."""
        return layer_depths(params, self.depth)

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        squared_distances: Float[Array, "places places"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "batch out"], dict[str, Array]]:
        """Logits [batch, num_classes], or with no head the pooled vector; and named intermediates.

        Of these 'patches' stand before positions, 'levels' [depth, batch, tokens, width] are every block's output,
        'attended' likewise what each attention adds, 'tokens' the last of them and 'pooled' what the head reads.

        Args:
            images: of any size that patches tile; with `mask='slm'` of `image_size`.
            squared_distances: between patches, by default those of their grid.
            train: whether drop path applies.

        Raises:
            ValueError: an unknown mask, a mask beside a class token, or an image that patches do not tile.
        """
        if self.mask not in MASKS:
            raise ValueError(f"mask {self.mask!r} is none of {', '.join(MASKS)}")
        if self.class_token and self.mask != "none":
            raise ValueError(f"mask {self.mask!r} is a function of places, and a class token has none; leave one out")
        grid = grid_of((images.shape[1], images.shape[2]), self.patch_size)
        patches = PatchEmbed(self.width, self.patch_size, dtype=self.dtype, name="patch_embed")(images)
        prefix = int(self.class_token)
        own = grid_of(self.image_size, self.patch_size)
        table = LearnedPositions(own, self.width, std=1.0, prefix=prefix, name="positions")(grid)
        x = patches
        if self.class_token:
            token = self.param("class_token", nn.initializers.normal(1.0), (1, self.width))
            token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.width))
            x = jnp.concatenate([token, x], axis=1)
        x = x + table.astype(x.dtype)
        block = MaskedAttentionBlock(
            self.num_heads,
            self.mlp_ratio,
            self.mask,
            self.num_kernels,
            drop_path_rate=self.drop_path_rate,
            attention=self.attention,
            train=train,
            dtype=self.dtype,
        )
        if squared_distances is None:
            squared_distances = jnp.asarray(grid_distances(grid, "squared"))
        x, (levels, attended) = scan_blocks(
            self, block, self.depth, x, None, squared_distances, remat=self.remat, unroll=self.unroll
        )
        pooled = layer_norm(1e-5, self.dtype, "norm")(x[:, 0] if self.class_token else x.mean(axis=1))
        aux = {"patches": patches, "levels": levels, "attended": attended, "tokens": x[:, prefix:], "pooled": pooled}
        if not self.num_classes:
            return pooled, aux
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="head")
        return head(pooled).astype(jnp.float32), aux
