"""MAGVIT-v2's tokenizer (Yu et al., ICLR 2024, arXiv 2310.05737).

Lookup-free quantization: a latent has 18 channels and the sign of each is a bit of the id, so that 262,144 codes need
no table (section 3.1). And a causal 3-D CNN: no frame sees a later one, so 1 + 4 n frames become 1 + n frames of
tokens, and one image is a first frame (section 3.2). The paper's own code is not released; this is the one of
TencentARC/SEED-Voken (Open-MAGVIT2, Apache-2.0): `improved_video_model.py` for clips, `improved_model.py` for images.

In it group norms see all frames of a clip, so that later frames do change earlier tokens a little. `norm` 'frame_group'
has statistics of single frames, with which the tokenizer is causal exactly; `tiny` trains it.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo.layers.autoencoders import (
    ACTIVATIONS,
    ALMOST_ZERO,
    ConvolutionalEncoder,
    Map,
    NewMap,
    block_maker,
    convolution,
    group_norm,
    normalisation,
    step_factors,
    unfold_pixels,
)
from transformer_zoo.layers.convolutions_3d import depth_to_space
from transformer_zoo.layers.quantizers.scalar import LookupFreeQuantizer
from transformer_zoo.layers.quantizers.vector import VectorQuantizer
from transformer_zoo.models.tokenizers.tokenizer import Tokenizer


class AdaptiveGroupNorm(nn.Module):
    """A group norm scaled and shifted by the deviation and the mean of the codes, channel by channel (section 3.2).

    Attributes:
        norm: 'group', or 'frame_group' for statistics of every frame for itself, of the codes too.
        dtype: of the computation.
    """

    norm: str = "group"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Map, codes: Float[Array, "batch *grid bits"]) -> Map:
        width = x.shape[-1]
        axes = tuple(range(2 if self.norm == "frame_group" and x.ndim == 5 else 1, codes.ndim - 1))
        deviation = jnp.sqrt(codes.var(axis=axes, ddof=1, keepdims=True) + 1e-6)
        scale = nn.Dense(width, dtype=self.dtype, name="scale")(deviation)
        shift = nn.Dense(width, dtype=self.dtype, name="shift")(codes.mean(axis=axes, keepdims=True))
        if scale.shape[1] != 1:  # a frame of codes serves the frames that are made of it: 1, then factor each
            factor = (x.shape[1] - 1) // max(scale.shape[1] - 1, 1)
            scale, shift = (repeat_frames(one, factor) for one in (scale, shift))
        x = group_norm(self.norm, width, "norm", self.dtype, affine=False)(x)
        return x * scale + shift


def repeat_frames(x: Float[Array, "batch frames *rest"], factor: int) -> Float[Array, "batch more_frames *rest"]:
    """1 + n frames to 1 + factor n."""
    return jnp.concatenate([x[:, :1], jnp.repeat(x[:, 1:], factor, axis=1)], axis=1)


class CausalDecoder(nn.Module):
    """The mirror of a causal `ConvolutionalEncoder`; maps grow by a convolution whose channels become places.

    Attributes:
        channels: of the result.
        Others: see `ConvolutionalEncoder`.
    """

    width: int
    multipliers: tuple[int, ...]
    num_blocks: int
    channels: int
    temporal_downsample: tuple[bool, ...]
    activation: str = "swish"
    patch: int = 1
    norm: str = "group"
    causal: bool = True
    remat: str = "none"
    dtype: Any = None

    @nn.compact
    def __call__(self, codes: Map) -> tuple[NewMap, dict[str, Any]]:
        """Pixels, and the outputs of the 'blocks', of the adaptive 'norms' and of the 'upsamplers' in order."""
        block = block_maker(self)
        found: dict[str, Any] = {"blocks": [], "norms": [], "upsamplers": []}
        options: dict[str, Any] = dict(causal=True, dtype=self.dtype)
        width = self.width * self.multipliers[-1]
        x = convolution(codes, width, 3, "stem", **options)
        for number in range(self.num_blocks):
            x = block(width, f"first_block{number}")(x)
            found["blocks"].append(x)
        for level in reversed(range(len(self.multipliers))):
            width = self.width * self.multipliers[level]
            x = AdaptiveGroupNorm(self.norm, self.dtype, name=f"level{level}_norm")(x, codes)
            found["norms"].append(x)
            for number in range(self.num_blocks):
                x = block(width, f"level{level}_block{number}")(x)
                found["blocks"].append(x)
            if level:
                factors = step_factors(x.ndim - 2, self.temporal_downsample, level - 1)
                x = convolution(x, width * math.prod(factors), 3, f"level{level}_up", **options)
                x = to_places(x, factors)
                found["upsamplers"].append(x)
        x = ACTIVATIONS[self.activation](normalisation(self.norm, width, "norm", self.dtype)(x))
        x = convolution(x, self.channels * self.patch**2, 3, "head", kernel_init=ALMOST_ZERO, **options)
        return unfold_pixels(x, self.patch), found


def to_places(x: Map, factors: tuple[int, ...]) -> NewMap:
    """`depth_to_space` of images and, causal, of clips."""
    *time, rows, columns = factors
    if time:
        return depth_to_space(x, (time[0], rows, columns), causal=True)
    return depth_to_space(x[:, None], (1, rows, columns))[:, 0]


class MAGVIT2Tokenizer(Tokenizer):
    """Clips of 1 + 4 n frames, or images, to ids and back; sizes are those for 17 frames of 128 pixels.

    Attributes:
        num_frames: of the clips that it is trained for, any 1 + 4 n will do; 0 is for images alone, without
            convolutions over time.
        image_size: rows and columns, likewise.
        channels: of a frame.
        width: channels of the first level.
        multipliers: of the width, one a level; rows and columns halve between levels.
        temporal_downsample: whether time is halved after each level but the last.
        num_blocks: residual blocks of a level.
        bits: of an id.
        table_width: if not 0, ids are looked up in a table of 2^bits codes of this width, as the paper compares with.
        entropy_weight, commitment_weight: see `LookupFreeQuantizer`.
        norm: 'group', or 'frame_group', see the head of this file.
        patch, remat, dtype: see `ConvolutionalEncoder`.
    """

    num_frames: int = 17
    image_size: tuple[int, int] = (128, 128)
    channels: int = 3
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    num_blocks: int = 4
    bits: int = 18
    table_width: int = 0
    entropy_weight: float = 0.1
    commitment_weight: float = 0.25
    norm: str = "group"
    patch: int = 1
    remat: str = "none"
    dtype: Any = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample: ([frames,] height, width, channels)."""
        return (*((self.num_frames,) if self.num_frames else ()), *self.image_size, self.channels)

    @property
    def pixel_range(self) -> tuple[float, float]:
        """Least and greatest value of the pixels that it takes and gives."""
        return -1.0, 1.0

    @property
    def grid(self) -> tuple[int, ...]:
        """([frames,] rows, columns) of the ids."""
        sides = (-(-side // (self.patch * 2 ** (len(self.multipliers) - 1))) for side in self.image_size)
        frames = 1 + (self.num_frames - 1) // 2 ** sum(self.temporal_downsample)
        return (*((frames,) if self.num_frames else ()), *sides)

    @property
    def codebook_size(self) -> int:
        """How many values an id has."""
        return 2**self.bits

    def setup(self) -> None:
        times = 2 ** sum(self.temporal_downsample)
        if self.num_frames and self.num_frames % times != 1 % times:
            raise ValueError(f"num_frames is {self.num_frames}, but must be 1 + {times} n")
        shared: dict[str, Any] = dict(
            width=self.width,
            multipliers=self.multipliers,
            patch=self.patch,
            num_blocks=self.num_blocks,
            temporal_downsample=self.temporal_downsample,
            norm=self.norm,
            causal=True,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.encoder = ConvolutionalEncoder(latent_width=self.table_width or self.bits, **shared)
        self.quantizer: nn.Module = (
            VectorQuantizer(self.codebook_size, self.table_width, self.commitment_weight)
            if self.table_width
            else LookupFreeQuantizer(self.bits, self.entropy_weight, self.commitment_weight)
        )
        self.decoder = CausalDecoder(channels=self.channels, **shared)


def split_ids(ids: Array, bits: tuple[int, ...]) -> Array:
    """Ids as several of fewer bits each, the lowest bits first (token factorization, section 3.1).

    Returns:
        int32 [..., parts].
    """
    parts = []
    for count in bits:
        parts.append(ids & (2**count - 1))
        ids = ids >> count
    return jnp.stack(parts, axis=-1)


def join_ids(parts: Array, bits: tuple[int, ...]) -> Array:
    """The ids whose parts `split_ids` gives."""
    ids, shift = jnp.zeros(parts.shape[:-1], jnp.int32), 0
    for number, count in enumerate(bits):
        ids = ids | (parts[..., number] << shift)
        shift += count
    return ids
