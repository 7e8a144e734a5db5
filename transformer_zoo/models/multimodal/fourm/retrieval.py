"""Retrieval from any modality by predicted global features (4M-21, arXiv 2406.09406, section 4.2)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from transformer_zoo.models.multimodal.fourm.embeddings import Tokens
from transformer_zoo.models.multimodal.fourm.generation import fill_grid
from transformer_zoo.models.multimodal.fourm.schedules import Target
from transformer_zoo.task import Variables

Features = Float[Array, "batch width"]


def global_features(
    task: Any, variables: Variables, known: Mapping[str, Tokens], name: str, key: Key[Array, ""]
) -> Features:
    """Global features of what is known: their tokens, predicted in one step, as the tokenizer writes them.

    Args:
        task: a `FourMTask`.
        variables: of it.
        known: modalities with what is known as inputs.
        name: the modality of global tokens.
        key: of the draw, at temperature 0.1 among the likeliest codes.
    """
    target = Target(name, steps=1, temperature=0.1, top_p=0.8)
    tokens = fill_grid(task.network, task.parameters(variables), known, target, key)
    return task.detokenize(variables, task.modalities[name], tokens.values)


def nearest(queries: Features, gallery: Float[Array, "others width"], count: int = 1) -> Int[Array, "batch count"]:
    """The `count` rows of the gallery of the smallest angle to each query, nearest first."""
    queries, gallery = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (queries, gallery))
    return jnp.argsort(-queries @ gallery.T, axis=1)[:, :count]
