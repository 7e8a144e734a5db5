"""The layouts of MaskGIT's reference code, flax names joined by '/', and its golden runs."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import naming
from transformer_zoo.convert.golden import golden_arguments
from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.table import Arrays, Rule, Table, axes, without_prefix
from transformer_zoo.decoding.masked import Step, decode_masked
from transformer_zoo.decoding.schedules import hidden_after, shares_after
from transformer_zoo.masking.schedules import hidden_share
from transformer_zoo.masking.tokens import lowest
from transformer_zoo.models.masked_generation.maskgit import MaskGIT
from transformer_zoo.models.tokenizers.maskgit_vqgan import MaskGITVQGAN
from transformer_zoo.models.tokenizers.tokenizer import Tokenizer
from transformer_zoo.tasks.masked_tokens import token_loss

NORMS = {"GN": "group", "LN": "layer"}
TYPES = {"group": "GroupNorm", "layer": "LayerNorm"}


class Players(nn.Module):
    """Tokenizer and transformer in one tree, as golden files have them."""

    tokenizer: MaskGITVQGAN
    transformer: MaskGIT

    def __call__(self, images: Any, ids: Any, condition: Any) -> Any:
        return self.tokenizer(images), self.transformer(ids, condition)


def example(network: MaskGITVQGAN | MaskGIT | Players) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    if isinstance(network, Players):
        return (*example(network.tokenizer), *example(network.transformer))
    if isinstance(network, MaskGIT):
        shapes = (1, *network.grid), (1, *network.condition_shape)
        return tuple(jax.ShapeDtypeStruct(shape, np.int32) for shape in shapes)
    return (jax.ShapeDtypeStruct((1, *network.image_size, network.channels), np.float32),)


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


def bert(theirs: str, ours: str) -> Table:
    """The names of `nets/maskgit_transformer.py Transformer`, which MAGVIT's has as well."""
    layer, block = f"{theirs}TransformerLayer_{{i}}", f"{ours}blocks"
    attention, parts = f"{layer}/Attention_0/self_attention", ("query", "key", "value")
    head = f"{theirs}MlmLayer_0"
    rules = [
        Rule(f"{theirs}Embed_0/word_embeddings/embedding", f"{ours}embed/embedding"),
        Rule(f"{theirs}Embed_0/position_embeddings/embedding", f"{ours}positions"),
        *norm(f"{theirs}Embed_0/embeddings_ln", f"{ours}embed_norm"),
        Rule(
            tuple(f"{attention}/{part}/kernel" for part in parts),
            f"{block}/attention/qkv/kernel",
            axes("width (part heads) dim -> width part heads dim", part=3),
            axis=1,
        ),
        Rule(
            tuple(f"{attention}/{part}/bias" for part in parts),
            f"{block}/attention/qkv/bias",
            axes("(part heads) dim -> part heads dim", part=3),
        ),
        *convolution(f"{attention}/out", f"{block}/attention/out"),
        *norm(f"{layer}/Attention_0/attention_output_ln", f"{block}/norm1"),
        *convolution(f"{layer}/Mlp_0/intermediate_output", f"{block}/mlp/up"),
        *convolution(f"{layer}/Mlp_0/layer_output", f"{block}/mlp/down"),
        *norm(f"{layer}/Mlp_0/layer_output_ln", f"{block}/norm2"),
        *convolution(f"{head}/mlm_dense", f"{ours}head_hidden"),
        *norm(f"{head}/mlm_ln", f"{ours}head_norm"),
        Rule(f"{head}/mlm_bias/bias", f"{ours}head_bias"),
    ]
    return rules


def transformer_table(transformer: MaskGIT, ours: str = "") -> Table:
    """The names of the transformer."""
    return bert("transformer/", f"{ours}bert/")


def bert_arguments(arrays: Arrays) -> dict[str, Any]:
    """Fields of a network with `bert`'s names that the arrays tell."""
    width, layer = arrays["Embed_0/word_embeddings/embedding"].shape[1], "TransformerLayer_0"
    return {
        "width": width,
        "depth": count(arrays, "TransformerLayer_{i}"),
        "num_heads": arrays[f"{layer}/Attention_0/self_attention/query/kernel"].shape[1],
        "mlp_ratio": arrays[f"{layer}/Mlp_0/intermediate_output/kernel"].shape[1] / width,
    }


def transformer_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `MaskGIT` that the arrays tell."""
    return bert_arguments(arrays)


def players_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Both networks, as far as the arrays tell them: a square grid behind one token of a class."""
    tokenizer = vqgan_arguments(arrays, "vqvae/")
    del tokenizer["decoder_blocks"]
    names = {without_prefix(name, ("transformer/",)): array for name, array in arrays.items()}
    side = math.isqrt(len(names["Embed_0/position_embeddings/embedding"]) - 1)
    sizes = {"grid": (side, side), "num_codes": tokenizer["num_codes"]}
    sizes["num_conditions"] = len(names["MlmLayer_0/mlm_bias/bias"]) - 1 - tokenizer["num_codes"]
    return {
        "tokenizer": MaskGITVQGAN(**tokenizer | {"num_blocks": tokenizer.pop("encoder_blocks")}),
        "transformer": MaskGIT(**bert_arguments(names) | sizes),
    }


def tokenizer_table(tokenizer: MaskGITVQGAN) -> Table:
    """The names of `nets/vqgan_tokenizer.py VQVAE`."""
    return vqgan(tokenizer, tokenizer.num_blocks, tokenizer.num_blocks, theirs="vqvae/")


