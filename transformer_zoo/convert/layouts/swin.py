"""Layouts of Swin: timm's `swin_*`, microsoft/Swin-Transformer's, and transformers' `SwinForImageClassification`."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.layouts.vit import attention_out, first_axis, heads, hidden_ratio, patch_embedding
from transformer_zoo.convert.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from transformer_zoo.convert.table import LINEAR, Arrays, Constant, Rule, Table, linear, norm
from transformer_zoo.layers.patches import grid_of
from transformer_zoo.layers.windows import fit_window, relative_position_index, shift_mask
from transformer_zoo.models.backbones.swin import Swin


def example(swin: Swin) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    return (jax.ShapeDtypeStruct((1, *swin.image_size, swin.channels), jnp.float32),)


# What libraries call the parts of a block, and the places around the blocks.
TIMM = {
    "prefix": "",
    "embedding": ("patch_embed.proj", "patch_embed.norm"),
    "block": "layers.{stage}.blocks.{{i}}",
    "norms": ("norm1", "norm2"),
    "table": "attn.relative_position_bias_table",
    "qkv": ("attn.qkv",),
    "out": "attn.proj",
    "mlp": ("mlp.fc1", "mlp.fc2"),
    "merging": lambda stage: f"layers.{stage}.downsample",
    "norm": "norm",
    "head": "head.fc",
}
REFERENCE = TIMM | {"merging": lambda stage: f"layers.{stage - 1}.downsample", "head": "head"}
IN_FILES = {
    "prefix": "swin.",
    "embedding": ("embeddings.patch_embeddings.projection", "embeddings.norm"),
    "block": "encoder.layers.{stage}.blocks.{{i}}",
    "norms": ("layernorm_before", "layernorm_after"),
    "table": "attention.self.relative_position_bias_table",
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "out": "attention.output.dense",
    "mlp": ("intermediate.dense", "output.dense"),
    "merging": lambda stage: f"encoder.layers.{stage - 1}.downsample",
    "norm": "layernorm",
    "head": "classifier",
}
IN_STATE = IN_FILES | {
    "table": "attention.relative_position_bias.relative_position_bias_table",
    "qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "out": "attention.o_proj",
    "mlp": ("mlp.fc1", "mlp.fc2"),
}


def table(swin: Swin, names: Mapping[str, Any], buffers: bool = False) -> Table:
    """The rules of a library that calls things as in `names`, with the reference's buffers where it stores them."""
    prefix = names["prefix"] if swin.num_classes or swin.level_norms else ""  # not in a bare `SwinModel`
    projection, embedding_norm = (prefix + name for name in names["embedding"])
    rules: list[Rule | Constant] = [
        *patch_embedding(projection, "patch_embed", swin.patch_size),
        *norm(embedding_norm, "patch_norm"),
        *norm(prefix + names["norm"], "norm"),
        *linear(names["head"], "head"),
    ]
    for stage in range(len(swin.depths)):
        theirs, ours = prefix + names["block"].format(stage=stage), f"stage{stage}_blocks"
        if stage:
            merging = prefix + names["merging"](stage)
            rules += norm(f"{merging}.norm", f"stage{stage}_merging/norm")
            rules.append(Rule(f"{merging}.reduction.weight", f"stage{stage}_merging/projection/kernel", LINEAR))
        rules += [
            *norm(f"hidden_states_norms.stage{stage + 1}", f"stage{stage}_norm"),
            *norm(f"{theirs}.{names['norms'][0]}", f"{ours}/norm1"),
            Rule(f"{theirs}.{names['table']}", f"{ours}/window/relative_bias/table"),
            *heads(tuple(f"{theirs}.{name}" for name in names["qkv"]), f"{ours}/window/attention/qkv"),
            *attention_out(f"{theirs}.{names['out']}", f"{ours}/window/attention/out"),
            *norm(f"{theirs}.{names['norms'][1]}", f"{ours}/norm2"),
            *linear(f"{theirs}.{names['mlp'][0]}", f"{ours}/mlp/up"),
            *linear(f"{theirs}.{names['mlp'][1]}", f"{ours}/mlp/down"),
        ]
    return [*rules, *reference_buffers(swin)] if buffers else rules


