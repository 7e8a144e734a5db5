"""The layout of CSWin's reference code, and its golden run."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import naming
from transformer_zoo.convert.golden import golden_arguments
from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.layouts.vit import first_axis, heads, hidden_ratio
from transformer_zoo.convert.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from transformer_zoo.convert.table import Arrays, Rule, Table, Transform, axes, linear, norm
from transformer_zoo.layers.convolutions import tokens_of
from transformer_zoo.models.backbones.cswin import CSWin

CONVOLUTION = axes("width channel row column -> row column channel width")
DEPTHWISE = Transform(
    to_ours=lambda array, shape: array.transpose(2, 3, 1, 0), to_theirs=lambda array: array.transpose(3, 2, 0, 1)
)


def example(cswin: CSWin) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    return (jax.ShapeDtypeStruct((1, *cswin.image_size, cswin.channels), np.float32),)


def convolution(theirs: str, ours: str, kernel: Transform = CONVOLUTION) -> list[Rule]:
    """Weight and bias of torch.nn.Conv2d."""
    return [Rule(f"{theirs}.weight", f"{ours}/kernel", kernel), Rule(f"{theirs}.bias", f"{ours}/bias")]


def reference(cswin: CSWin) -> Table:
    """The names of `models/cswin.py CSWinTransformer`."""
    rules = [
        *convolution("stage1_conv_embed.0", "stem/downsample/convolution"),
        *norm("stage1_conv_embed.2", "stem/norm"),
        *norm("norm", "norm"),
        *linear("head", "head"),
    ]
    for stage in range(len(cswin.depths)):
        theirs, ours = f"stage{stage + 1}.{{i}}", f"stage{stage}_blocks"
        if stage:
            rules += convolution(f"merge{stage}.conv", f"stage{stage}_merge/downsample/convolution")
            rules += norm(f"merge{stage}.norm", f"stage{stage}_merge/norm")
        rules += [
            *norm(f"{theirs}.norm1", f"{ours}/norm1"),
            *heads(f"{theirs}.qkv", f"{ours}/qkv"),
            *convolution(f"{theirs}.attns.0.get_v", f"{ours}/branch0/lepe", DEPTHWISE),
            *convolution(f"{theirs}.attns.1.get_v", f"{ours}/branch1/lepe", DEPTHWISE),
            *linear(f"{theirs}.proj", f"{ours}/out"),
            *norm(f"{theirs}.norm2", f"{ours}/norm2"),
            *linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up"),
            *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down"),
        ]
    return rules


def reference_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `CSWin` that a state_dict tells."""
    depths: list[int] = []
    while depth := count(arrays, f"stage{len(depths) + 1}.{{i}}"):
        depths.append(depth)
    width, channels = arrays["stage1_conv_embed.0.weight"].shape[:2]
    return {
        "width": width,
        "channels": channels,
        "depths": tuple(depths),
        "mlp_ratio": hidden_ratio(arrays[f"stage{len(depths)}.0.mlp.fc1.weight"]),  # the widest: no fraction is lost
        "qkv_bias": "stage1.0.qkv.bias" in arrays,
        "num_classes": first_axis(arrays, "head.weight"),
    }


def preprocessing(cswin: CSWin) -> Preprocessing:
    """Whole images at 384 pixels, else a crop."""
    crop = 1.0 if cswin.image_size[0] >= 384 else 0.9
    return Preprocessing(cswin.image_size, IMAGENET_MEAN, IMAGENET_STD, crop=crop)


LAYOUTS = {
    "reference": Layout(
        table=reference,
        marks=("stage1_conv_embed.0.weight", "stage1.0.attns.0.get_v.weight"),
        arguments=reference_arguments,
        untold=("image_size", "stride", "num_heads", "stripe_widths"),
        preprocessing=preprocessing,
    )
}

# The reference's constructor: its arguments, their defaults, and our names for those that are ours.
ARGUMENTS = {
    "img_size": (224, "image_size"),
    "patch_size": (16, ""),
    "in_chans": (3, "channels"),
    "num_classes": (1000, "num_classes"),
    "embed_dim": (96, "width"),
    "depth": ([2, 2, 6, 2], "depths"),
    "split_size": ([3, 5, 7], "stripe_widths"),
    "num_heads": (12, "num_heads"),
    "mlp_ratio": (4.0, "mlp_ratio"),
    "qkv_bias": (True, "qkv_bias"),
    "qk_scale": (None, "scale"),
    "drop_rate": (0.0, ""),
    "attn_drop_rate": (0.0, ""),
    "drop_path_rate": (0.0, ""),
    "hybrid_backbone": (None, ""),
    "norm_layer": (None, ""),
    "use_chk": (False, ""),
}


def golden(config: Mapping[str, Any]) -> tuple[CSWin, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """The network of a golden file, and its run: all outputs by the file's names for the reference's modules."""
    fields = golden_arguments(config["arguments"], ARGUMENTS)
    stripes = fields["stripe_widths"]
    fields["stripe_widths"] = (*stripes[:3], stripes[-1])  # the reference takes the last entry for its last stage
    cswin = naming.construct(CSWin, fields, "arguments")

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        logits, aux = cswin.apply(variables, inputs["images"].transpose(0, 2, 3, 1))
        modules = {"stage1_conv_embed": aux["patches"], "norm": aux["tokens"], "head": logits}
        for stage, blocks in enumerate(aux["blocks"]):
            modules |= {f"stage{stage + 1}.{block}": tokens_of(output) for block, output in enumerate(blocks)}
        wanted = config["settings"].get("intermediates", {}).items()
        found = {name: modules[path] for name, path in wanted if path in modules}
        return found | {"logits": logits, "loss": jnp.sum(logits * inputs["cotangent"])}

    return cswin, run
