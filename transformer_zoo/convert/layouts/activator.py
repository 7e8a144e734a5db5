"""The layout of Activator's reference code."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.layouts.vit import first_axis, patch_embedding
from transformer_zoo.convert.table import Arrays, Table, linear, norm
from transformer_zoo.models.backbones.activator import Activator


def example(activator: Activator) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    return (jax.ShapeDtypeStruct((1, *activator.image_size, activator.channels), np.float32),)


def reference(activator: Activator) -> Table:
    """The names of `train.py ACTIVATORImageClassification`."""
    block = "model.{i}"
    return [
        *patch_embedding("patcher", "patch_embed", activator.patch_size),
        *norm(f"{block}.norm", "blocks/norm"),
        *linear(f"{block}.actgu.proj_1", "blocks/unit/gate"),
        *linear(f"{block}.actgu.proj_2", "blocks/unit/up"),
        *norm(f"{block}.actgu.norm", "blocks/unit/norm"),
        *linear(f"{block}.actgu.proj_3", "blocks/unit/down"),
        *linear(f"{block}.ffn.net.0", "blocks/mlp/up"),
        *linear(f"{block}.ffn.net.3", "blocks/mlp/down"),
        *linear("classifier", "head"),
    ]


def reference_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `Activator` that a state_dict tells."""
    kernel = arrays["patcher.weight"]
    return {
        "width": kernel.shape[0],
        "channels": kernel.shape[1],
        "patch_size": kernel.shape[2:],
        "depth": count(arrays, "model.{i}"),
        "hidden": first_axis(arrays, "model.0.actgu.proj_1.weight"),
        "use_mlp": "model.0.ffn.net.0.weight" in arrays,
        "num_classes": first_axis(arrays, "classifier.weight"),
    }


LAYOUTS = {
    "reference": Layout(
        table=reference,
        marks=("patcher.weight", "model.0.actgu.proj_1.weight"),
        arguments=reference_arguments,
        untold=("image_size",),
    )
}
