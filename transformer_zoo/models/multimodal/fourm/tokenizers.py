"""4M's tokenizers: an encoder, a quantizer, a decoder, one for each modality (4M-21, arXiv 2406.09406, appendix).

`FourMTokenizer` serves images and maps of features: a ViT, codes by the smallest angle, a ViT. `FourMVectorTokenizer`
serves global features and poses: MLPs around `Memcodes`. Their diffusion decoder is in `divae`. Reference:
apple/ml-4m (Apache-2.0), `fourm/vq`; equal to it.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo.layers.blocks import Block, drop_path_rates, scan_blocks
from transformer_zoo.layers.convolutions import DepthwiseConv, map_of, tokens_of
from transformer_zoo.layers.mlp import Mlp
from transformer_zoo.layers.norms import LayerScale, layer_norm
from transformer_zoo.layers.patches import PatchEmbed, grid_of, unpatchify
from transformer_zoo.layers.positions import resize_positions
from transformer_zoo.layers.quantizers.memcodes import Memcodes
from transformer_zoo.layers.quantizers.vector import CosineQuantizer
from transformer_zoo.models.multimodal.fourm.embeddings import grid_table
from transformer_zoo.models.tokenizers.tokenizer import Tokenizer

READS = ("pixels", "bytes", "map", "mask", "classes", "features")

Maps = Float[Array, "batch rows columns channels"]
NewMaps = Float[Array, "batch new_rows new_columns new_channels"]
Found = dict[str, Any]


class ViTStack(nn.Module):
    """Fixed positions, blocks, and a residual tanh MLP of its own at the end, which is computed in float32.

    Attributes:
        grid: for which the table of positions is made; other grids interpolate it.
        depth, num_heads, mlp_ratio: of the blocks.
        post_mlp: whether there is the MLP.
        remat, unroll, dtype: see `scan_blocks`.
    """

    grid: tuple[int, int]
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    post_mlp: bool = True
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], grid: tuple[int, int]
    ) -> tuple[Float[Array, "batch tokens width"], Found]:
        """Tokens of `grid` row by row, and 'levels' [depth, batch, tokens, width]."""
        levels = x[None]
        if self.depth:  # without blocks nothing looks at other places
            table = resize_positions(grid_table(self.grid, x.shape[-1]), self.grid, grid, "bicubic_torch")
            x = x + table.astype(x.dtype)
            block = Block(self.num_heads, mlp_ratio=self.mlp_ratio, dtype=self.dtype)
            rates = drop_path_rates(0.0, self.depth)
            x, levels = scan_blocks(self, block, self.depth, x, rates, remat=self.remat, unroll=self.unroll)
        if self.post_mlp:
            x = x.astype(jnp.float32)
            hidden = round(self.mlp_ratio * x.shape[-1])
            x = x + Mlp(hidden, activation="tanh", name="post_mlp")(layer_norm(name="norm")(x))
        return x, {"levels": levels}


class ViTEncoder(nn.Module):
    """Patches, a `ViTStack`, and a linear map to latents."""

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    width: int
    latent_width: int
    stack: dict[str, Any]
    dtype: Any = None

    @nn.compact
    def __call__(self, pixels: Maps) -> tuple[NewMaps, Found]:
        """Latents on the grid of patches, 'levels', and 'features', the map before the last layer."""
        grid = grid_of((pixels.shape[1], pixels.shape[2]), self.patch_size)
        x = PatchEmbed(self.width, self.patch_size, dtype=self.dtype, name="patch_embed")(pixels)
        stack = ViTStack(grid_of(self.image_size, self.patch_size), dtype=self.dtype, name="stack", **self.stack)
        x, found = stack(x, grid)
        features = map_of(x, grid)
        latents = nn.Dense(self.latent_width, dtype=self.dtype, name="latents")(features)
        return latents.astype(jnp.float32), found | {"features": features}


class ViTDecoder(nn.Module):
    """A linear map of codes, a `ViTStack`, a linear map to patches, and ConvNeXt blocks on the pixels."""

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    width: int
    channels: int
    stack: dict[str, Any]
    output_blocks: int = 0
    dtype: Any = None

    @nn.compact
    def __call__(self, codes: Maps) -> tuple[NewMaps, Found]:
        """Pixels, and 'levels'."""
        grid = (codes.shape[1], codes.shape[2])
        x = tokens_of(nn.Dense(self.width, dtype=self.dtype, name="codes")(codes))
        stack = ViTStack(grid_of(self.image_size, self.patch_size), dtype=self.dtype, name="stack", **self.stack)
        x, found = stack(x, grid)
        pixels = self.patch_size[0] * self.patch_size[1] * self.channels
        y = nn.Dense(pixels, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="patches")(x)
        y = unpatchify(y.astype(jnp.float32), grid, self.patch_size)
        for number in range(self.output_blocks):
            y = ConvNeXtBlock(dtype=self.dtype, name=f"output_block{number}")(y)
        return y, found


class ConvNeXtBlock(nn.Module):
    """A depthwise 7 x 7 convolution, LayerNorm and an MLP, scaled (Liu et al. 2022, arXiv 2201.03545, section 2.6)."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        y = layer_norm(dtype=self.dtype, name="norm")(DepthwiseConv((7, 7), dtype=self.dtype, name="convolution")(x))
        y = Mlp(4 * x.shape[-1], dtype=self.dtype, name="mlp")(y)
        return x + LayerScale(1e-6, name="scale")(y)


