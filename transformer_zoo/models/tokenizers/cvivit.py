"""C-ViViT, Phenaki's tokenizer (Villegas et al., ICLR 2023, arXiv 2210.02399, section 2.1).

The first frame becomes tokens of its own, the others in pairs, and attention over time is causal, in the decoder too.
So clips of any length 1 + 2 n and single images are the same to one network, and a longer clip has the same beginning.
A transformer sees the tokens of one time step all to all, then one sees those of one place over time; the decoder does
it the other way round. Codes are looked up by angle among vectors of few channels (ViT-VQGAN, arXiv 2110.04627).

No official code is released; this is built from the paper. It leaves open, and here are: pre-norm blocks with GELU and
biases, a LayerNorm after each transformer, learned positions in space, fixed sine-cosine positions in time, and pixels
in [-1, 1] before they become tokens.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from transformer_zoo.layers.autoencoders import ALMOST_ZERO
from transformer_zoo.layers.blocks import Block, scan_blocks
from transformer_zoo.layers.norms import layer_norm
from transformer_zoo.layers.patches import grid_of, patchify, unpatchify
from transformer_zoo.layers.positions import LearnedPositions, sincos_1d
from transformer_zoo.layers.quantizers.vector import CosineQuantizer, VectorQuantizer
from transformer_zoo.models.tokenizers.tokenizer import Tokenizer

Clip = Float[Array, "batch frames height width channels"]
Tokens = Float[Array, "batch times places dim"]


def to_patches(clip: Clip, patch_size: tuple[int, int], patch_frames: int) -> tuple[Array, Array]:
    """Patches of the first frame [batch, 1, places, pixels], and of groups of frames [batch, times, places, pixels].

    Raises:
        ValueError: a number of frames that is not one and a multiple of `patch_frames`.
    """
    batch, frames, height, width, channels = clip.shape
    if (frames - 1) % patch_frames:
        raise ValueError(f"a clip has {frames} frames, but must have 1 + {patch_frames} n")
    times = (frames - 1) // patch_frames
    groups = clip[:, 1:].reshape(batch * times, patch_frames, height, width, channels).transpose(0, 2, 3, 1, 4)
    groups = patchify(groups.reshape(batch * times, height, width, patch_frames * channels), patch_size)
    return patchify(clip[:, 0], patch_size)[:, None], groups.reshape(batch, times, *groups.shape[1:])


def from_patches(
    first: Array, rest: Array, grid: tuple[int, int], patch_size: tuple[int, int], patch_frames: int
) -> Clip:
    """The inverse of `to_patches`."""
    frame = unpatchify(first[:, 0], grid, patch_size)[:, None]
    (batch, times), (height, width, channels) = rest.shape[:2], frame.shape[2:]
    groups = unpatchify(rest.reshape(batch * times, *rest.shape[2:]), grid, patch_size)
    groups = groups.reshape(batch * times, height, width, patch_frames, channels).transpose(0, 3, 1, 2, 4)
    return jnp.concatenate([frame, groups.reshape(batch, times * patch_frames, height, width, channels)], axis=1)


class Factorised(nn.Module):
    """A transformer over the places of each time step, and one over the times of each place.

    Attributes:
        spatial_depth, temporal_depth: blocks of either.
        grid: rows and columns of places.
        num_heads, mlp_ratio: of the blocks.
        time_first: the order of the two.
        remat, unroll: see `scan_blocks`.
        dtype: of the computation.
    """

    spatial_depth: int
    temporal_depth: int
    grid: tuple[int, int]
    num_heads: int
    mlp_ratio: float
    time_first: bool
    remat: str
    unroll: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        parts = [self._over_places, self._over_times]
        for part in reversed(parts) if self.time_first else parts:
            x = part(x)
        return x

    def _over_places(self, x: Tokens) -> Tokens:
        if not self.spatial_depth:
            return x
        y = x + LearnedPositions(self.grid, x.shape[-1], name="positions")(self.grid).astype(x.dtype)
        return self._transform(y.reshape(-1, *y.shape[2:]), "spatial", self.spatial_depth).reshape(x.shape)

    def _over_times(self, x: Tokens) -> Tokens:
        if not self.temporal_depth:
            return x
        batch, times, places, width = x.shape
        y = x + sincos_1d(np.arange(times), width)[:, None].astype(x.dtype)
        y = y.transpose(0, 2, 1, 3).reshape(batch * places, times, width)
        y = self._transform(y, "temporal", self.temporal_depth, causal=True)
        return y.reshape(batch, places, times, width).transpose(0, 2, 1, 3)

    def _transform(self, x: Array, name: str, depth: int, *, causal: bool = False) -> Array:
        block = Block(self.num_heads, self.mlp_ratio, causal=causal, dtype=self.dtype)
        unroll = min(self.unroll, depth)
        rates = jnp.zeros(depth)
        x, _ = scan_blocks(self, block, depth, x, rates, name=f"{name}_blocks", remat=self.remat, unroll=unroll)
        return layer_norm(dtype=self.dtype, name=f"{name}_norm")(x)


class Encoder(nn.Module):
    """Clips to latents; fields are those of `CViViT`, and `transformer` is its `Factorised`."""

    transformer: Factorised
    width: int
    latent_width: int
    patch_size: tuple[int, int]
    patch_frames: int
    dtype: Any = None

    @nn.compact
    def __call__(self, clip: Clip) -> tuple[Float[Array, "batch times rows columns dim"], dict[str, Any]]:
        """Latents, and the 'tokens' that come out of the transformers."""
        first, rest = to_patches(2 * clip - 1, self.patch_size, self.patch_frames)  # a mean near 0 lets patches differ
        x = nn.Dense(self.width, dtype=self.dtype, name="first_frame")(first)
        later = nn.Dense(self.width, dtype=self.dtype, name="frames")(rest)
        tokens = self.transformer(jnp.concatenate([x, later], axis=1))
        z = nn.Dense(self.latent_width, dtype=self.dtype, name="head")(tokens)
        return z.reshape(*z.shape[:2], *grid_of((clip.shape[2], clip.shape[3]), self.patch_size), -1), {
            "tokens": tokens
        }


class Decoder(nn.Module):
    """Codes to clips: the mirror of `Encoder`, with one linear map for the first frame and one for the others."""

    transformer: Factorised
    width: int
    channels: int
    patch_size: tuple[int, int]
    patch_frames: int
    dtype: Any = None

    @nn.compact
    def __call__(self, codes: Float[Array, "batch times rows columns dim"]) -> tuple[Clip, dict[str, Any]]:
        """Pixels, and the 'tokens' that come out of the transformers."""
        batch, times, rows, columns, _ = codes.shape
        x = nn.Dense(self.width, dtype=self.dtype, name="stem")(codes.reshape(batch, times, rows * columns, -1))
        x = self.transformer(x)
        pixels = self.patch_size[0] * self.patch_size[1] * self.channels
        grey: dict[str, Any] = {"kernel_init": ALMOST_ZERO, "bias_init": nn.initializers.constant(0.5)}
        first = nn.Dense(pixels, dtype=self.dtype, name="first_frame", **grey)(x[:, :1])
        rest = nn.Dense(pixels * self.patch_frames, dtype=self.dtype, name="frames", **grey)(x[:, 1:])
        return from_patches(first, rest, (rows, columns), self.patch_size, self.patch_frames), {"tokens": x}


class CViViT(Tokenizer):
    """Clips of 1 + 2 n frames to ids and back; sizes are those for 11 frames of 128 pixels.

    Attributes:
        num_frames, image_size: of the clips that it is trained for; any number 1 + 2 n of frames will do.
        channels: of a frame.
        patch_size: rows and columns of a patch.
        patch_frames: frames of a patch behind the first frame.
        width, num_heads, mlp_ratio: of all blocks.
        spatial_depth, temporal_depth: blocks of either transformer, in the encoder and in the decoder.
        latent_width, num_codes: shape of the codebook.
        commitment_weight, entropy_weight, entropy_temperature: see `VectorQuantizer`.
        dead_share: where above 0, codes follow their latents (averages of 0.9) and unused ones start anew, see
            `CosineQuantizer`, which knows no entropy; 0 has them learn by gradients, as the paper says.
        remat, unroll: see `scan_blocks`.
        dtype: of the computation.
    """

    num_frames: int = 11
    image_size: tuple[int, int] = (128, 128)
    channels: int = 3
    patch_size: tuple[int, int] = (8, 8)
    patch_frames: int = 2
    width: int = 512
    num_heads: int = 8
    mlp_ratio: float = 4.0
    spatial_depth: int = 4
    temporal_depth: int = 4
    latent_width: int = 32
    num_codes: int = 8192
    commitment_weight: float = 0.25
    entropy_weight: float = 0.0
    entropy_temperature: float = 0.01
    dead_share: float = 0.0
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    @property
    def grid(self) -> tuple[int, ...]:
        """Time steps, rows and columns of the ids."""
        return (1 + (self.num_frames - 1) // self.patch_frames, *grid_of(self.image_size, self.patch_size))

    @property
    def codebook_size(self) -> int:
        """How many values an id has."""
        return self.num_codes

    def setup(self) -> None:
        if self.dead_share and self.entropy_weight:
            raise ValueError(
                f"entropy_weight is {self.entropy_weight}, but codes that start anew (dead_share {self.dead_share}) "
                "have no entropy loss; set one of the two to 0"
            )

        def transformer(time_first: bool) -> Factorised:
            return Factorised(
                self.spatial_depth,
                self.temporal_depth,
                grid_of(self.image_size, self.patch_size),
                self.num_heads,
                self.mlp_ratio,
                time_first,
                self.remat,
                self.unroll,
                self.dtype,
                parent=None,
            )

        shared: dict[str, Any] = dict(
            width=self.width, patch_size=self.patch_size, patch_frames=self.patch_frames, dtype=self.dtype
        )
        self.encoder = Encoder(transformer(False), latent_width=self.latent_width, **shared)
        if self.dead_share:
            self.quantizer: nn.Module = CosineQuantizer(
                self.num_codes, self.latent_width, self.commitment_weight, decay=0.9, dead_share=self.dead_share
            )
        else:
            self.quantizer = VectorQuantizer(
                self.num_codes,
                self.latent_width,
                self.commitment_weight,
                entropy_weight=self.entropy_weight,
                entropy_temperature=self.entropy_temperature,
                cosine=True,
            )
        self.decoder = Decoder(transformer(True), channels=self.channels, **shared)
