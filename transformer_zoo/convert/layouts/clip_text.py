"""Layouts of CLIP's text encoder: transformers', and that of OpenAI and OpenCLIP.

What reads pictures in a file of both has no place and needs none.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.layouts.vit import attention_out, first_axis, heads, hidden_ratio
from transformer_zoo.convert.table import HEADS, HEADS_BIAS, LINEAR, Arrays, Rule, Table, linear, norm
from transformer_zoo.models.features.clip_text import CLIPText

HEAD_DIM = 64  # of all that are published
IN_TRANSFORMERS, IN_OPENCLIP = "encoder.layers.{i}", "transformer.resblocks.{i}"


def example(encoder: CLIPText) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    return (jax.ShapeDtypeStruct((1, encoder.length), jnp.int32),)


def transformers(encoder: CLIPText) -> Table:
    """The names of `CLIPTextModelWithProjection`."""
    block = f"text_model.{IN_TRANSFORMERS}"
    return [
        Rule("text_model.embeddings.token_embedding.weight", "embed/embedding"),
        Rule("text_model.embeddings.position_embedding.weight", "positions"),
        *norm(f"{block}.layer_norm1", "blocks/norm1"),
        *heads(tuple(f"{block}.self_attn.{part}_proj" for part in "qkv"), "blocks/attention/qkv"),
        *attention_out(f"{block}.self_attn.out_proj", "blocks/attention/out"),
        *norm(f"{block}.layer_norm2", "blocks/norm2"),
        *linear(f"{block}.mlp.fc1", "blocks/mlp/up"),
        *linear(f"{block}.mlp.fc2", "blocks/mlp/down"),
        *norm("text_model.final_layer_norm", "norm"),
        Rule("text_projection.weight", "projection/kernel", LINEAR),
    ]


def openclip(encoder: CLIPText) -> Table:
    """The names of OpenAI's and OpenCLIP's models, whose projection multiplies from the right."""
    return [
        Rule("token_embedding.weight", "embed/embedding"),
        Rule("positional_embedding", "positions"),
        *norm(f"{IN_OPENCLIP}.ln_1", "blocks/norm1"),
        Rule(f"{IN_OPENCLIP}.attn.in_proj_weight", "blocks/attention/qkv/kernel", HEADS),
        Rule(f"{IN_OPENCLIP}.attn.in_proj_bias", "blocks/attention/qkv/bias", HEADS_BIAS),
        *attention_out(f"{IN_OPENCLIP}.attn.out_proj", "blocks/attention/out"),
        *norm(f"{IN_OPENCLIP}.ln_2", "blocks/norm2"),
        *linear(f"{IN_OPENCLIP}.mlp.c_fc", "blocks/mlp/up"),
        *linear(f"{IN_OPENCLIP}.mlp.c_proj", "blocks/mlp/down"),
        *norm("ln_final", "norm"),
        Rule("text_projection", "projection/kernel"),
    ]


def _sizes(words: Any, places: Any, up: Any) -> dict[str, Any]:
    """What three arrays tell; heads have the width that all published ones have."""
    vocabulary, width = words.shape
    return {
        "vocabulary_size": vocabulary,
        "length": places.shape[0],
        "width": width,
        "mlp_ratio": hidden_ratio(up),
        "num_heads": max(width // HEAD_DIM, 1),
    }


def transformers_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `CLIPText` that the arrays tell; the prefix is stripped."""
    words, places = (arrays[f"embeddings.{name}_embedding.weight"] for name in ("token", "position"))
    return _sizes(words, places, arrays["encoder.layers.0.mlp.fc1.weight"]) | {
        "depth": count(arrays, IN_TRANSFORMERS),
        "projection_width": first_axis(arrays, "text_projection.weight"),
    }


def openclip_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `CLIPText` that the arrays tell."""
    words, places = arrays["token_embedding.weight"], arrays["positional_embedding"]
    return _sizes(words, places, arrays["transformer.resblocks.0.mlp.c_fc.weight"]) | {
        "depth": count(arrays, IN_OPENCLIP),
        "projection_width": arrays["text_projection"].shape[1] if "text_projection" in arrays else 0,
    }


LAYOUTS = {
    "transformers": Layout(
        table=transformers,
        marks=("embeddings.token_embedding.weight", "encoder.layers.0.layer_norm1.weight"),
        arguments=transformers_arguments,
        untold=("activation",),
        prefixes=("text_model.",),
        ignored=(r"vision_model\..*", r"visual_projection\.weight", "logit_scale", r"(.*\.)?embeddings\.position_ids"),
    ),
    "openclip": Layout(
        table=openclip,
        marks=("token_embedding.weight", "positional_embedding", "transformer.resblocks.0.ln_1.weight"),
        arguments=openclip_arguments,
        untold=("activation",),
        ignored=(r"visual\..*", "logit_scale", "attn_mask", "input_resolution", "context_length", "vocab_size"),
    ),
}