class FourMTokenizer(Tokenizer):
    """Images, or maps of features with patches of one place, to a grid of ids and back; sizes are the paper's.

    Attributes:
        reads: 'pixels' in [-1, 1], 'bytes' (0 to 255 of `channels` channels, normals for example), 'map' (one value a
            place, without an axis of channels), 'mask' (0 or 1 a place; it writes the logit of 1), 'classes' (a number
            a place, of `channels` classes; it writes logits), or 'features' (a vector a place).
        offset, scale: of a map, whose values become (value - offset) / scale for the network.
        image_size: rows and columns that it is made for; any multiple of the patch will do.
        patch_size: rows and columns of a patch.
        channels: of what it reads.
        out_channels: of what it writes, logits for example; 0 means `channels`.
        depth, width, num_heads: of the encoder.
        decoder_depth, decoder_width, decoder_num_heads: of the decoder.
        mlp_ratio, post_mlp: see `ViTStack`.
        output_blocks: ConvNeXt blocks behind the decoder.
        latent_width, num_codes: shape of the codebook.
        commitment_weight, decay, dead_share: see `CosineQuantizer`.
        remat, unroll, dtype: see `scan_blocks`.
    """

    reads: str = "pixels"
    offset: float = 0.0
    scale: float = 1.0
    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    channels: int = 3
    out_channels: int = 0
    depth: int = 12
    width: int = 768
    num_heads: int = 12
    decoder_depth: int = 12
    decoder_width: int = 768
    decoder_num_heads: int = 12
    mlp_ratio: float = 4.0
    post_mlp: bool = True
    output_blocks: int = 0
    latent_width: int = 32
    num_codes: int = 16_384
    commitment_weight: float = 1.0
    decay: float = 0.99
    dead_share: float = 1 / 32
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of ids."""
        return grid_of(self.image_size, self.patch_size)

    @property
    def id_shape(self) -> tuple[int, ...]:
        """Of one sample's ids."""
        return self.grid

    @property
    def codebook_size(self) -> int:
        """How many values an id has."""
        return self.num_codes

    @property
    def pixel_range(self) -> tuple[float, float]:
        """Least and greatest value of the pixels that it takes and gives."""
        return -1.0, 1.0

    @property
    def field(self) -> jax.ShapeDtypeStruct:
        """What stands for one sample of the field that it reads, with a batch axis."""
        shape = (1, *self.image_size) if self.reads in ("map", "mask", "classes") else (1, *self.input_shape)
        dtype = {"classes": jnp.int32, "mask": jnp.int32, "bytes": jnp.uint8}.get(self.reads, jnp.float32)
        return jax.ShapeDtypeStruct(shape, dtype)

    def channels_of(self, values: Array) -> Maps:
        """A field's values as the network takes them."""
        if self.reads == "classes":
            return jax.nn.one_hot(values, self.channels)
        if self.reads == "map":
            return ((values - self.offset) / self.scale)[..., None].astype(jnp.float32)
        if self.reads == "mask":
            return values[..., None].astype(jnp.float32)
        values = values.astype(jnp.float32)
        return values / 127.5 - 1 if self.reads == "bytes" else values

    def values_of(self, written: NewMaps) -> Array:
        """What the network writes as a field's values."""
        if self.reads == "classes":
            return jnp.argmax(written, axis=-1)
        if self.reads == "mask":
            return (written[..., 0] > 0).astype(jnp.int32)
        if self.reads == "bytes":
            return (jnp.clip(written, -1, 1) + 1) * 127.5
        return written[..., 0] * self.scale + self.offset if self.reads == "map" else written

    def setup(self) -> None:
        if self.reads not in READS:
            raise ValueError(f"reads is {self.reads!r}, but must be one of {', '.join(READS)}")
        shared = dict(image_size=self.image_size, patch_size=self.patch_size, dtype=self.dtype)
        self.encoder = ViTEncoder(
            width=self.width,
            latent_width=self.latent_width,
            stack=self.stack(self.depth, self.num_heads),
            **shared,
        )
        self.quantizer = CosineQuantizer(
            self.num_codes, self.latent_width, self.commitment_weight, self.decay, self.dead_share
        )
        self.decoder = ViTDecoder(
            width=self.decoder_width,
            channels=self.out_channels or self.channels,
            stack=self.stack(self.decoder_depth, self.decoder_num_heads),
            output_blocks=self.output_blocks,
            **shared,
        )

    def stack(self, depth: int, num_heads: int) -> dict[str, Any]:
        """Fields of a `ViTStack`."""
        shared = dict(mlp_ratio=self.mlp_ratio, post_mlp=self.post_mlp, remat=self.remat, unroll=self.unroll)
        return {"depth": depth, "num_heads": num_heads, **shared}


