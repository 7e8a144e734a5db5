"""MAE: Masked Autoencoders Are Scalable Vision Learners (He et al., CVPR 2022, arXiv 2111.06377).

The encoder, a plain ViT, sees only the visible quarter of the patches and no mask tokens; a small decoder gets the
encoded patches plus one learned mask token for every hidden patch, in the order of the image, and regresses pixels.
The objective is `tasks/masked_pixels.py`. Reference: facebookresearch/mae (CC-BY-NC 4.0: compared with, not copied);
equal to it and to transformers' `ViTMAEForPreTraining`. Sizes stand in `zoo/papers/mae.toml`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo.layers.blocks import Block, drop_path_rates, scan_blocks
from transformer_zoo.layers.norms import layer_norm
from transformer_zoo.layers.positions import sincos_2d
from transformer_zoo.masking.random import Mask, take_tokens
from transformer_zoo.models.backbones.vit import ViT


class MAE(nn.Module):
    """Encoder of the visible patches, decoder of all.

    Attributes:
        image_size, patch_size: (height, width) in pixels.
        channels: of the image.
        depth, width, num_heads, mlp_ratio: of the encoder.
        decoder_depth, decoder_width, decoder_num_heads: of the decoder; its mlp_ratio is the encoder's.
        norm_epsilon: of all LayerNorms.
        attention, remat, unroll: see `Block` and `scan_blocks`.
        dtype: of the computation; parameters stay float32.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    channels: int = 3
    depth: int = 12
    width: int = 768
    num_heads: int = 12
    mlp_ratio: float = 4.0
    decoder_depth: int = 8
    decoder_width: int = 512
    decoder_num_heads: int = 16
    norm_epsilon: float = 1e-6
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    def setup(self) -> None:
        self.encoder = ViT(
            num_classes=0,
            image_size=self.image_size,
            patch_size=self.patch_size,
            channels=self.channels,
            depth=self.depth,
            width=self.width,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            pool="none",
            positions="sincos_2d",
            norm_epsilon=self.norm_epsilon,
            attention=self.attention,
            remat=self.remat,
            unroll=self.unroll,
            dtype=self.dtype,
        )
        self.decoder = Decoder(
            out_width=self.patch_size[0] * self.patch_size[1] * self.channels,
            depth=self.decoder_depth,
            width=self.decoder_width,
            num_heads=self.decoder_num_heads,
            mlp_ratio=self.mlp_ratio,
            norm_epsilon=self.norm_epsilon,
            attention=self.attention,
            remat=self.remat,
            unroll=self.unroll,
            dtype=self.dtype,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at `image_size`."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    def __call__(
        self, images: Float[Array, "batch height width channels"], mask: Mask, *, train: bool = False
    ) -> tuple[Float[Array, "batch tokens pixels"], dict[str, Any]]:
        """Predicted pixels of every patch, (row, column, channel) inside a patch; only hidden ones are trained on.

        Returns:
            The prediction, and 'encoder' and 'decoder' with the named intermediates of both.
        """
        encoded, encoder_aux = self.encoder(images, mask.keep, train=train)
        grid = (images.shape[1] // self.patch_size[0], images.shape[2] // self.patch_size[1])
        prediction, decoder_aux = self.decoder(encoded, mask, grid)
        return prediction, {"encoder": encoder_aux, "decoder": decoder_aux}

    def encode(self, images: Float[Array, "batch height width channels"]) -> dict[str, Array]:
        """The encoder's intermediates on whole images: what a probe reads, see `ViT.__call__`."""
        return self.encoder(images)[1]


class Decoder(nn.Module):
    """Mask tokens put where patches are missing, fixed positions for all, a few blocks, one linear map to pixels."""

    out_width: int
    depth: int = 8
    width: int = 512
    num_heads: int = 16
    mlp_ratio: float = 4.0
    norm_epsilon: float = 1e-6
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(
        self, encoded: Float[Array, "batch kept_and_class encoder_width"], mask: Mask, grid: tuple[int, int]
    ) -> tuple[Float[Array, "batch tokens pixels"], dict[str, Array]]:
        embedded = nn.Dense(self.width, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="embed")(
            encoded
        )
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
        class_token, visible = embedded[:, :1], embedded[:, 1:]
        batch, num_tokens = mask.restore.shape
        hidden_shape = (batch, num_tokens - visible.shape[1], self.width)
        hidden = jnp.broadcast_to(mask_token.astype(visible.dtype), hidden_shape)
        tokens = take_tokens(jnp.concatenate([visible, hidden], axis=1), mask.restore)
        tokens = tokens + sincos_2d(grid, self.width, order="mae").astype(tokens.dtype)
        x = jnp.concatenate([class_token, tokens], axis=1)
        block = Block(
            self.num_heads,
            mlp_ratio=self.mlp_ratio,
            norm_epsilon=self.norm_epsilon,
            attention=self.attention,
            dtype=self.dtype,
        )
        rates = drop_path_rates(0.0, self.depth)
        x, levels = scan_blocks(self, block, self.depth, x, rates, remat=self.remat, unroll=self.unroll)
        x = layer_norm(self.norm_epsilon, self.dtype, "norm")(x)
        head = nn.Dense(
            self.out_width, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="prediction"
        )
        return head(x[:, 1:]).astype(jnp.float32), {"embedded": embedded, "levels": levels}
