"""The layout of Open-MAGVIT2's tokenizers (TencentARC/SEED-Voken), and their golden runs."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import naming
from transformer_zoo.convert.golden import golden_arguments
from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.table import Arrays, Rule, Table, axes
from transformer_zoo.layers.quantizers.scalar import LookupFreeQuantizer
from transformer_zoo.models.tokenizers.magvit2 import MAGVIT2Tokenizer, split_ids

LINEAR = axes("out in -> in out")
KERNELS = {
    2: axes("out in rows columns -> rows columns in out"),
    3: axes("out in taps rows columns -> taps rows columns in out"),
}


def example(tokenizer: MAGVIT2Tokenizer) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    return (jax.ShapeDtypeStruct((1, *tokenizer.input_shape), np.float32),)


def table(tokenizer: MAGVIT2Tokenizer) -> Table:
    """The names of `Encoder` and `Decoder`; 3-D convolutions are wrapped there in `conv_1`."""
    sides = 3 if tokenizer.num_frames else 2
    wrapped = ".conv_1" if sides == 3 else ""
    widths = [tokenizer.width * multiplier for multiplier in tokenizer.multipliers]
    levels, number = len(widths), tokenizer.num_blocks

    def convolution(theirs: str, ours: str, bias: bool = True) -> list[Rule]:
        rules = [Rule(f"{theirs}{wrapped}.weight", f"{ours}/kernel", KERNELS[sides])]
        return [*rules, Rule(f"{theirs}{wrapped}.bias", f"{ours}/bias")] if bias else rules

    def norm(theirs: str, ours: str) -> list[Rule]:
        return [Rule(f"{theirs}.weight", f"{ours}/scale"), Rule(f"{theirs}.bias", f"{ours}/bias")]

    def blocks(theirs: str, ours: str, before: int, after: int) -> list[Rule]:
        rules = []
        for index in range(number):
            block, path = f"{theirs}.{index}", f"{ours}{index}"
            for part in (1, 2):
                rules += norm(f"{block}.norm{part}", f"{path}/norm{part}")
                rules += convolution(f"{block}.conv{part}", f"{path}/conv{part}", bias=False)
            if index == 0 and before != after:
                rules += convolution(f"{block}.nin_shortcut", f"{path}/shortcut", bias=False)
        return rules

    rules = convolution("encoder.conv_in", "encoder/stem", bias=False)
    for level, (before, after) in enumerate(pairwise([tokenizer.width, *widths])):
        rules += blocks(f"encoder.down.{level}.block", f"encoder/level{level}_block", before, after)
        if level < levels - 1:
            rules += convolution(f"encoder.down.{level}.downsample", f"encoder/level{level}_down")
    rules += blocks("encoder.mid_block", "encoder/last_block", widths[-1], widths[-1])
    rules += norm("encoder.norm_out", "encoder/norm") + convolution("encoder.conv_out", "encoder/head")
    rules += convolution("decoder.conv_in", "decoder/stem")
    rules += blocks("decoder.mid_block", "decoder/first_block", widths[-1], widths[-1])
    for level in range(levels):
        before = widths[min(level + 1, levels - 1)]
        rules += blocks(f"decoder.up.{level}.block", f"decoder/level{level}_block", before, widths[level])
        for theirs, ours in (("gamma", "scale"), ("beta", "shift")):
            adaptive, path = f"decoder.adaptive.{level}.{theirs}", f"decoder/level{level}_norm/{ours}"
            rules += [Rule(f"{adaptive}.weight", f"{path}/kernel", LINEAR), Rule(f"{adaptive}.bias", f"{path}/bias")]
        if level:
            convolved = f"decoder.up.{level}.upsample.conv1"
            rules += convolution(convolved, f"decoder/level{level}_up")
    return rules + norm("decoder.norm_out", "decoder/norm") + convolution("decoder.conv_out", "decoder/head")


def arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `MAGVIT2Tokenizer` that the arrays tell."""
    clips = "encoder.conv_in.conv_1.weight" in arrays
    wrapped = ".conv_1" if clips else ""
    stem = arrays[f"encoder.conv_in{wrapped}.weight"]
    levels = count(arrays, "encoder.down.{i}")
    firsts = [arrays[f"encoder.down.{level}.block.0.norm2.weight"] for level in range(levels)]
    ups = [arrays[f"decoder.up.{level}.upsample.conv1{wrapped}.weight"].shape[:2] for level in range(1, levels)]
    found = {
        "width": stem.shape[0],
        "channels": stem.shape[1],
        "multipliers": tuple(first.shape[0] // stem.shape[0] for first in firsts),
        "temporal_downsample": tuple(after == 8 * before for after, before in ups),
        "num_blocks": count(arrays, "encoder.mid_block.{i}"),
        "bits": arrays[f"encoder.conv_out{wrapped}.weight"].shape[0],
    }
    return found if clips else found | {"num_frames": 0}


LAYOUTS = {
    "reference": Layout(
        table=table,
        marks=("encoder.mid_block.0.norm1.weight", "decoder.adaptive.0.gamma.weight"),
        arguments=arguments,
        untold=("num_frames", "image_size"),
    )
}

ARGUMENTS = {
    "ch": (128, "width"),
    "num_res_blocks": (4, "num_blocks"),
    "z_channels": (18, "bits"),
    "ch_mult": ((1, 2, 2, 4), "multipliers"),
    "codebook_size": (2**18, ""),
    "sample_minimization_weight": (1.0, ""),
    "batch_maximization_weight": (1.0, ""),
    "factorized_bits": ((6, 12), ""),
}


def golden(config: Mapping[str, Any]) -> tuple[MAGVIT2Tokenizer, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """The tokenizer of a golden file, and its run: all outputs by the reference's names."""
    given = config["arguments"]
    _, channels, frames, height, width = config["inputs"]["video"]
    fields = golden_arguments(given, ARGUMENTS)
    fields |= {"num_frames": frames, "image_size": (height, width), "channels": channels}
    # The reference halves time where the multiplier is not 1.
    fields["temporal_downsample"] = tuple(multiplier != 1 for multiplier in fields["multipliers"][:-1])
    tokenizer = naming.construct(MAGVIT2Tokenizer, fields, "arguments")
    weights = [given.get(f"{name}_weight", 1.0) for name in ("sample_minimization", "batch_maximization")]
    bits = tuple(given.get("factorized_bits", (6, 12)))

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        video = jnp.moveaxis(inputs["video"], 1, -1)
        reconstruction, aux = tokenizer.apply(variables, video)
        first, first_aux = tokenizer.apply(variables, video[:, :1])
        entropy = aux["metrics"]["sample_entropy"] * weights[0] - aux["metrics"]["batch_entropy"] * weights[1]
        commitment = aux["losses"]["commitment"] / tokenizer.commitment_weight
        quantizer = LookupFreeQuantizer(tokenizer.bits, 0.1, 0.25, 0.01, *weights)

        def quantized(latent: jax.Array) -> Any:
            found: Any = quantizer.apply({}, latent)
            return sum(found.losses.values()), found

        (_, small), gradient = jax.value_and_grad(quantized, has_aux=True)(jnp.moveaxis(inputs["lfq_latent"], 1, -1))
        sample, batch = small.metrics["sample_entropy"], small.metrics["batch_entropy"]
        parts = split_ids(small.ids, bits)
        pictures = {
            "enc_down0": aux["encoder"]["halved"][0],
            "enc_mid": aux["encoder"]["blocks"][-1],
            "latent": aux["latents"],
            "quantized": aux["quantized"],
            "dec_adaptive_last": aux["decoder"]["norms"][0],
            "dec_up_last": aux["decoder"]["upsamplers"][-1],
            "reconstruction": reconstruction,
            "latent_frame0": first_aux["latents"],
            "reconstruction_frame0": first,
            "lfq_quantized": small.values,
            "lfq_grad": gradient,
        }
        return {name: jnp.moveaxis(array, -1, 1) for name, array in pictures.items()} | {
            "ids": aux["ids"],
            "lfq_ids": small.ids,
            "lfq_factor_pre": parts[..., 0],
            "lfq_factor_post": parts[..., 1],
            "lfq_per_sample_entropy": sample,
            "lfq_codebook_entropy": batch,
            "lfq_entropy_aux": weights[0] * sample - weights[1] * batch,
            "lfq_commitment": small.losses["commitment"] / 0.25,
            "train_entropy_aux": entropy,
            "train_commitment": commitment,
            "loss": jnp.abs(reconstruction - video).mean() + 0.25 * commitment + 0.1 * entropy,
        }

    return tokenizer, run
