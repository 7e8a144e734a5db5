"""The layout of iLLaMA's reference code, and its golden run."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from transformer_zoo import naming
from transformer_zoo.convert.golden import golden_arguments
from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.layouts.vit import attention_out, first_axis, heads, num_rows, patch_embedding, stem
from transformer_zoo.convert.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from transformer_zoo.convert.table import LINEAR, ROW, Arrays, Rule, Table, Transform, linear
from transformer_zoo.models.backbones.illama import ILLaMA, hidden_width

# Their table has the class token's row last, ours first.
LAST_ROW_FIRST = Transform(
    to_ours=lambda array, shape: np.roll(array[0], 1, axis=0),
    to_theirs=lambda array: np.roll(array, -1, axis=0)[None],
)


def example(illama: ILLaMA) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    return (jax.ShapeDtypeStruct((1, *illama.image_size, illama.channels), np.float32),)


def reference(illama: ILLaMA) -> Table:
    """The names of `models/illama.py VisionTransformer`."""
    block = "blocks.{i}"
    return [
        Rule("cls_token", "class_token", ROW),
        Rule("pos_embed", "positions/table", LAST_ROW_FIRST),
        *patch_embedding("patch_embed.proj", "patch_embed", illama.patch_size),
        Rule(f"{block}.norm1.weight", "blocks/norm1/scale"),
        *heads(f"{block}.attn.qkv", "blocks/attention/qkv"),
        *attention_out(f"{block}.attn.proj", "blocks/attention/out"),
        Rule(f"{block}.norm2.weight", "blocks/norm2/scale"),
        Rule(f"{block}.mlp.fc1.weight", "blocks/mlp/gate/kernel", LINEAR),
        Rule(f"{block}.mlp.fc3.weight", "blocks/mlp/up/kernel", LINEAR),
        Rule(f"{block}.mlp.fc2.weight", "blocks/mlp/down/kernel", LINEAR),
        Rule("norm.weight", "norm/scale"),
        *linear("head", "head"),
    ]


def reference_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ILLaMA` that a state_dict tells."""
    found = stem(arrays["patch_embed.proj.weight"], num_rows(arrays, "pos_embed"), (1,), options)
    del found["prefix_rows"]
    return found | {
        "depth": count(arrays, "blocks.{i}"),
        "hidden": first_axis(arrays, "blocks.0.mlp.fc1.weight"),
        "num_classes": first_axis(arrays, "head.weight"),
    }


LAYOUTS = {
    "reference": Layout(
        table=reference,
        marks=("patch_embed.proj.weight", "blocks.0.mlp.fc3.weight"),
        arguments=reference_arguments,
        untold=("num_heads",),
        preprocessing=lambda illama: Preprocessing(illama.image_size, IMAGENET_MEAN, IMAGENET_STD, crop=224 / 256),
    )
}

# The reference's constructor: its arguments, their defaults, and our names for those that are ours.
ARGUMENTS = {
    "img_size": (224, "image_size"),
    "patch_size": (16, "patch_size"),
    "in_chans": (3, "channels"),
    "num_classes": (1000, "num_classes"),
    "embed_dim": (768, "width"),
    "depth": (12, "depth"),
    "num_heads": (12, "num_heads"),
    "mlp_ratio": (4.0, ""),
    "qkv_bias": (True, ""),
}


def golden(config: Mapping[str, Any]) -> tuple[ILLaMA, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """The network of a golden file, and its run: all outputs by the reference's names."""
    fields = golden_arguments(config["arguments"], ARGUMENTS)
    fields["hidden"] = hidden_width(round(fields["width"] * config["arguments"].get("mlp_ratio", 4.0) / 4))
    illama = naming.construct(ILLaMA, fields, "arguments")

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        images, cotangent = inputs["images"].transpose(0, 2, 3, 1), inputs["cotangent"]
        logits, aux = illama.apply(variables, images)
        soft, _ = illama.apply(variables, images, inputs["soft_mask_rate"])
        return {
            "embed": aux["patches"],
            **{f"block{i}": level for i, level in enumerate(aux["levels"])},
            "norm": aux["encoded"],
            "logits": logits,
            "logits_soft": soft,
            "loss": (logits * cotangent).sum() + (soft * cotangent).sum(),
        }

    return illama, run
