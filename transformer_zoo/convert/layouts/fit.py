"""The layouts of FIT's three networks in google-research/pix2seq (names of TensorFlow variables), and golden runs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from transformer_zoo import naming
from transformer_zoo.convert.golden import golden_arguments
from transformer_zoo.convert.layout import Layout
from transformer_zoo.convert.layouts.vit import first_axis
from transformer_zoo.convert.table import Arrays, Rule, Table, axes
from transformer_zoo.models.backbones.fit import FIT, FITAR, FITDenoiser, Interleaved, merged, parse_layers

# What the reference calls a layer of each network, and its attention.
ENCODER_LAYER = ("transformer_encoder", "mha")
DECODER_LAYER = ("transformer_decoder_layer", "self_mha")
POSITIONS = "x_pos_emb/kernel/vis_pos_embedding"
LATENTS = "latent_pos_emb/kernel/vis_pos_embedding"


def example(network: Interleaved) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    if isinstance(network, FIT):
        return (jax.ShapeDtypeStruct((1, *network.image_size, network.channels), np.float32),)
    assert isinstance(network, FITDenoiser | FITAR)
    shape = (1, network.groups, network.tokens)
    if isinstance(network, FITAR):
        return (jax.ShapeDtypeStruct(shape, np.int32),)
    condition = jax.ShapeDtypeStruct((1, network.num_classes), np.float32) if network.num_classes else None
    time = jax.ShapeDtypeStruct((1,), np.float32)
    return jax.ShapeDtypeStruct((*shape, network.in_width), np.float32), time, condition


def numbered(name: str, number: int) -> str:
    """Names that TensorFlow makes unique: 'x', 'x_1', 'x_2', ..."""
    return f"{name}_{number}" if number else name


def scoped(scope: str, rules: list[Rule]) -> Table:
    """The rules with their names inside a scope."""
    return [dataclasses.replace(rule, theirs=tuple(f"{scope}/{name}" for name in rule.names)) for rule in rules]


def norm(theirs: str, ours: str) -> list[Rule]:
    """A layer normalisation."""
    return [Rule(f"{theirs}/gamma", f"{ours}/scale"), Rule(f"{theirs}/beta", f"{ours}/bias")]


def dense(theirs: str, ours: str) -> list[Rule]:
    """A dense layer."""
    return [Rule(f"{theirs}/kernel", f"{ours}/kernel"), Rule(f"{theirs}/bias", f"{ours}/bias")]


def mlp(theirs: str, ours: str) -> list[Rule]:
    """A pre-normalised MLP."""
    return [
        *norm(f"{theirs}/ffn/ln", f"{ours}/norm2"),
        *dense(f"{theirs}/ffn/dense1", f"{ours}/mlp/up"),
        *dense(f"{theirs}/ffn/dense2", f"{ours}/mlp/down"),
    ]


def read(theirs: str, ours: str) -> list[Rule]:
    """An attention to another set of tokens."""
    mha = f"{theirs}/cross_mha"
    parts = tuple(f"{mha}/{part}" for part in ("key", "value"))
    kernel, bias = axes("(part width) head dim -> width part head dim"), axes("(part head) dim -> part head dim")
    return [
        *norm(f"{mha}/ln", f"{ours}/norm1"),
        *norm(f"{mha}/enc_ln", f"{ours}/context_norm"),
        Rule(f"{mha}/query/kernel", f"{ours}/attention/q/kernel", kernel),
        Rule(f"{mha}/query/bias", f"{ours}/attention/q/bias", bias),
        Rule(tuple(f"{part}/kernel" for part in parts), f"{ours}/attention/kv/kernel", kernel),
        Rule(tuple(f"{part}/bias" for part in parts), f"{ours}/attention/kv/bias", bias),
        *dense(f"{mha}/attention_output", f"{ours}/attention/out"),
    ]


def stack(theirs: str, ours: str, depth: int, layer: tuple[str, str]) -> list[Rule]:
    """Layers of one stack: those of a name are joined along their first axis and then parted into our leading one."""
    names = [f"{theirs}/{numbered(layer[0], number)}" for number in range(depth)]

    def rule(suffixes: tuple[str, ...], path: str, pattern: str) -> Rule:
        joined = tuple(f"{name}/{suffix}" for name in names for suffix in suffixes)
        return Rule(joined, f"{ours}/{path}", axes(pattern))

    def pair(suffix: str, path: str, ends: tuple[str, str, str, str]) -> list[Rule]:
        return [
            rule((f"{suffix}/{ends[0]}",), f"{path}/{ends[1]}", "(depth width) -> depth width"),
            rule((f"{suffix}/{ends[2]}",), f"{path}/{ends[3]}", "(depth width) -> depth width"),
        ]

    mha = layer[1]
    qkv = tuple(f"{mha}/{part}" for part in ("query", "key", "value"))
    kernel, bias = (tuple(f"{part}/{kind}" for part in qkv) for kind in ("kernel", "bias"))
    vectors = ("gamma", "scale", "beta", "bias")
    rules = [
        *pair(f"{mha}/ln", "norm1", vectors),
        rule(kernel, "attention/qkv/kernel", "(depth part width) head dim -> depth width part head dim"),
        rule(bias, "attention/qkv/bias", "(depth part head) dim -> depth part head dim"),
        rule(
            (f"{mha}/attention_output/kernel",),
            "attention/out/kernel",
            "(depth head) dim width -> depth head dim width",
        ),
        rule((f"{mha}/attention_output/bias",), "attention/out/bias", "(depth width) -> depth width"),
        *pair("mlp/ffn/ln", "norm2", vectors),
    ]
    for part, name in (("dense1", "up"), ("dense2", "down")):
        rules.append(
            rule((f"mlp/ffn/{part}/kernel",), f"mlp/{name}/kernel", "(depth width) hidden -> depth width hidden")
        )
        rules.append(rule((f"mlp/ffn/{part}/bias",), f"mlp/{name}/bias", "(depth width) -> depth width"))
    return rules


def body(network: Interleaved, layer: tuple[str, str]) -> list[Rule]:
    """Positions and all layers, numbered by the reference over those pairs that have them."""
    rules = [Rule(POSITIONS, "positions"), Rule(LATENTS, "latents")]
    pairs = parse_layers(network.layers)
    locals_seen = 0

    def crossing(theirs: str, ours: str) -> list[Rule]:
        return [*read(theirs, ours), *mlp(f"{theirs}/mlp", ours)]

    for number, (local_depth, global_depth) in enumerate(pairs):
        if local_depth:
            rules += stack(numbered("x_network", locals_seen), f"local{number}_blocks", local_depth, layer)
            locals_seen += 1
        if global_depth:
            rules += crossing(numbered("l2x_cross_attn", number), f"read{number}")
            rules += read(numbered("l2c_cross_attn", number), f"condition{number}")
            rules += stack(numbered("l_network", number), f"global{number}_blocks", global_depth, layer)
        if number < len(pairs) - 1:
            rules += crossing(numbered("x2l_cross_attn", number), f"write{number}")
    return rules


def encoder(fit: FIT) -> Table:
    """The names of `transformers.py FIT`, which has no head."""
    rules = [
        *dense("stem", "stem"),
        *norm("stem_ln", "stem_norm"),
        *dense("stem_y", "extra"),
        *norm("stem_y_ln", "extra_norm"),
        *body(fit, ENCODER_LAYER),
        *norm("x_output_ln", "norm"),
        *norm("l_output_ln", "latent_norm"),
    ]
    return scoped("fit", rules)


def denoiser(fit: FITDenoiser) -> Table:
    """The names of `transformers.py FITDenoiser`."""
    rules = [
        *dense("stem", "stem"),
        *norm("stem_ln", "stem_norm"),
        *dense("time_emb/dense0", "time1"),
        *dense("time_emb/dense1", "time2"),
        *dense("cond_proj", "condition"),
        *mlp("latent_prev_proj", "previous"),
        *norm("latent_prev_ln", "previous_norm"),
        *body(fit, ENCODER_LAYER),
        *norm("x_output_ln", "norm"),
        *dense("x_output_linear", "out"),
    ]
    return scoped("fit_denoiser", rules)


def decoder(fit: FITAR) -> Table:
    """The names of `transformers.py FITAR`."""
    rules = [
        Rule("token_embedding" if fit.shared_embedding else "inp_token_embedding", "embedding"),
        Rule("outp_token_embedding", "output_embedding"),
        Rule("outp_bias", "output_bias"),
        *body(fit, DECODER_LAYER),
        *norm("x_output_ln", "norm"),
    ]
    return scoped("fit_ar", rules)


def shared_arguments(arrays: Arrays, layer: tuple[str, str]) -> dict[str, Any]:
    """Fields of `Interleaved` that the arrays tell; without global layers those of the latents stay as they are."""

    def depths(stack: str) -> list[int]:
        found: list[int] = []
        while True:
            start = f"{numbered(stack, len(found))}/"
            names = {name.removeprefix(start).split("/")[0] for name in arrays if name.startswith(start)}
            if not names:
                return found
            found.append(len(names))

    local_depths, global_depths = depths("x_network"), depths("l_network")
    layers = "".join(
        f"({own})" + "".join(map(str, global_depths[pair : pair + 1])) for pair, own in enumerate(local_depths)
    )
    first = f"x_network/{layer[0]}"
    width, hidden = arrays[f"{first}/mlp/ffn/dense1/kernel"].shape
    found: dict[str, Any] = {
        "layers": layers,
        "width": width,
        "mlp_ratio": hidden / width,
        "positions": "learned" if POSITIONS in arrays else "sincos",
        "latent_positions": "learned" if LATENTS in arrays else "sincos",
        "local_attention": f"{first}/{layer[1]}/query/kernel" in arrays,
    }
    if found["local_attention"]:
        found["num_heads"] = arrays[f"{first}/{layer[1]}/query/kernel"].shape[1]
    if global_depths:
        found["latent_width"], found["latent_num_heads"] = arrays[
            f"l_network/{layer[0]}/{layer[1]}/query/kernel"
        ].shape[:2]
        found["read_mlp"] = "l2x_cross_attn/mlp/ffn/dense1/kernel" in arrays
        found["read_norm"] = "l2x_cross_attn/cross_mha/enc_ln/gamma" in arrays
    return found


def encoder_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `FIT` that the arrays tell."""
    arrays = {name.removeprefix("fit/"): array for name, array in arrays.items()}
    return shared_arguments(arrays, ENCODER_LAYER) | {
        "extra_width": first_axis(arrays, "stem_y/kernel"),
        "num_classes": 0,
    }


