"""The layouts of `fm.FM`, `fm.FourM` and `fm_vit.FMViT`: biases that norms lack are buffers of zeros there."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import naming
from transformer_zoo.convert.golden import golden_arguments
from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.layouts.vit import attention_out, heads
from transformer_zoo.convert.table import LINEAR, Arrays, Constant, Rule, Table, axes, linear, norm
from transformer_zoo.layers.patches import grid_of
from transformer_zoo.layers.positions import sincos_1d
from transformer_zoo.models.multimodal.fourm.embeddings import Tokens, grid_table
from transformer_zoo.models.multimodal.fourm.modalities import Modality, abstract_values
from transformer_zoo.models.multimodal.fourm.model import PADDING, FourM
from transformer_zoo.models.multimodal.fourm.objective import modality_losses, total_loss
from transformer_zoo.models.multimodal.fourm.published import FOURM_21, SUPER_RESOLUTION
from transformer_zoo.models.multimodal.fourm.vit import FourMViT

VECTOR = axes("1 1 width -> width")
NORMS = ("norm1", "norm2", "query_norm", "context_norm")
ATTENTIONS = ("attn", "self_attn", "cross_attn")


def example(network: FourM | FourMViT) -> tuple[Any, ...]:
    """Abstract arguments of a call with every place of every modality."""
    if isinstance(network, FourMViT):
        return (jax.ShapeDtypeStruct((1, *network.image_size, network.channels), jnp.float32),)

    def tokens(modality: Modality) -> Tokens:
        values, places = abstract_values(modality, 1), jax.ShapeDtypeStruct((1, modality.places), bool)
        if modality.kind == "sequence":
            values = jax.ShapeDtypeStruct((1, modality.places), jnp.int32)
        return Tokens(values, places, places)

    return ({name: tokens(modality) for name, modality in network.all_modalities.items()},)


def blocks(theirs: str, ours: str, gated: bool) -> list[Rule]:
    """A stack of the reference's `Block` or `DecoderBlock`."""
    rules: list[Rule] = []
    for name in NORMS:
        rules += norm(f"{theirs}.{name}", f"{ours}/{name}")
    for name, path in (("attn", "attention"), ("self_attn", "attention"), ("cross_attn", "cross_attention")):
        if (name == "attn") != theirs.startswith("encoder"):
            continue
        for part in ("qkv",) if path == "attention" else ("q", "kv"):
            rules += heads(f"{theirs}.{name}.{part}", f"{ours}/{path}/{part}")
        rules += norm(f"{theirs}.{name}.q_norm", f"{ours}/{path}/q_norm")
        rules += norm(f"{theirs}.{name}.k_norm", f"{ours}/{path}/k_norm")
        rules += attention_out(f"{theirs}.{name}.proj", f"{ours}/{path}/out")
    first = "gate" if gated else "up"
    rules += linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/{first}") + linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down")
    return rules + (linear(f"{theirs}.mlp.fc3", f"{ours}/mlp/up") if gated else [])


def zero_biases(theirs: str, depth: int, decoder: bool, width: int, head_width: int) -> list[Constant]:
    """Buffers of zeros that LayerNorms without bias have; `head_width` 0 means no norms of queries and keys."""
    norms = NORMS if decoder else NORMS[:2]
    attentions = ATTENTIONS[1:] if decoder else ATTENTIONS[:1]
    found = [Constant(f"{theirs}.{i}.{name}.bias", np.zeros(width)) for i in range(depth) for name in norms]
    found.append(Constant(f"{theirs}_norm.bias", np.zeros(width)))
    if head_width:
        sides = [f"{theirs}.{i}.{name}.{side}_norm" for i in range(depth) for name in attentions for side in "qk"]
        found += [Constant(f"{side}.bias", np.zeros(head_width)) for side in sides]
    return found


def encoder_side(name: str, modality: Modality, width: int, ours: str) -> list[Rule | Constant]:
    """What the encoder has of a modality: projection or table, and positions."""
    theirs = f"encoder_embeddings.{name}"
    found: list[Rule | Constant] = [position_row(theirs, modality, width, ours)]
    if modality.kind == "pixels":
        return [*found, Rule(f"{theirs}.proj.weight", f"{ours}/patches/projection/kernel", LINEAR)]
    if modality.is_ids:
        return [*found, Rule(f"{theirs}.token_emb.weight", f"{ours}/embedding")]
    if not modality.bottleneck:
        return [*found, *linear(f"{theirs}.emb_proj", f"{ours}/projection")]
    first = linear(f"{theirs}.emb_proj.0", f"{ours}/bottleneck")
    return [*found, *first, *linear(f"{theirs}.emb_proj.1", f"{ours}/projection")]


