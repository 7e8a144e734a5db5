"""The layout of the reference code of GMM masks, and its golden runs."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import naming
from transformer_zoo.convert.golden import golden_arguments
from transformer_zoo.convert.layout import Layout, count, square_grid
from transformer_zoo.convert.layouts.vit import attention_out, first_axis, hidden_ratio
from transformer_zoo.convert.table import HEADS, ROW, Arrays, Constant, Rule, Table, axes, linear, norm
from transformer_zoo.layers.distances import grid_distances
from transformer_zoo.layers.patches import grid_of
from transformer_zoo.models.backbones.gmm_mask import GMMViT
from transformer_zoo.tasks.classification import Classification

BASE_TOLERANCE = 1e-4  # the reference makes its grid by a power in float32
KERNELS = axes("kernel head 1 1 -> kernel head")


def example(vit: GMMViT) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    return (jax.ShapeDtypeStruct((1, *vit.image_size, vit.channels), np.float32),)


def reference(vit: GMMViT) -> Table:
    """The names of `models/vit.py ViT`; its fixed grid is stored once, and once a block with Gaussian masks."""
    attention, mlp = "transformer.layers.{i}.0", "transformer.layers.{i}.1"
    base = np.exp(-grid_distances(grid_of(vit.image_size, vit.patch_size), "squared").astype(float)) ** 0.5
    fixed = ["mask"] if vit.mask != "none" else []
    if vit.mask == "gmm":
        fixed += [f"transformer.layers.{block}.0.fn.mask.mask" for block in range(vit.depth)]
    return [
        *linear("to_patch_embedding.1", "patch_embed/projection"),
        Rule("pos_embedding", "positions/table", ROW),
        Rule("cls_token", "class_token", ROW),
        *norm(f"{attention}.norm", "blocks/norm1"),
        Rule(f"{attention}.fn.to_qkv.weight", "blocks/attention/qkv/kernel", HEADS),
        *attention_out(f"{attention}.fn.to_out.0", "blocks/attention/out"),
        Rule(f"{attention}.fn.mask.sigma", "blocks/mask/sigma", KERNELS),
        Rule(f"{attention}.fn.mask.alpha", "blocks/mask/alpha", KERNELS),
        Rule(f"{attention}.fn.mask.mask", "blocks/pair_mask"),
        *norm(f"{mlp}.norm", "blocks/norm2"),
        *linear(f"{mlp}.fn.net.0", "blocks/mlp/up"),
        *linear(f"{mlp}.fn.net.3", "blocks/mlp/down"),
        *norm("mlp_head.0", "norm"),
        *linear("mlp_head.1", "head"),
        *(Constant(name, base[None, None].astype(np.float32), BASE_TOLERANCE) for name in fixed),
    ]


def reference_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `GMMViT` that a state_dict tells: squares are assumed where `image_size` is not given."""
    first = "transformer.layers.0.0.fn.mask."
    class_token = "cls_token" in arrays
    width, pixels = arrays["to_patch_embedding.1.weight"].shape
    channels = options.get("channels", 3)
    found: dict[str, Any] = {
        "width": width,
        "channels": channels,
        "depth": count(arrays, "transformer.layers.{i}"),
        "mlp_ratio": hidden_ratio(arrays["transformer.layers.0.1.fn.net.0.weight"]),
        "mask": "gmm" if first + "sigma" in arrays else "slm" if first + "mask" in arrays else "none",
        "class_token": class_token,
        "num_classes": first_axis(arrays, "mlp_head.1.weight"),
    }
    if found["mask"] == "gmm":
        found |= dict(zip(("num_kernels", "num_heads"), arrays[first + "sigma"].shape[:2]))
    if "image_size" not in options:
        rows = arrays["pos_embedding"].shape[1]
        square, patch = square_grid(rows, (int(class_token),)), round((pixels / channels) ** 0.5)
        if square is None or patch * patch * channels != pixels:
            raise ValueError(f"{rows} positions of {pixels} values are no squares; give image_size and patch_size")
        found |= {"image_size": (square[1] * patch,) * 2, "patch_size": (patch, patch)}
    return found


LAYOUTS = {
    "reference": Layout(
        table=reference,
        marks=("to_patch_embedding.1.weight", "transformer.layers.0.0.fn.to_qkv.weight"),
        arguments=reference_arguments,
        untold=("num_heads",),
    )
}

# The reference's constructor: its arguments, their defaults, and our names for those that are ours.
ARGUMENTS = {
    "img_size": (32, "image_size"),
    "patch_size": (4, "patch_size"),
    "channels": (3, "channels"),
    "num_classes": (10, "num_classes"),
    "dim": (192, "width"),
    "depth": (9, "depth"),
    "heads": (12, "num_heads"),
    "mlp_dim_ratio": (2, "mlp_ratio"),
    "num_kernals": (5, "num_kernels"),
    "dim_head": (16, ""),
    "is_GMM": (False, ""),
    "is_SLM": (False, ""),
}


def golden(config: Mapping[str, Any]) -> tuple[GMMViT, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """The network of a golden file, and its run: all outputs by the reference's names."""
    given = config["arguments"]
    fields = golden_arguments(given, ARGUMENTS)
    fields["mlp_ratio"] = float(fields["mlp_ratio"])
    fields["mask"] = "gmm" if given.get("is_GMM") else "slm" if given.get("is_SLM") else "none"
    fields["class_token"] = fields["mask"] == "none"
    vit = naming.construct(GMMViT, fields, "arguments")
    task = Classification(vit, label_smoothing=0.1)

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        base = inputs.get("param/mask")  # as rounded as the reference had it
        logits, aux = vit.apply(
            variables, inputs["images"].transpose(0, 2, 3, 1), None if base is None else -2 * jnp.log(base[0, 0])
        )
        return {
            "patch_embed": aux["patches"],
            "layer0_attn": aux["attended"][0],
            "transformer": aux["tokens"],
            "logits": logits,
            "loss": task.losses(logits, task.targets(inputs["labels"])).mean(),
        }

    return vit, run
