"""The layout of `vqvae.DiVAE`, whose decoder is `unet.PatchedUNetCondCat`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import naming
from transformer_zoo.convert.golden import golden_arguments
from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.layouts.fourm.tokenizers import (
    SHARED,
    Run,
    channels_first,
    channels_last,
    convolution,
    encoder,
    encoder_arguments,
)
from transformer_zoo.convert.table import (
    CONVOLUTION,
    Arrays,
    Constant,
    Rule,
    Shape,
    Table,
    Transform,
    axes,
    linear,
    norm,
)
from transformer_zoo.models.multimodal.fourm.divae import FourMDiVAE

ONE_WIDE_LINE = axes("out in 1 -> in out")


DIFFUSION = {
    "scheduler": ("ddpm", ""),
    "beta_schedule": ("linear", ""),
    "prediction_type": ("sample", ""),
    "thresholding": (False, ""),
    "zero_terminal_snr": (True, ""),
}


def timed_block(theirs: str, ours: str, shortcut: bool = False) -> list[Rule]:
    """A `TimedResidualBlock`, with a shortcut of its own where channels change."""
    return [
        *norm(f"{theirs}.in_layers.0", f"{ours}/norm1"),
        *convolution(f"{theirs}.in_layers.2", f"{ours}/conv1"),
        *linear(f"{theirs}.emb_layers.1", f"{ours}/time"),
        *norm(f"{theirs}.out_layers.0", f"{ours}/norm2"),
        *convolution(f"{theirs}.out_layers.3", f"{ours}/conv2"),
        *(convolution(f"{theirs}.skip_connection", f"{ours}/shortcut") if shortcut else []),
    ]


def map_attention(theirs: str, ours: str) -> list[Rule]:
    """A `MapAttention`."""
    return [
        *norm(f"{theirs}.norm", f"{ours}/norm"),
        Rule(f"{theirs}.qkv.weight", f"{ours}/qkv/kernel", axes("(part head dim) width 1 -> width part head dim")),
        Rule(f"{theirs}.qkv.bias", f"{ours}/qkv/bias", axes("(part head dim) -> part head dim")),
        Rule(f"{theirs}.proj_out.weight", f"{ours}/out/kernel", ONE_WIDE_LINE),
        Rule(f"{theirs}.proj_out.bias", f"{ours}/out/bias"),
    ]


def reordered(transform: Transform, order: np.ndarray, axis: int) -> Transform:
    """A transform after which channel i of `axis` is their channel `order[i]`."""
    back = np.argsort(order)

    def to_ours(array: np.ndarray, shape: Shape) -> np.ndarray:
        return np.take(transform.to_ours(array, shape), order, axis)

    return Transform(to_ours, lambda array: transform.to_theirs(np.take(array, back, axis)))


def patch_order(network: FourMDiVAE) -> np.ndarray:
    """Where a patch's values (row, column, channel) stand in theirs (channel, row, column)."""
    rows, columns = network.decoder_patch_size
    return (
        np.arange(network.channels * rows * columns).reshape(network.channels, rows, columns).transpose(1, 2, 0).ravel()
    )


def divae(network: FourMDiVAE) -> Table:
    """The names of a `DiVAE` whose decoder is `PatchedUNetCondCat`."""
    patch = patch_order(network)
    stem = np.append(patch, len(patch) + np.arange(network.latent_width))
    plain = Transform(lambda array, shape: array, lambda array: array)
    rules: list[Rule | Constant] = [
        *encoder(network),
        *linear("decoder.time_embed.0", "decoder/time1"),
        *linear("decoder.time_embed.2", "decoder/time2"),
        Rule("decoder.input_blocks.0.0.weight", "decoder/stem/kernel", reordered(CONVOLUTION, stem, 2)),
        Rule("decoder.input_blocks.0.0.bias", "decoder/stem/bias"),
        *norm("decoder.out.0", "decoder/norm"),
        Rule("decoder.out.2.weight", "decoder/head/kernel", reordered(CONVOLUTION, patch, 3)),
        Rule("decoder.out.2.bias", "decoder/head/bias", reordered(plain, patch, 0)),
        *timed_block("decoder.middle_block.0", "decoder/middle1"),
        *map_attention("decoder.middle_block.1", "decoder/middle1_attention"),
        *timed_block("decoder.middle_block.2", "decoder/middle2"),
    ]
    levels, number = len(network.multipliers), 1
    for level in range(levels):
        for block in range(network.num_blocks):
            theirs, ours = f"decoder.input_blocks.{number}", f"decoder/down{level}_block{block}"
            before = network.multipliers[max(level - 1, 0)] if block == 0 else network.multipliers[level]
            changes = before != network.multipliers[level]
            rules += unet_block(theirs, ours, level in network.attention_levels, changes)
            number += 1
        if level < levels - 1:
            rules += convolution(f"decoder.input_blocks.{number}.0.op", f"decoder/down{level}/convolution")
            number += 1
    number = 0
    for level in reversed(range(levels)):
        attends = level in network.attention_levels
        for block in range(network.num_blocks + 1):
            rules += unet_block(f"decoder.output_blocks.{number}", f"decoder/up{level}_block{block}", attends, True)
            if level and block == network.num_blocks:
                rules += convolution(f"decoder.output_blocks.{number}.{1 + attends}.conv", f"decoder/up{level}")
            number += 1
    return rules


