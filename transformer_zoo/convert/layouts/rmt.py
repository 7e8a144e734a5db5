"""The layout of RMT's reference code, and its golden run."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from transformer_zoo import naming
from transformer_zoo.convert.golden import golden_arguments
from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.layouts.metaformer import convolution
from transformer_zoo.convert.layouts.vit import first_axis, heads, hidden_ratio
from transformer_zoo.convert.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from transformer_zoo.convert.table import Arrays, Constant, Rule, Table, axes, linear, norm
from transformer_zoo.layers.distances import head_decays
from transformer_zoo.models.backbones.rmt import RMT

SCALE = axes("1 1 1 width -> width")
POWER_TOLERANCE = 1e-4  # the reference raises to powers in float32


def example(rmt: RMT) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    return (jax.ShapeDtypeStruct((1, *rmt.image_size, rmt.channels), np.float32),)


def batch_norm(theirs: str, ours: str) -> list[Rule | Constant]:
    """A torch.nn.BatchNorm2d; how many batches it has seen is not kept."""
    return [
        *norm(theirs, ours),
        Rule(f"{theirs}.running_mean", f"batch_stats/{ours}/mean"),
        Rule(f"{theirs}.running_var", f"batch_stats/{ours}/var"),
        Constant(f"{theirs}.num_batches_tracked", np.zeros((), np.int64), tolerance=math.inf),
    ]


def angles(head_dim: int) -> np.ndarray:
    """The reference's rotary frequencies, each twice."""
    return np.repeat(10000.0 ** -np.linspace(0, 1, head_dim // 2), 2).astype(np.float32)


def reference(rmt: RMT) -> Table:
    """The names of `RMT.py VisRetNet`, with its fixed angles and decays."""
    rules: list[Rule | Constant] = [*linear("proj", "projection"), *batch_norm("norm", "norm"), *linear("head", "head")]
    for layer in range(4):
        rules += convolution(f"patch_embed.proj.{3 * layer}", f"stem{layer}/convolution")
        rules += batch_norm(f"patch_embed.proj.{3 * layer + 1}", f"stem{layer}_norm")
    for stage, (width, num_heads) in enumerate(zip(rmt.widths, rmt.num_heads)):
        if stage:
            rules += convolution(f"layers.{stage - 1}.downsample.reduction", f"stage{stage}_downsample/convolution")
            rules += batch_norm(f"layers.{stage - 1}.downsample.norm", f"stage{stage}_downsample_norm")
        decays = head_decays(num_heads, rmt.decay_starts[stage], rmt.decay_spreads[stage])
        theirs, ours = f"layers.{stage}.blocks.{{i}}", f"stage{stage}_blocks"
        retention = f"{theirs}.retention"
        rules += [
            Constant(f"layers.{stage}.Relpos.angle", angles(width // num_heads), POWER_TOLERANCE),
            Constant(f"layers.{stage}.Relpos.decay", decays, POWER_TOLERANCE),
            *convolution(f"{theirs}.pos.conv", f"{ours}/positions"),
            *norm(f"{theirs}.retention_layer_norm", f"{ours}/norm1"),
            *heads(tuple(f"{retention}.{name}_proj" for name in "qkv"), f"{ours}/attention/qkv"),
            *convolution(f"{retention}.lepe.conv", f"{ours}/attention/local_positions"),
            *linear(f"{retention}.out_proj", f"{ours}/attention/out"),
            Rule(f"{theirs}.gamma_1", f"{ours}/attention_scale/scale", SCALE),
            *norm(f"{theirs}.final_layer_norm", f"{ours}/norm2"),
            *linear(f"{theirs}.ffn.fc1", f"{ours}/mlp/up"),
            *convolution(f"{theirs}.ffn.dwconv.conv", f"{ours}/mlp/depthwise"),
            *linear(f"{theirs}.ffn.fc2", f"{ours}/mlp/down"),
            Rule(f"{theirs}.gamma_2", f"{ours}/mlp_scale/scale", SCALE),
        ]
    return rules


def reference_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `RMT` that a state_dict tells."""
    depths: list[int] = []
    while depth := count(arrays, f"layers.{len(depths)}.blocks.{{i}}"):
        depths.append(depth)
    stages = range(len(depths))
    blocks = [f"layers.{stage}.blocks.0" for stage in stages]
    exponents = [-np.log2(-np.expm1(arrays[f"layers.{stage}.Relpos.decay"].astype(float))) for stage in stages]
    return {
        "channels": arrays["patch_embed.proj.0.weight"].shape[1],
        "depths": tuple(depths),
        "widths": tuple(arrays[f"{block}.retention_layer_norm.weight"].shape[0] for block in blocks),
        "num_heads": tuple(map(len, exponents)),
        "mlp_ratios": tuple(hidden_ratio(arrays[f"{block}.ffn.fc1.weight"]) for block in blocks),
        "decay_starts": tuple(round(float(each[0]), 3) for each in exponents),
        "decay_spreads": tuple(
            round(float(each[-1] - each[0]) * len(each) / max(len(each) - 1, 1), 3) for each in exponents
        ),
        "layer_scales": tuple(1e-6 if f"{block}.gamma_1" in arrays else 0.0 for block in blocks),
        "head_width": first_axis(arrays, "proj.weight"),
        "num_classes": first_axis(arrays, "head.weight"),
    }


LAYOUTS = {
    "reference": Layout(
        table=reference,
        marks=("patch_embed.proj.0.weight", "layers.0.blocks.0.retention.q_proj.weight"),
        arguments=reference_arguments,
        untold=("image_size", "decomposed"),
        preprocessing=lambda rmt: Preprocessing(rmt.image_size, IMAGENET_MEAN, IMAGENET_STD, crop=0.875),
    )
}

# The reference's constructor: its arguments, their defaults, and our names for those that are ours.
ARGUMENTS = {
    "in_chans": (3, "channels"),
    "num_classes": (1000, "num_classes"),
    "embed_dims": ((96, 192, 384, 768), "widths"),
    "depths": ((2, 2, 6, 2), "depths"),
    "num_heads": ((3, 6, 12, 24), "num_heads"),
    "init_values": ((1, 1, 1, 1), "decay_starts"),
    "heads_ranges": ((3, 3, 3, 3), "decay_spreads"),
    "mlp_ratios": ((3, 3, 3, 3), "mlp_ratios"),
    "drop_path_rate": (0.1, "drop_path_rate"),
    "patch_norm": (True, ""),
    "use_checkpoints": ((False, False, False, False), ""),
    "chunkwise_recurrents": ((True, True, False, False), "decomposed"),
    "projection": (1024, "head_width"),
    "layerscales": ((False, False, False, False), "layer_scales"),
    "layer_init_values": (1e-6, ""),
}


def golden(config: Mapping[str, Any]) -> tuple[RMT, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """The network of a golden file, and its run: outputs by the names that the file gives to modules."""
    given = config["arguments"]
    fields = golden_arguments(given, ARGUMENTS)
    for name in ("decay_starts", "decay_spreads", "mlp_ratios"):
        fields[name] = tuple(map(float, fields[name]))
    initial = given.get("layer_init_values", 1e-6)
    fields["layer_scales"] = tuple(initial if scaled else 0.0 for scaled in fields["layer_scales"])
    rmt = naming.construct(RMT, fields, "arguments")

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        images = inputs["images"].transpose(0, 2, 3, 1)
        tables = None  # as rounded as the reference had them
        if "param/layers.0.Relpos.angle" in inputs:
            relative = [f"param/layers.{stage}.Relpos" for stage in range(len(rmt.depths))]
            tables = [(inputs[f"{name}.angle"][::2], inputs[f"{name}.decay"]) for name in relative]
        logits, aux = rmt.apply(variables, images, tables)
        first = aux["patches"].reshape(images.shape[0], -(-images.shape[1] // 4), -1, rmt.widths[0])
        modules = {"patch_embed": first, f"layers.{len(rmt.depths) - 1}": aux["levels"][-1]}
        for stage, outputs in enumerate(aux["blocks"]):
            modules |= {f"layers.{stage}.blocks.{block}": output for block, output in enumerate(outputs)}
        names = config["settings"].get("intermediates", {})
        found = {name: modules[module] for name, module in names.items() if module in modules}
        return found | {"logits": logits, "loss": (logits * inputs["cotangent"]).sum()}

    return rmt, run
