"""Layouts of MetaFormer: timm's, and the released PoolFormer weights."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.layouts.vit import first_axis
from transformer_zoo.convert.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from transformer_zoo.convert.table import CONVOLUTION, HEADS, HEADS_OUT, LINEAR, Arrays, Rule, Table, axes, linear, norm
from transformer_zoo.models.backbones.metaformer import MetaFormer

POINTWISE = axes("out in 1 1 -> in out")


def example(metaformer: MetaFormer) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    return (jax.ShapeDtypeStruct((1, *metaformer.image_size, metaformer.channels), np.float32),)


def convolution(theirs: str, ours: str) -> list[Rule]:
    """Weight and bias of a torch.nn.Conv2d."""
    return [Rule(f"{theirs}.weight", f"{ours}/kernel", CONVOLUTION), Rule(f"{theirs}.bias", f"{ours}/bias")]


def timm(metaformer: MetaFormer) -> Table:
    """The names of `timm.models.metaformer.MetaFormer`.

    Raises:
        ValueError: a mixer or a norm that timm lacks.
    """
    for mixer in metaformer.mixers:
        if mixer in ("identity", "spatial"):
            raise ValueError(f"mixer {mixer!r} has no place in timm's layout")
    if metaformer.norm_map or metaformer.positions:
        raise ValueError("norm_map and positions have no place in timm's layout, which norms the pooled vector")
    head = "head.fc.fc2" if metaformer.head == "mlp" else "head.fc"
    rules = [
        *convolution("stem.conv", "stem/convolution"),
        Rule("stem.norm.weight", "stem_norm/scale"),
        *norm("head.norm", "norm"),
        *linear("head.fc.fc1", "head_hidden"),
        *norm("head.fc.norm", "head_norm"),
        *linear(head, "head"),
    ]
    for stage, mixer in enumerate(metaformer.mixers):
        theirs, ours = f"stages.{stage}.blocks.{{i}}", f"stage{stage}_blocks"
        mlp = LINEAR if mixer == "attention" else POINTWISE
        if stage:
            rules += convolution(f"stages.{stage}.downsample.conv", f"stage{stage}_downsample/convolution")
            rules.append(Rule(f"stages.{stage}.downsample.norm.weight", f"stage{stage}_transition_norm/scale"))
        rules += [
            *norm(f"{theirs}.norm1", f"{ours}/norm1"),
            *norm(f"{theirs}.norm2", f"{ours}/norm2"),
            Rule(f"{theirs}.token_mixer.pwconv1.weight", f"{ours}/convolution/up/kernel", POINTWISE),
            *star_relu(f"{theirs}.token_mixer.act1", f"{ours}/convolution/activation"),
            Rule(f"{theirs}.token_mixer.dwconv.weight", f"{ours}/convolution/depthwise/kernel", CONVOLUTION),
            Rule(f"{theirs}.token_mixer.pwconv2.weight", f"{ours}/convolution/down/kernel", POINTWISE),
            Rule(f"{theirs}.token_mixer.qkv.weight", f"{ours}/attention/qkv/kernel", HEADS),
            Rule(f"{theirs}.token_mixer.proj.weight", f"{ours}/attention/out/kernel", HEADS_OUT),
            Rule(f"{theirs}.token_mixer.proj.bias", f"{ours}/attention/out/bias"),
            Rule(f"{theirs}.mlp.fc1.weight", f"{ours}/mlp/up/kernel", mlp),
            Rule(f"{theirs}.mlp.fc1.bias", f"{ours}/mlp/up/bias"),
            *star_relu(f"{theirs}.mlp.act", f"{ours}/mlp/activation"),
            Rule(f"{theirs}.mlp.fc2.weight", f"{ours}/mlp/down/kernel", mlp),
            Rule(f"{theirs}.mlp.fc2.bias", f"{ours}/mlp/down/bias"),
            Rule(f"{theirs}.layer_scale1.scale", f"{ours}/mixer_scale/scale"),
            Rule(f"{theirs}.layer_scale2.scale", f"{ours}/mlp_scale/scale"),
            Rule(f"{theirs}.res_scale1.scale", f"{ours}/mixer_residual_scale/scale"),
            Rule(f"{theirs}.res_scale2.scale", f"{ours}/mlp_residual_scale/scale"),
        ]
    return rules


def star_relu(theirs: str, ours: str) -> list[Rule]:
    """The two numbers of a StarReLU."""
    return [Rule(f"{theirs}.scale", f"{ours}/scale"), Rule(f"{theirs}.bias", f"{ours}/bias")]


def timm_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `MetaFormer` that a state_dict of timm tells."""
    depths: list[int] = []
    while depth := count(arrays, f"stages.{len(depths)}.blocks.{{i}}"):
        depths.append(depth)
    blocks = [f"stages.{stage}.blocks.0" for stage in range(len(depths))]

    def mixer(block: str) -> str:
        kinds = {"token_mixer.qkv.weight": "attention", "token_mixer.dwconv.weight": "convolution"}
        return next((kind for name, kind in kinds.items() if f"{block}.{name}" in arrays), "pooling")

    mixers = tuple(mixer(block) for block in blocks)
    baseline = "stem.norm.weight" in arrays
    scaled = [stage for stage, block in enumerate(blocks) if f"{block}.res_scale1.scale" in arrays]
    first = arrays[f"{blocks[0]}.mlp.fc1.weight"]
    return {
        "channels": arrays["stem.conv.weight"].shape[1],
        "stem_kernel": arrays["stem.conv.weight"].shape[2],
        "depths": tuple(depths),
        "widths": tuple(arrays[f"{block}.norm1.weight"].shape[0] for block in blocks),
        "mixers": mixers,
        "norm": "group" if "pooling" in mixers else "layer",
        "activation": "star_relu" if baseline else "gelu",
        "mlp_ratio": first.shape[0] / first.shape[1],
        "use_bias": f"{blocks[0]}.mlp.fc1.bias" in arrays,
        "layer_scale": 1e-5 if f"{blocks[0]}.layer_scale1.scale" in arrays else 0.0,
        "residual_scale_from": scaled[0] if scaled else len(depths),
        "norm_epsilon": 1e-6 if baseline else 1e-5,
        "transition_norms": baseline,
        "head": "mlp" if "head.fc.fc1.weight" in arrays else "linear",
        "num_classes": first_axis(arrays, "head.fc.weight") or first_axis(arrays, "head.fc.fc2.weight"),
    }


