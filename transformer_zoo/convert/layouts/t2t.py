"""The layout of T2T-ViT's reference code, and its golden runs."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import naming
from transformer_zoo.convert.golden import golden_arguments
from transformer_zoo.convert.layout import Layout, count, square_grid
from transformer_zoo.convert.layouts.vit import first_axis, heads, hidden_ratio, num_rows, timm_blocks
from transformer_zoo.convert.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from transformer_zoo.convert.table import ROW, Arrays, Constant, Rule, Table, linear, norm
from transformer_zoo.layers.mlp import mlp_width
from transformer_zoo.layers.positions import sincos_1d
from transformer_zoo.models.backbones.t2t import T2TViT

POSITIONS_TOLERANCE = 1e-4  # golden files hold the table rounded to 2^-13
# Where the two kinds of token blocks keep their projections, and the layers of their MLPs.
TOKEN_BLOCKS: dict[str, dict[str, Any]] = {
    "performer": {"projections": "kqv", "out": "proj", "mlp": ("mlp.0", "mlp.2")},
    "transformer": {"projections": "attn.qkv", "out": "attn.proj", "mlp": ("mlp.fc1", "mlp.fc2")},
}


def example(t2t: T2TViT) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    return (jax.ShapeDtypeStruct((1, *t2t.image_size, t2t.channels), np.float32),)


def reference(t2t: T2TViT) -> Table:
    """The names of `models/t2t_vit.py T2T_ViT`, whose fixed positions are stored."""
    names = TOKEN_BLOCKS[t2t.token_attention]
    rules: list[Rule | Constant] = [
        Rule("cls_token", "class_token", ROW),
        *linear("tokens_to_token.project", "patch_embed/projection"),
        *timm_blocks(),
        *norm("norm", "norm"),
        *linear("head", "head"),
    ]
    for number in range(1, len(t2t.kernel_sizes)):
        theirs, ours = f"tokens_to_token.attention{number}", f"patch_embed/token_block{number}"
        rules += [
            *norm(f"{theirs}.norm1", f"{ours}/norm1"),
            *heads(f"{theirs}.{names['projections']}", f"{ours}/projections"),
            *linear(f"{theirs}.{names['out']}", f"{ours}/out"),
            *norm(f"{theirs}.norm2", f"{ours}/norm2"),
            *linear(f"{theirs}.{names['mlp'][0]}", f"{ours}/mlp/up"),
            *linear(f"{theirs}.{names['mlp'][1]}", f"{ours}/mlp/down"),
        ]
        if t2t.token_attention == "performer":
            rules.append(Rule(f"{theirs}.w", f"random_features/{ours}/rows"))
    positions = sincos_1d(np.arange(1 + t2t.grid[0] * t2t.grid[1]), t2t.width, layout="interleaved")
    return [*rules, Constant("pos_embed", positions[None], POSITIONS_TOLERANCE)]


def reference_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `T2TViT` that a state_dict tells: squares of whole patches where `image_size` is not given."""
    first = "tokens_to_token.attention1."
    kind = "performer" if first + "w" in arrays else "transformer"
    found: dict[str, Any] = {
        "width": first_axis(arrays, "tokens_to_token.project.weight"),
        "channels": first_axis(arrays, first + "norm1.weight") // 49,
        "token_width": first_axis(arrays, f"{first}{TOKEN_BLOCKS[kind]['out']}.weight"),
        "token_attention": kind,
        "depth": count(arrays, "blocks.{i}"),
        "mlp_ratio": hidden_ratio(arrays["blocks.0.mlp.fc1.weight"]),
        "qkv_bias": "blocks.0.attn.qkv.bias" in arrays,
        "num_classes": first_axis(arrays, "head.weight"),
    }
    square = square_grid(num_rows(arrays, "pos_embed"), (1,))
    if "image_size" not in options and square:
        found["image_size"] = (16 * square[1], 16 * square[1])
    return found


LAYOUTS = {
    "reference": Layout(
        table=reference,
        marks=("tokens_to_token.project.weight", "blocks.0.attn.qkv.weight"),
        arguments=reference_arguments,
        untold=("num_heads", "scale"),
        preprocessing=lambda t2t: Preprocessing(t2t.image_size, IMAGENET_MEAN, IMAGENET_STD, crop=0.9),
    )
}

# The reference's constructor: its arguments, their defaults, and our names for those that are ours.
ARGUMENTS = {
    "img_size": (224, "image_size"),
    "tokens_type": ("performer", "token_attention"),
    "in_chans": (3, "channels"),
    "num_classes": (1000, "num_classes"),
    "embed_dim": (768, "width"),
    "depth": (12, "depth"),
    "num_heads": (12, "num_heads"),
    "mlp_ratio": (4.0, "mlp_ratio"),
    "qkv_bias": (False, "qkv_bias"),
    "qk_scale": (None, "scale"),
    "drop_rate": (0.0, ""),
    "attn_drop_rate": (0.0, ""),
    "drop_path_rate": (0.0, ""),
    "norm_layer": (None, ""),
    "token_dim": (64, "token_width"),
}


def golden(config: Mapping[str, Any]) -> tuple[T2TViT, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """The network of a golden file, and its run: all outputs by the file's names for the reference's modules."""
    fields = golden_arguments(config["arguments"], ARGUMENTS)
    fields["mlp_ratio"] = mlp_width(fields["width"], fields["mlp_ratio"]) / fields["width"]
    t2t = naming.construct(T2TViT, fields, "arguments")

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        table = inputs["param/pos_embed"][0]  # as rounded as the reference had it
        logits, aux = t2t.apply(variables, inputs["images"].transpose(0, 2, 3, 1), table)
        modules = {"tokens_to_token": aux["patches"], "norm": aux["encoded"], "head": logits}
        modules |= {f"tokens_to_token.attention{i + 1}": tokens for i, tokens in enumerate(aux["token_blocks"])}
        modules |= {f"blocks.{i}": level for i, level in enumerate(aux["levels"])}
        wanted = config["settings"].get("intermediates", {}).items()
        found = {name: modules[path] for name, path in wanted if path in modules}
        return found | {"logits": logits, "loss": jnp.sum(logits * inputs["cotangent"])}

    return t2t, run
