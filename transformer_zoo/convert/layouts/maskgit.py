"""The layout of MaskGIT's reference code, flax names joined by '/', and its golden runs."""

import functools
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import naming
from transformer_zoo.convert.golden import golden_arguments
from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.table import Arrays, Rule, Table
from transformer_zoo.decoding.schedules import hidden_after, shares_after
from transformer_zoo.masking.schedules import hidden_share
from transformer_zoo.masking.tokens import lowest
from transformer_zoo.models.tokenizers.maskgit_vqgan import MaskGITVQGAN
from transformer_zoo.models.tokenizers.tokenizer import Tokenizer

NORMS = {"GN": "group", "LN": "layer"}
TYPES = {"group": "GroupNorm", "layer": "LayerNorm"}


def example(tokenizer: MaskGITVQGAN) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    return (jax.ShapeDtypeStruct((1, *tokenizer.image_size, tokenizer.channels), np.float32),)


def convolution(theirs: str, ours: str, bias: bool = True) -> list[Rule]:
    """A convolution of flax."""
    rules = [Rule(f"{theirs}/kernel", f"{ours}/kernel")]
    return [*rules, Rule(f"{theirs}/bias", f"{ours}/bias")] if bias else rules


def norm(theirs: str, ours: str) -> list[Rule]:
    """A normalisation of flax."""
    return [Rule(f"{theirs}/{name}", f"{ours}/{name}") for name in ("scale", "bias")]


def blocks(theirs: str, ours: str, names: Sequence[str], widths: Sequence[int], kind: str) -> list[Rule]:
    """Residual blocks, numbered there and named here; `widths` are those between the blocks, first to last."""
    rules = []
    for number, (name, (before, after)) in enumerate(zip(names, pairwise(widths), strict=True)):
        block, path = f"{theirs}/ResBlock_{number}", f"{ours}/{name}"
        for part in (0, 1):
            rules += norm(f"{block}/{TYPES[kind]}_{part}", f"{path}/norm{part + 1}")
            rules += convolution(f"{block}/Conv_{part}", f"{path}/conv{part + 1}", bias=False)
        if before != after:
            rules += convolution(f"{block}/Conv_2", f"{path}/shortcut", bias=False)
    return rules


def vqgan(tokenizer: Any, encoder_blocks: int, decoder_blocks: int, theirs: str = "", ours: str = "") -> Table:
    """Encoder, codebook and decoder of a convolutional VQGAN."""
    widths = [tokenizer.width * multiplier for multiplier in tokenizer.multipliers]
    levels, kind = len(widths), tokenizer.norm
    downs = [f"level{level}_down" for level in range(levels - 1)] if tokenizer.conv_downsample else []
    inner = [f"level{level}_block{n}" for level in range(levels) for n in range(encoder_blocks)]
    inner += [f"last_block{n}" for n in range(encoder_blocks)]
    outer = [f"first_block{n}" for n in range(decoder_blocks)]
    outer += [f"level{level}_block{n}" for level in reversed(range(levels)) for n in range(decoder_blocks)]
    inner_widths = [width for width in [*widths, widths[-1]] for _ in range(encoder_blocks)]
    outer_widths = [width for width in [widths[-1], *reversed(widths)] for _ in range(decoder_blocks)]
    ups = [f"level{level}_up" for level in range(levels - 1, 0, -1)]
    encoder, decoder = f"{theirs}encoder", f"{theirs}decoder"
    rules = [Rule(f"{theirs}quantizer/codebook", f"{ours}quantizer/embedding")]
    rules += convolution(f"{encoder}/Conv_0", f"{ours}encoder/stem", bias=False)
    for number, name in enumerate([*downs, "head"], start=1):
        rules += convolution(f"{encoder}/Conv_{number}", f"{ours}encoder/{name}")
    rules += blocks(encoder, f"{ours}encoder", inner, [tokenizer.width, *inner_widths], kind)
    rules += norm(f"{encoder}/{TYPES[kind]}_0", f"{ours}encoder/norm")
    for number, name in enumerate(["stem", *ups, "head"]):
        rules += convolution(f"{decoder}/Conv_{number}", f"{ours}decoder/{name}")
    rules += blocks(decoder, f"{ours}decoder", outer, [widths[-1], *outer_widths], kind)
    rules += norm(f"{decoder}/{TYPES[kind]}_0", f"{ours}decoder/norm")
    return rules