def denoiser_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `FITDenoiser` that the arrays tell."""
    arrays = {name.removeprefix("fit_denoiser/"): array for name, array in arrays.items()}
    return shared_arguments(arrays, ENCODER_LAYER) | {
        "in_width": arrays["stem/kernel"].shape[0],
        "out_width": arrays["x_output_linear/kernel"].shape[1],
        "num_classes": first_axis(arrays, "cond_proj/kernel"),
        "self_conditioning": "latent_prev_ln/gamma" in arrays,
    }


def decoder_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `FITAR` that the arrays tell."""
    arrays = {name.removeprefix("fit_ar/"): array for name, array in arrays.items()}
    shared = "token_embedding" in arrays
    return shared_arguments(arrays, DECODER_LAYER) | {
        "vocabulary": arrays["token_embedding" if shared else "inp_token_embedding"].shape[0],
        "shared_embedding": shared,
        "output_bias": "outp_bias" in arrays,
    }


SIZES = ("groups", "tokens", "latents_per_group")
LAYOUTS = {
    "encoder": Layout(
        table=encoder,
        marks=("fit/stem/kernel", "fit/l_output_ln/gamma"),
        arguments=encoder_arguments,
        untold=("image_size", "group_size", "patch_size", "channels", "latents_per_group"),
    ),
    "denoiser": Layout(
        table=denoiser,
        marks=("fit_denoiser/stem/kernel", "fit_denoiser/time_emb/dense0/kernel"),
        arguments=denoiser_arguments,
        untold=SIZES,
    ),
    "decoder": Layout(
        table=decoder,
        marks=("fit_ar/x_output_ln/gamma", "fit_ar/x_network/transformer_decoder_layer/mlp/ffn/ln/gamma"),
        arguments=decoder_arguments,
        untold=SIZES,
    ),
}