def unet_block(theirs: str, ours: str, attends: bool, shortcut: bool) -> list[Rule]:
    """One of the UNet's steps: a residual block, and attention where its level has it."""
    attention = map_attention(f"{theirs}.1", f"{ours}_attention") if attends else []
    return timed_block(f"{theirs}.0", ours, shortcut) + attention


def divae_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `FourMDiVAE` that the arrays tell."""
    found = encoder_arguments(arrays)
    width = arrays["decoder.time_embed.0.weight"].shape[1]
    steps = count(arrays, "decoder.input_blocks.{i}")
    downs = [i for i in range(steps) if f"decoder.input_blocks.{i}.0.op.weight" in arrays]
    ends = [*downs, steps]
    lasts = [arrays[f"decoder.input_blocks.{end - 1}.0.out_layers.3.bias"].shape[0] for end in ends]
    attends = [f"decoder.input_blocks.{end - 1}.1.qkv.weight" in arrays for end in ends]
    pixels = arrays["decoder.out.2.bias"].shape[0] // found["channels"]
    side = round(pixels**0.5)
    return found | {
        "decoder_patch_size": (side, side),
        "decoder_width": width,
        "multipliers": tuple(last // width for last in lasts),
        "num_blocks": ends[0] - 1,
        "attention_levels": tuple(level for level, yes in enumerate(attends) if yes),
    }


def golden_divae(config: Mapping[str, Any]) -> tuple[FourMDiVAE, Run]:
    """A `DiVAE`: codes, and single steps of its decoder."""
    given, settings = config["arguments"], config["settings"]
    fields = golden_arguments(given, SHARED | DIFFUSION)
    del fields["post_mlp"]  # always there
    enc, unet = settings["enc_preset"], settings["unet_preset"]
    fields |= {"depth": enc["depth"], "width": enc["dim_tokens"], "num_heads": enc["num_heads"]}
    fields |= {
        "decoder_patch_size": (unet["patch_size"],) * 2,
        "decoder_width": unet["model_channels"],
        "multipliers": tuple(unet["channel_mult"]),
        "num_blocks": unet["num_res_blocks"],
        "attention_levels": tuple(int(np.log2(rate)) for rate in unet["attention_resolutions"]),
    }
    network = naming.construct(FourMDiVAE, fields, "arguments")

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        pixels = channels_last(inputs["x"])
        codes, aux = network.apply(variables, pixels, method="encode")
        values = jax.lax.stop_gradient(codes.values)

        def denoise(noised: Any, times: Any, *more: Any) -> Any:
            return network.apply(variables, channels_last(noised), times, *more, method="denoise")

        turned = jnp.asarray(inputs["noised_other_size"])
        decoded, found = denoise(inputs["noised"], inputs["timesteps"], values)
        scalar = jnp.broadcast_to(jnp.asarray(inputs["scalar_timestep"]), (pixels.shape[0],))
        down = found["down"]
        return {
            "tokens": codes.ids,
            "quant": channels_first(codes.values),
            "latent": channels_first(aux["latents"]),
            "dec": channels_first(decoded),
            "time_emb": found["time"],
            "in_block0": channels_first(down[0]),
            "in_block_last": channels_first(down[-1]),
            "middle": channels_first(found["middle"]),
            "out_block0": channels_first(found["up"][0]),
            "dec_cond_mask": channels_first(
                denoise(inputs["noised"], inputs["timesteps"], values, inputs["cond_mask"])[0]
            ),
            "dec_scalar_t": channels_first(denoise(inputs["noised"], scalar, values)[0]),
            "dec_other_size": channels_first(denoise(turned, inputs["timesteps"], values)[0]),
            "loss": jnp.square(decoded - pixels).mean(),
        }

    return network, run


LAYOUT = Layout(
    table=divae,
    marks=("encoder.proj.weight", "decoder.time_embed.0.weight", "quantize._codebook.embed"),
    arguments=divae_arguments,
    untold=("num_heads",),
    network="fourm_divae",
)
