"""Layouts of ViT: timm's `vit_*` and transformers' `ViTModel` and `ViTForImageClassification`.

Also the blocks of both, which half of the other papers share.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.convert.layout import Layout, count, square_grid
from transformer_zoo.convert.preprocessing import HALF, Preprocessing
from transformer_zoo.convert.table import (
    HEADS,
    HEADS_BIAS,
    HEADS_OUT,
    ROW,
    Arrays,
    Constant,
    Rule,
    Table,
    linear,
    norm,
    numbered,
    patch_convolution,
)
from transformer_zoo.layers.patches import grid_of
from transformer_zoo.layers.positions import sincos_2d
from transformer_zoo.models.backbones.vit import ViT


def example(vit: ViT) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    return (jax.ShapeDtypeStruct((1, *vit.image_size, vit.channels), jnp.float32),)


def patch_embedding(theirs: str, ours: str, patch_size: tuple[int, int]) -> list[Rule]:
    """A convolution `theirs` as `PatchEmbed`."""
    return [
        Rule(f"{theirs}.weight", f"{ours}/projection/kernel", patch_convolution(patch_size)),
        Rule(f"{theirs}.bias", f"{ours}/projection/bias"),
    ]


def attention_out(theirs: str, ours: str) -> list[Rule]:
    """The output projection `theirs` of an attention."""
    return [Rule(f"{theirs}.weight", f"{ours}/kernel", HEADS_OUT), Rule(f"{theirs}.bias", f"{ours}/bias")]


def heads(theirs: str | tuple[str, ...], ours: str) -> list[Rule]:
    """One fused projection `theirs`, or one for each part, as `HeadProjection`."""
    names = (theirs,) if isinstance(theirs, str) else theirs
    return [
        Rule(tuple(f"{name}.weight" for name in names), f"{ours}/kernel", HEADS),
        Rule(tuple(f"{name}.bias" for name in names), f"{ours}/bias", HEADS_BIAS),
    ]


def timm_blocks(theirs: str = "blocks.{i}", ours: str = "blocks") -> list[Rule]:
    """`timm.models.vision_transformer.Block`, which most references copy."""
    return [
        *norm(f"{theirs}.norm1", f"{ours}/norm1"),
        *heads(f"{theirs}.attn.qkv", f"{ours}/attention/qkv"),
        *norm(f"{theirs}.attn.q_norm", f"{ours}/attention/q_norm"),
        *norm(f"{theirs}.attn.k_norm", f"{ours}/attention/k_norm"),
        *attention_out(f"{theirs}.attn.proj", f"{ours}/attention/out"),
        Rule(f"{theirs}.ls1.gamma", f"{ours}/attention_scale/scale"),
        *norm(f"{theirs}.norm2", f"{ours}/norm2"),
        *linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up"),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down"),
        Rule(f"{theirs}.ls2.gamma", f"{ours}/mlp_scale/scale"),
    ]


def fixed_positions(theirs: str, grid: tuple[int, int], width: int, prefix: int, order: str = "mae") -> Constant:
    """A sine-cosine table as `theirs` [1, prefix + tokens, width], its first `prefix` rows zero."""
    return Constant(theirs, np.pad(sincos_2d(grid, width, order=order), ((prefix, 0), (0, 0)))[None])


def stem(kernel: np.ndarray, rows: int, prefixes: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes that a patch convolution and the rows of a table of positions tell.

    Args:
        kernel: [width, channels, rows, columns] of the convolution.
        rows: of the table; 0 where there is none.
        prefixes: how many of them may stand in front of the patches.
        options: fields that the caller set; `image_size` decides where the grid is no square.

    Raises:
        ValueError: no square fits, and there is no image_size.
    """
    width, channels, *patch_size = kernel.shape
    found = {"width": width, "channels": channels, "patch_size": tuple(patch_size)}
    if not rows:
        return found
    if "image_size" in options:
        tokens = math.prod(grid_of(options["image_size"], options.get("patch_size", found["patch_size"])))
        return found | {"prefix_rows": rows - tokens}
    square = square_grid(rows, prefixes)
    if square is None:
        raise ValueError(f"{rows} rows of positions are no square grid; give image_size=(height, width)")
    prefix, side = square
    return found | {"image_size": (side * patch_size[0], side * patch_size[1]), "prefix_rows": prefix}