# The constructors' arguments, their defaults, and our names for those that are ours.
SHARED = {
    "layers": ("", "layers"),
    "x_size": (0, ""),
    "num_groups": (0, ""),
    "latents_per_group": (0, "latents_per_group"),
    "x_dim": (0, "width"),
    "latent_dim": (0, "latent_width"),
    "x_num_heads": (0, "num_heads"),
    "latent_num_heads": (0, "latent_num_heads"),
    "mlp_ratio": (4, "mlp_ratio"),
    "x_pos_encoding": ("learned", "positions"),
    "latent_pos_encoding": ("learned", "latent_positions"),
    "x_self_attention": (True, "local_attention"),
    "xattn_with_mlp": (False, "read_mlp"),
    "xattn_enc_ln": (True, "read_norm"),
    "drop_path": (0.0, ""),
    "drop_units": (0.0, ""),
    "drop_att": (0.0, ""),
}
ARGUMENTS = {
    "model": SHARED,
    "denoiser": SHARED | {"out_dim": (0, "out_width"), "self_cond": ("none", "self_conditioning")},
    "ar": SHARED
    | {
        "vocab_size": (0, "vocabulary"),
        "shared_embedding": (True, "shared_embedding"),
        "output_bias": (True, "output_bias"),
    },
}

Run = Callable[[Any, Mapping[str, Any]], dict[str, Any]]


