"""What tokenizers of images and clips have in common."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float, Int

from transformer_zoo.layers.quantizers.interface import Quantized

Pixels = Float[Array, "batch *sides channels"]
Latents = Float[Array, "batch *grid width"]
TokenIds = Int[Array, "batch *grid"]
Decoded = Float[Array, "batch *sides out_channels"]  # pixels, or logits of what each pixel is


class Tokenizer(nn.Module):
    """An encoder, a quantizer and a decoder; a subclass makes them in `setup` under these names.

    `encoder` and `decoder` return (result, intermediates); `quantizer` is one of `layers.quantizers`.
    """

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
