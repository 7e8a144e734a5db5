"""The layout of Meissonic's reference code, and its golden run."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from transformer_zoo.convert.golden import golden_arguments
from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.table import (
    CONVOLUTION,
    HEADS,
    HEADS_BIAS,
    HEADS_OUT,
    LINEAR,
    Arrays,
    Rule,
    Table,
    axes,
    linear,
)
from transformer_zoo.decoding.masked import log_probability
from transformer_zoo.masking.schedules import hidden_share
from transformer_zoo.masking.tokens import lowest
from transformer_zoo.models.masked_generation.meissonic import Meissonic

POINTWISE = axes("out in 1 1 -> in out")  # a convolution with a kernel of one pixel
UPWARDS = axes("in out row column -> row column out in")  # torch.nn.ConvTranspose2d


def example(network: Meissonic) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    features = (1, network.text_length, network.text_width), (1, network.pooled_width)
    caption: Any = tuple(jax.ShapeDtypeStruct(shape, np.float32) for shape in features)
    if network.num_words:
        caption = jax.ShapeDtypeStruct((1, network.text_length), np.int32)
    ids = jax.ShapeDtypeStruct((1, *network.grid), np.int32)
    return ids, caption, jax.ShapeDtypeStruct((1,), np.float32), jax.ShapeDtypeStruct((1, 5), np.float32)


def attention(theirs: str, ours: str, names: tuple[str, str, str], norms: tuple[str, str]) -> list[Rule]:
    """Projections of one stream to queries, keys and values, and their norms."""
    return [
        Rule(tuple(f"{theirs}.{name}.weight" for name in names), f"{ours}/qkv/kernel", HEADS),
        Rule(tuple(f"{theirs}.{name}.bias" for name in names), f"{ours}/qkv/bias", HEADS_BIAS),
        Rule(f"{theirs}.{norms[0]}.weight", f"{ours}/q_norm/scale"),
        Rule(f"{theirs}.{norms[1]}.weight", f"{ours}/k_norm/scale"),
    ]


def double_blocks(theirs: str, ours: str) -> list[Rule]:
    """Diffusers' `FluxTransformerBlock`."""
    rules = []
    streams = (
        ("", "to_out.0", ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), "norm1", "ff"),
        (
            "text_",
            "to_add_out",
            ("add_q_proj", "add_k_proj", "add_v_proj"),
            ("norm_added_q", "norm_added_k"),
            "norm1_context",
            "ff_context",
        ),
    )
    for name, out, projections, norms, modulation, mlp in streams:
        rules += [
            *linear(f"{theirs}.{modulation}.linear", f"{ours}/{name}modulation"),
            *attention(f"{theirs}.attn", f"{ours}/{name}attention", projections, norms),
            Rule(f"{theirs}.attn.{out}.weight", f"{ours}/{name}attention/out/kernel", HEADS_OUT),
            Rule(f"{theirs}.attn.{out}.bias", f"{ours}/{name}attention/out/bias"),
            *linear(f"{theirs}.{mlp}.net.0.proj", f"{ours}/{name}mlp/up"),
            *linear(f"{theirs}.{mlp}.net.2", f"{ours}/{name}mlp/down"),
        ]
    return rules


def single_blocks(theirs: str, ours: str) -> list[Rule]:
    """Diffusers' `FluxSingleTransformerBlock`."""
    return [
        *linear(f"{theirs}.norm.linear", f"{ours}/modulation"),
        *attention(f"{theirs}.attn", f"{ours}/attention", ("to_q", "to_k", "to_v"), ("norm_q", "norm_k")),
        *linear(f"{theirs}.proj_mlp", f"{ours}/up"),
        *linear(f"{theirs}.proj_out", f"{ours}/down"),
    ]


def reference(network: Meissonic) -> Table:
    """The names of `src/transformer.py Transformer2DModel`."""
    rules = [
        *linear("time_text_embed.timestep_embedder.linear_1", "time/up"),
        *linear("time_text_embed.timestep_embedder.linear_2", "time/down"),
        *linear("time_text_embed.text_embedder.linear_1", "pooled/up"),
        *linear("time_text_embed.text_embedder.linear_2", "pooled/down"),
        Rule("cond_embed.linear_1.weight", "condition/up/kernel", LINEAR),
        Rule("cond_embed.linear_2.weight", "condition/down/kernel", LINEAR),
        *linear("context_embedder", "text"),
        Rule("encoder_proj_layer_norm.weight", "text_norm/scale"),
        Rule("embed.embeddings.weight", "embed/embedding"),
        Rule("embed.layer_norm.weight", "embed_norm/scale"),
        Rule("embed.conv.weight", "embed_projection/kernel", POINTWISE),
        Rule("project_to_hidden_norm.weight", "inner_norm/scale"),
        Rule("project_to_hidden.weight", "inner/kernel", LINEAR),
        Rule("project_from_hidden_norm.weight", "outer_norm/scale"),
        Rule("project_from_hidden.weight", "outer/kernel", LINEAR),
        Rule("mlm_layer.conv1.weight", "head_hidden/kernel", POINTWISE),
        Rule("mlm_layer.layer_norm.weight", "head_norm/scale"),
        Rule("mlm_layer.conv2.weight", "logits/kernel", POINTWISE),
        *double_blocks("transformer_blocks.{i}", "double_blocks"),
        *single_blocks("single_transformer_blocks.{i}", "single_blocks"),
    ]
    if network.compression:
        rules += [
            Rule("down_block.downsample.norm.weight", "down_norm/scale"),
            Rule("down_block.downsample.conv.weight", "down/kernel", CONVOLUTION),
            Rule("up_block.upsample.norm.weight", "up_norm/scale"),
            Rule("up_block.upsample.conv.weight", "up/kernel", UPWARDS),
        ]
    return rules


