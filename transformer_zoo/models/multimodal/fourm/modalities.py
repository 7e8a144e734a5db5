"""What a modality is, declared as data: how its tokens come about, how many there are, and what they may be.

A config lists modalities as {name: options}; to add one is to add an entry. Their order is the order in which the
encoder sees them.

    "rgb": {"kind": "pixels", "field": "image", "grid": (14, 14), "patch_size": (16, 16)}
    "tok_depth": {"kind": "tokens", "field": "depth", "tokenizer": "depth_tokenizer", "vocabulary": 8192}
    "caption": {"kind": "sequence", "length": 256, "vocabulary": 30000, "first_sentinel": 5, "num_sentinels": 199}
    "t5_caption": {"kind": "embeddings", "length": 77, "width": 4096}
    "tok_mae": {"kind": "tokens", "field": "image", "features": "mae", "tokenizer": "mae_tokenizer", "vocabulary": 8192}

Boxes, metadata, palettes, poses and SAM instances are sequences; feature maps and global features are tokens, the
latter with learned positions.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from transformer_zoo import naming
from transformer_zoo.models.multimodal.fourm.published import SETS
from transformer_zoo.task import Batch

KINDS = ("pixels", "tokens", "sequence", "embeddings")
POSITIONS = ("sincos", "learned")

Places = Bool[Array, "batch places"]
Values = Int[Array, "batch places"] | Float[Array, "batch ..."]


@dataclasses.dataclass(frozen=True)
class Modality:
    """One modality.

    Attributes:
        kind: 'pixels' (patches, input only), 'tokens' (ids on a grid, predicted all at once), 'sequence' (ids in a row,
            masked in spans and predicted one after the other) or 'embeddings' (vectors in a row, input only).
        field: of the batch; '' is the modality's own name.
        tokenizer: the network that turns the field into ids; '' where the field holds them.
        features: the network whose features of the field, an image, the tokenizer reads; '' where it reads the field.
        vocabulary: how many ids there are, of tokens and sequences.
        grid: rows and columns, of pixels and tokens.
        patch_size: rows and columns of a patch of pixels.
        channels: of pixels.
        length: most ids of a sequence, its end included, or most embeddings.
        field_length: of a sequence as the field holds it, where that is more; what is past `length` is cut off.
        decoder_length: a target's later places count as the first one; 0 means `length`.
        max_positions: rows of a sequence's table of positions.
        width: channels of an embedding.
        bottleneck: width between two maps of an embedding; 0 means one map.
        positions: 'sincos', or 'learned' for tokens without a place (global features).
        chunk: a sequence is masked in pieces of so many ids (metadata: a key and its value).
        end: the id that ends a sequence; places behind it are padding with 0.
        first_sentinel: the first id that stands for a masked span.
        num_sentinels: how many follow from there.
        input: whether the encoder takes it.
        output: whether the decoder predicts it, where its kind can be predicted.
    """

    kind: str
    field: str = ""
    tokenizer: str = ""
    features: str = ""
    vocabulary: int = 0
    grid: tuple[int, int] = (14, 14)
    patch_size: tuple[int, int] = (16, 16)
    channels: int = 3
    length: int = 0
    field_length: int = 0
    decoder_length: int = 0
    max_positions: int = 512
    width: int = 0
    bottleneck: int = 0
    positions: str = "sincos"
    chunk: int = 1
    end: int = 2
    first_sentinel: int = 8
    num_sentinels: int = 16
    input: bool = True
    output: bool = True

    def __post_init__(self) -> None:
        for name, value, known in (("kind", self.kind, KINDS), ("positions", self.positions, POSITIONS)):
            if value not in known:
                raise naming.unknown(f"{name} of a modality:", value, known)
        if self.is_ids and self.vocabulary < 1:
            raise ValueError(f"a modality of kind {self.kind!r} lacks vocabulary")
        if self.kind in ("sequence", "embeddings") and self.length < 1:
            raise ValueError(f"a modality of kind {self.kind!r} lacks length")
        if self.features and not self.tokenizer:
            raise ValueError(f"a modality with features {self.features!r} lacks the tokenizer that reads them")
        if self.kind == "embeddings" and self.width < 1:
            raise ValueError("a modality of kind 'embeddings' lacks width")
        spans = -(-self.length // (2 * self.chunk)) + 1
        if self.kind == "sequence" and spans > self.num_sentinels:
            raise ValueError(
                f"length {self.length} of a sequence allows {spans - 1} masked spans, which with the closing one need "
                f"num_sentinels {spans}, but there are {self.num_sentinels}"
            )

    @property
    def is_ids(self) -> bool:
        """Whether its values are ids."""
        return self.kind in ("tokens", "sequence")

    @property
    def predicted(self) -> bool:
        """Whether the decoder predicts it."""
        return self.output and self.is_ids

    @property
    def places(self) -> int:
        """Places that its values take: a sequence's hold input and target side by side."""
        if self.kind == "sequence":
            return 2 * (self.length + 1)
        return self.length if self.kind == "embeddings" else self.grid[0] * self.grid[1]

    @property
    def most_tokens(self) -> int:
        """The most tokens that a budget can give it."""
        return self.length if self.kind in ("sequence", "embeddings") else self.places

    def shape(self, batch: int) -> tuple[int, ...]:
        """Shape of its unmasked values."""
        if self.kind == "pixels":
            rows, columns = self.grid[0] * self.patch_size[0], self.grid[1] * self.patch_size[1]
            return (batch, rows, columns, self.channels)
        if self.kind == "tokens":
            return (batch, self.places)
        return (batch, self.length, self.width) if self.kind == "embeddings" else (batch, self.length)

    @property
    def dtype(self) -> Any:
        """Of its values."""
        return jnp.int32 if self.is_ids else jnp.float32


Modalities = dict[str, Modality]


def read_modalities(options: str | Mapping[str, Any]) -> Modalities:
    """Modalities by name, from a config's options or the name of a published set.

    Raises:
        ValueError: an unknown set, or options that do not fit, with the modality's name.
    """
    if isinstance(options, str):
        if options not in SETS:
            raise naming.unknown("set of modalities", options, SETS)
        options = SETS[options]
    found = {}
    for name, fields in options.items():
        try:
            found[name] = naming.construct(Modality, fields, f"modalities.{name}")
        except ValueError as error:
            raise ValueError(f"modalities.{name}: {error}") from error
    return found


def field_of(name: str, modality: Modality) -> str:
    """The batch's field that a modality reads."""
    return modality.field or name


def read_values(name: str, modality: Modality, batch: Batch) -> Array:
    """A modality's unmasked values from a batch whose field holds them as they are (ids flat, embeddings float)."""
    values = jnp.asarray(batch[field_of(name, modality)])
    if modality.kind == "tokens":
        return values.reshape(values.shape[0], -1).astype(jnp.int32)
    if modality.kind == "sequence":
        return values[:, : modality.length].astype(jnp.int32)
    return values.astype(jnp.float32)


def abstract_values(modality: Modality, batch: int) -> jax.ShapeDtypeStruct:
    """What stands for a modality's unmasked values, as a field holds them."""
    shape = modality.shape(batch)
    if modality.kind == "sequence":
        shape = (batch, modality.field_length or modality.length)
    return jax.ShapeDtypeStruct(shape, modality.dtype)
