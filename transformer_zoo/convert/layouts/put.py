"""The layout of PUT's P-VQVAE, and its golden run."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.table import Arrays, Rule, Table, Transform, axes
from transformer_zoo.models.tokenizers.pvqvae import PVQVAE, hide, whole_patches

PREFIX = "content_codec."  # of the codec in checkpoints of the transformer
LINEAR = axes("out in -> in out")
KERNEL = axes("out in rows columns -> rows columns in out")
# torch's transposed convolution is the gradient of a convolution, so its kernel is mirrored.
TRANSPOSED = Transform(
    to_ours=lambda array, shape: np.ascontiguousarray(array.transpose(2, 3, 0, 1)[::-1, ::-1]),
    to_theirs=lambda array: np.ascontiguousarray(np.asarray(array)[::-1, ::-1].transpose(2, 3, 0, 1)),
)


def example(tokenizer: PVQVAE) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    return (jax.ShapeDtypeStruct((1, *tokenizer.input_shape), np.float32),)


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
        "num_blocks": count(arrays, "encoder.res_layers.{i}.layers.1.weight"),
        "num_codes": codes - hole_codes,
        "num_hole_codes": hole_codes,
    }


LAYOUTS = {
    "tokenizer": Layout(
        table=tokenizer_table,
        marks=("encoder.pre_layers.0.weight", "quantize.cluster_size"),
        arguments=tokenizer_arguments,
        untold=("image_size",),
        prefixes=(PREFIX,),
    )
}


def golden(config: Mapping[str, Any]) -> tuple[PVQVAE, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """The tokenizer of a golden file, and its run: all outputs by the reference's names."""
    codec = config["arguments"]["content_codec_config"]["params"]
    quantizer, encoder = codec["quantizer_config"]["params"], codec["encoder_config"]["params"]
    height, width = config["inputs"]["image"][2:]
    tokenizer = PVQVAE(
        image_size=(height, width),
        patch_size=encoder["stride"],
        width=encoder["res_ch"],
        num_blocks=encoder["num_res_block"],
        num_codes=quantizer["masked_embed_start"],
        num_hole_codes=quantizer["n_e"] - quantizer["masked_embed_start"],
    )

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
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

    return tokenizer, run


def token_types(known: jax.Array, patch_size: int) -> jax.Array:
    """1 for patches that are known, 0 for those that are hidden, 2 for those in part; [batch, 1, rows, columns]."""
    whole, hidden = whole_patches(known, patch_size), whole_patches(~known, patch_size)
    return jnp.where(whole, 1, jnp.where(hidden, 0, 2))[:, None]
