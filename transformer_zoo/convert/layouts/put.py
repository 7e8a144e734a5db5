"""The layout of PUT's P-VQVAE, and its golden run."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.table import (
    HEADS,
    HEADS_BIAS,
    HEADS_OUT,
    ROW,
    Arrays,
    Rule,
    Table,
    Transform,
    axes,
    linear,
    norm,
    without_prefix,
)
from transformer_zoo.models.masked_generation.put import InpaintingTokens, UQTransformer, hole_loss
from transformer_zoo.models.tokenizers.pvqvae import PVQVAE, hide, whole_patches
from transformer_zoo.task import Variables
from transformer_zoo.tasks.masked_tokens import Sampling

PREFIX = "content_codec."  # of the codec in checkpoints of the transformer
LINEAR = axes("out in -> in out")
KERNEL = axes("out in rows columns -> rows columns in out")
# torch's transposed convolution is the gradient of a convolution, so its kernel is mirrored.
TRANSPOSED = Transform(
    to_ours=lambda array, shape: np.ascontiguousarray(array.transpose(2, 3, 0, 1)[::-1, ::-1]),
    to_theirs=lambda array: np.ascontiguousarray(np.asarray(array)[::-1, ::-1].transpose(2, 3, 0, 1)),
)


def example(network: Any) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    if isinstance(network, Players):
        return (*example(network.tokenizer), *example(network.transformer))
    if isinstance(network, UQTransformer):
        return (jax.ShapeDtypeStruct((1, *network.grid, network.feature_width), np.float32),)
    return (jax.ShapeDtypeStruct((1, *network.input_shape), np.float32),)


def tokenizer_table(tokenizer: PVQVAE) -> Table:
    """The names of `PatchVQGAN` with `PatchEncoder2` and `PatchConvDecoder2`."""
    steps = tokenizer.patch_size.bit_length() - 1

    def layer(theirs: str, ours: str, kernel: Transform) -> list[Rule]:
        theirs = f"{PREFIX}{theirs}"
        return [Rule(f"{theirs}.weight", f"{ours}/kernel", kernel), Rule(f"{theirs}.bias", f"{ours}/bias")]

    pixels = dict(row=tokenizer.patch_size, column=tokenizer.patch_size)
    patch = axes("out (channel row column) -> (row column channel) out", **pixels)
    rules = layer("encoder.pre_layers.0", "encoder/embed", patch)
    for number in range(tokenizer.num_blocks):
        theirs = f"encoder.res_layers.{number}.layers"
        rules += layer(f"{theirs}.1", f"encoder/block{number}_down", LINEAR)
        rules += layer(f"{theirs}.3", f"encoder/block{number}_up", LINEAR)
    rules += layer("encoder.post_layers.1", "encoder/last", LINEAR)
    rules += layer("quant_conv", "encoder/head", axes("out in 1 1 -> in out"))
    rules += layer("post_quant_conv", "decoder/codes", KERNEL) + layer("decoder.pre_layers.0", "decoder/stem", KERNEL)
    for number in range(tokenizer.num_blocks):
        theirs = f"decoder.res_layers.{number}.conv"
        rules += layer(f"{theirs}.1", f"decoder/block{number}_down", KERNEL)
        rules += layer(f"{theirs}.3", f"decoder/block{number}_up", KERNEL)
    for number in range(steps):
        rules += layer(f"decoder.up_layers.{number}.deconv", f"decoder/up{steps - number}", TRANSPOSED)
    for number in range(steps + 1):
        rules += layer(f"decoder.encoder.layers.{number}", f"decoder/reference{number}", KERNEL)
    rules += layer("decoder.post_layers.1", "decoder/head", KERNEL)
    tables = (("embedding", "embedding"), ("cluster_size", "usage"), ("embedding_avg", "sums"))
    return rules + [Rule(f"{PREFIX}quantize.{theirs}", f"codebook/quantizer/{ours}") for theirs, ours in tables]


def tokenizer_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `PVQVAE` that the arrays tell; codes are halved between whole patches and patches with holes."""
    width, pixels = arrays["encoder.pre_layers.0.weight"].shape
    channels = arrays["decoder.post_layers.1.weight"].shape[0]
    codes = arrays["quantize.embedding"].shape[0]
    hole_codes = options.get("num_hole_codes", codes // 2)
    return {
        "channels": channels,
        "patch_size": round((pixels / channels) ** 0.5),
        "width": width,
        "num_blocks": count(arrays, "encoder.res_layers.{i}"),
        "num_codes": codes - hole_codes,
        "num_hole_codes": hole_codes,
    }


class Players(nn.Module):
    """Tokenizer and transformer in one tree, as golden files have them."""

    tokenizer: PVQVAE
    transformer: UQTransformer

    def __call__(self, images: Any, features: Any) -> Any:
        return self.tokenizer(images), self.transformer(features)


def transformer_table(transformer: UQTransformer, ours: str = "") -> Table:
    """The names of `MaskedImageInpaintingTransformer` without its codec's."""
    block, attention = f"{ours}blocks", f"{ours}blocks/attention"
    parts = ("query", "key", "value")
    return [
        *linear("emb_proj", f"{ours}embed"),
        Rule("pos_emb", f"{ours}positions", ROW),
        *norm("blocks.{i}.ln1", f"{block}/norm1"),
        Rule(tuple(f"blocks.{{i}}.attn.{part}.weight" for part in parts), f"{attention}/qkv/kernel", HEADS),
        Rule(tuple(f"blocks.{{i}}.attn.{part}.bias" for part in parts), f"{attention}/qkv/bias", HEADS_BIAS),
        Rule("blocks.{i}.attn.proj.weight", f"{attention}/out/kernel", HEADS_OUT),
        Rule("blocks.{i}.attn.proj.bias", f"{attention}/out/bias"),
        *norm("blocks.{i}.ln2", f"{block}/norm2"),
        *linear("blocks.{i}.mlp.0", f"{block}/mlp/up"),
        *linear("blocks.{i}.mlp.2", f"{block}/mlp/down"),
        *norm("layer_norm", f"{ours}norm"),
        *linear("to_logits", f"{ours}logits"),
    ]


def players_table(players: Players) -> Table:
    """Both."""

    def moved(path: str) -> str:
        start, _, rest = path.partition("/")
        return f"codebook/tokenizer/{rest}" if start == "codebook" else f"tokenizer/{path}"

    rules = [rule for rule in tokenizer_table(players.tokenizer) if isinstance(rule, Rule)]
    tokenizer = [dataclasses.replace(rule, ours=moved(str(rule.ours))) for rule in rules]
    return [*tokenizer, *transformer_table(players.transformer, "transformer/")]


def transformer_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `UQTransformer` that the arrays tell; the grid is a square."""
    width, feature_width = arrays["emb_proj.weight"].shape
    side = round(arrays["pos_emb"].shape[1] ** 0.5)
    return {
        "grid": (side, side),
        "feature_width": feature_width,
        "num_codes": arrays["to_logits.weight"].shape[0],
        "depth": count(arrays, "blocks.{i}"),
        "width": width,
        "mlp_ratio": arrays["blocks.0.mlp.0.weight"].shape[0] / width,
    }


def players_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Both networks, as far as the arrays tell them."""
    codec = {without_prefix(name, (PREFIX,)): array for name, array in arrays.items() if name.startswith(PREFIX)}
    transformer = transformer_arguments(arrays, options)
    holes = len(codec["quantize.embedding"]) - transformer["num_codes"]
    tokenizer = tokenizer_arguments(codec, {"num_hole_codes": holes})
    return {"tokenizer": PVQVAE(**tokenizer), "transformer": UQTransformer(**transformer)}


LAYOUTS = {
    "players": Layout(
        table=players_table,
        marks=(f"{PREFIX}quantize.cluster_size", "emb_proj.weight"),
        arguments=players_arguments,
    ),
    "transformer": Layout(
        table=transformer_table,
        marks=("emb_proj.weight", "to_logits.weight"),
        arguments=transformer_arguments,
        untold=("num_heads",),
    ),
    "tokenizer": Layout(
        table=tokenizer_table,
        marks=("encoder.pre_layers.0.weight", "quantize.cluster_size"),
        arguments=tokenizer_arguments,
        untold=("image_size",),
        prefixes=(PREFIX,),
    ),
}


def golden(config: Mapping[str, Any]) -> tuple[Players, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """Both networks of a golden file, and their run: all outputs by the reference's names."""
    codec = config["arguments"]["content_codec_config"]["params"]
    quantizer, encoder = codec["quantizer_config"]["params"], codec["encoder_config"]["params"]
    height, width = config["inputs"]["image"][2:]
    given = config["arguments"]
    tokenizer = PVQVAE(
        image_size=(height, width),
        patch_size=encoder["stride"],
        width=encoder["res_ch"],
        num_blocks=encoder["num_res_block"],
        num_codes=quantizer["masked_embed_start"],
        num_hole_codes=quantizer["n_e"] - quantizer["masked_embed_start"],
    )

    transformer = UQTransformer(
        grid=tokenizer.grid,
        feature_width=tokenizer.width,
        num_codes=given["num_token"],
        depth=given["n_layer"],
        width=given["n_embd"],
        num_heads=given["n_head"],
        mlp_ratio=float(given["mlp_hidden_times"]),
    )
    greedy = Sampling(top_k=1)
    task = InpaintingTokens(transformer, tokenizer, greedy, tokens_per_step=1, quantized_share=given["random_quantize"])

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        outputs = codec_outputs(tokenizer, parts_of(variables, "tokenizer"), inputs)
        outputs |= transformer_outputs(task, variables, inputs)
        return outputs | {"loss": outputs["loss"] + outputs["transformer_loss"]}

    return Players(tokenizer, transformer), run


def parts_of(variables: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The variables of one player."""
    return {collection: tree[name] for collection, tree in variables.items() if name in tree}


def transformer_outputs(task: InpaintingTokens, variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What golden files hold of the transformer."""
    codec = parts_of(variables, "tokenizer")
    frozen = {"params": codec["params"], "state": {"codebook": codec["codebook"]}}
    both = Variables({"model": variables["params"]["transformer"]}, {}, {"tokenizer": jax.lax.stop_gradient(frozen)})
    image = jnp.moveaxis(inputs["image"], 1, -1) / 127.5 - 1
    known = inputs["mask"][:, 0].astype(bool)
    noise = inputs["quantize_noise"][:, 0]
    features, whole = task.mixed_features(both, image, known, noise)
    logits, aux = task.network.apply({"params": both.params["model"]}, features)
    loss, _ = hole_loss(logits, task.tokenize(both, {"image": image}), whole)
    ids = task.fill(both, image, known, jax.random.key(0))
    made: Any = task.tokenizer.apply(codec, ids, image, known, method="detokenize")
    return {
        "embedding": aux["embedded"],
        "block1": aux["levels"][0],
        "logits": logits.reshape(logits.shape[0], -1, logits.shape[-1]),
        "transformer_loss": loss,
        "sample_ids": ids.reshape(ids.shape[0], -1),
        "sample_completed": jnp.moveaxis(jnp.clip((made + 1) * 127.5, 0, 255), -1, 1),
    }


def codec_outputs(tokenizer: PVQVAE, variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What golden files hold of the tokenizer."""
    image = jnp.moveaxis(inputs["image"], 1, -1) / 127.5 - 1
    known, erased = (inputs[name][:, 0].astype(bool) for name in ("mask", "erase_mask"))
    whole = whole_patches(erased, tokenizer.patch_size)
    (reconstruction, aux), moved = tokenizer.apply(variables, image, known, whole, train=True, mutable="codebook")
    _, still = tokenizer.apply(variables, image, known, whole)
    ids = inputs["decode_ids"].reshape(-1, *tokenizer.grid)
    decoded: Any = tokenizer.apply(variables, ids, image, known, method="detokenize")
    book, loss = moved["codebook"]["quantizer"], aux["losses"]["commitment"]
    pictures = {
        "latent": aux["latents"],
        "masked_image": hide(image, known),
        "dec_res_out": aux["decoder"]["blocks"],
        "reconstruction": reconstruction,
        "decoded": jnp.clip((decoded + 1) * 127.5, 0, 255),
    }
    outputs = {name: jnp.moveaxis(array, -1, 1) for name, array in pictures.items()}
    return outputs | {
        "enc_patch_linear": aux["encoder"]["embedded"],
        "enc_res_out": aux["encoder"]["blocks"],
        "token_type": token_types(known, tokenizer.patch_size),
        "erase_token_type": token_types(erased, tokenizer.patch_size),
        "ids_erase": still["ids"],
        "ids": tokenizer.apply(variables, image, method="tokenize"),
        "quantize_loss": loss,
        "ema_embedding": book["embedding"],
        "ema_cluster_size": book["usage"],
        "ema_embedding_avg": book["sums"],
        "loss": loss + (outputs["reconstruction"] * inputs["cotangent"]).sum(),
    }


def token_types(known: jax.Array, patch_size: int) -> jax.Array:
    """1 for patches that are known, 0 for those that are hidden, 2 for those in part; [batch, 1, rows, columns]."""
    whole, hidden = whole_patches(known, patch_size), whole_patches(~known, patch_size)
    return jnp.where(whole, 1, jnp.where(hidden, 0, 2))[:, None]