def tokenizer_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `MaskGITVQGAN` that the arrays tell."""
    found = vqgan_arguments(arrays)
    del found["decoder_blocks"]
    return found | {"num_blocks": found.pop("encoder_blocks")}


def players_table(players: Players) -> Table:
    """Both."""
    return [
        *vqgan(players.tokenizer, players.tokenizer.num_blocks, players.tokenizer.num_blocks, "vqvae/", "tokenizer/"),
        *transformer_table(players.transformer, "transformer/"),
    ]


LAYOUTS = {
    "players": Layout(
        table=players_table,
        marks=("vqvae/quantizer/codebook", "transformer/Embed_0/word_embeddings/embedding"),
        arguments=players_arguments,
    ),
    "transformer": Layout(
        table=transformer_table,
        marks=("Embed_0/word_embeddings/embedding", "MlmLayer_0/mlm_bias/bias"),
        arguments=transformer_arguments,
        untold=("grid", "num_codes", "num_conditions"),
        prefixes=("transformer/",),
    ),
    "tokenizer": Layout(
        table=tokenizer_table,
        marks=("encoder/Conv_0/kernel", "quantizer/codebook"),
        arguments=tokenizer_arguments,
        untold=("image_size", "activation"),
        prefixes=("vqvae/",),
    ),
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
        outputs[f"train_ratio_{method}"] = hidden_share(jnp.asarray(inputs["ratio"]), ours, 256)
        for steps, tokens in zip(inputs["T"].tolist(), inputs["N"].tolist()):
            shares = shares_after(steps, ours, tokens)
            outputs[f"ratio_{method}_T{steps}_N{tokens}"] = shares
            outputs[f"masklen_{method}_T{steps}_N{tokens}"] = jnp.floor(tokens * shares).astype(jnp.int32)
            left = np.maximum(hidden_after(steps, ours, tokens), 1)  # there one token is hidden after the last step too
            outputs[f"clamped_{method}_T{steps}_N{tokens}"] = left
    for number, temperature in enumerate(inputs["temperature"]):
        scores = jnp.log(jnp.asarray(inputs["probs"])) + temperature * inputs["gumbel"]
        outputs[f"topk_mask_{number}"] = lowest(scores, jnp.asarray(inputs["mask_len"])[:, 0]).astype(jnp.int8)
    return outputs


# `config.transformer` of the reference.
TRANSFORMER = {
    "vocab_size": (2025, ""),
    "max_position_embeddings": (257, ""),
    "hidden_size": (768, "width"),
    "num_hidden_layers": (24, "depth"),
    "num_attention_heads": (16, "num_heads"),
    "intermediate_size": (3072, ""),
}


def golden(config: Mapping[str, Any]) -> tuple[Any, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """Both networks of a golden file, and their run: all outputs by the reference's names."""
    if config["part"] == "schedules":
        return None, functools.partial(schedules, methods=config["arguments"]["methods"])
    given = config["arguments"]["vqvae"]["vqvae"]
    fields = vqvae_fields(given, VQVAE | {"num_res_blocks": (2, "num_blocks")})
    tokenizer = naming.construct(MaskGITVQGAN, fields, "arguments.vqvae")
    given = config["arguments"]["transformer"]
    sizes = golden_arguments(given, TRANSFORMER)
    sizes |= {"grid": (given["max_position_embeddings"] - 1,), "mlp_ratio": given["intermediate_size"] / sizes["width"]}
    sizes |= {"num_codes": tokenizer.num_codes, "num_conditions": given["vocab_size"] - 1 - tokenizer.num_codes}
    transformer = naming.construct(MaskGIT, sizes, "arguments.transformer")
    decoding = config["arguments"]["decode"]

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        params = variables["params"]

        def apply(*arguments: Any, **options: Any) -> Any:
            return tokenizer.apply({"params": params["tokenizer"]}, *arguments, **options)

        outputs = vqvae_outputs(
            apply, inputs["image"], inputs["decode_ids"], tokenizer.multipliers, tokenizer.num_blocks
        )
        outputs |= transformer_outputs(transformer, params["transformer"], inputs, decoding)
        return outputs | {"loss": outputs["vqvae_loss"] + outputs["transformer_loss"]}

    return Players(tokenizer, transformer), run


def transformer_outputs(
    transformer: MaskGIT, params: Any, inputs: Mapping[str, Any], decoding: Mapping[str, Any]
) -> dict[str, Any]:
    """What golden files hold of the transformer; mask tokens are -1 there."""

    def apply(tokens: jax.Array) -> Any:
        ids = jnp.where(tokens[:, 1:] < 0, transformer.mask_id, tokens[:, 1:])
        return transformer.apply({"params": params}, ids, tokens[:, 0] - transformer.num_codes)

    logits, aux = apply(inputs["input_ids"])
    hidden = inputs["input_ids"][:, 1:] == decoding["mask_token_id"]

    def logits_of_all(tokens: jax.Array, step: Step) -> jax.Array:
        return apply(tokens)[1]["logits"][..., : transformer.num_codes]

    start = inputs["decode_input"]
    decoded = decode_masked(
        logits_of_all,
        start,
        start == decoding["mask_token_id"],
        jax.random.key(0),
        hidden=decoding["mask_token_id"],
        steps=decoding["num_iter"],
        schedule=SCHEDULES[decoding["method"]],
        choice_temperature=decoding["choice_temperature"],
        noise=lambda index: (inputs["decode_noise_sample"][index], inputs["decode_noise_choice"][index]),
    )
    return {
        "embed": aux["embedded"],
        "layer1": aux["levels"][0],
        "layer_last": aux["levels"][-1],
        "logits": aux["logits"],
        "transformer_loss": token_loss(logits, inputs["target_ids"], hidden, 0.1),
        "decode_seqs": decoded.history.transpose(1, 0, 2),
    }