def decoder_side(name: str, modality: Modality, width: int, tied: bool) -> list[Rule | Constant]:
    """What the decoder has of a modality. An untied table of what is all mask tokens is read by nobody."""
    theirs, ours = f"decoder_embeddings.{name}", f"output_embedding_{name}"
    table = f"{theirs}.token_emb.weight"
    found: list[Rule | Constant] = [position_row(theirs, modality, width, ours)]
    if tied or modality.kind == "sequence":
        found.append(Rule(table, f"{ours}/embedding"))
    else:
        found.append(Constant(table, np.zeros((modality.vocabulary, width), np.float32), tolerance=np.inf))
    logits = f"{theirs}.to_logits.weight"
    return [*found, Rule(logits, f"{ours}/embedding") if tied else Rule(logits, f"{ours}/logits", LINEAR)]


def position_row(theirs: str, modality: Modality, width: int, ours: str) -> Rule | Constant:
    """A learned table of positions, or the fixed one."""
    if modality.positions == "learned":
        return Rule(f"{theirs}.pos_emb", f"{ours}/positions", axes("1 place width -> place width"))
    if modality.kind in ("sequence", "embeddings"):
        return Constant(f"{theirs}.pos_emb", sincos_1d(np.arange(modality.max_positions), width)[None])
    return Constant(f"{theirs}.pos_emb", grid_table(modality.grid, width)[None])


def reference(network: FourM) -> Table:
    """The names of `fm.FourM`, tied, and of `fm.FM`, untied."""
    width = network.width
    rules: list[Rule | Constant] = [
        Rule("mask_token", "mask_token", VECTOR),
        Rule("register_tokens", "registers", axes("1 row width -> row width")),
        *blocks("encoder.{i}", "encoder/blocks", network.gated),
        *norm("encoder_norm", "encoder/norm"),
        *linear("decoder_proj_context", "context"),
        *blocks("decoder.{i}", "decoder/blocks", network.gated),
        *norm("decoder_norm", "decoder/norm"),
    ]
    for name, modality in network.inputs.items():
        rules += encoder_side(name, modality, width, f"input_embedding_{name}")
    for name, modality in network.outputs.items():
        rules += decoder_side(name, modality, width, network.tied)
    for name in network.all_modalities:
        for side, modalities in (("encoder", network.inputs), ("decoder", network.outputs)):
            if name in modalities:
                rules.append(Rule(f"{side}_embeddings.{name}.mod_emb", f"modality_embedding_{name}", VECTOR))
    if not network.use_bias:
        head = width // network.num_heads if network.qk_norm else 0
        rules += zero_biases("encoder", network.depth, False, width, head)
        rules += zero_biases("decoder", network.decoder_depth, True, width, head)
    return rules


