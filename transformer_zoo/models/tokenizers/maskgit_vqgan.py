"""MaskGIT's tokenizer (Chang et al., CVPR 2022, arXiv 2202.04200): a VQGAN without attention.

An image in [0, 1] becomes a grid a sixteenth of its size whose places are ids out of 1024. Reference:
google-research/maskgit (Apache-2.0), `nets/vqgan_tokenizer.py`, with released weights.
"""

from typing import Any

from transformer_zoo.layers.autoencoders import ConvolutionalDecoder, ConvolutionalEncoder
from transformer_zoo.models.tokenizers.tokenizer import ConvolutionalVQGAN


class MaskGITVQGAN(ConvolutionalVQGAN):
    """Images to a grid of ids and back; sizes are the paper's for ImageNet.

    Attributes:
        image_size: rows and columns that it is trained for; any multiple of 2^(levels - 1) will do.
        channels: of an image.
        width: channels of the first level.
        multipliers: of the width, one a level; sides halve between levels.
        num_blocks: residual blocks of a level, in the encoder and in the decoder.
        latent_width, num_codes: shape of the codebook.
        levels: of a `FiniteScalarQuantizer` that takes the codebook's place: small data trains it sooner.
        commitment_weight, entropy_weight, entropy_temperature, entropy_kind: see `VectorQuantizer`.
        conv_downsample, patch, activation, norm, remat, dtype: see `ConvolutionalEncoder`.
        shortcut_from_output: see `ResidualBlock`; the released weights need it.
    """

    image_size: tuple[int, int] = (256, 256)
    channels: int = 3
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_blocks: int = 2
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
    shortcut_from_output: bool = True
    remat: str = "none"
    dtype: Any = None

    @property
    def grid(self) -> tuple[int, ...]:
        """Rows and columns of the ids."""
        return tuple(-(-side // (self.patch * 2 ** (len(self.multipliers) - 1))) for side in self.image_size)

    def setup(self) -> None:
        shared = dict(
            width=self.width,
            multipliers=self.multipliers,
            patch=self.patch,
            num_blocks=self.num_blocks,
            activation=self.activation,
            norm=self.norm,
            shortcut_from_output=self.shortcut_from_output,
            remat=self.remat,
            dtype=self.dtype,
        )
        latent_width, self.quantizer = self.make_quantizer()
        self.encoder = ConvolutionalEncoder(latent_width=latent_width, conv_downsample=self.conv_downsample, **shared)
        self.decoder = ConvolutionalDecoder(channels=self.channels, **shared)
