"""TNT: Transformer in Transformer (Han et al., NeurIPS 2021, arXiv 2103.00112).

A patch is a sentence, and its own small patches are the words: every block runs a narrow transformer over the words of
each sentence alone, folds them into the sentence's token by a linear map, and then runs a transformer over sentences.
Reference: timm's `tnt_*` (Apache-2.0), equal on equal weights in both forms: `legacy`, for which the official weights
of huawei-noah/Efficient-AI-Backbones are made, and the corrected one. Sizes stand in `zoo/papers/tnt.toml`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo.layers.blocks import Block, drop_path_rates, scan_blocks
from transformer_zoo.layers.constraints import constrain_batch
from transformer_zoo.layers.convolutions import Downsample
from transformer_zoo.layers.depths import layer_depths
from transformer_zoo.layers.mlp import mlp_width
from transformer_zoo.layers.norms import layer_norm
from transformer_zoo.layers.patches import grid_of
from transformer_zoo.layers.positions import LearnedPositions
from transformer_zoo.layers.windows import partition

Words = Float[Array, "patches words inner_width"]
Sentences = Float[Array, "batch tokens width"]


def words_side_by_side(words: Words, batch: int) -> Float[Array, "batch sentences channels"]:
    """The words of each sentence as one vector, word by word."""
    return words.reshape(batch, words.shape[0] // batch, -1)


class TokenEmbed(nn.Module):
    """Images to words and sentences (section 3.2).

    Attributes:
        width, inner_width, patch_size, stride, word_positions, legacy: see `TNT`.
        dtype: of the computation.
    """

    width: int
    inner_width: int
    patch_size: tuple[int, int]
    stride: int
    word_positions: bool = True
    legacy: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height pixels channels"]
    ) -> tuple[Words, Float[Array, "batch grid width"]]:
        grid_of((images.shape[1], images.shape[2]), self.patch_size)
        convolve = Downsample(self.inner_width, 7, self.stride, 3, dtype=self.dtype, name="words")
        rows, columns = (-(-side // self.stride) for side in self.patch_size)  # words of a sentence
        if self.legacy:  # sees across the borders of patches
            words = partition(convolve(images), (rows, columns))
        else:
            patches = partition(images, self.patch_size)
            words = convolve(patches.reshape(-1, *self.patch_size, images.shape[-1]))
            words = words.reshape(-1, rows * columns, self.inner_width)
        if self.word_positions:
            positions = LearnedPositions((rows, columns), self.inner_width, name="word_positions")((rows, columns))
            words = words + positions.astype(words.dtype)
        y = layer_norm(1e-5, self.dtype, "norm1")(words_side_by_side(words, images.shape[0]))
        y = nn.Dense(self.width, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="projection")(y)
        return words, layer_norm(1e-5, self.dtype, "norm2")(y)


class TNTBlock(nn.Module):
    """A block over words, their fold into sentences, and a block over sentences (section 3.2).

    Attributes:
        num_heads, inner_heads, mlp_ratio, qkv_bias, legacy, attention: see `TNT`.
        train: whether drop path applies, to the two blocks and not to the fold.
        dtype: of the computation.
    """

    num_heads: int
    inner_heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    legacy: bool = False
    attention: str = "auto"
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, tokens: tuple[Words, Sentences], drop_path_rate: Float[Array, ""] | float
    ) -> tuple[tuple[Words, Sentences], Sentences]:
        words, sentences = tokens
        words, sentences = constrain_batch(words), constrain_batch(sentences)
        shared: dict[str, Any] = dict(
            qkv_bias=self.qkv_bias, attention=self.attention, norm_epsilon=1e-5, train=self.train, dtype=self.dtype
        )
        words, _ = Block(self.inner_heads, name="inner", **shared)(words, drop_path_rate)
        norm1 = layer_norm(1e-5, self.dtype, "fold_norm1")
        batch, width = sentences.shape[0], sentences.shape[2]
        # The older form normalises every word on its own, the other one all words of a sentence together.
        folded = words_side_by_side(norm1(words), batch) if self.legacy else norm1(words_side_by_side(words, batch))
        folded = nn.Dense(
            width, use_bias=self.legacy, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="fold"
        )(folded)
        if not self.legacy:
            folded = layer_norm(1e-5, self.dtype, "fold_norm2")(folded)
        sentences = jnp.concatenate([sentences[:, :1], sentences[:, 1:] + folded], axis=1)
        sentences, _ = Block(self.num_heads, mlp_ratio=self.mlp_ratio, name="outer", **shared)(
            sentences, drop_path_rate
        )
        return (words, sentences), sentences


class TNT(nn.Module):
    """Both transformers, with a linear head on the class token where `num_classes` is not 0.

    Attributes:
        num_classes: width of the head; 0 leaves it out.
        image_size: (height, width) in pixels for which positions of sentences are stored; other inputs have them
            resized.
        patch_size: (height, width) in pixels of a sentence.
        channels: of the image.
        depth, width, num_heads: of the transformer over sentences.
        inner_width, inner_heads: of the transformer over words.
        stride: pixels from word to word.
        mlp_ratio: over sentences, fractions of a channel cut off; over words it is 4.
        qkv_bias: of both attentions.
        word_positions: whether words have positions, the same in all sentences (an ablation).
        legacy: the form of the official weights: words are cut from a convolution of the whole image, and the fold has
            a bias and one LayerNorm over single words; else every patch is convolved alone, and the fold has no bias
            and LayerNorms over all words of a sentence and over its result.
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
    width: int = 384
    num_heads: int = 6
    inner_width: int = 24
    inner_heads: int = 4
    stride: int = 4
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    word_positions: bool = True
    legacy: bool = False
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
        self, images: Float[Array, "batch height pixels channels"], *, train: bool = False
    ) -> tuple[Float[Array, "batch out"], dict[str, Any]]:
        """Logits [batch, num_classes], or with no head the normalised class token; and named intermediates.

        Of these 'patches' are the sentences before positions, 'levels' [depth, batch, tokens, width] those that every
        block gives, class token first, 'words' [batch * patches, words, inner_width] the last words, 'tokens' the
        normalised sentences without the class token and 'pooled' what the head reads.

        Raises:
            ValueError: an image that patches do not tile.
        """
        embed = TokenEmbed(
            self.width,
            self.inner_width,
            self.patch_size,
            self.stride,
            self.word_positions,
            self.legacy,
            self.dtype,
            name="patch_embed",
        )
        words, patches = embed(images)
        grid = grid_of((images.shape[1], images.shape[2]), self.patch_size)
        own = grid_of(self.image_size, self.patch_size)
        table = LearnedPositions(own, self.width, prefix=1, name="positions")(grid)
        token = self.param("class_token", nn.initializers.truncated_normal(0.02), (1, self.width))
        token = jnp.broadcast_to(token.astype(patches.dtype), (patches.shape[0], 1, self.width))
        x = jnp.concatenate([token, patches], axis=1) + table.astype(patches.dtype)
        block = TNTBlock(
            self.num_heads,
            self.inner_heads,
            mlp_ratio=mlp_width(self.width, self.mlp_ratio) / self.width,
            qkv_bias=self.qkv_bias,
            legacy=self.legacy,
            attention=self.attention,
            train=train,
            dtype=self.dtype,
        )
        rates = drop_path_rates(self.drop_path_rate, self.depth)
        (words, x), levels = scan_blocks(
            self, block, self.depth, (words, x), rates, remat=self.remat, unroll=self.unroll
        )
        x = layer_norm(1e-5, self.dtype, "norm")(x)
        pooled = x[:, 0]
        aux = {"patches": patches, "levels": levels, "words": words, "tokens": x[:, 1:], "pooled": pooled}
        if not self.num_classes:
            return pooled, aux
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="head")
        return head(pooled).astype(jnp.float32), aux
