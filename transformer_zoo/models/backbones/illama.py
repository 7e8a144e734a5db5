"""iLLaMA: Adapting LLaMA Decoder to Vision Transformer (Wang et al. 2024, arXiv 2404.06773).

A ViT rebuilt as a LLaMA decoder: RMSNorm, SwiGLU, rotary positions beside the learned ones, causal attention. Two
things make that train: the class token stands LAST, where it sees every patch, and the mask becomes causal gradually,
from all ones at `soft_mask_rate` 1 to lower triangular at 0 (section 3.6). The mask multiplies the softmax and nothing
is normalised again, so early tokens attend with less than a whole. Reference: techmonsterwang/iLLaMA. Sizes stand in
`zoo/papers/illama.toml`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from transformer_zoo.layers.attention import Attention
from transformer_zoo.layers.blocks import drop_path_rates, scan_blocks
from transformer_zoo.layers.constraints import constrain_tokens
from transformer_zoo.layers.depths import layer_depths
from transformer_zoo.layers.mlp import Mlp
from transformer_zoo.layers.norms import DropPath
from transformer_zoo.layers.patches import PatchEmbed, grid_of
from transformer_zoo.layers.positions import LearnedPositions
from transformer_zoo.layers.rope import rope_tables
from transformer_zoo.task import Context
from transformer_zoo.tasks.classification import Classification

HIDDEN_MULTIPLE = 256  # the feed-forward width is rounded up to a multiple of this


def hidden_width(width: int, multiple: int = HIDDEN_MULTIPLE) -> int:
    """Two thirds of four times the width, rounded up to a whole multiple, as LLaMA's SwiGLU has it."""
    return multiple * -(-int(2 * 4 * width / 3) // multiple)


def soft_causal_mask(tokens: int, soft_mask_rate: Float[Array, ""] | float) -> Float[Array, "1 1 tokens tokens"]:
    """Lower triangle plus `soft_mask_rate` times the upper one (equation 4), for attention after its softmax."""
    causal = jnp.asarray(np.tri(tokens, dtype=np.float32))
    return (soft_mask_rate + (1 - soft_mask_rate) * causal)[None, None]


class ILLaMABlock(nn.Module):
    """x + attention(norm(x)), then x + swiglu(norm(x)), with RMSNorms.

    Attributes:
        num_heads, hidden: of attention and SwiGLU.
        attention: implementation, see `attend`.
        train: whether drop path applies.
        dtype: of the computation.
    """

    num_heads: int
    hidden: int
    attention: str = "auto"
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        drop_path_rate: Float[Array, ""] | float,
        rope: Any,
        mask: Float[Array, "1 1 tokens tokens"],
    ) -> tuple[Float[Array, "batch tokens width"], Float[Array, "batch tokens width"]]:
        x = constrain_tokens(x)
        y: Any = Attention(self.num_heads, implementation=self.attention, dtype=self.dtype, name="attention")(
            nn.RMSNorm(dtype=self.dtype, name="norm1")(x), rope=rope, probability_mask=mask
        )
        x = x + DropPath(self.train, name="attention_drop")(y, drop_path_rate)
        mlp = Mlp(self.hidden, activation="silu", gated=True, use_bias=False, dtype=self.dtype, name="mlp")
        y = mlp(nn.RMSNorm(dtype=self.dtype, name="norm2")(x))
        x = x + DropPath(self.train, name="mlp_drop")(y, drop_path_rate)
        return x, x


