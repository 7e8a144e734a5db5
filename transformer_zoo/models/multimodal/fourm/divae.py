"""DiVAE: 4M's tokenizer whose decoder is a diffusion model of pixels given codes (Shi et al. 2022, arXiv 2206.00386).

The encoder and the codes are those of `tokenizers`. The decoder predicts the clean pixels ("sample" prediction): a
`UNet` on small patches of noised pixels beside the codes of their places, or a `UViT`. Reference: apple/ml-4m,
`fourm/vq/vqvae.py`; equal to it with the UNet.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from transformer_zoo import naming
from transformer_zoo.layers.convolutions import map_of, tokens_of
from transformer_zoo.layers.patches import patchify, unpatchify
from transformer_zoo.layers.quantizers.interface import Quantized
from transformer_zoo.layers.quantizers.vector import CosineQuantizer
from transformer_zoo.models.multimodal.fourm.tokenizers import Found, Maps, NewMaps, ViTEncoder
from transformer_zoo.models.multimodal.fourm.unet import Times, UNet, repeat_to
from transformer_zoo.models.multimodal.fourm.uvit import UViT

DECODERS = ("unet", "uvit")


class FourMDiVAE(nn.Module):
    """Encoder, codes and diffusion decoder; sizes are the paper's for images of 224 pixels.

    Attributes:
        image_size, patch_size, channels: of the images.
        depth, width, num_heads, mlp_ratio: of the encoder.
        latent_width, num_codes, commitment_weight, decay, dead_share: see `CosineQuantizer`.
        decoder_kind: 'unet' or 'uvit'.
        decoder_patch_size: rows and columns of the decoder's patches.
        decoder_width, multipliers, num_blocks, attention_levels: see `UNet`; of a UViT its levels of convolutions.
        middle_depth, middle_width, middle_num_heads, conditioning, halve_middle, position_grid: see `UViT`.
        remat, unroll, dtype: of the transformers' blocks.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    channels: int = 3
    depth: int = 12
    width: int = 768
    num_heads: int = 12
    mlp_ratio: float = 4.0
    latent_width: int = 32
    num_codes: int = 16_384
    commitment_weight: float = 1.0
    decay: float = 0.99
    dead_share: float = 1 / 32
    decoder_kind: str = "unet"
    decoder_patch_size: tuple[int, int] = (4, 4)
    decoder_width: int = 256
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 3
    attention_levels: tuple[int, ...] = (2, 3)
    middle_depth: int = 12
    middle_width: int = 768
    middle_num_heads: int = 12
    conditioning: str = "concat"
    halve_middle: bool = True
    position_grid: tuple[int, int] = (32, 32)
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    def setup(self) -> None:
        stack = dict(depth=self.depth, num_heads=self.num_heads, mlp_ratio=self.mlp_ratio)
        self.encoder = ViTEncoder(
            self.image_size,
            self.patch_size,
            self.width,
            self.latent_width,
            stack | dict(remat=self.remat, unroll=self.unroll),
            self.dtype,
        )
        self.quantizer = CosineQuantizer(
            self.num_codes, self.latent_width, self.commitment_weight, self.decay, self.dead_share
        )
        if self.decoder_kind not in DECODERS:
            raise naming.unknown("decoder_kind", self.decoder_kind, DECODERS)
        levels: dict[str, Any] = dict(multipliers=self.multipliers, num_blocks=self.num_blocks, dtype=self.dtype)
        if self.decoder_kind == "uvit":
            self.decoder: Any = UViT(
                self.channels,
                self.decoder_patch_size,
                self.decoder_width,
                halve_middle=self.halve_middle,
                depth=self.middle_depth,
                middle_width=self.middle_width,
                num_heads=self.middle_num_heads,
                conditioning=self.conditioning,
                position_grid=self.position_grid,
                remat=self.remat,
                unroll=self.unroll,
                **levels,
            )
            return
        rows, columns = self.decoder_patch_size
        self.decoder = UNet(
            rows * columns * self.channels,
            self.decoder_width,
            attention_levels=self.attention_levels,
            **levels,
        )

    def encode(self, pixels: Maps, *, train: bool = False) -> tuple[Quantized, Found]:
        """Codes of pixels, and 'latents' and 'encoder', the encoder's intermediates."""
        latents, found = self.encoder(pixels)
        return self.quantizer(latents, train=train), {"latents": latents, "encoder": found}

    def tokenize(self, pixels: Maps) -> Int[Array, "batch rows columns"]:
        """Ids of pixels."""
        return self.encode(pixels)[0].ids

    def lookup(self, ids: Int[Array, "batch rows columns"]) -> NewMaps:
        """Codes of ids, what `denoise` is given."""
        return self.quantizer.lookup(ids)

    def denoise(
        self,
        noised: Maps,
        times: Times,
        codes: NewMaps,
        dropped: Bool[Array, "batch new_rows new_columns"] | None = None,
    ) -> tuple[Maps, Found]:
        """Clean pixels, predicted from noised ones.

        Args:
            noised: pixels at `times`.
            times: 0 to 999, of the noise.
            codes: of the clean pixels, on the encoder's grid, or any other.
            dropped: places whose code is not told.
        """
        if self.decoder_kind == "uvit":
            return self.decoder(noised, times, codes, dropped)
        codes = codes if dropped is None else jnp.where(dropped[..., None], 0.0, codes)
        rows, columns = self.decoder_patch_size
        grid = (noised.shape[1] // rows, noised.shape[2] // columns)
        patches = map_of(patchify(noised, self.decoder_patch_size), grid)
        spread = repeat_to(codes, grid)
        predicted, found = self.decoder(jnp.concatenate([patches, spread], axis=-1), times)
        return unpatchify(tokens_of(predicted), grid, self.decoder_patch_size), found

    def __call__(
        self,
        pixels: Maps,
        noised: Maps,
        times: Times,
        dropped: Bool[Array, "batch new_rows new_columns"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Maps, Found]:
        """The prediction, and 'ids', 'quantized', 'losses', 'metrics' (see `Quantized`), 'latents' and more."""
        codes, aux = self.encode(pixels, train=train)
        predicted, found = self.denoise(noised, times, codes.values, dropped)
        given = {"ids": codes.ids, "quantized": codes.values, "losses": codes.losses, "metrics": codes.metrics}
        return predicted, {**given, **aux, "decoder": found}