def reference_buffers(swin: Swin) -> list[Constant]:
    """Indices and masks that the reference stores with its weights."""
    window = (swin.window_size, swin.window_size)
    offsets = (2 * swin.window_size - 1,) * 2
    index = relative_position_index(window, window, offsets)
    rows, columns = grid_of(swin.image_size, swin.patch_size)
    found = []
    for stage, depth in enumerate(swin.depths):
        size = (rows >> stage, columns >> stage)
        fitted, shift = fit_window(window, size)
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            found.append(Constant(f"{name}.attn.relative_position_index", index))
            if any(shift) and block % 2:
                mask = np.where(shift_mask(size, fitted, shift), 0, -100).astype(np.float32)
                found.append(Constant(f"{name}.attn_mask", mask))
    return found


def arguments(arrays: Arrays, options: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `Swin` that the arrays tell; the prefix is stripped."""
    depths: list[int] = []
    while depth := count(arrays, names["block"].format(stage=len(depths))):
        depths.append(depth)
    blocks = [names["block"].format(stage=stage).format(i=0) for stage in range(len(depths))]
    kernel = arrays[names["embedding"][0] + ".weight"]
    rows = arrays[f"{blocks[0]}.{names['table']}"].shape[0]
    return {
        "width": kernel.shape[0],
        "channels": kernel.shape[1],
        "patch_size": kernel.shape[2:],
        "depths": tuple(depths),
        "num_heads": tuple(arrays[f"{block}.{names['table']}"].shape[1] for block in blocks),
        "window_size": (round(rows**0.5) + 1) // 2,
        "mlp_ratio": hidden_ratio(arrays[f"{blocks[0]}.{names['mlp'][0]}.weight"]),
        "level_norms": "hidden_states_norms.stage1.weight" in arrays,
        "num_classes": first_axis(arrays, names["head"] + ".weight"),
    }


def _layout(names: Mapping[str, Any], mark: str, preprocessing: Any, buffers: bool = False) -> Layout:
    return Layout(
        table=functools.partial(table, names=names, buffers=buffers),
        marks=(names["embedding"][0] + ".weight", mark),
        arguments=functools.partial(arguments, names=names),
        untold=("image_size",),
        preprocessing=preprocessing,
        prefixes=(names["prefix"],) if names["prefix"] else (),
    )


def timm_preprocessing(swin: Swin) -> Preprocessing:
    """Whole images at 384 pixels, else a crop."""
    crop = 1.0 if swin.image_size[0] >= 384 else 0.9
    return Preprocessing(swin.image_size, IMAGENET_MEAN, IMAGENET_STD, crop=crop)


def reference_preprocessing(swin: Swin) -> Preprocessing:
    """256 pixels, then a crop of 224."""
    return Preprocessing(swin.image_size, IMAGENET_MEAN, IMAGENET_STD, crop=224 / 256)


def transformers_preprocessing(swin: Swin) -> Preprocessing:
    """What `ViTImageProcessor` does with the files of the released Swin models."""
    return Preprocessing(swin.image_size, IMAGENET_MEAN, IMAGENET_STD, crop=1.0, keep_aspect=False)


LAYOUTS = {
    "reference": _layout(
        REFERENCE, "layers.0.blocks.0.attn.relative_position_index", reference_preprocessing, buffers=True
    ),
    "timm": _layout(TIMM, "layers.0.blocks.0.attn.qkv.weight", timm_preprocessing),
    "transformers": _layout(
        IN_FILES, "encoder.layers.0.blocks.0.intermediate.dense.weight", transformers_preprocessing
    ),
    "transformers_state": _layout(
        IN_STATE, "encoder.layers.0.blocks.0.attention.q_proj.weight", transformers_preprocessing
    ),
}
