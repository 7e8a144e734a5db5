"""The layout of TNT in timm: `tnt_*`, in both forms."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from transformer_zoo.convert.layout import Layout, count, square_grid
from transformer_zoo.convert.layouts.vit import attention_out, first_axis, hidden_ratio, num_rows
from transformer_zoo.convert.preprocessing import HALF, Preprocessing
from transformer_zoo.convert.table import HEADS, HEADS_BIAS, ROW, Arrays, Rule, Table, axes, linear, norm
from transformer_zoo.models.backbones.tnt import TNT

CONVOLUTION = axes("width channel row column -> row column channel width")


def example(tnt: TNT) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    return (jax.ShapeDtypeStruct((1, *tnt.image_size, tnt.channels), np.float32),)


def _block(ours: str, norms: tuple[str, str], attention: str, mlp: str) -> list[Rule]:
    """One of a block's two transformers: queries and keys in one array, values in another."""
    theirs = "blocks.{i}"
    parts = (f"{theirs}.{attention}.qk", f"{theirs}.{attention}.v")
    weights, biases = (tuple(f"{part}.{kind}" for part in parts) for kind in ("weight", "bias"))
    return [
        *norm(f"{theirs}.{norms[0]}", f"{ours}/norm1"),
        Rule(weights, f"{ours}/attention/qkv/kernel", HEADS, shares=(2, 1)),
        Rule(biases, f"{ours}/attention/qkv/bias", HEADS_BIAS, shares=(2, 1)),
        *attention_out(f"{theirs}.{attention}.proj", f"{ours}/attention/out"),
        *norm(f"{theirs}.{norms[1]}", f"{ours}/norm2"),
        *linear(f"{theirs}.{mlp}.fc1", f"{ours}/mlp/up"),
        *linear(f"{theirs}.{mlp}.fc2", f"{ours}/mlp/down"),
    ]


def timm(tnt: TNT) -> Table:
    """The names of `timm.models.tnt.TNT`."""
    rows, columns = (-(-side // tnt.stride) for side in tnt.patch_size)
    words = axes("1 channel row column -> (row column) channel", row=rows, column=columns)
    return [
        Rule("cls_token", "class_token", ROW),
        Rule("patch_pos", "positions/table", ROW),
        Rule("pixel_pos", "patch_embed/word_positions/table", words),
        Rule("pixel_embed.proj.weight", "patch_embed/words/convolution/kernel", CONVOLUTION),
        Rule("pixel_embed.proj.bias", "patch_embed/words/convolution/bias"),
        *norm("norm1_proj", "patch_embed/norm1"),
        *linear("proj", "patch_embed/projection"),
        *norm("norm2_proj", "patch_embed/norm2"),
        *_block("blocks/inner", ("norm_in", "norm_mlp_in"), "attn_in", "mlp_in"),
        *norm("blocks.{i}.norm1_proj", "blocks/fold_norm1"),
        *linear("blocks.{i}.proj", "blocks/fold"),
        *norm("blocks.{i}.norm2_proj", "blocks/fold_norm2"),
        *_block("blocks/outer", ("norm_out", "norm_mlp"), "attn_out", "mlp"),
        *norm("norm", "norm"),
        *linear("head", "head"),
    ]


def timm_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `TNT` that a state_dict tells, where patches are a whole number of strides.

    Raises:
        ValueError: positions of no square, and no image_size.
    """
    inner_width, channels = arrays["pixel_embed.proj.weight"].shape[:2]
    stride = options.get("stride", 4)
    patch_size = options.get("patch_size", tuple(words * stride for words in arrays["pixel_pos"].shape[2:]))
    found: dict[str, Any] = {
        "width": first_axis(arrays, "proj.weight"),
        "inner_width": inner_width,
        "channels": channels,
        "patch_size": patch_size,
        "depth": count(arrays, "blocks.{i}"),
        "mlp_ratio": hidden_ratio(arrays["blocks.0.mlp.fc1.weight"]),
        "qkv_bias": "blocks.0.attn_out.v.bias" in arrays,
        "legacy": "blocks.0.norm2_proj.weight" not in arrays,
        "num_classes": first_axis(arrays, "head.weight"),
    }
    if "image_size" in options:
        return found
    rows = num_rows(arrays, "patch_pos")
    square = square_grid(rows, (1,))
    if square is None:
        raise ValueError(f"{rows} rows of positions are no square grid; give image_size=(height, width)")
    return found | {"image_size": tuple(square[1] * side for side in patch_size)}


LAYOUTS = {
    "timm": Layout(
        table=timm,
        marks=("pixel_embed.proj.weight", "blocks.0.attn_in.qk.weight"),
        arguments=timm_arguments,
        untold=("num_heads", "inner_heads", "stride"),
        preprocessing=lambda tnt: Preprocessing(tnt.image_size, HALF, HALF, crop=0.9),
    )
}
