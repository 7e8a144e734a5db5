"""MAGVIT's tokenizer, 3D-VQ (Yu et al., CVPR 2023, arXiv 2212.05199, section 3.1).

Clips of 16 frames in [0, 1] become a grid of 4 x 16 x 16 ids: MaskGIT's VQGAN with convolutions over time, which are
not causal, and with time halved after the levels that say so. Reference: google-research/magvit (Apache-2.0),
`videogvt/models/{vqvae,enc_dec_3dcnn}.py`. Sizes stand in `zoo/papers/magvit.toml`.
"""

from typing import Any

import flax.traverse_util
import jax.numpy as jnp
from jaxtyping import Array

from transformer_zoo.layers.autoencoders import ConvolutionalDecoder, ConvolutionalEncoder
from transformer_zoo.layers.convolutions_3d import inflate
from transformer_zoo.models.tokenizers.tokenizer import ConvolutionalVQGAN
from transformer_zoo.task import Tree


class MAGVITTokenizer(ConvolutionalVQGAN):
    """Clips to a grid of ids and back; sizes are the base ones for 128 pixels.

    Attributes:
        num_frames, image_size: of the clips that it is trained for.
        channels: of a frame.
        width: channels of the first level.
        multipliers: of the width, one a level; rows and columns halve between levels.
        temporal_downsample: whether time is halved after each level but the last.
        encoder_blocks, decoder_blocks: residual blocks of a level.
        latent_width, num_codes: shape of the codebook.
        levels: of a `FiniteScalarQuantizer` that takes the codebook's place: small data trains it sooner.
        commitment_weight, entropy_weight, entropy_temperature, entropy_kind: see `VectorQuantizer`.
        conv_downsample, patch, activation, norm, remat, dtype: see `ConvolutionalEncoder`.
    """

    num_frames: int = 16
    image_size: tuple[int, int] = (128, 128)
    channels: int = 3
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    temporal_downsample: tuple[bool, ...] = (True, True, False)
    encoder_blocks: int = 2
    decoder_blocks: int = 2
    latent_width: int = 256
    num_codes: int = 1024
    levels: tuple[int, ...] = ()
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    entropy_temperature: float = 0.01
    entropy_kind: str = "softmax"
    conv_downsample: bool = False
    patch: int = 1
    activation: str = "swish"
    norm: str = "group"
    remat: str = "none"
    dtype: Any = None

    @property
    def grid(self) -> tuple[int, ...]:
        """Frames, rows and columns of the ids."""
        times = 2 ** sum(self.temporal_downsample)
        sides = (-(-side // (self.patch * 2 ** (len(self.multipliers) - 1))) for side in self.image_size)
        return (-(-self.num_frames // times), *sides)

    def setup(self) -> None:
        if len(self.temporal_downsample) != len(self.multipliers) - 1:
            raise ValueError(
                f"temporal_downsample has {len(self.temporal_downsample)} flags, but {len(self.multipliers)} levels "
                f"have {len(self.multipliers) - 1} steps between them"
            )
        shared = dict(
            width=self.width,
            multipliers=self.multipliers,
            patch=self.patch,
            temporal_downsample=self.temporal_downsample,
            activation=self.activation,
            norm=self.norm,
            remat=self.remat,
            dtype=self.dtype,
        )
        latent_width, self.quantizer = self.make_quantizer()
        self.encoder = ConvolutionalEncoder(
            num_blocks=self.encoder_blocks,
            latent_width=latent_width,
            conv_downsample=self.conv_downsample,
            **shared,
        )
        self.decoder = ConvolutionalDecoder(num_blocks=self.decoder_blocks, channels=self.channels, **shared)


def inflate_images(images: Tree, clips: Tree, *, how: str = "central") -> Tree:
    """Parameters for clips from those of a tokenizer of images with the same widths, levels and blocks.

    Args:
        images: parameters of a 2-D VQGAN whose shortcuts convolve the block's input.
        clips: parameters of a `MAGVITTokenizer`, for their shapes.
        how: see `inflate`.

    Raises:
        ValueError: parameters that do not belong together, by name.
    """
    flat = flax.traverse_util.flatten_dict(images, sep="/")
    wanted = flax.traverse_util.flatten_dict(clips, sep="/")
    if flat.keys() != wanted.keys():
        raise ValueError(f"only one of the tokenizers has {', '.join(sorted(flat.keys() ^ wanted.keys()))}")

    def inflated(name: str, leaf: Array) -> Array:
        shape = wanted[name].shape
        found = inflate(jnp.asarray(leaf), shape[0], how=how) if len(shape) == 5 else leaf
        if found.shape != shape:
            raise ValueError(f"{name} has shape {leaf.shape}, which cannot become {shape}")
        return found

    return flax.traverse_util.unflatten_dict({name: inflated(name, leaf) for name, leaf in flat.items()}, sep="/")
