"""UViT: a diffusion decoder of codes with convolutions outside and a transformer in the middle (arXiv 2301.11093).

Its middle either adds the codes to the places that they stand at ('concat', the reference's name) or lets every place
look at all of them ('cross_attention'). Time shifts and scales every branch of the transformer and gates it, from 0 at
first. Reference: apple/ml-4m, `fourm/vq/models/uvit.py`, which builds on diffusers' residual blocks.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from transformer_zoo import naming
from transformer_zoo.layers.attention import Attention
from transformer_zoo.layers.blocks import drop_path_rates, scan_blocks
from transformer_zoo.layers.constraints import constrain_batch
from transformer_zoo.layers.convolutions import Downsample, map_of, tokens_of
from transformer_zoo.layers.convolutions_3d import upsample_nearest
from transformer_zoo.layers.mlp import Mlp
from transformer_zoo.layers.norms import layer_norm
from transformer_zoo.layers.patches import PatchEmbed, unpatchify
from transformer_zoo.layers.positions import resize_positions
from transformer_zoo.models.multimodal.fourm.embeddings import grid_table
from transformer_zoo.models.multimodal.fourm.tokenizers import Found, Maps, NewMaps
from transformer_zoo.models.multimodal.fourm.unet import (
    TimedResidualBlock,
    Times,
    Vectors,
    group_norm,
    repeat_to,
    time_embedding,
)

CONDITIONINGS = ("concat", "cross_attention")
Dropped = Bool[Array, "batch code_rows code_columns"]


class UViT(nn.Module):
    """Clean pixels from noised ones, the time and codes.

    Attributes:
        channels: of the pixels.
        patch_size: rows and columns of a place of the first level.
        width, multipliers, num_blocks: of the levels of convolutions, see `UNet`; nothing attends there.
        halve_middle: whether the middle is at half the last level's resolution.
        depth, middle_width, num_heads, mlp_ratio: of the transformer.
        conditioning: one of `CONDITIONINGS`.
        position_grid: for which the transformer's table of positions is made; other grids interpolate it.
        remat, unroll, dtype: see `scan_blocks`.
    """

    channels: int = 3
    patch_size: tuple[int, int] = (4, 4)
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2)
    num_blocks: int = 2
    halve_middle: bool = True
    depth: int = 12
    middle_width: int = 768
    num_heads: int = 12
    mlp_ratio: float = 4.0
    conditioning: str = "concat"
    position_grid: tuple[int, int] = (32, 32)
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(
        self, noised: Maps, times: Times, codes: NewMaps, dropped: Dropped | None = None
    ) -> tuple[Maps, Found]:
        """The pixels, and 'time', 'down', 'middle' and 'up'.

        Args:
            noised: pixels at `times`.
            times: 0 to 999, of the noise.
            codes: on any grid.
            dropped: codes that are not told.

        Raises:
            ValueError: an unknown conditioning.
        """
        if self.conditioning not in CONDITIONINGS:
            raise naming.unknown("conditioning", self.conditioning, CONDITIONINGS)
        shared: dict[str, Any] = dict(dtype=self.dtype)
        time = nn.Dense(4 * self.width, name="time1", **shared)(time_embedding(times, self.width))
        time = nn.Dense(4 * self.width, name="time2", **shared)(nn.silu(time))
        grid = (noised.shape[1] // self.patch_size[0], noised.shape[2] // self.patch_size[1])
        x = map_of(PatchEmbed(self.width, self.patch_size, name="stem", **shared)(noised), grid)
        down, last = [x], len(self.multipliers) - 1

        def block(x: Array, level: int, name: str) -> Array:
            return TimedResidualBlock(self.width * self.multipliers[level], self.dtype, name=name)(x, time)

        for level in range(last + 1):
            for number in range(self.num_blocks):
                x = block(x, level, f"down{level}_block{number}")
                down.append(x)
            if level < last:
                x = Downsample(x.shape[-1], name=f"down{level}", **shared)(x)
                down.append(x)
        if self.halve_middle:
            x = Downsample(x.shape[-1], name="down_middle", **shared)(x)
        x = middle = self.middle(x, time, codes, dropped)
        if self.halve_middle:
            x = nn.Conv(x.shape[-1], (3, 3), name="up_middle", **shared)(upsample_nearest(x, (2, 2)))
        skips, up = list(down), []
        for level in reversed(range(last + 1)):
            for number in range(self.num_blocks + 1):
                x = block(jnp.concatenate([x, skips.pop()], axis=-1), level, f"up{level}_block{number}")
                up.append(x)
            if level:
                x = nn.Conv(x.shape[-1], (3, 3), name=f"up{level}", **shared)(upsample_nearest(x, (2, 2)))
        x = nn.silu(group_norm("norm", self.dtype)(x))
        pixels = self.patch_size[0] * self.patch_size[1] * self.channels
        x = nn.Dense(pixels, use_bias=False, name="patches", **shared)(tokens_of(x)).astype(jnp.float32)
        x = unpatchify(x, grid, self.patch_size) + self.param("bias", nn.initializers.zeros, (self.channels,))
        return x, {"time": time, "down": down, "middle": middle, "up": up}

    def middle(self, x: Maps, time: Vectors, codes: NewMaps, dropped: Dropped | None) -> Maps:
        """The transformer, on the places of the last level."""
        grid, width = (x.shape[1], x.shape[2]), x.shape[-1]

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name=name)

        y, table = (
            dense(self.middle_width, "middle_in")(tokens_of(x)),
            grid_table(self.position_grid, self.middle_width),
        )
        context, mask = None, None
        if self.conditioning == "concat":
            told = dense(self.middle_width, "codes")(tokens_of(repeat_to(codes, grid)))
            untold = self.param("mask_token", nn.initializers.zeros, (self.middle_width,)).astype(told.dtype)
            if dropped is not None:
                told = jnp.where(repeat_to(dropped[..., None], grid).reshape(*told.shape[:2], 1), untold, told)
            y = y + told
            positions = resize_positions(table, self.position_grid, grid, "bicubic_torch")
        else:
            context = tokens_of(codes)
            mask = None if dropped is None else ~dropped.reshape(len(dropped), 1, 1, -1)
            positions = tokens_of(repeat_to(table.reshape(1, *self.position_grid, -1), grid))[0]
        y = y + positions.astype(y.dtype)
        blocks = TimedBlock(self.num_heads, self.mlp_ratio, self.dtype)
        rates = drop_path_rates(0.0, self.depth)
        options: dict[str, Any] = dict(remat=self.remat, unroll=self.unroll)
        y, _ = scan_blocks(self, blocks, self.depth, y, rates, time, context, mask, **options)
        return map_of(dense(width, "middle_out")(y), grid)


class TimedBlock(nn.Module):
    """Self-attention, cross-attention where there is a context, and MLP; norms shifted and branches gated by the time.

    Attributes:
        num_heads: of the attentions.
        mlp_ratio: of the MLP.
        dtype: of the computation.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch places width"],
        scanned: Any,
        time: Float[Array, "batch time_width"],
        context: Float[Array, "batch keys code_width"] | None = None,
        mask: Bool[Array, "batch 1 1 keys"] | None = None,
    ) -> tuple[Float[Array, "batch places width"], None]:
        x, width = constrain_batch(x), x.shape[-1]
        branches = 2 if context is None else 3
        time = nn.silu(time)[:, None]
        told = nn.Dense(2 * branches * width, dtype=self.dtype, name="modulation")(time)
        gates = nn.Dense(branches * width, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="gate")(time)
        shifts = iter(zip(*[iter(jnp.split(told, 2 * branches, axis=-1))] * 2, jnp.split(gates, branches, axis=-1)))

        def branch(x: Array, name: str, apply: Any) -> Array:
            shift, scale, gate = next(shifts)
            return x + gate * apply(layer_norm(1e-5, self.dtype, name)(x) * (1 + scale) + shift)

        def attention(name: str) -> Attention:
            return Attention(self.num_heads, dtype=self.dtype, name=name)

        x = branch(x, "norm1", attention("attention"))
        if context is not None:
            known = layer_norm(1e-5, self.dtype, "context_norm")(context)
            x = branch(x, "query_norm", lambda y: attention("cross_attention")(y, known, mask=mask))
        mlp = Mlp(round(self.mlp_ratio * width), dtype=self.dtype, name="mlp")
        return branch(x, "norm2", mlp), None
