"""P-VQVAE, PUT's tokenizer (Liu et al., CVPR 2022, arXiv 2205.05076, section 3.1).

For inpainting. The encoder is linear maps of single patches, so no token knows what its neighbours hide. One half of
the codes is for whole patches, the other for patches with holes, so that neither disturbs the other. And the decoder
has a branch that looks at the known pixels: where a pixel is known, its features take the place of the tokens'.

Reference: liuqk3/PUT (MIT), `codecs/image_codec/patch_vqgan.py`; its ReLUs work in place, so that the skips of residual
blocks carry relu(x), and so they do here.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from transformer_zoo.layers.autoencoders import ALMOST_ZERO
from transformer_zoo.layers.patches import grid_of, patchify
from transformer_zoo.layers.quantizers.interface import Quantized
from transformer_zoo.layers.quantizers.vector import EmaVectorQuantizer
from transformer_zoo.models.tokenizers.tokenizer import Tokenizer
from transformer_zoo.task import Aux, Batch, Context, Evaluator, Result, Tree, Variables
from transformer_zoo.tasks.networks import apply_network
from transformer_zoo.tasks.similarity import psnr
from transformer_zoo.tasks.tokenization import Tokenization

Images = Float[Array, "batch height width channels"]
Known = Bool[Array, "batch height width"]
Map = Float[Array, "batch rows columns dim"]

LAST_WIDTH = 64  # channels at full size


def whole_patches(known: Known, patch_size: int) -> Bool[Array, "batch rows columns"]:
    """Which patches are known to their last pixel."""
    batch, height, width = known.shape
    patches = known.reshape(batch, height // patch_size, patch_size, width // patch_size, patch_size)
    return patches.all(axis=(2, 4))


class PatchEncoder(nn.Module):
    """Linear maps, patch by patch.

    Attributes:
        width: channels.
        patch_size: pixels a side.
        num_blocks: residual blocks, half as wide inside.
        dtype: of the computation.
    """

    width: int
    patch_size: int
    num_blocks: int
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Images) -> tuple[Map, dict[str, Any]]:
        """Latents, and the 'embedded' patches and the result of the 'blocks'."""
        size = (self.patch_size, self.patch_size)

        def dense(width: int, name: str) -> nn.Dense:
            return nn.Dense(width, dtype=self.dtype, name=name)

        embedded = x = dense(self.width, "embed")(patchify(images, size))
        for number in range(self.num_blocks):
            x = nn.relu(x)
            y = nn.relu(dense(self.width // 2, f"block{number}_down")(x))
            x = x + dense(self.width, f"block{number}_up")(y)
        z = dense(self.width, "head")(nn.relu(dense(self.width, "last")(nn.relu(x))))
        shape = (images.shape[0], *grid_of((images.shape[1], images.shape[2]), size), self.width)
        return z.reshape(shape), {"embedded": embedded, "blocks": x}


class ReferenceDecoder(nn.Module):
    """Codes to images, with features of known pixels from the image itself.

    Attributes:
        width: channels of codes.
        patch_size: pixels a side; a power of 2.
        num_blocks: residual blocks, half as wide inside.
        channels: of the image.
        dtype: of the computation.
    """

    width: int
    patch_size: int
    num_blocks: int
    channels: int
    dtype: Any = None

    @nn.compact
    def __call__(self, codes: Map, images: Images, known: Known) -> tuple[Images, dict[str, Any]]:
        """Pixels, and the result of the 'blocks'; `images` count where `known`."""

        def convolution(width: int, size: int, name: str, **options: Any) -> nn.Conv:
            return nn.Conv(width, (size, size), dtype=self.dtype, name=name, **options)

        steps = int(math.log2(self.patch_size))
        widths = [LAST_WIDTH * 2**step for step in range(steps)]  # of full size, of a half, of a quarter, ...
        x = convolution(self.width, 3, "stem")(convolution(self.width, 1, "codes")(codes))
        for number in range(self.num_blocks):
            x = nn.relu(x)
            y = nn.relu(convolution(self.width // 2, 3, f"block{number}_down")(x))
            x = x + convolution(self.width, 1, f"block{number}_up")(y)
        blocks = x
        seen = [convolution(widths[0], 3, "reference0")(images)]
        for step in range(1, steps + 1):
            width = self.width if step == steps else widths[step]
            halved = convolution(width, 4, f"reference{step}", strides=(2, 2))(nn.relu(seen[-1]))
            seen.append(halved)
        for step in range(steps, 0, -1):
            x = merge(x, seen[step], known)
            grown = nn.ConvTranspose(widths[step - 1], (4, 4), (2, 2), dtype=self.dtype, name=f"up{step}")
            x = grown(nn.relu(x))
        x = merge(x, seen[0], known)
        return convolution(self.channels, 3, "head", kernel_init=ALMOST_ZERO)(nn.relu(x)), {"blocks": blocks}


def merge(x: Array, reference: Array, known: Known) -> Array:
    """`reference` where the first pixel of a place is known, else `x`."""
    factor = known.shape[1] // x.shape[1]
    return jnp.where(known[:, ::factor, ::factor, None], reference, x)


class PVQVAE(Tokenizer):
    """Images to ids and back; sizes are the paper's for 256 pixels.

    Attributes:
        image_size: rows and columns that it is trained for, multiples of `patch_size`.
        channels: of an image.
        patch_size: pixels a side of a patch; a power of 2.
        width: channels of latents and codes.
        num_blocks: of the encoder and of the decoder.
        num_codes: for whole patches, the ids from 0.
        num_hole_codes: for patches with holes, the ids behind them.
        commitment_weight, decay: see `EmaVectorQuantizer`.
        dead_share: see there; the reference replaces no code.
        dtype: of the computation.
    """

    image_size: tuple[int, int] = (256, 256)
    channels: int = 3
    patch_size: int = 8
    width: int = 256
    num_blocks: int = 8
    num_codes: int = 512
    num_hole_codes: int = 512
    commitment_weight: float = 1.0
    decay: float = 0.99
    dead_share: float = 0.0
    dtype: Any = None

    @property
    def pixel_range(self) -> tuple[float, float]:
        """Least and greatest value of the pixels that it takes and gives; what is hidden is the least."""
        return -1.0, 1.0

    @property
    def grid(self) -> tuple[int, ...]:
        """Rows and columns of patches."""
        return grid_of(self.image_size, (self.patch_size, self.patch_size))

    @property
    def codebook_size(self) -> int:
        """How many values an id has; those of whole patches come first."""
        return self.num_codes + self.num_hole_codes

    def setup(self) -> None:
        if self.patch_size < 2 or self.patch_size & (self.patch_size - 1):
            raise ValueError(f"patch_size is {self.patch_size}, but must be a power of 2, such as 8")
        shared: dict[str, Any] = dict(
            width=self.width, patch_size=self.patch_size, num_blocks=self.num_blocks, dtype=self.dtype
        )
        self.encoder = PatchEncoder(**shared)
        self.quantizer = EmaVectorQuantizer(
            self.codebook_size, self.width, self.commitment_weight, self.decay, dead_share=self.dead_share
        )
        self.decoder = ReferenceDecoder(channels=self.channels, **shared)

    def encode(
        self, pixels: Images, whole: Bool[Array, "batch rows columns"] | None = None, *, train: bool = False
    ) -> tuple[Quantized, dict[str, Any]]:
        """Codes of pixels, of the half that each patch may take; `whole` tells which are whole patches (all)."""
        latents, found = self.encoder(pixels)
        whole = jnp.ones(latents.shape[:3], bool) if whole is None else whole
        allowed = (jnp.arange(self.codebook_size) < self.num_codes) == whole[..., None]
        codes = self.quantizer(latents, train=train, allowed=allowed)
        return codes, {"latents": latents, "encoder": found}

    def decode(
        self, values: Map, pixels: Images | None = None, known: Known | None = None
    ) -> tuple[Images, dict[str, Any]]:
        """Pixels of codes, where `pixels` are `known` with the features of these (none)."""
        if pixels is None or known is None:
            shape = (values.shape[0], *(side * self.patch_size for side in values.shape[1:3]))
            known = jnp.zeros(shape, bool)
            pixels = jnp.zeros((*shape, self.channels), values.dtype)
        decoded, found = self.decoder(values, hide(pixels, known), known)
        return decoded, {"decoder": found}

    def detokenize(
        self, ids: Int[Array, "batch rows columns"], pixels: Images | None = None, known: Known | None = None
    ) -> Images:
        """Pixels of ids, where `pixels` are `known` with the features of these."""
        return self.decode(self.quantizer.lookup(ids), pixels, known)[0]

    def __call__(
        self,
        pixels: Images,
        known: Known | None = None,
        whole: Bool[Array, "batch rows columns"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Images, dict[str, Any]]:
        """The reconstruction, and what `Tokenizer` gives; `known` is for the decoder, `whole` for the quantizer."""
        codes, aux = self.encode(pixels, whole, train=train)
        decoded, more = self.decode(codes.values, pixels, known)
        given = {"ids": codes.ids, "quantized": codes.values, "losses": codes.losses, "metrics": codes.metrics}
        return decoded, {**given, **aux, **more}


def hide(pixels: Images, known: Known) -> Images:
    """Pixels with the least value where they are not known."""
    return jnp.where(known[..., None], pixels, -1.0)


def random_holes(key: Key[Array, ""], batch: int, image_size: tuple[int, int]) -> Known:
    """What three random boxes of up to half the picture's sides leave known; of every fourth picture nothing."""
    place_key, size_key, all_key = jax.random.split(key, 3)
    sides = jnp.asarray(image_size)
    size = jax.random.uniform(size_key, (batch, 3, 2), minval=0.1, maxval=0.5) * sides
    start = jax.random.uniform(place_key, (batch, 3, 2)) * (sides - size)
    rows, columns = (jnp.arange(side) + 0.5 for side in image_size)
    inside_rows = (rows >= start[..., :1]) & (rows < start[..., :1] + size[..., :1])
    inside_columns = (columns >= start[..., 1:]) & (columns < start[..., 1:] + size[..., 1:])
    holes = (inside_rows[..., :, None] & inside_columns[..., None, :]).any(axis=1)
    nothing = jax.random.bernoulli(all_key, 0.25, (batch, 1, 1))
    return ~(holes | nothing)