def reference_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `Meissonic` that the arrays tell."""
    vocabulary, width = arrays["embed.embeddings.weight"].shape
    head_dim = len(arrays["transformer_blocks.0.attn.norm_q.weight"])
    return {
        "num_codes": arrays["mlm_layer.conv2.weight"].shape[0],
        "vocabulary_size": vocabulary,
        "double_depth": count(arrays, "transformer_blocks.{i}"),
        "single_depth": count(arrays, "single_transformer_blocks.{i}"),
        "width": width,
        "num_heads": width // head_dim,
        "mlp_ratio": arrays["single_transformer_blocks.0.proj_mlp.weight"].shape[0] / width,
        "compression": "down_block.downsample.conv.weight" in arrays,
        "text_width": arrays["context_embedder.weight"].shape[1],
        "pooled_width": arrays["cond_embed.linear_1.weight"].shape[1] - 5 * 256,
    }


LAYOUTS = {
    "reference": Layout(
        table=reference,
        marks=("embed.embeddings.weight", "transformer_blocks.0.attn.add_q_proj.weight", "mlm_layer.conv2.weight"),
        arguments=reference_arguments,
        untold=("grid", "axis_widths", "text_length"),
    )
}

# The reference's constructor.
ARGUMENTS = {
    "num_layers": (14, "double_depth"),
    "num_single_layers": (28, "single_depth"),
    "attention_head_dim": (128, ""),
    "num_attention_heads": (8, "num_heads"),
    "joint_attention_dim": (1024, "text_width"),
    "pooled_projection_dim": (1024, "pooled_width"),
    "axes_dims_rope": ((16, 56, 56), "axis_widths"),
    "vocab_size": (8256, "vocabulary_size"),
    "codebook_size": (8192, "num_codes"),
    "downsample": (False, "compression"),
    "upsample": (False, ""),
}
STEPS, TEMPERATURE = 8, 2.0  # of the stored steps of the scheduler


def golden(config: Mapping[str, Any]) -> tuple[Meissonic, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """The network of a golden file, and its run: all outputs by the reference's names."""
    given, shapes = config["arguments"], config["inputs"]
    network = Meissonic(
        grid=tuple(shapes["ids"][1:]),
        text_length=shapes["text"][1],
        width=given["attention_head_dim"] * given["num_attention_heads"],
        **golden_arguments(given, ARGUMENTS),
    )

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        caption = inputs["text"], inputs["pooled"]
        logits, aux = network.apply(variables, inputs["ids"], caption, inputs["timestep"], inputs["micro_conds"])
        labels = inputs["labels"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0)) * (labels >= 0)
        outputs = {
            "cond_embed": aux["pooled"],
            "embed": aux["embedded"],
            "text": aux["text"],
            "down": aux["down"],
            "temb": aux["condition"],
            "double1_text": aux["double"][0][0],
            "double1_image": aux["double"][1][0],
            "single_last": aux["single"][-1],
            "up": aux["up"],
            "logits": logits,
            "loss": losses.sum() / (labels >= 0).sum(),
        }
        for name in ("embed", "down", "up", "logits"):
            outputs[name] = outputs[name].transpose(0, 3, 1, 2)
        unknown = inputs["ids"] == network.mask_id
        tokens = jnp.where(unknown, inputs["sampled_ids"].reshape(unknown.shape), inputs["ids"])
        for name in config["outputs"]:
            if not name.endswith("_pred"):
                continue
            time = int(name.removeprefix("step").removesuffix("_pred"))
            index, total = STEPS - 1 - time, math.prod(network.grid)
            temperature = TEMPERATURE * (1 - index / (STEPS - 1))
            scores = log_probability(logits, tokens) + temperature * inputs["gumbel"].reshape(unknown.shape)
            share = hidden_share(jnp.float32((index + 1) / STEPS), "cosine", total)
            wanted = jnp.floor(total * share).astype(jnp.int32)
            left = jnp.maximum(jnp.minimum(wanted, unknown.sum(axis=(1, 2)) - 1), 1) if time else 0
            again = lowest(jnp.where(unknown, scores, jnp.inf), left)
            outputs |= {f"step{time}_pred": tokens, f"step{time}_prev": jnp.where(again, network.mask_id, tokens)}
        return outputs

    return network, run