class ILLaMA(nn.Module):
    """The decoder, with a linear head on its class token.

    Attributes:
        num_classes: width of the head; 0 leaves it out.
        image_size: (height, width) in pixels for which positions are stored; other inputs have them resized.
        patch_size: (height, width) in pixels.
        channels: of the image.
        depth, width, num_heads: of the decoder.
        hidden: width of the SwiGLU; 0 means `hidden_width(width)`.
        class_token_first: the class token in front, where a causal mask lets it see no patch (the paper's failure).
        attention: implementation, see `attend`.
        drop_path_rate: of the last block, growing linearly from 0 in the first.
        remat, unroll: see `scan_blocks`.
        dtype: of the computation; parameters stay float32.
    """

    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    channels: int = 3
    depth: int = 12
    width: int = 192
    num_heads: int = 3
    hidden: int = 0
    class_token_first: bool = False
    attention: str = "auto"
    drop_path_rate: float = 0.0
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    def layer_numbers(self, params: Any) -> Any:
        """Layer number of every parameter, see `layer_depths`."""
        return layer_depths(params, self.depth)

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        soft_mask_rate: Float[Array, ""] | float = 0.0,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "batch out"], dict[str, Array]]:
        """Logits [batch, num_classes], or with no head the normalised class token; and named intermediates.

        Of these 'patches' stand before positions, 'levels' [depth, batch, tokens, width] are every block's output,
        'tokens' the normalised patch tokens and 'pooled' what the head reads.

        Args:
            images: of any size that patches tile.
            soft_mask_rate: 1 for attention in both directions, 0 for causal attention, anything between while training.
            train: whether drop path applies.
        """
        grid = grid_of((images.shape[1], images.shape[2]), self.patch_size)
        patches = PatchEmbed(self.width, self.patch_size, dtype=self.dtype, name="patch_embed")(images)
        table = LearnedPositions(grid_of(self.image_size, self.patch_size), self.width, prefix=1, name="positions")(
            grid
        )
        token = self.param("class_token", nn.initializers.truncated_normal(0.02), (1, self.width))
        token = jnp.broadcast_to((token + table[:1]).astype(patches.dtype), (patches.shape[0], 1, self.width))
        parts = [patches + table[1:].astype(patches.dtype), token]
        x = jnp.concatenate(parts[::-1] if self.class_token_first else parts, axis=1)
        tokens = x.shape[1]
        positions = np.arange(tokens)[:, None]
        rope = rope_tables(positions, (self.width // self.num_heads,), interleaved=True)
        block = ILLaMABlock(
            self.num_heads,
            self.hidden or hidden_width(self.width),
            attention=self.attention,
            train=train,
            dtype=self.dtype,
        )
        rates = drop_path_rates(self.drop_path_rate, self.depth)
        mask = soft_causal_mask(tokens, soft_mask_rate)
        x, levels = scan_blocks(self, block, self.depth, x, rates, rope, mask, remat=self.remat, unroll=self.unroll)
        x = nn.RMSNorm(dtype=self.dtype, name="norm")(x)
        place, rest = (0, slice(1, None)) if self.class_token_first else (-1, slice(0, -1))
        pooled = x[:, place]
        aux = {"patches": patches, "levels": levels, "encoded": x, "tokens": x[:, rest], "pooled": pooled}
        if not self.num_classes:
            return pooled, aux
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="head")
        return head(pooled).astype(jnp.float32), aux


@dataclasses.dataclass(frozen=True)
class SoftMaskClassification(Classification):
    """Classification whose mask turns causal during the first steps; it is judged under the causal one.

    Attributes:
        soft_mask_steps: steps until the mask is causal; 0 trains under the causal mask from the start.
        soft_mask_schedule: 'linear' from 1 to 0, or 'constant' 1 until then.
    """

    soft_mask_steps: int = 0
    soft_mask_schedule: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.soft_mask_schedule not in ("linear", "constant"):
            raise ValueError(
                f"task.soft_mask_schedule is {self.soft_mask_schedule!r}, but must be 'linear' or 'constant'"
            )

    def soft_mask_rate(self, step: Array) -> Float[Array, ""]:
        """The rate at a (traced) step: linspace(1, 0) over `soft_mask_steps`, then 0."""
        if self.soft_mask_schedule == "constant":
            return jnp.where(step < self.soft_mask_steps, 1.0, 0.0)
        return jnp.clip(1 - step / max(self.soft_mask_steps - 1, 1), 0.0, 1.0) * (self.soft_mask_steps > 0)

    def network_inputs(self, ctx: Context) -> tuple[Any, ...]:
        """The rate of this step; 0 in evaluation."""
        return (self.soft_mask_rate(ctx.step),) if ctx.train else ()