class BottleneckMLP(nn.Module):
    """Residual MLPs between two linear maps; norms have torch's epsilon (Bachmann et al. 2023, arXiv 2306.13575)."""

    out_width: int
    depth: int = 6
    width: int = 1024
    expansion: float = 4.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch *places channels"]) -> tuple[Float[Array, "batch *places dim"], Found]:
        """The result, and 'blocks', what each MLP adds."""
        added = []
        x = nn.Dense(self.width, dtype=self.dtype, name="first")(x)
        for number in range(self.depth):
            normed = layer_norm(1e-5, self.dtype, f"norm{number}")(x)
            y = Mlp(round(self.expansion * self.width), dtype=self.dtype, name=f"mlp{number}")(normed)
            added.append(y)
            x = x + y
        return nn.Dense(self.out_width, dtype=self.dtype, name="last")(x), {"blocks": added}


class FourMVectorTokenizer(Tokenizer):
    """Vectors to a few ids each and back: global features, poses.

    Attributes:
        channels: of a vector.
        depth, width, expansion: of the MLPs, see `BottleneckMLP`.
        latent_width: channels of the codes, shared out among heads.
        num_codes: of a head.
        num_heads: ids of a vector.
        dtype: of the computation.
    """

    channels: int = 768
    depth: int = 6
    width: int = 1024
    expansion: float = 4.0
    latent_width: int = 1024
    num_codes: int = 8_192
    num_heads: int = 16
    dtype: Any = None

    @property
    def reads(self) -> str:
        """What its field holds, see `FourMTokenizer`."""
        return "features"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return (self.channels,)

    @property
    def field(self) -> jax.ShapeDtypeStruct:
        """What stands for one sample of the field that it reads, with a batch axis."""
        return jax.ShapeDtypeStruct((1, self.channels), jnp.float32)

    @property
    def id_shape(self) -> tuple[int, ...]:
        """Of one sample's ids."""
        return (self.num_heads,)

    @property
    def codebook_size(self) -> int:
        """How many values an id has."""
        return self.num_codes

    @property
    def num_codebooks(self) -> int:
        """Ids of a vector, each of a codebook of its own."""
        return self.num_heads

    def channels_of(self, values: Array) -> Array:
        """A field's values as the network takes them."""
        return values.astype(jnp.float32)

    def values_of(self, written: Array) -> Array:
        """What the network writes as a field's values."""
        return written

    def setup(self) -> None:
        shared = dict(depth=self.depth, width=self.width, expansion=self.expansion, dtype=self.dtype)
        self.encoder = VectorEncoder(self.latent_width, shared)
        self.quantizer = Memcodes(self.num_codes, self.latent_width, self.num_heads)
        self.decoder = VectorDecoder(self.channels, shared)


class VectorEncoder(nn.Module):
    """A `BottleneckMLP`, and a linear map to latents."""

    latent_width: int
    mlp: dict[str, Any]

    @nn.compact
    def __call__(self, x: Float[Array, "batch *places channels"]) -> tuple[Float[Array, "batch *places dim"], Found]:
        """Latents, and 'blocks' and 'features' from before the last map."""
        x, found = BottleneckMLP(self.mlp["width"], name="mlp", **self.mlp)(x)
        latents = nn.Dense(self.latent_width, dtype=self.mlp["dtype"], name="latents")(x)
        return latents.astype(jnp.float32), found | {"features": x}


class VectorDecoder(nn.Module):
    """A linear map of codes, and a `BottleneckMLP`."""

    channels: int
    mlp: dict[str, Any]

    @nn.compact
    def __call__(
        self, codes: Float[Array, "batch *places dim"]
    ) -> tuple[Float[Array, "batch *places channels"], Found]:
        """Vectors, and 'blocks'."""
        x = nn.Dense(self.mlp["width"], dtype=self.mlp["dtype"], name="codes")(codes)
        x, found = BottleneckMLP(self.channels, name="mlp", **self.mlp)(x)
        return x.astype(jnp.float32), found