def vqgan_arguments(arrays: Arrays, prefix: str = "") -> dict[str, Any]:
    """Fields of a convolutional VQGAN that its arrays tell, with the numbers of its blocks."""
    encoder, decoder = f"{prefix}encoder", f"{prefix}decoder"
    stem = arrays[f"{encoder}/Conv_0/kernel"]
    levels = count(arrays, f"{decoder}/Conv_{{i}}") - 1
    encoder_blocks = count(arrays, f"{encoder}/ResBlock_{{i}}") // (levels + 1)
    firsts = [arrays[f"{encoder}/ResBlock_{level * encoder_blocks}/Conv_1/kernel"] for level in range(levels)]
    num_codes, latent_width = arrays[f"{prefix}quantizer/codebook"].shape
    return {
        "width": stem.shape[-1],
        "channels": stem.shape[-2],
        "multipliers": tuple(first.shape[-1] // stem.shape[-1] for first in firsts),
        "encoder_blocks": encoder_blocks,
        "decoder_blocks": count(arrays, f"{decoder}/ResBlock_{{i}}") // (levels + 1),
        "num_codes": num_codes,
        "latent_width": latent_width,
        "conv_downsample": count(arrays, f"{encoder}/Conv_{{i}}") > 2,
        "norm": "layer" if f"{encoder}/LayerNorm_0/scale" in arrays else "group",
    }


def tokenizer_table(tokenizer: MaskGITVQGAN) -> Table:
    """The names of `nets/vqgan_tokenizer.py VQVAE`."""
    return vqgan(tokenizer, tokenizer.num_blocks, tokenizer.num_blocks, theirs="vqvae/")


def tokenizer_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `MaskGITVQGAN` that the arrays tell."""
    found = vqgan_arguments(arrays)
    del found["decoder_blocks"]
    return found | {"num_blocks": found.pop("encoder_blocks")}


LAYOUTS = {
    "tokenizer": Layout(
        table=tokenizer_table,
        marks=("encoder/Conv_0/kernel", "quantizer/codebook"),
        arguments=tokenizer_arguments,
        untold=("image_size", "activation"),
        prefixes=("vqvae/",),
    )
}

# `config.vqvae` of the reference: its fields, what ImageNet's config says, and our names for those that are ours.
VQVAE = {
    "activation_fn": ("swish", "activation"),
    "channel_multipliers": ((1, 1, 2, 2, 4), "multipliers"),
    "codebook_size": (1024, "num_codes"),
    "commitment_cost": (0.25, "commitment_weight"),
    "conv_downsample": (False, "conv_downsample"),
    "embedding_dim": (256, "latent_width"),
    "entropy_loss_ratio": (0.1, "entropy_weight"),
    "entropy_loss_type": ("softmax", "entropy_kind"),
    "entropy_temperature": (0.01, "entropy_temperature"),
    "filters": (128, "width"),
    "norm_type": ("GN", "norm"),
    "quantizer": ("vq", ""),
}


def vqvae_fields(given: Mapping[str, Any], known: Mapping[str, tuple[Any, str]]) -> dict[str, Any]:
    """Our fields from a `config.vqvae`.

    Raises:
        ValueError: a field that it does not have, or a value that there is no counterpart for.
    """
    fields = golden_arguments(given, known)
    if given.get("quantizer", "vq") != "vq":
        raise ValueError(f"quantizer is {given['quantizer']!r}, but only 'vq' has a counterpart")
    if fields["norm"] not in NORMS:
        raise ValueError(f"norm_type is {fields['norm']!r}, but only {', '.join(NORMS)} have a counterpart")
    return fields | {"norm": NORMS[fields["norm"]]}


def vqvae_outputs(
    apply: Callable[..., Any], pixels: jax.Array, decode_ids: jax.Array, multipliers: Sequence[int], num_blocks: int
) -> dict[str, Any]:
    """What golden files hold of a VQGAN; `apply(*arguments, method=..., **options)` calls it."""
    reconstruction, aux = apply(pixels, train=True)
    losses = aux["losses"]
    quantizer_loss = sum(losses.values())
    outputs = {
        "latent": aux["latents"],
        "ids": aux["ids"],
        "quantizer_loss": quantizer_loss,
        "e_latent_loss": losses["commitment"],
        "q_latent_loss": losses["codebook"],
        "entropy_loss": losses.get("entropy", jnp.zeros(())),
        "quantized": aux["quantized"],
        "dec_resblock0": aux["decoder"]["blocks"][0],
        "reconstruction": reconstruction,
        "decoded_from_ids": apply(decode_ids, method=Tokenizer.detokenize),
        "vqvae_loss": jnp.square(reconstruction - pixels).mean() + quantizer_loss,
    }
    wider = [level for level, (before, after) in enumerate(pairwise([1, *multipliers])) if before != after]
    if wider:
        outputs["enc_resblock_wide"] = aux["encoder"]["blocks"][wider[0] * num_blocks]
    return outputs


SCHEDULES = {"uniform": "linear", "log": "logarithmic", "exp": "exponential", "cosine": "cosine"}


def schedules(variables: Any, inputs: Mapping[str, Any], methods: Sequence[str]) -> dict[str, Any]:
    """What golden files hold of `mask_schedule.schedule` and of `mask_by_random_topk`."""
    outputs: dict[str, Any] = {}
    for method in methods:
        ours = SCHEDULES.get(method, method.replace("pow", "power"))
        outputs[f"train_ratio_{method}"] = hidden_share(inputs["ratio"], ours, 256)
        for steps, tokens in zip(inputs["T"].tolist(), inputs["N"].tolist()):
            shares = shares_after(steps, ours, tokens)
            outputs[f"ratio_{method}_T{steps}_N{tokens}"] = shares
            outputs[f"masklen_{method}_T{steps}_N{tokens}"] = jnp.floor(tokens * shares).astype(jnp.int32)
            left = np.maximum(hidden_after(steps, ours, tokens), 1)  # there one token is hidden after the last step too
            outputs[f"clamped_{method}_T{steps}_N{tokens}"] = left
    for number, temperature in enumerate(inputs["temperature"]):
        scores = jnp.log(inputs["probs"]) + temperature * inputs["gumbel"]
        outputs[f"topk_mask_{number}"] = lowest(scores, inputs["mask_len"][:, 0]).astype(jnp.int8)
    return outputs


def golden(config: Mapping[str, Any]) -> tuple[Any, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """The tokenizer of a golden file, and its run: all outputs by the reference's names."""
    if config["part"] == "schedules":
        return None, functools.partial(schedules, methods=config["arguments"]["methods"])
    given = config["arguments"]["vqvae"]["vqvae"]
    fields = vqvae_fields(given, VQVAE | {"num_res_blocks": (2, "num_blocks")})
    tokenizer = naming.construct(MaskGITVQGAN, fields, "arguments")

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        def apply(*arguments: Any, **options: Any) -> Any:
            return tokenizer.apply(variables, *arguments, **options)

        outputs = vqvae_outputs(
            apply, inputs["image"], inputs["decode_ids"], tokenizer.multipliers, tokenizer.num_blocks
        )
        return outputs | {"loss": outputs["vqvae_loss"]}

    return tokenizer, run
