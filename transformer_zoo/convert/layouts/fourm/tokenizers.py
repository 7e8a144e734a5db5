"""The layouts of `vqvae.VQVAE` with ViTs or MLPs."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from transformer_zoo import naming
from transformer_zoo.convert.golden import golden_arguments
from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.layouts.vit import hidden_ratio, patch_embedding, timm_blocks
from transformer_zoo.convert.table import (
    CONVOLUTION,
    Arrays,
    Constant,
    Rule,
    Table,
    axes,
    linear,
    norm,
)
from transformer_zoo.layers.patches import grid_of
from transformer_zoo.models.multimodal.fourm.divae import FourMDiVAE
from transformer_zoo.models.multimodal.fourm.embeddings import grid_table
from transformer_zoo.models.multimodal.fourm.tokenizers import FourMTokenizer, FourMVectorTokenizer

ONE_WIDE = axes("out in 1 1 -> in out")
Run = Callable[[Any, Mapping[str, Any]], dict[str, Any]]


def example(network: Any) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    if isinstance(network, FourMVectorTokenizer):
        return (jax.ShapeDtypeStruct((1, network.channels), jnp.float32),)
    pixels = jax.ShapeDtypeStruct((1, *network.image_size, network.channels), jnp.float32)
    if isinstance(network, FourMDiVAE):
        return pixels, pixels, jax.ShapeDtypeStruct((1,), jnp.int32)
    return (pixels,)


def one_wide(theirs: str, ours: str) -> list[Rule]:
    """A 1 x 1 convolution as a dense layer."""
    return [Rule(f"{theirs}.weight", f"{ours}/kernel", ONE_WIDE), Rule(f"{theirs}.bias", f"{ours}/bias")]


def convolution(theirs: str, ours: str) -> list[Rule]:
    """A convolution."""
    return [Rule(f"{theirs}.weight", f"{ours}/kernel", CONVOLUTION), Rule(f"{theirs}.bias", f"{ours}/bias")]


def codebook() -> list[Rule | Constant]:
    """Codes and their use; a flag says that they have been initialised."""
    theirs = "quantize._codebook"
    return [
        Rule(f"{theirs}.embed", "codebook/quantizer/embedding"),
        Rule(f"{theirs}.cluster_size", "codebook/quantizer/usage"),
        Constant(f"{theirs}.initted", np.ones(1, np.float32), tolerance=np.inf),
    ]


def stack(theirs: str, grid: tuple[int, int], width: int) -> list[Rule | Constant]:
    """A `ViTStack`."""
    table = np.asarray(grid_table(grid, width)).T.reshape(1, width, *grid)
    return [
        Constant(f"{theirs}.pos_emb", table),
        *timm_blocks(f"{theirs}.blocks.{{i}}", f"{theirs}/stack/blocks"),
        *norm(f"{theirs}.norm_mlp", f"{theirs}/stack/norm"),
        *linear(f"{theirs}.post_mlp.fc1", f"{theirs}/stack/post_mlp/up"),
        *linear(f"{theirs}.post_mlp.fc2", f"{theirs}/stack/post_mlp/down"),
    ]


def encoder(network: FourMTokenizer | FourMDiVAE) -> list[Rule | Constant]:
    """Encoder and codes."""
    return [
        *patch_embedding("encoder.proj", "encoder/patch_embed", network.patch_size),
        *stack("encoder", grid_of(network.image_size, network.patch_size), network.width),
        *one_wide("quant_proj", "encoder/latents"),
        *codebook(),
    ]


def vq(network: FourMTokenizer) -> Table:
    """The names of a `VQVAE` with ViTs."""
    (rows, columns), block = network.patch_size, "decoder/output_block"
    sizes = dict(row=rows, column=columns)
    rules = [
        *encoder(network),
        *one_wide("post_quant_proj", "decoder/codes"),
        *stack("decoder", grid_of(network.image_size, network.patch_size), network.decoder_width),
        Rule(
            "decoder.out_proj.weight",
            "decoder/patches/kernel",
            axes("(channel row column) width -> width (row column channel)", **sizes),
        ),
        Rule(
            "decoder.out_proj.bias",
            "decoder/patches/bias",
            axes("(channel row column) -> (row column channel)", **sizes),
        ),
    ]
    for i in range(network.output_blocks):
        theirs, ours = f"decoder.out_conv.{i}", f"{block}{i}"
        rules += [
            Rule(f"{theirs}.gamma", f"{ours}/scale/scale"),
            Rule(
                f"{theirs}.dwconv.weight",
                f"{ours}/convolution/kernel",
                axes("channel 1 row column -> row column 1 channel"),
            ),
            Rule(f"{theirs}.dwconv.bias", f"{ours}/convolution/bias"),
            *norm(f"{theirs}.norm", f"{ours}/norm"),
            *linear(f"{theirs}.pwconv1", f"{ours}/mlp/up"),
            *linear(f"{theirs}.pwconv2", f"{ours}/mlp/down"),
        ]
    return rules


def encoder_arguments(arrays: Arrays) -> dict[str, Any]:
    """Fields that an encoder's arrays tell."""
    width, channels, rows, columns = arrays["encoder.proj.weight"].shape
    grid = arrays["encoder.pos_emb"].shape[2:]
    return {
        "image_size": (grid[0] * rows, grid[1] * columns),
        "patch_size": (rows, columns),
        "channels": channels,
        "depth": count(arrays, "encoder.blocks.{i}"),
        "width": width,
        "mlp_ratio": hidden_ratio(arrays["encoder.blocks.0.mlp.fc1.weight"]),
        "latent_width": arrays["quant_proj.weight"].shape[0],
        "num_codes": arrays["quantize._codebook.embed"].shape[0],
    }