def reference(metaformer: MetaFormer) -> Table:
    """The names of sail-sg/poolformer, whose stages and downsamplings alternate in one list.

    Raises:
        ValueError: anything but PoolFormer with GroupNorm before the mean.
    """
    if set(metaformer.mixers) != {"pooling"} or not metaformer.norm_map:
        raise ValueError("the reference's layout is that of PoolFormer with norm_map=True")
    renamed: list[tuple[str, Any]] = [
        (r"^stem\.conv", "patch_embed.proj"),
        (r"^head\.norm", "norm"),
        (r"^head\.fc", "head"),
        (r"^stages\.(\d)\.downsample\.conv", lambda found: f"network.{2 * int(found[1]) - 1}.proj"),
        (r"^stages\.(\d)\.blocks", lambda found: f"network.{2 * int(found[1])}"),
        (r"layer_scale([12])\.scale", r"layer_scale_\1"),
    ]
    rules = []
    for rule in timm(metaformer.clone(norm_map=False)):
        assert isinstance(rule, Rule) and isinstance(rule.theirs, str)
        name = rule.theirs
        for pattern, new in renamed:
            name = re.sub(pattern, new, name)
        rules.append(Rule(name, rule.ours, rule.transform))
    return rules


def reference_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `MetaFormer` that a state_dict of sail-sg/poolformer tells."""
    depths: list[int] = []
    while depth := count(arrays, f"network.{2 * len(depths)}.{{i}}"):
        depths.append(depth)
    blocks = [f"network.{2 * stage}.0" for stage in range(len(depths))]
    first = arrays[f"{blocks[0]}.mlp.fc1.weight"]
    return {
        "channels": arrays["patch_embed.proj.weight"].shape[1],
        "stem_kernel": arrays["patch_embed.proj.weight"].shape[2],
        "depths": tuple(depths),
        "widths": tuple(arrays[f"{block}.norm1.weight"].shape[0] for block in blocks),
        "mixers": ("pooling",) * len(depths),
        "mlp_ratio": first.shape[0] / first.shape[1],
        "layer_scale": 1e-5 if f"{blocks[0]}.layer_scale_1" in arrays else 0.0,
        "residual_scale_from": len(depths),
        "norm_map": True,
        "num_classes": first_axis(arrays, "head.weight"),
    }


def preprocessing(metaformer: MetaFormer) -> Preprocessing:
    """A crop of 0.9 for the narrow PoolFormers, 0.95 for the wide ones, whole images for the second paper's."""
    crop = 1.0 if metaformer.transition_norms else 0.95 if metaformer.widths[0] >= 96 else 0.9
    return Preprocessing(metaformer.image_size, IMAGENET_MEAN, IMAGENET_STD, crop=crop)


LAYOUTS = {
    "timm": Layout(
        table=timm,
        marks=("stem.conv.weight", "stages.0.blocks.0.mlp.fc1.weight"),
        arguments=timm_arguments,
        untold=("image_size",),
        preprocessing=preprocessing,
    ),
    "reference": Layout(
        table=reference,
        marks=("patch_embed.proj.weight", "network.0.0.mlp.fc1.weight"),
        arguments=reference_arguments,
        untold=("image_size",),
        preprocessing=preprocessing,
    ),
}
