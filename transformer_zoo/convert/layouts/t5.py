"""The layout of T5's encoder in transformers; the decoder of a whole T5 has no place and needs none."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.table import HEADS, HEADS_OUT, LINEAR, Arrays, Rule, Table
from transformer_zoo.models.features.t5 import T5Encoder

BLOCK = "encoder.block.{i}"
ATTENTION, MLP = f"{BLOCK}.layer.0.SelfAttention", f"{BLOCK}.layer.1.DenseReluDense"


def example(encoder: T5Encoder) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    return (jax.ShapeDtypeStruct((1, 8), jnp.int32),)


def transformers(encoder: T5Encoder) -> Table:
    """The names of `T5EncoderModel`, which keeps its embedding twice."""
    up = {"gate": "wi_0", "up": "wi_1"} if encoder.gated else {"up": "wi"}
    return [
        Rule("shared.weight", "embed/embedding"),
        Rule("encoder.embed_tokens.weight", "embed/embedding"),
        Rule("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "distances"),
        Rule(tuple(f"{ATTENTION}.{part}.weight" for part in "qkv"), "blocks/attention/qkv/kernel", HEADS),
        Rule(f"{ATTENTION}.o.weight", "blocks/attention/out/kernel", HEADS_OUT),
        Rule(f"{BLOCK}.layer.0.layer_norm.weight", "blocks/norm1/scale"),
        *(Rule(f"{MLP}.{theirs}.weight", f"blocks/mlp/{ours}/kernel", LINEAR) for ours, theirs in up.items()),
        Rule(f"{MLP}.wo.weight", "blocks/mlp/down/kernel", LINEAR),
        Rule(f"{BLOCK}.layer.1.layer_norm.weight", "blocks/norm2/scale"),
        Rule("encoder.final_layer_norm.weight", "norm/scale"),
    ]


def transformers_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `T5Encoder` that the arrays tell."""
    first = {name: template.format(i=0) for name, template in {"attention": ATTENTION, "mlp": MLP}.items()}
    distances, heads = arrays["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].shape
    inner, width = arrays[f"{first['attention']}.q.weight"].shape
    gated = f"{first['mlp']}.wi_0.weight" in arrays
    return {
        "vocabulary_size": arrays["shared.weight"].shape[0],
        "depth": count(arrays, BLOCK),
        "width": width,
        "num_heads": heads,
        "head_dim": inner // heads,
        "hidden": arrays[f"{first['mlp']}.wo.weight"].shape[1],
        "activation": "gelu_tanh" if gated else "relu",
        "gated": gated,
        "num_distances": distances,
    }


LAYOUTS = {
    "transformers": Layout(
        table=transformers,
        marks=("shared.weight", "encoder.final_layer_norm.weight"),
        arguments=transformers_arguments,
        ignored=(r"decoder\..*", r"lm_head\.weight"),
    )
}
