"""The layout of ResFormer's reference code, and its golden run."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from transformer_zoo import naming
from transformer_zoo.convert.golden import golden_arguments
from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.layouts.vit import (
    first_axis,
    heads,
    hidden_ratio,
    patch_embedding,
    stem,
)
from transformer_zoo.convert.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from transformer_zoo.convert.table import CONVOLUTION, ROW, Arrays, Rule, Table, linear, norm
from transformer_zoo.models.backbones.resformer import MultiResolution, ResFormer
from transformer_zoo.task import Context, Variables


def example(resformer: ResFormer) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    return (jax.ShapeDtypeStruct((1, *resformer.image_size, resformer.channels), np.float32),)


def reference(resformer: ResFormer) -> Table:
    """The names of `models.py ResFormer`."""
    block = "blocks.{i}"
    return [
        Rule("cls_token", "class_token", ROW),
        *patch_embedding("patch_embed.proj", "patch_embed", resformer.patch_size),
        Rule("pos_embed.embed_layer.weight", "positions/convolution/kernel", CONVOLUTION),
        Rule("pos_embed.embed_layer.bias", "positions/convolution/bias"),
        *norm(f"{block}.norm1", "blocks/norm1"),
        *heads(f"{block}.attn.qkv", "blocks/attention/qkv"),
        Rule(f"{block}.attn.get_v.weight", "blocks/attention/local_kernel", CONVOLUTION),
        Rule(f"{block}.attn.get_v.bias", "blocks/attention/local_bias"),
        *linear(f"{block}.attn.proj", "blocks/attention/out"),
        *norm(f"{block}.norm2", "blocks/norm2"),
        *linear(f"{block}.mlp.fc1", "blocks/mlp/up"),
        *linear(f"{block}.mlp.fc2", "blocks/mlp/down"),
        *norm("norm", "norm"),
        *linear("head", "head"),
    ]


def reference_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ResFormer` that a state_dict tells."""
    found = stem(arrays["patch_embed.proj.weight"], 0, (), options) | {
        "depth": count(arrays, "blocks.{i}"),
        "mlp_ratio": hidden_ratio(arrays["blocks.0.mlp.fc1.weight"]),
        "qkv_bias": "blocks.0.attn.qkv.bias" in arrays,
        "global_positions": "pos_embed.embed_layer.weight" in arrays,
        "local_positions": "blocks.0.attn.get_v.weight" in arrays,
        "num_classes": first_axis(arrays, "head.weight"),
    }
    if found["local_positions"]:
        found["num_heads"] = found["width"] // arrays["blocks.0.attn.get_v.bias"].shape[0]
    return found


LAYOUTS = {
    "reference": Layout(
        table=reference,
        marks=("cls_token", "patch_embed.proj.weight", "blocks.0.attn.get_v.weight"),
        arguments=reference_arguments,
        untold=("image_size",),
        preprocessing=lambda resformer: Preprocessing(
            resformer.image_size, IMAGENET_MEAN, IMAGENET_STD, crop=224 / 256
        ),
    )
}

# The reference's constructor: its arguments, their defaults, and our names for those that are ours.
ARGUMENTS = {
    "img_size": ((224,), ""),
    "patch_size": (16, "patch_size"),
    "in_chans": (3, "channels"),
    "num_classes": (1000, "num_classes"),
    "embed_dim": (768, "width"),
    "depth": (12, "depth"),
    "num_heads": (12, "num_heads"),
    "mlp_ratio": (4.0, "mlp_ratio"),
    "qkv_bias": (True, "qkv_bias"),
    "drop_path_rate": (0.0, "drop_path_rate"),
}


def golden(config: Mapping[str, Any]) -> tuple[ResFormer, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """The network of a golden file, and its run: outputs by the reference's names, numbered from the largest size."""
    given = config["arguments"]
    fields = golden_arguments(given, ARGUMENTS)
    sizes = given.get("img_size", (224,))
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    resformer = naming.construct(ResFormer, fields | {"image_size": (sizes[0], sizes[0])}, "arguments")
    task = MultiResolution(resformer, resolutions=sizes)

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        images = [inputs[f"images_{number}"].transpose(0, 2, 3, 1) for number in range(len(sizes))]
        found: dict[str, Any] = {}
        for number, one in enumerate(images):
            logits, aux = resformer.apply(variables, one)
            named = {"embed": aux["patches"], "pos": aux["embedded"], "norm": aux["encoded"]}
            named |= {"logits": logits, "cls": aux["pooled"]}
            named |= {f"block{block}": level for block, level in enumerate(aux["levels"])}
            found |= {f"{name}_{number}": array for name, array in named.items()}
        ctx = Context(jax.random.key(0), jax.numpy.int32(0), train=False)
        loss, aux = task.multi_resolution_loss(
            Variables({"model": variables["params"]}), images, inputs["targets"], ctx
        )
        losses = {f"loss_{number}": aux.metrics[f"loss_{size}"] for number, size in enumerate(sizes)}
        return found | losses | {"loss": loss}

    return resformer, run
