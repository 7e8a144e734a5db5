"""T2T-ViT: Tokens-to-Token ViT, Training Vision Transformers from Scratch (Yuan et al., ICCV 2021, arXiv 2101.11986).

Overlapping patches ("soft splits") take the place of hard ones, three times in a row: after all but the last, tokens
pass a narrow attention block and stand as an image again, which is split anew. A deep and narrow ViT follows.
The narrow attention is exact, or a Performer's: its softmax kernel is estimated by random features that are drawn once
and never trained. Both run over so many tokens that they have a single head of 64 channels.
Reference: yitu-opensource/T2T-ViT (Clear BSD). Sizes stand in `zoo/papers/t2t.toml`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from transformer_zoo.layers.attention import HeadProjection, attend
from transformer_zoo.layers.blocks import Block, drop_path_rates, scan_blocks
from transformer_zoo.layers.constraints import constrain_batch
from transformer_zoo.layers.convolutions import map_of, tokens_of, unfold
from transformer_zoo.layers.depths import layer_depths
from transformer_zoo.layers.mlp import Mlp
from transformer_zoo.layers.norms import layer_norm
from transformer_zoo.layers.positions import sincos_1d

TOKEN_ATTENTIONS = ("performer", "transformer")
PERFORMER_DROPOUT = 0.1  # while training, whatever the dropout elsewhere
Tokens = Float[Array, "batch tokens dim"]


def softmax_features(x: Tokens, features: Float[Array, "features dim"]) -> Float[Array, "batch tokens features"]:
    """exp(w x - |x|^2 / 2) / sqrt(m) for the m rows w: products of two estimate exp(x y).

    The positive features of Performers (Choromanski et al. 2021, arXiv 2009.14794).
    In float32 whatever x is, as nothing holds the exponential down.
    """
    x = x.astype(jnp.float32)
    logits = x @ features.T - jnp.sum(x**2, axis=-1, keepdims=True) / 2
    return jnp.exp(logits) / features.shape[0] ** 0.5


def performer_attention(query: Tokens, key: Tokens, value: Tokens, features: Float[Array, "features dim"]) -> Tokens:
    """softmax(query key^T) value, without scale, its exponentials estimated; linear in the number of tokens."""
    asking, asked = softmax_features(query, features), softmax_features(key, features)
    summary = jnp.einsum("btm,btd->bmd", asked, value.astype(jnp.float32))
    weight = jnp.einsum("btm,bm->bt", asking, asked.sum(axis=1))
    return (jnp.einsum("btm,bmd->btd", asking, summary) / (weight[..., None] + 1e-8)).astype(value.dtype)


class TokenBlock(nn.Module):
    """Attention with one head, its skip from the values, as the widths differ; then x + mlp(norm(x)) (section 3.1).

    Attributes:
        width: of the result.
        kind: one of `TOKEN_ATTENTIONS`. The performer's projection has biases, and a collection `random_features` of
            width / 2 orthogonal rows, which are no parameters; the transformer's scale is that of the block's input.
        attention: implementation of the exact attention, see `attend`.
        train: whether the performer's dropout applies.
        dtype: of the computation.
    """

    width: int
    kind: str = "performer"
    attention: str = "auto"
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens patch"]) -> Tokens:
        x = constrain_batch(x)
        scale, x = x.shape[-1] ** -0.5, layer_norm(1e-5, self.dtype, "norm1")(x)
        performer = self.kind == "performer"
        project = HeadProjection(3, 1, self.width, use_bias=performer, dtype=self.dtype, name="projections")
        if performer:
            count = self.width // 2
            draw = nn.initializers.orthogonal(count**0.5)
            features = self.variable(
                "random_features", "rows", lambda: draw(self.make_rng("params"), (count, self.width))
            ).value
            key, query, value = (part[:, :, 0] for part in project(x))  # the reference's order
            y = performer_attention(query, key, value, features)
        else:
            heads = project(x)
            y, value = attend(*heads, scale=scale, implementation=self.attention)[:, :, 0], heads[2][:, :, 0]
        drop = nn.Dropout(PERFORMER_DROPOUT, deterministic=not (self.train and performer))
        x = value + drop(nn.Dense(self.width, dtype=self.dtype, name="out")(y))
        return x + drop(Mlp(self.width, dtype=self.dtype, name="mlp")(layer_norm(1e-5, self.dtype, "norm2")(x)))


def split_padding(kernel_size: int, stride: int) -> int:
    """Zeros on every side with which a split of whole strides has one patch a stride."""
    return (kernel_size - stride + 1) // 2


class TokensToToken(nn.Module):
    """Soft splits with a `TokenBlock` after each but the last, and a linear map to the width of the encoder.

    Attributes:
        width: of the result.
        kernel_sizes, strides, token_width, token_attention, attention: see `T2TViT`.
        train: whether dropout applies.
        dtype: of the computation.
    """

    width: int
    kernel_sizes: tuple[int, ...]
    strides: tuple[int, ...]
    token_width: int
    token_attention: str
    attention: str = "auto"
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width channels"]) -> tuple[Array, tuple[Array, ...]]:
        """Tokens [batch, tokens, width], and what each token block gave."""
        x, blocks = images, []
        for number, (kernel_size, stride) in enumerate(zip(self.kernel_sizes, self.strides)):
            if number:
                block = TokenBlock(
                    self.token_width,
                    self.token_attention,
                    self.attention,
                    self.train,
                    self.dtype,
                    name=f"token_block{number}",
                )
                blocks.append(block(tokens_of(x)))
                x = map_of(blocks[-1], x.shape[1:3])
            x = unfold(x, kernel_size, stride, split_padding(kernel_size, stride))
        projection = nn.Dense(
            self.width, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="projection"
        )
        return projection(tokens_of(x)), tuple(blocks)


class T2TViT(nn.Module):
    """The encoder, with a linear head on its class token where `num_classes` is not 0.

    Attributes:
        num_classes: width of the head; 0 leaves it out.
        image_size: (height, width) in pixels that it is made for; other inputs work, as positions are fixed.
        channels: of the image.
        depth, width, num_heads, mlp_ratio, qkv_bias: of the encoder.
        scale: of the encoder's attention; None means head_dim^-0.5. The released weights want width^-0.5.
        kernel_sizes, strides: of the splits; one split with both equal is the hard patches of ViT.
        token_width: of the token blocks.
        token_attention: one of `TOKEN_ATTENTIONS`.
        attention: implementation, see `attend`.
        drop_path_rate: of the last block, growing linearly from 0 in the first.
        remat, unroll: see `scan_blocks`.
        dtype: of the computation; parameters stay float32.
    """

    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    depth: int = 14
    width: int = 384
    num_heads: int = 6
    mlp_ratio: float = 3.0
    qkv_bias: bool = False
    scale: float | None = None
    kernel_sizes: tuple[int, ...] = (7, 3, 3)
    strides: tuple[int, ...] = (4, 2, 2)
    token_width: int = 64
    token_attention: str = "performer"
    attention: str = "auto"
    drop_path_rate: float = 0.0
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens at `image_size`."""
        rows, columns = self.image_size
        for kernel_size, stride in zip(self.kernel_sizes, self.strides):
            added = 2 * split_padding(kernel_size, stride) - kernel_size
            rows, columns = ((length + added) // stride + 1 for length in (rows, columns))
        return rows, columns

    def layer_numbers(self, params: Any) -> Any:
        """Layer number of every parameter, see `layer_depths`."""
        return layer_depths(params, self.depth)

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        positions: Float[Array, "positions dim"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "batch out"], dict[str, Any]]:
        """Logits [batch, num_classes], or with no head the normalised class token; and named intermediates.

        Of these 'token_blocks' are the outputs of the token blocks, 'patches' what the encoder reads before positions,
        'levels' [depth, batch, tokens, width] every block's output, 'tokens' the normalised patch tokens and 'pooled'
        what the head reads.

        Args:
            images: of any size that the splits accept.
            positions: of the class token and all others, in place of the fixed sines and cosines of their number.
            train: whether dropout and drop path apply.

        Raises:
            ValueError: an unknown `token_attention`, or splits whose kernels and strides differ in number.
        """
        if self.token_attention not in TOKEN_ATTENTIONS:
            raise ValueError(f"token_attention {self.token_attention!r} is none of {', '.join(TOKEN_ATTENTIONS)}")
        if len(self.kernel_sizes) != len(self.strides):
            raise ValueError(f"kernel_sizes {self.kernel_sizes} and strides {self.strides} must have one entry a split")
        patches, token_blocks = TokensToToken(
            self.width,
            self.kernel_sizes,
            self.strides,
            self.token_width,
            self.token_attention,
            self.attention,
            train,
            self.dtype,
            name="patch_embed",
        )(images)
        batch, tokens, width = patches.shape
        token = self.param("class_token", nn.initializers.truncated_normal(0.02), (1, width))
        x = jnp.concatenate([jnp.broadcast_to(token.astype(patches.dtype), (batch, 1, width)), patches], axis=1)
        if positions is None:
            positions = sincos_1d(np.arange(tokens + 1), width, layout="interleaved")
        x = x + positions.astype(x.dtype)
        block = Block(
            self.num_heads,
            mlp_ratio=self.mlp_ratio,
            qkv_bias=self.qkv_bias,
            scale=self.scale,
            attention=self.attention,
            norm_epsilon=1e-5,
            train=train,
            dtype=self.dtype,
        )
        rates = drop_path_rates(self.drop_path_rate, self.depth)
        x, levels = scan_blocks(self, block, self.depth, x, rates, remat=self.remat, unroll=self.unroll)
        x = layer_norm(1e-5, self.dtype, "norm")(x)
        pooled = x[:, 0]
        aux = {"token_blocks": token_blocks, "patches": patches, "levels": levels}
        aux |= {"encoded": x, "tokens": x[:, 1:], "pooled": pooled}
        if not self.num_classes:
            return pooled, aux
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="head")
        return head(pooled).astype(jnp.float32), aux