def vq_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `FourMTokenizer` that the arrays tell."""
    found = encoder_arguments(arrays)
    rows, columns = found["patch_size"]
    out_channels = arrays["decoder.out_proj.bias"].shape[0] // (rows * columns)
    return found | {
        "out_channels": out_channels if out_channels != found["channels"] else 0,
        "decoder_depth": count(arrays, "decoder.blocks.{i}"),
        "decoder_width": arrays["decoder.pos_emb"].shape[1],
        "post_mlp": "encoder.post_mlp.fc1.weight" in arrays,
        "output_blocks": count(arrays, "decoder.out_conv.{i}"),
    }


def mlp(theirs: str, depth: int) -> list[Rule]:
    """A `BottleneckMLP`."""
    ours = f"{theirs}/mlp"
    rules = [*linear(f"{theirs}.linear_in", f"{ours}/first"), *linear(f"{theirs}.linear_out", f"{ours}/last")]
    for i in range(depth):
        rules += norm(f"{theirs}.layernorms.{i}", f"{ours}/norm{i}")
        rules += linear(f"{theirs}.blocks.{i}.block.0", f"{ours}/mlp{i}/up")
        rules += linear(f"{theirs}.blocks.{i}.block.2", f"{ours}/mlp{i}/down")
    return rules


def vectors(network: FourMVectorTokenizer) -> Table:
    """The names of a `VQVAE` with MLPs and memcodes."""
    return [
        *mlp("encoder", network.depth),
        *one_wide("quant_proj", "encoder/latents"),
        Rule("quantize.codes", "quantizer/embedding"),
        Rule("quantize.to_k.weight", "quantizer/key"),
        Rule("quantize.to_v.weight", "quantizer/value"),
        *one_wide("post_quant_proj", "decoder/codes"),
        *mlp("decoder", network.depth),
    ]


def vectors_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `FourMVectorTokenizer` that the arrays tell."""
    hidden, width = arrays["encoder.blocks.0.block.0.weight"].shape
    heads, codes, _ = arrays["quantize.codes"].shape
    return {
        "channels": arrays["encoder.linear_in.weight"].shape[1],
        "depth": count(arrays, "encoder.blocks.{i}"),
        "width": width,
        "expansion": hidden / width,
        "latent_width": arrays["quant_proj.weight"].shape[0],
        "num_codes": codes,
        "num_heads": heads,
    }


LAYOUTS = {
    "vq": Layout(
        table=vq,
        marks=("encoder.proj.weight", "decoder.out_proj.weight", "quantize._codebook.embed"),
        arguments=vq_arguments,
        untold=("num_heads", "decoder_num_heads"),
        network="fourm_tokenizer",
    ),
    "memcodes": Layout(
        table=vectors,
        marks=("encoder.linear_in.weight", "quantize.codes"),
        arguments=vectors_arguments,
        network="fourm_vector_tokenizer",
    ),
}

# The reference's constructors: their arguments, the defaults, and our names for those that are ours.
SHARED = {
    "image_size": (224, "image_size"),
    "n_channels": (3, "channels"),
    "patch_size": (16, "patch_size"),
    "codebook_size": (16_384, "num_codes"),
    "latent_dim": (32, "latent_width"),
    "commitment_weight": (1.0, "commitment_weight"),
    "ema_decay": (0.99, "decay"),
    "threshold_ema_dead_code": (0.25, ""),
    "norm_codes": (True, ""),
    "sync_codebook": (True, ""),
    "post_mlp": (False, "post_mlp"),
    "enc_type": ("", ""),
    "dec_type": ("", ""),
    "enc_preset": (None, ""),
    "dec_preset": (None, ""),
    "out_conv": (False, ""),
}
MEMCODES = {
    "image_size": (1, ""),
    "patch_size": (1, ""),
    "n_channels": (768, "channels"),
    "enc_type": ("", ""),
    "dec_type": ("", ""),
    "quant_type": ("memcodes", ""),
    "codebook_size": (8_192, "num_codes"),
    "num_codebooks": (8, "num_heads"),
    "latent_dim": (1_024, "latent_width"),
}


