"""What tokenizers of images and clips have in common."""

import math
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float, Int

from transformer_zoo.layers.quantizers.interface import Quantized
from transformer_zoo.layers.quantizers.scalar import FiniteScalarQuantizer
from transformer_zoo.layers.quantizers.vector import VectorQuantizer

Pixels = Float[Array, "batch *sides channels"]
Latents = Float[Array, "batch *grid width"]
TokenIds = Int[Array, "batch *grid"]  # and a last axis of codebooks where there are several
Decoded = Float[Array, "batch *sides out_channels"]  # pixels, or logits of what each pixel is


class Tokenizer(nn.Module):
    """An encoder, a quantizer and a decoder; a subclass makes them in `setup` under these names.

    `encoder` and `decoder` return (result, intermediates); `quantizer` is one of `layers.quantizers`. What users of a
    tokenizer need to know of it stands in properties, so that no variables are needed to ask.
    """

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample: ([frames,] height, width, channels)."""
        frames = (self.num_frames,) if hasattr(self, "num_frames") else ()
        return (*frames, *self.image_size, self.channels)

    @property
    def pixel_range(self) -> tuple[float, float]:
        """Least and greatest value of the pixels that it takes and gives."""
        return 0.0, 1.0

    @property
    def grid(self) -> tuple[int, ...]:
        """Sides of the ids of one sample."""
        raise NotImplementedError

    @property
    def codebook_size(self) -> int:
        """How many values an id has."""
        raise NotImplementedError

    @property
    def num_codebooks(self) -> int:
        """Ids of one place; where there are several, they are the last axis of the ids."""
        return 1

    def encode(self, pixels: Pixels, *, train: bool = False) -> tuple[Quantized, dict[str, Any]]:
        """Codes of pixels, and 'latents' and 'encoder', the encoder's intermediates."""
        latents, found = self.encoder(pixels)
        return self.quantizer(latents, train=train), {"latents": latents, "encoder": found}

    def decode(self, values: Latents) -> tuple[Pixels, dict[str, Any]]:
        """Pixels of codes, and 'decoder', the decoder's intermediates."""
        pixels, found = self.decoder(values)
        return pixels, {"decoder": found}

    def tokenize(self, pixels: Pixels) -> TokenIds:
        """Ids of pixels."""
        return self.encode(pixels)[0].ids

    def detokenize(self, ids: TokenIds) -> Pixels:
        """Pixels of ids."""
        return self.decode(self.quantizer.lookup(ids))[0]

    def __call__(self, pixels: Pixels, *, train: bool = False) -> tuple[Decoded, dict[str, Any]]:
        """The reconstruction, and 'ids', 'quantized', 'losses', 'metrics' (see `Quantized`), 'latents' and more."""
        codes, aux = self.encode(pixels, train=train)
        decoded, more = self.decode(codes.values)
        given = {"ids": codes.ids, "quantized": codes.values, "losses": codes.losses, "metrics": codes.metrics}
        return decoded, {**given, **aux, **more}


class ConvolutionalVQGAN(Tokenizer):
    """What MaskGIT's and MAGVIT's tokenizers share: a field `levels` that may put FSQ in the codebook's place."""

    @property
    def codebook_size(self) -> int:
        """How many values an id has."""
        return math.prod(self.levels) if self.levels else self.num_codes

    def make_quantizer(self) -> tuple[int, nn.Module]:
        """Width of the latents, and the quantizer; for `setup`."""
        if self.levels:
            return len(self.levels), FiniteScalarQuantizer(self.levels)
        quantizer = VectorQuantizer(
            self.num_codes,
            self.latent_width,
            self.commitment_weight,
            entropy_weight=self.entropy_weight,
            entropy_temperature=self.entropy_temperature,
            entropy_kind=self.entropy_kind,
        )
        return self.latent_width, quantizer
