"""DiVAE: 4M's tokenizer whose decoder is a diffusion model of pixels given codes (Shi et al. 2022, arXiv 2206.00386).

The encoder and the codes are those of `tokenizers`. The decoder, a UNet on small patches of noised pixels beside the
codes of their places, predicts the clean pixels ("sample" prediction). Reference: apple/ml-4m, `fourm/vq/models/unet`;
equal to it.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from transformer_zoo.layers.attention import HeadProjection, attend
from transformer_zoo.layers.constraints import constrain_batch
from transformer_zoo.layers.convolutions import Downsample, map_of, tokens_of
from transformer_zoo.layers.convolutions_3d import upsample_nearest
from transformer_zoo.layers.patches import patchify, unpatchify
from transformer_zoo.layers.quantizers.interface import Quantized
from transformer_zoo.layers.quantizers.vector import CosineQuantizer
from transformer_zoo.models.multimodal.fourm.tokenizers import Found, Maps, NewMaps, ViTEncoder

Times = Int[Array, "batch"] | Float[Array, "batch"]
Vectors = Float[Array, "batch width"]


class FourMDiVAE(nn.Module):
    """Encoder, codes and diffusion decoder; sizes are the paper's for images of 224 pixels.

    Attributes:
        image_size, patch_size, channels: of the images.
        depth, width, num_heads, mlp_ratio: of the encoder.
        latent_width, num_codes, commitment_weight, decay, dead_share: see `CosineQuantizer`.
        decoder_patch_size: rows and columns of the decoder's patches.
        decoder_width, multipliers, num_blocks, attention_levels: see `UNet`.
        remat, unroll, dtype: of the encoder's blocks.
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
    decoder_patch_size: tuple[int, int] = (4, 4)
    decoder_width: int = 256
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 3
    attention_levels: tuple[int, ...] = (2, 3)
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
        rows, columns = self.decoder_patch_size
        self.decoder = UNet(
            rows * columns * self.channels,
            self.decoder_width,
            self.multipliers,
            self.num_blocks,
            self.attention_levels,
            self.dtype,
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


def repeat_to(codes: Maps, grid: tuple[int, int]) -> NewMaps:
    """Each place of `grid` gets the code whose part of the picture it begins in."""
    for axis, places in enumerate(grid, start=1):
        codes = jnp.take(codes, np.arange(places) * codes.shape[axis] // places, axis=axis)
    return codes


class UNet(nn.Module):
    """Residual blocks that know the time, at ever lower resolution and back, with skips across (ADM's).

    Attributes:
        out_width: channels of the result.
        width: channels of the first level.
        multipliers: of the width, one a level; sides halve between levels.
        num_blocks: residual blocks of a level going down; one more going up.
        attention_levels: levels whose blocks attend; the middle always does.
        dtype: of the computation.
    """

    out_width: int
    width: int = 256
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 3
    attention_levels: tuple[int, ...] = (2, 3)
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps, times: Times) -> tuple[NewMaps, Found]:
        """The result, and 'time', 'down', 'middle' and 'up', the outputs of the blocks."""
        shared = dict(kernel_init=nn.initializers.lecun_normal(), dtype=self.dtype)
        time = nn.Dense(4 * self.width, name="time1", **shared)(time_embedding(times, self.width))
        time = nn.Dense(4 * self.width, name="time2", **shared)(nn.silu(time))

        def block(x: Array, level: int, name: str, attends: bool) -> Array:
            x = TimedResidualBlock(self.width * self.multipliers[level], self.dtype, name=name)(x, time)
            return MapAttention(self.dtype, name=f"{name}_attention")(x) if attends else x

        x = nn.Conv(self.width * self.multipliers[0], (3, 3), name="stem", **shared)(x)
        down, last = [x], len(self.multipliers) - 1
        for level in range(last + 1):
            for number in range(self.num_blocks):
                x = block(x, level, f"down{level}_block{number}", level in self.attention_levels)
                down.append(x)
            if level < last:
                x = Downsample(x.shape[-1], dtype=self.dtype, name=f"down{level}")(x)
                down.append(x)
        x = block(x, last, "middle1", True)
        x = middle = block(x, last, "middle2", False)
        skips, up = list(down), []
        for level in reversed(range(last + 1)):
            for number in range(self.num_blocks + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = block(x, level, f"up{level}_block{number}", level in self.attention_levels)
                up.append(x)
            if level:
                x = nn.Conv(x.shape[-1], (3, 3), name=f"up{level}", **shared)(upsample_nearest(x, (2, 2)))
        x = nn.silu(_group_norm("norm", self.dtype)(x))
        head = nn.Conv(self.out_width, (3, 3), kernel_init=nn.initializers.zeros, dtype=self.dtype, name="head")
        return head(x).astype(jnp.float32), {"time": time, "down": down, "middle": middle, "up": up}


class TimedResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; the time is added before the second norm."""

    width: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps, time: Vectors) -> NewMaps:
        def convolution(name: str, kernel_size: int = 3, zero: bool = False) -> nn.Conv:
            init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
            return nn.Conv(self.width, (kernel_size, kernel_size), kernel_init=init, dtype=self.dtype, name=name)

        x = constrain_batch(x)
        y = convolution("conv1")(nn.silu(_group_norm("norm1", self.dtype)(x)))
        y = y + nn.Dense(self.width, dtype=self.dtype, name="time")(nn.silu(time))[:, None, None]
        y = convolution("conv2", zero=True)(nn.silu(_group_norm("norm2", self.dtype)(y)))
        return y + (x if x.shape[-1] == self.width else convolution("shortcut", 1)(x))


class MapAttention(nn.Module):
    """One head of self-attention among all places of a map, on a residual branch."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        tokens = tokens_of(x)
        normed = _group_norm("norm", self.dtype)(tokens)
        parts = HeadProjection(3, 1, x.shape[-1], dtype=self.dtype, name="qkv")(normed)
        y = attend(*parts)[:, :, 0]
        y = nn.Dense(x.shape[-1], kernel_init=nn.initializers.zeros, dtype=self.dtype, name="out")(y)
        return x + map_of(y, x.shape[1:3])


def _group_norm(name: str, dtype: Any) -> nn.GroupNorm:
    return nn.GroupNorm(32, epsilon=1e-5, use_fast_variance=False, dtype=dtype, name=name)


def time_embedding(times: Times, width: int) -> Vectors:
    """Cosines, then sines, of times at frequencies 10000^(-i / n), n = width / 2."""
    half = width // 2
    angles = times[:, None].astype(jnp.float32) * 10000.0 ** (-jnp.arange(half) / half)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