def channels_last(array: Any) -> jax.Array:
    """[batch, channels, rows, columns] as our images are."""
    return jnp.asarray(array).transpose(0, 2, 3, 1)


def channels_first(array: jax.Array) -> jax.Array:
    """The inverse of `channels_last`."""
    return array.transpose(0, 3, 1, 2)


def golden(config: Mapping[str, Any]) -> tuple[Any, Run]:
    """The tokenizer of a golden file, and its run: all outputs by the reference's names."""
    return {"vq": golden_vq, "memcodes": golden_memcodes}[config["part"]](config)


def golden_vq(config: Mapping[str, Any]) -> tuple[FourMTokenizer, Run]:
    """A `VQVAE` with ViTs, evaluated on two sizes, and one step of training."""
    given = config["arguments"]
    fields = golden_arguments(given, SHARED)
    enc, dec = given["enc_preset"], given["dec_preset"]
    fields |= {"depth": enc["depth"], "width": enc["dim_tokens"], "num_heads": enc["num_heads"]}
    fields |= {
        f"decoder_{ours}": dec[theirs]
        for ours, theirs in (("depth", "depth"), ("width", "dim_tokens"), ("num_heads", "num_heads"))
    }
    fields |= {"output_blocks": 2 * given["out_conv"], "dead_share": float(given["threshold_ema_dead_code"])}
    network = naming.construct(FourMTokenizer, fields, "arguments")

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        def apply(*arguments: Any, **options: Any) -> Any:
            return network.apply(variables, *arguments, **options)

        pixels, other = channels_last(inputs["x"]), channels_last(inputs["x_other_size"])
        decoded, aux = apply(pixels)
        decoded_other, aux_other = apply(other)
        (trained, aux_train), new = network.apply(variables, pixels, train=True, mutable=["codebook"])
        loss = jnp.square(trained - channels_last(inputs["target"])).mean() + aux_train["losses"]["commitment"]
        book = new["codebook"]["quantizer"]
        return {
            "tokens": aux["ids"],
            "quant": channels_first(aux["quantized"]),
            "dec": channels_first(decoded),
            "enc_block0": aux["encoder"]["levels"][0],
            "enc_out": channels_first(aux["encoder"]["features"]),
            "latent": channels_first(aux["latents"]),
            "dec_block0": aux["decoder"]["levels"][0],
            "dec_from_tokens": channels_first(apply(inputs["some_tokens"], method="detokenize")),
            "tokens_other_size": aux_other["ids"],
            "enc_out_other_size": channels_first(aux_other["encoder"]["features"]),
            "dec_other_size": channels_first(decoded_other),
            "train/code_loss": aux_train["losses"]["commitment"],
            "train/embed": book["embedding"],
            "train/cluster_size": book["usage"],
            "train/loss": loss,
            "loss": loss,
        }

    return network, run


def golden_memcodes(config: Mapping[str, Any]) -> tuple[FourMVectorTokenizer, Run]:
    """A `VQVAE` of vectors, evaluated, and one pass of training with the noise given."""
    given = config["arguments"]
    fields = golden_arguments(given, MEMCODES)
    depth, width = (int(part.split("_")[1]) for part in given["enc_type"].split("/")[1].split("-"))
    network = naming.construct(FourMVectorTokenizer, fields | {"depth": depth, "width": width}, "arguments")

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        def apply(*arguments: Any, **options: Any) -> Any:
            return network.apply(variables, *arguments, **options)

        def pixel(vectors: jax.Array) -> jax.Array:
            return vectors[..., None, None]

        vectors = jnp.asarray(inputs["x"])[..., 0, 0]
        decoded, aux = apply(vectors)
        noise = jnp.asarray(inputs["gumbel"])[:, :, 0]
        codes = network.apply(
            variables, aux["latents"], train=True, noise=noise, method=lambda net, *a, **b: net.quantizer(*a, **b)
        )
        trained, _ = apply(codes.values, method="decode")
        target = jnp.asarray(inputs["target"])[..., 0, 0]
        cosine = 1 - optax.losses.cosine_similarity(trained, target, epsilon=1e-8).mean()
        loss = jnp.where(inputs["use_cosine"], cosine, optax.losses.huber_loss(trained, target).mean())
        some = jnp.asarray(inputs["some_tokens"])[..., 0, 0]
        return {
            "tokens": pixel(aux["ids"]),
            "quant": pixel(aux["quantized"]),
            "dec": pixel(decoded),
            "enc_mlp0": aux["encoder"]["blocks"][0][:, None],
            "enc_out": pixel(aux["encoder"]["features"]),
            "latent": pixel(aux["latents"]),
            "embedding_of_tokens": pixel(apply(aux["ids"], method=lambda net, ids: net.quantizer.lookup(ids))),
            "dec_from_tokens": pixel(apply(some, method="detokenize")),
            "train/dec": pixel(trained),
            "train/loss": loss,
            "loss": loss,
        }

    return network, run
