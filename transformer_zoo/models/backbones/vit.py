"""ViT: An Image is Worth 16x16 Words (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929).

An image is cut into patches, each patch becomes a token by one linear map, positions are added, and a plain pre-norm
transformer encoder does the rest. Reference: google-research/big_vision (Apache-2.0); equal to timm's `vit_*` and to
transformers' `ViTModel` on the same weights. Sizes stand in `zoo/papers/vit.toml`.

Half of this zoo is an edit of this file, so it also offers what its descendants ask for: encoding of visible tokens
only (`keep`), registers (Darcet et al. 2024, arXiv 2309.16588), mean and attention pooling (Beyer et al. 2022,
arXiv 2205.01580; Zhai et al. 2022, arXiv 2106.04560), patch dropout (Liu et al. 2023, arXiv 2208.07220), inputs of
other sizes than the one it was built for, and every block's output in `aux`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_zoo.layers.blocks import Block, drop_path_rates, scan_blocks
from transformer_zoo.layers.depths import layer_depths
from transformer_zoo.layers.norms import layer_norm
from transformer_zoo.layers.patches import PatchEmbed, grid_of
from transformer_zoo.layers.pooling import AttentionPool
from transformer_zoo.layers.positions import LearnedPositions, grid_positions, sincos_2d
from transformer_zoo.layers.rope import rope_tables
from transformer_zoo.masking.random import mask_from_scores, num_kept, take_tokens

POOLS = ("class_token", "mean", "attention", "none")
POSITIONS = ("learned", "sincos_2d", "sincos_2d_big_vision", "rope_2d", "none")


class ViT(nn.Module):
    """The encoder, with a linear head where `num_classes` is not 0.

    Attributes:
        num_classes: width of the head; 0 leaves it out.
        image_size: (height, width) in pixels for which positions are stored; other inputs have them resized.
        patch_size: (height, width) in pixels.
        channels: of the image.
        depth, width, num_heads, mlp_ratio: of the encoder.
        pool: 'class_token', 'mean' (over patches), 'attention' (MAP) or 'none' (the output is all tokens).
        class_token: whether there is one; needed by its pool.
        num_registers: extra learned tokens after the class token, without positions, dropped at the end.
        positions: one of `POSITIONS`.
        prefix_positions: learned positions also for class token and registers (timm's `vit_*` of 2021).
        final_norm: 'tokens' (before pooling), 'pooled' (after it: timm's `fc_norm`) or 'none'.
        representation_size: width of a tanh layer before the head; 0 leaves it out.
        activation, gated, use_bias, qkv_bias, qk_norm, layer_scale, norm_epsilon, attention: see `Block`.
        dropout_rate, drop_path_rate, patch_dropout: regularisation while training.
        remat, unroll: see `scan_blocks`.
        dtype: of the computation; parameters stay float32.
    """

    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    channels: int = 3
    depth: int = 12
    width: int = 768
    num_heads: int = 12
    mlp_ratio: float = 4.0
    pool: str = "class_token"
    class_token: bool = True
    num_registers: int = 0
    positions: str = "learned"
    prefix_positions: bool = False
    final_norm: str = "tokens"
    representation_size: int = 0
    activation: str = "gelu"
    gated: bool = False
    use_bias: bool = True
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: float = 0.0
    norm_epsilon: float = 1e-6
    attention: str = "auto"
    dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    patch_dropout: float = 0.0
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at `image_size`."""
        return grid_of(self.image_size, self.patch_size)

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches."""
        return int(self.class_token) + self.num_registers

    def layer_numbers(self, params: Any) -> Any:
        """Layer number of every parameter: 0 the stem, 1 to depth the blocks, depth + 1 the rest."""
        return layer_depths(params, self.depth)

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        keep: Int[Array, "batch kept"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "batch *out"], dict[str, Array]]:
        """Encodes images, or only the patches numbered `keep` (row-major) of each.

        Returns:
            Logits [batch, num_classes]; with no head the pooled vector [batch, width]; with pool 'none' all tokens.
            And named intermediates: 'patches' (before positions), 'levels' [depth, batch, tokens, width] (every
            block's output), 'tokens' (patch tokens after the last norm), 'pooled' (what the head reads).

        Raises:
            ValueError: an image whose size patches do not tile, or a field that names no known option.
        """
        self._check()
        grid = grid_of((images.shape[1], images.shape[2]), self.patch_size)
        patches = PatchEmbed(self.width, self.patch_size, dtype=self.dtype, name="patch_embed")(images)
        tokens, prefix_positions, rope = self._add_positions(patches, grid)
        if train and self.patch_dropout and keep is None:
            kept = max(1, num_kept(tokens.shape[1], self.patch_dropout))
            scores = jax.random.uniform(self.make_rng("dropout"), tokens.shape[:2])
            keep = mask_from_scores(scores, kept).keep
        if keep is not None:
            tokens = take_tokens(tokens, keep)
            if rope is not None:
                prefix = jnp.broadcast_to(jnp.arange(self.num_prefix), (keep.shape[0], self.num_prefix))
                rows = jnp.concatenate([prefix, keep + self.num_prefix], axis=1)
                rope = jax.tree.map(lambda table: table[rows], rope)
        tokens = self._prepend(tokens, prefix_positions)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(tokens)

        block = Block(
            self.num_heads,
            mlp_ratio=self.mlp_ratio,
            activation=self.activation,
            gated=self.gated,
            use_bias=self.use_bias,
            qkv_bias=self.qkv_bias,
            qk_norm=self.qk_norm,
            attention=self.attention,
            layer_scale=self.layer_scale,
            norm_epsilon=self.norm_epsilon,
            dropout_rate=self.dropout_rate,
            train=train,
            dtype=self.dtype,
        )
        rates = drop_path_rates(self.drop_path_rate, self.depth)
        x, levels = scan_blocks(self, block, self.depth, x, rates, rope, remat=self.remat, unroll=self.unroll)

        if self.final_norm == "tokens":
            x = layer_norm(self.norm_epsilon, self.dtype, "norm")(x)
        aux = {"patches": patches, "levels": levels, "tokens": x[:, self.num_prefix :], "encoded": x}
        if self.pool == "none":
            return x, aux
        pooled = self._pool(x)
        if self.final_norm == "pooled":
            pooled = layer_norm(self.norm_epsilon, self.dtype, "norm")(pooled)
        if self.representation_size:
            pooled = nn.tanh(nn.Dense(self.representation_size, dtype=self.dtype, name="representation")(pooled))
        aux["pooled"] = pooled
        if not self.num_classes:
            return pooled, aux
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="head")
        return head(pooled).astype(jnp.float32), aux

    def _check(self) -> None:
        for name, options in (
            ("pool", POOLS),
            ("positions", POSITIONS),
            ("final_norm", ("tokens", "pooled", "none")),
        ):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(options)}")
        if self.pool == "class_token" and not self.class_token:
            raise ValueError("pool 'class_token' needs class_token=True")

    def _add_positions(self, tokens: Array, grid: tuple[int, int]) -> tuple[Array, Array | None, Any]:
        """Patches with positions added, positions of the prefix if it has any, and rotations if those are asked for."""
        if self.positions == "learned":
            prefix = self.num_prefix if self.prefix_positions else 0
            table = LearnedPositions(self.grid, self.width, prefix=prefix, name="positions")(grid)
            return tokens + table[prefix:].astype(tokens.dtype), table[:prefix] if prefix else None, None
        if self.positions.startswith("sincos_2d"):
            order = "big_vision" if self.positions.endswith("big_vision") else "mae"
            return tokens + sincos_2d(grid, self.width, order=order).astype(tokens.dtype), None, None
        if self.positions == "none":
            return tokens, None, None
        axis_width = self.width // self.num_heads // 2
        return tokens, None, rope_tables(grid_positions(grid), (axis_width, axis_width), prefix=self.num_prefix)

    def _prepend(self, tokens: Array, prefix_positions: Array | None) -> Array:
        """Class token and registers in front of the patches."""
        prefix = []
        if self.class_token:
            prefix.append(self.param("class_token", nn.initializers.normal(0.02), (1, self.width)))
        if self.num_registers:
            prefix.append(self.param("registers", nn.initializers.normal(0.02), (self.num_registers, self.width)))
        if not prefix:
            return tokens
        rows = jnp.concatenate(prefix)
        rows = rows if prefix_positions is None else rows + prefix_positions
        rows = jnp.broadcast_to(rows.astype(tokens.dtype), (tokens.shape[0], *rows.shape))
        return jnp.concatenate([rows, tokens], axis=1)

    def _pool(self, tokens: Array) -> Array:
        if self.pool == "class_token":
            return tokens[:, 0]
        if self.pool == "mean":
            return tokens[:, self.num_prefix :].mean(axis=1)
        return AttentionPool(
            self.num_heads,
            mlp_ratio=self.mlp_ratio,
            activation=self.activation,
            norm_epsilon=self.norm_epsilon,
            dtype=self.dtype,
            name="attention_pool",
        )(tokens)