def timm(vit: ViT) -> Table:
    """The names of `timm.models.vision_transformer.VisionTransformer`."""
    return [
        Rule("cls_token", "class_token", ROW),
        Rule("reg_token", "registers", ROW),
        *_positions(vit, "pos_embed"),
        *patch_embedding("patch_embed.proj", "patch_embed", vit.patch_size),
        *timm_blocks(),
        *norm("fc_norm" if vit.final_norm == "pooled" else "norm", "norm"),
        Rule("attn_pool.latent", "attention_pool/probe", ROW),
        *heads("attn_pool.q", "attention_pool/attention/q"),
        *heads("attn_pool.kv", "attention_pool/attention/kv"),
        *attention_out("attn_pool.proj", "attention_pool/attention/out"),
        *norm("attn_pool.norm", "attention_pool/norm"),
        *linear("attn_pool.mlp.fc1", "attention_pool/mlp/up"),
        *linear("attn_pool.mlp.fc2", "attention_pool/mlp/down"),
        *linear("pre_logits.fc", "representation"),
        *linear("head", "head"),
    ]


def timm_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ViT` that a state_dict of timm tells; `pool` is timm's default for the arrays that there are."""
    class_token = "cls_token" in arrays
    registers = num_rows(arrays, "reg_token")
    prefix = int(class_token) + registers
    found = stem(arrays["patch_embed.proj.weight"], num_rows(arrays, "pos_embed"), (0, prefix), options)
    prefix_rows = found.pop("prefix_rows", None)
    pooled = "fc_norm.weight" in arrays
    found |= {
        "depth": count(arrays, "blocks.{i}"),
        "mlp_ratio": hidden_ratio(arrays["blocks.0.mlp.fc1.weight"]),
        "num_classes": first_axis(arrays, "head.weight"),
        "class_token": class_token,
        "num_registers": registers,
        "pool": "attention" if "attn_pool.latent" in arrays else "mean" if pooled or not class_token else "class_token",
        "positions": "none" if prefix_rows is None else "learned",
        "prefix_positions": bool(prefix_rows),
        "final_norm": "pooled" if pooled else "tokens" if "norm.weight" in arrays else "none",
        "representation_size": first_axis(arrays, "pre_logits.fc.weight"),
        "qkv_bias": "blocks.0.attn.qkv.bias" in arrays,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in arrays else 0.0,
        "qk_norm": "blocks.0.attn.q_norm.weight" in arrays,
    }
    if found["qk_norm"]:
        found["num_heads"] = found["width"] // first_axis(arrays, "blocks.0.attn.q_norm.weight")
    return found


# Where transformers keeps a block's projections: in files, and in the state_dict of release 5.
IN_FILES = {
    "blocks": "encoder.layer.{i}",
    "qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
IN_STATE = {
    "blocks": "layers.{i}",
    "qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "out": "attention.o_proj",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}


def transformers_blocks(theirs: str, ours: str, names: Mapping[str, Any]) -> list[Rule]:
    """`transformers.models.vit.ViTLayer`, its projections called as in `names`."""
    return [
        *norm(f"{theirs}.layernorm_before", f"{ours}/norm1"),
        *heads(tuple(f"{theirs}.{name}" for name in names["qkv"]), f"{ours}/attention/qkv"),
        *attention_out(f"{theirs}.{names['out']}", f"{ours}/attention/out"),
        *norm(f"{theirs}.layernorm_after", f"{ours}/norm2"),
        *linear(f"{theirs}.{names['up']}", f"{ours}/mlp/up"),
        *linear(f"{theirs}.{names['down']}", f"{ours}/mlp/down"),
    ]


def transformers(vit: ViT, names: Mapping[str, Any]) -> Table:
    """The names of `ViTForImageClassification`; without a head those of `ViTModel`, whose pooler is a representation.

    Raises:
        ValueError: a network that pools in another way than by its class token.
    """
    if vit.pool != "class_token":
        raise ValueError(f"transformers' ViT pools by the class token, so pool {vit.pool!r} has no place in its layout")
    prefix = "vit." if vit.num_classes else ""
    return [
        Rule(f"{prefix}embeddings.cls_token", "class_token", ROW),
        *_positions(vit, f"{prefix}embeddings.position_embeddings"),
        *patch_embedding(f"{prefix}embeddings.patch_embeddings.projection", "patch_embed", vit.patch_size),
        *transformers_blocks(prefix + names["blocks"], "blocks", names),
        *norm(f"{prefix}layernorm", "norm"),
        *linear(f"{prefix}pooler.dense", "representation"),
        *linear("classifier", "head"),
    ]


def transformers_arguments(arrays: Arrays, options: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ViT` that the arrays of a transformers model tell."""
    rows = num_rows(arrays, "embeddings.position_embeddings")
    found = stem(arrays["embeddings.patch_embeddings.projection.weight"], rows, (1,), options)
    del found["prefix_rows"]
    first = numbered(names["blocks"], {"i": 0})
    return found | {
        "depth": count(arrays, names["blocks"]),
        "mlp_ratio": hidden_ratio(arrays[f"{first}.{names['up']}.weight"]),
        "num_classes": first_axis(arrays, "classifier.weight"),
        "prefix_positions": True,
        "representation_size": first_axis(arrays, "pooler.dense.weight"),
        "qkv_bias": f"{first}.{names['qkv'][0]}.bias" in arrays,
        "norm_epsilon": 1e-12,
    }


def hidden_ratio(weight: np.ndarray) -> float:
    """`mlp_ratio` of the first Linear of an MLP."""
    return weight.shape[0] / weight.shape[1]


def transformers_preprocessing(vit: ViT) -> Preprocessing:
    """What `ViTImageProcessor` does unless its file says otherwise."""
    return Preprocessing(vit.image_size, HALF, HALF, crop=1.0, interpolation="bilinear", keep_aspect=False)


def _positions(vit: ViT, theirs: str) -> Table:
    """Learned positions, or a fixed table written down as if it were learned.

    Raises:
        ValueError: rotary positions.
    """
    if vit.positions == "rope_2d":
        raise ValueError("positions 'rope_2d' have no place in this layout, whose positions are 'learned'")
    if not vit.positions.startswith("sincos"):
        return [Rule(theirs, "positions/table", ROW)]
    order = "big_vision" if vit.positions.endswith("big_vision") else "mae"
    return [fixed_positions(theirs, vit.grid, vit.width, vit.num_prefix, order)]


def num_rows(arrays: Arrays, name: str) -> int:
    """Rows of a table [1, rows, width]; 0 where there is none."""
    return arrays[name].shape[1] if name in arrays else 0


def first_axis(arrays: Arrays, name: str) -> int:
    """Length of the first axis; 0 where there is no such array."""
    return arrays[name].shape[0] if name in arrays else 0


def _transformers_layout(names: Mapping[str, Any]) -> Layout:
    first = numbered(names["blocks"], {"i": 0})
    return Layout(
        table=functools.partial(transformers, names=names),
        marks=("embeddings.patch_embeddings.projection.weight", f"{first}.{names['up']}.weight"),
        arguments=functools.partial(transformers_arguments, names=names),
        untold=("num_heads",),
        preprocessing=transformers_preprocessing,
        prefixes=("vit.",),
    )


LAYOUTS = {
    "timm": Layout(
        table=timm,
        marks=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
        arguments=timm_arguments,
        untold=("num_heads",),
        preprocessing=lambda vit: Preprocessing(vit.image_size, HALF, HALF, crop=0.9),
    ),
    "transformers": _transformers_layout(IN_FILES),
    "transformers_state": _transformers_layout(IN_STATE),
}