@dataclasses.dataclass(frozen=True)
class PatchTokenization(Tokenization):
    """Trains a `PVQVAE`: parts of every image are hidden from the decoder's branch, some patches from the first codes.

    The pixel loss is divided by the hidden share, as known pixels are nearly free (the reference's loss).

    Attributes:
        erase_share: of patches that must take codes of the second half, so that these are trained.
    """

    erase_share: float = 0.2

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], Aux]:
        pixels = batch[self.field]
        hole_key, erase_key, key = jax.random.split(ctx.key, 3)
        known = random_holes(hole_key, pixels.shape[0], self.network.image_size)
        whole = jax.random.bernoulli(erase_key, 1 - self.erase_share, (pixels.shape[0], *self.network.grid))
        reconstruction, aux, state = apply_network(
            self.network, variables, pixels, known, whole, key=key, train=ctx.train
        )
        hidden = 1 - known.mean()
        return self.combine(variables, pixels, reconstruction, aux, state, ctx, pixel_scale=1 / hidden)

    def evaluators(self) -> dict[str, Evaluator]:
        return super().evaluators() | {"holes": KnownPixels(task=self)}


@dataclasses.dataclass(frozen=True)
class KnownPixels(Evaluator):
    """PSNR (dB) of all known, and of all hidden pixels of pictures with random holes.

    `known_psnr` is with the branch that sees known pixels, `known_psnr_of_tokens` without it, from the tokens of the
    whole picture alone; `hidden_psnr` is that of what the tokens must tell.
    """

    task: PatchTokenization | None = None

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        assert self.task is not None
        network, pixels = self.task.network, batch[self.task.field]
        known = random_holes(ctx.key, pixels.shape[0], network.image_size)
        original = self.task.unit(pixels)
        with_branch, without = (
            jnp.square(self.task.unit(apply_network(network, variables, pixels, *seen)[0]) - original).mean(axis=-1)
            for seen in ((known,), ())
        )
        counted = {"known": (with_branch, known), "known_of_tokens": (without, known), "hidden": (with_branch, ~known)}
        found = {}
        for name, (errors, where) in counted.items():
            found[name] = (errors * where).sum(axis=(1, 2))
            found[f"{name}_count"] = where.sum(axis=(1, 2)).astype(jnp.float32)
        return found

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        sums = {name: (values * batch["weight"]).sum() for name, values in arrays.items()}
        return sums if state is None else self.merge(state, sums)

    def result(self, state: dict) -> Result:
        names = {"known": "known_psnr", "known_of_tokens": "known_psnr_of_tokens", "hidden": "hidden_psnr"}
        errors = {name: state[name] / max(state[f"{name}_count"], 1) for name in names}
        return Result({names[name]: float(psnr(jnp.asarray(error))) for name, error in errors.items()})