def stack_arguments(arrays: Arrays) -> dict[str, Any]:
    """Fields of an encoder that the arrays tell."""
    gated = "encoder.0.mlp.fc3.weight" in arrays
    hidden, width = arrays["encoder.0.mlp.fc1.weight"].shape
    wholes = range(3 * hidden // 2, 3 * hidden // 2 + 3) if gated else (hidden,)
    fits = [whole for whole in wholes if FourM(width=width, mlp_ratio=whole / width, gated=gated).hidden == hidden]
    ratio = min(fits, key=lambda whole: whole % width > 0) / width
    return {
        "depth": count(arrays, "encoder.{i}"),
        "width": width,
        "mlp_ratio": ratio,
        "gated": gated,
        "activation": "silu" if gated else "gelu",
        "use_bias": "encoder.0.attn.qkv.bias" in arrays,
        "qk_norm": "encoder.0.attn.q_norm.weight" in arrays,
    }


def arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `FourM` that the arrays tell; the modalities only where all of them are the papers'."""
    found = stack_arguments(arrays) | {
        "decoder_depth": count(arrays, "decoder.{i}"),
        "tied": all(
            np.array_equal(arrays[name], arrays[name.replace("token_emb", "to_logits")])
            for name in arrays
            if name.startswith("decoder_embeddings.") and name.endswith("token_emb.weight")
        ),
        "num_registers": arrays["register_tokens"].shape[1] if "register_tokens" in arrays else 0,
    }
    known = FOURM_21 | SUPER_RESOLUTION
    seen, asked = _names(arrays, "encoder_embeddings."), _names(arrays, "decoder_embeddings.")
    if all(name in known for name in seen | asked):
        found["modalities"] = {
            name: dict(known[name]) | {"input": name in seen, "output": name in asked}
            for name in known
            if name in seen | asked
        }
    return found


def _names(arrays: Arrays, prefix: str) -> set[str]:
    return {name.split(".")[1] for name in arrays if name.startswith(prefix)}


LAYOUT = Layout(
    table=reference,
    marks=("mask_token", "decoder_proj_context.weight", "encoder.0.attn.qkv.weight"),
    arguments=arguments,
    untold=("modalities", "num_heads"),
)

# The reference's constructor: its arguments, their defaults, and our names for those that are ours.
ARGUMENTS = {
    "dim": (768, "width"),
    "encoder_depth": (12, "depth"),
    "decoder_depth": (12, "decoder_depth"),
    "num_heads": (12, "num_heads"),
    "mlp_ratio": (4.0, "mlp_ratio"),
    "qkv_bias": (True, "use_bias"),
    "proj_bias": (True, ""),
    "mlp_bias": (True, ""),
    "norm_bias": (True, ""),
    "act_layer": ("GELU", ""),
    "norm_layer": ("", ""),
    "gated_mlp": (False, "gated"),
    "qk_norm": (False, "qk_norm"),
    "num_register_tokens": (0, "num_registers"),
    "share_modality_embeddings": (True, ""),
    "domains_in": ((), ""),
    "domains_out": ((), ""),
    "image_size": (224, ""),
    "patch_size": (16, ""),
}
KINDS = {"seq": "sequence", "seq_emb": "embeddings"}


def modality_id(name: str) -> int:
    """The reference's number of a modality."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 2**15


def modality_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `Modality` from an entry of the reference's `MODALITY_INFO`."""
    options = (info["encoder_embedding"] or info["decoder_embedding"])[1]
    kind = KINDS.get(info["type"], "tokens" if "vocab_size" in options else "pixels")
    if kind in ("pixels", "tokens"):
        patch = info["patch_size"]
        grid = tuple(side // patch for side in info["input_size"])
        found = {"kind": kind, "grid": grid, "vocabulary": options.get("vocab_size", 0)}
        return found | ({"patch_size": (patch, patch), "channels": options["num_channels"]} if kind == "pixels" else {})
    found = {"kind": kind, "length": options["max_length"], "max_positions": options["max_sincos_pos_emb"]}
    if kind == "embeddings":
        return found | {"width": options["orig_emb_dim"]}
    return found | {"vocabulary": options["vocab_size"], "end": 3, "first_sentinel": 5, "num_sentinels": 199}


def network_of(arguments: Mapping[str, Any], information: Mapping[str, Any], order: Sequence[str], tied: bool) -> FourM:
    """Our network for a run of the reference's, its modalities in `order`."""
    fields = golden_arguments(arguments, ARGUMENTS)
    outputs = arguments["domains_out"]
    fields["modalities"] = {name: modality_of(information[name]) | {"output": name in outputs} for name in order}
    fields |= {"activation": "silu" if fields["gated"] else "gelu", "tied": tied}
    return naming.construct(FourM, fields, "arguments")


def golden_tokens(network: FourM, inputs: Mapping[str, Any], prefix: str = "") -> dict[str, Tokens]:
    """A batch of the reference's, whose masks hide where ours show."""
    found = {}
    for name, modality in network.all_modalities.items():
        values = jnp.asarray(inputs[f"{prefix}{name}/tensor"])
        if modality.kind == "pixels":
            values = values.transpose(0, 2, 3, 1)
        elif modality.is_ids:
            values = values.reshape(values.shape[0], -1).astype(jnp.int32)
        masks = (~jnp.asarray(inputs[f"{prefix}{name}/{which}_mask"]) for which in ("input", "target"))
        found[name] = Tokens(values, *masks)
    return found


def golden(config: Mapping[str, Any]) -> tuple[FourM, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """The network of a golden file, and its run: all outputs by the reference's names.

    Raises:
        ValueError: an argument that the reference's constructor does not have.
    """
    settings = config["settings"]
    tied = "FM (" not in config["reference"]["class"]
    network = network_of(config["arguments"], settings["modality_info"], settings["mod_dict_order"], tied)
    vocabularies = {name: modality.vocabulary for name, modality in network.outputs.items()}
    ids = jnp.asarray([modality_id(name) for name in network.all_modalities] + [PADDING], jnp.int16)

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        tokens = golden_tokens(network, inputs)
        sizes = settings["num_encoder_tokens"], settings["num_decoder_tokens"]
        logits, aux = network.apply(variables, tokens, *sizes, inputs["decoder_order"])
        seen, asked = aux["inputs"], aux["targets"]
        mine = {name: asked.modality == network.number(name) for name in logits}
        entropies, _ = network.apply(variables, tokens, *sizes, inputs["decoder_order"], method="entropies")
        losses, counts = modality_losses(entropies, mine)
        outputs = {f"logits/{name}": values for name, values in logits.items()}
        outputs |= {f"mod_loss/{name}": value for name, value in losses.items()}
        for side, slots in (("encoder", seen), ("decoder", asked)):
            outputs |= {f"{side}_tokens": slots.tokens, f"{side}_emb": slots.positions}
            outputs |= {f"{side}_mask": ~slots.filled[:, None], f"{side}_mod_mask": ids[slots.modality]}
        return outputs | {
            "target_ids": asked.ids,
            "decoder_attention_mask": ~asked.sees,
            "enc_block0": aux["encoder_levels"][0],
            "enc_norm": aux["encoded"],
            "dec_block0": aux["decoder_levels"][0],
            "dec_norm": aux["decoded"],
            "loss": total_loss(losses, counts, vocabularies, "modality"),
            "loss_token": total_loss(losses, counts, vocabularies, "logit"),
        }

    return network, run


def vit(network: FourMViT) -> Table:
    """The names of `fm_vit.FMViT`, whose pixels are called after the image's height."""
    theirs = f"encoder_embeddings.rgb@{network.image_size[0]}"
    rules: list[Rule | Constant] = [
        Rule(f"{theirs}.proj.weight", "patches/projection/kernel", LINEAR),
        Rule(f"{theirs}.mod_emb", "modality_embedding", VECTOR),
        Constant(f"{theirs}.pos_emb", grid_table(grid_of(network.image_size, network.patch_size), network.width)[None]),
        Rule("register_tokens", "registers", axes("1 row width -> row width")),
        *blocks("encoder.{i}", "encoder/blocks", network.gated),
        *norm("encoder_norm", "encoder/norm"),
        *(linear("head", "head") if network.head == "mean" else []),
    ]
    if network.use_bias:
        return rules
    head = network.width // network.num_heads if network.qk_norm else 0
    return rules + zero_biases("encoder", network.depth, False, network.width, head)


def vit_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `FourMViT` that the arrays tell; images are squares, of the side in the pixels' name."""
    (name,) = _names(arrays, "encoder_embeddings.")
    places = arrays[f"encoder_embeddings.{name}.pos_emb"].shape[1]
    side = int(name.partition("@")[2])
    patch = round(side / places**0.5)
    pixels = arrays[f"encoder_embeddings.{name}.proj.weight"].shape[1]
    return stack_arguments(arrays) | {
        "image_size": (side, side),
        "patch_size": (patch, patch),
        "channels": pixels // patch**2,
        "num_registers": arrays["register_tokens"].shape[1] if "register_tokens" in arrays else 0,
        "head": "mean" if "head.weight" in arrays else "none",
        "num_classes": len(arrays["head.bias"]) if "head.weight" in arrays else 1000,
    }


VIT = Layout(
    table=vit,
    marks=("encoder_norm.weight", "encoder.0.attn.qkv.weight", "encoder.0.norm1.weight"),
    arguments=vit_arguments,
    untold=("num_heads",),
    network="fourm_vit",
)


def golden_vit(config: Mapping[str, Any]) -> tuple[FourMViT, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """An `FMViT` without a head, and its run."""
    given = config["arguments"]["config"]
    fields = golden_arguments(given, ARGUMENTS)
    del fields["decoder_depth"]
    size, patch = given["image_size"], given["patch_size"]
    fields |= {"image_size": (size, size), "patch_size": (patch, patch), "head": "none"}
    fields |= {"activation": "silu" if fields["gated"] else "gelu"}
    network = naming.construct(FourMViT, fields, "arguments")

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        out, aux = network.apply(variables, jnp.asarray(inputs["x"]).transpose(0, 2, 3, 1))
        return {
            "x_tokens": aux["patches"],
            "x_emb": jnp.broadcast_to(aux["positions"], aux["patches"].shape),
            "block0": aux["levels"][0],
            "block_last": aux["levels"][-1],
            "out": out,
            "loss": (out * inputs["cotangent"]).sum(),
        }

    return network, run
