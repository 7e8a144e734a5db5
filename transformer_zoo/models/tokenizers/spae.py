"""SPAE: Semantic Pyramid AutoEncoder (Yu et al., NeurIPS 2023, arXiv 2306.17842).

A VQGAN whose codes are the words of a language model: the table of its embeddings, frozen. Tokens stand in a pyramid,
few at the top and many below, each layer refining the mean of those above (`layers/quantizers/pyramid.py`); a semantic
loss draws the top layers to words that say what is seen, so that a language model which never saw a picture can read
them. There is no public code; the formulas of averaging are those of the paper. Latents have the mean length of words
here, of which the paper says nothing: short ones all find the word that lies next to zero, and stay there.

The paper finds words for a picture with CLIP. Here they are those of its caption, and where no table of a language
model is given, the words' vectors come from how captions use them.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from transformer_zoo.data import sources
from transformer_zoo.data.scenes import grammar
from transformer_zoo.data.vocabulary import SPECIALS
from transformer_zoo.layers.autoencoders import ConvolutionalDecoder, ConvolutionalEncoder
from transformer_zoo.layers.norms import unit_length
from transformer_zoo.layers.quantizers.interface import Quantized
from transformer_zoo.layers.quantizers.pyramid import PyramidQuantizer, num_tokens
from transformer_zoo.layers.quantizers.vector import squared_distances
from transformer_zoo.models.tokenizers.tokenizer import Tokenizer
from transformer_zoo.task import Aux, Batch, Context, Evaluator, Result, Tree, Variables
from transformer_zoo.tasks.networks import apply_network
from transformer_zoo.tasks.tokenization import Tokenization

TOP_TOKENS = 5  # of the first two layers: what a reader is shown
STOP_WORDS = ("a", "the", "of", "on", "in", "at", "from", "under", "lit", ",", ".")  # tell nothing about a picture


@functools.cache
def caption_words() -> tuple[tuple[int, ...], np.ndarray]:
    """Ids of the telling words in captions of scenes, and how often two stand in one caption, [words, words]."""
    source: Any = sources.open_source("scenes:still", "train", {"fields": ("caption",), "count": 4000})
    captions = source.read(np.arange(len(source)), np.zeros(len(source), np.uint64))["caption"]
    present = np.zeros((len(captions), grammar.VOCABULARY_SIZE))
    np.put_along_axis(present, captions, 1, axis=1)
    ids = np.flatnonzero(present.sum(axis=0) > 20)
    ids = ids[ids >= len(SPECIALS)]
    ids = ids[~np.isin(ids, [grammar.IDS[word] for word in STOP_WORDS])]
    return tuple(map(int, ids)), present[:, ids].T @ present[:, ids]


@functools.cache
def word_vectors(width: int) -> np.ndarray:
    """A vector for every word of `caption_words`: the leading directions of its positive mutual information.

    Channels have mean 0 and deviation 1 (Levy and Goldberg 2014, 'Neural Word Embedding as Implicit Matrix
    Factorization', section 5).
    """
    _, together = caption_words()
    total, alone = together.sum(), together.sum(axis=0)
    information = np.log(np.maximum(together * total, 1e-9) / np.outer(alone, alone))
    left, values, _ = np.linalg.svd(np.maximum(information, 0))
    vectors = left[:, :width] * np.sqrt(values[:width])
    return ((vectors - vectors.mean(axis=0)) / vectors.std(axis=0)).astype(np.float32)


def table(path: str, num_words: int, width: int) -> np.ndarray:
    """Vectors [words, width] of a .npy file, each channel with mean 0 and deviation 1; see `SPAE`.

    Raises:
        ValueError: another shape.
    """
    if not path:
        return np.zeros((num_words, width), np.float32) if num_words else word_vectors(width)
    vectors = np.load(path).astype(np.float32)
    if vectors.shape != (num_words, width):
        wanted = f"(model.num_words {num_words}, model.latent_width {width})"
        raise ValueError(f"model.vocabulary {path} has shape {vectors.shape}, but {wanted} was asked for")
    return (vectors - vectors.mean(axis=0)) / (vectors.std(axis=0) + 1e-6)


class SPAE(Tokenizer):
    """Images to a pyramid of words and back; sizes are those for 128 pixels.

    Attributes:
        image_size: rows and columns, equal.
        channels: of an image.
        width, multipliers, num_blocks, patch: see `ConvolutionalEncoder`.
        layers: tokens a side of every layer.
        latent_width: channels of a word's vector.
        vocabulary: a .npy file of them, such as a language model's embeddings; '' takes words of captions of scenes, or
            zeros, to be filled by `init_from`, where `num_words` is given.
        num_words: that it holds; 0 counts those of captions.
        commitment_weight, residual: see `PyramidQuantizer`.
        remat, dtype: see `ConvolutionalEncoder`.
    """

    image_size: tuple[int, int] = (128, 128)
    channels: int = 3
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    num_blocks: int = 2
    patch: int = 1
    layers: tuple[int, ...] = (1, 2, 4, 8, 16, 16)
    latent_width: int = 512
    vocabulary: str = ""
    num_words: int = 0
    commitment_weight: float = 0.33
    residual: bool = False
    remat: str = "none"
    dtype: Any = None

    @property
    def side(self) -> int:
        """Rows of the latents."""
        return self.image_size[0] // (self.patch * 2 ** (len(self.multipliers) - 1))

    @property
    def grid(self) -> tuple[int, ...]:
        """How many ids there are, layer after layer."""
        return (num_tokens(self.layers),)

    @property
    def codebook_size(self) -> int:
        """Words."""
        return self.num_words or len(caption_words()[0])

    def setup(self) -> None:
        rows, columns = self.image_size
        if rows != columns or self.layers[-1] != self.side or any(self.side % grid for grid in self.layers):
            raise ValueError(
                f"layers {self.layers} do not fit latents of {self.side} x {self.side}: each must divide them, and the "
                "last one cover them"
            )
        shared: dict[str, Any] = dict(
            width=self.width,
            multipliers=self.multipliers,
            num_blocks=self.num_blocks,
            patch=self.patch,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.encoder = ConvolutionalEncoder(latent_width=self.latent_width, **shared)
        self.quantizer = PyramidQuantizer(
            self.layers,
            functools.partial(table, self.vocabulary, self.num_words, self.latent_width),
            self.codebook_size,
            self.latent_width,
            self.commitment_weight,
            self.residual,
        )
        self.decoder = ConvolutionalDecoder(channels=self.channels, **shared)

    def encode(self, pixels: Array, *, train: bool = False) -> tuple[Quantized, dict[str, Any]]:
        """Codes, and 'latents', 'asked' (what every layer looked up), 'vocabulary' and 'encoder'."""
        latents, found = self.encoder(pixels)
        latents = unit_length(latents, 1e-6) * self.latent_width**0.5
        codes, asked = self.quantizer.quantize(latents)
        vocabulary = self.quantizer.embedding.value
        return codes, {"latents": latents, "asked": asked, "vocabulary": vocabulary, "encoder": found}

    def detokenize(self, ids: Int[Array, "batch tokens"]) -> Array:
        """Pixels of ids, of all layers or of the first ones."""
        return self.decode(self.quantizer.lookup(ids, self.side))[0]


@dataclasses.dataclass(frozen=True)
class SemanticTokenization(Tokenization):
    """Trains a `SPAE` whose words are those of captions, on captioned scenes (field `caption`).

    Attributes:
        semantic_weight: of the semantic loss, which is first scaled to be as large as all others together; 0 leaves it
            out.
        semantic_layers: so many from the top are drawn to words of the caption.
    """

    semantic_weight: float = 1.0
    semantic_layers: int = 3

    def spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        caption = jax.ShapeDtypeStruct((batch_size, grammar.CAPTION_LENGTH), jnp.int32)
        return super().spec(batch_size) | {"caption": caption}

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], Aux]:
        pixels = batch[self.field]
        reconstruction, aux, state = apply_network(self.network, variables, pixels, key=ctx.key, train=ctx.train)
        appearance, result = self.combine(variables, pixels, reconstruction, aux, state, ctx)
        if ctx.player == "discriminator" or not self.semantic_weight:
            return appearance, result
        semantic = semantic_loss(aux["asked"][: self.semantic_layers], aux["vocabulary"], stated(batch["caption"]))
        scale = jax.lax.stop_gradient(appearance / jnp.maximum(semantic, 1e-6))
        metrics = result.metrics | {"semantic_loss": semantic}
        return appearance + self.semantic_weight * scale * semantic, result.replace(metrics=metrics)

    def evaluators(self) -> dict[str, Evaluator]:
        return super().evaluators() | {"words": Words(task=self)}


def stated(captions: Int[Array, "batch length"]) -> Bool[Array, "batch words"]:
    """Which words each caption holds."""
    words = jnp.asarray(caption_words()[0])
    return (captions[:, :, None] == words).any(axis=1)


def semantic_loss(
    asked: list[Array], vocabulary: Float[Array, "words width"], candidates: Bool[Array, "batch words"]
) -> Float[Array, ""]:
    """Mean over layers and places of the mean -log p(word) of a picture's candidates (section 3.2).

    p is the softmax, over all words, of the negative squared distance from what a layer looks up.
    """
    shares = candidates / jnp.maximum(candidates.sum(axis=1, keepdims=True), 1)
    total = jnp.zeros(())
    for target in asked:
        logs = jax.nn.log_softmax(-squared_distances(target, vocabulary))
        total -= (logs * shares[:, None, None]).sum(axis=-1).mean()
    return total / len(asked)


@dataclasses.dataclass(frozen=True)
class Words(Evaluator):
    """Share of the top five tokens that are words of the picture's caption, of another's (chance), and the words."""

    task: SemanticTokenization | None = None

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        assert self.task is not None
        top = self.task.reconstruct(variables, batch[self.task.field], ctx)[1]["ids"][:, :TOP_TOKENS]
        shares = {}
        for name, captions in (("in_caption", batch["caption"]), ("by_chance", jnp.roll(batch["caption"], 1, axis=0))):
            shares[name] = jnp.take_along_axis(stated(captions), top, axis=1).mean(axis=1)
        return {**shares, "top": top, "caption": batch["caption"]}

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        weight = batch["weight"]
        new = {name: (arrays[name] * weight).sum() for name in ("in_caption", "by_chance")} | {"count": weight.sum()}
        words = np.asarray(caption_words()[0])
        shown = slice(8)
        new["texts"] = [
            f"{' '.join(grammar.WORDS[word] for word in words[top])} | {grammar.decode(caption)}"
            for top, caption in zip(arrays["top"][shown], arrays["caption"][shown])
        ]
        return new if state is None else self.merge(state, new)

    def merge(self, first: dict, second: dict) -> dict:
        return {name: first[name] + second[name] for name in ("in_caption", "by_chance", "count")} | {
            "texts": first["texts"]
        }

    def result(self, state: dict) -> Result:
        shares = {name: float(state[name] / state["count"]) for name in ("in_caption", "by_chance")}
        return Result(shares, texts={"top_words_and_caption": state["texts"]})