def golden(config: Mapping[str, Any]) -> tuple[Interleaved, Run]:
    """The network of a golden file, and its run: all outputs by the reference's names.

    Raises:
        ValueError: a part that is none of the three networks.
    """
    part, inputs = config["part"], config["inputs"]
    if part not in ARGUMENTS:
        raise naming.unknown("part", part, ARGUMENTS)
    fields = golden_arguments(config["arguments"], ARGUMENTS[part])
    for name in ("positions", "latent_positions"):
        fields[name] = {"sin_cos": "sincos", "sin_cos2d": "sincos_2d"}.get(fields[name], fields[name])
    if part == "model":
        _, groups, tokens, pixels = inputs["x"]
        lines: Any = dict(image_size=(groups * tokens, pixels), group_size=(tokens, pixels), patch_size=(1, pixels))
        fields |= lines | {"channels": 1, "num_classes": 0, "extra_width": inputs["y"][-1] if "y" in inputs else 0}
        return encoder_run(naming.construct(FIT, fields, "arguments"))
    fields |= dict(groups=inputs["x"][1], tokens=inputs["x"][2])
    if part == "ar":
        return decoder_run(naming.construct(FITAR, fields, "arguments"))
    fields |= dict(in_width=inputs["x"][3], num_classes=inputs["cond"][1] if "cond" in inputs else 0)
    fields["self_conditioning"] = fields["self_conditioning"] == "latent"
    return denoiser_run(naming.construct(FITDenoiser, fields, "arguments"))


def intermediates(found: Mapping[str, Any]) -> dict[str, Any]:
    """The first output of every kind of layer, by the reference's names."""
    names = {"local": "x_network", "read": "l2x_cross_attn", "written": "x2l_cross_attn"}
    apart = {theirs: merged(found[ours][0]) for ours, theirs in names.items() if found[ours]}
    names = {"conditioned": "l2c_cross_attn", "global": "l_network"}
    return apart | {theirs: found[ours][0] for ours, theirs in names.items() if found[ours]}


def encoder_run(fit: FIT) -> tuple[FIT, Run]:
    """A call with further tokens, and one without."""

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        with_y: Any = fit.apply(variables, inputs["x"], inputs.get("y"), method="encode")
        without: Any = fit.apply(variables, inputs["x"], method="encode")
        (x, latents, aux), (bare_x, bare_latents, _) = with_y, without
        loss = (x * inputs["cotangent_x"]).sum() + (latents * inputs["cotangent_latents"]).sum()
        bare = {"x_no_y": bare_x, "latents_no_y": bare_latents}
        return intermediates(aux) | bare | {"x": x, "latents": latents, "loss": loss}

    return fit, run


def denoiser_run(fit: FITDenoiser) -> tuple[FITDenoiser, Run]:
    """A call with the latents of a step before, and one without."""

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        given = inputs["x"], inputs["time"], inputs.get("cond")
        x, aux = fit.apply(variables, *given, inputs.get("latents_prev"))
        first, first_aux = fit.apply(variables, *given)
        loss = (x * inputs["cotangent_x"]).sum() + (aux["latents"] * inputs["cotangent_latents"]).sum()
        found = intermediates(aux) | {"time_emb": aux["time"], "x": x, "latents": aux["latents"], "loss": loss}
        return found | {"x_no_prev": first, "latents_no_prev": first_aux["latents"]}

    return fit, run


def decoder_run(fit: FITAR) -> tuple[FITAR, Run]:
    """Cross-entropy against given labels."""

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        logits, aux = fit.apply(variables, inputs["x"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, inputs["labels"])
        return intermediates(aux) | {"logits": logits, "token_ce": losses, "loss": losses.mean()}

    return fit, run
