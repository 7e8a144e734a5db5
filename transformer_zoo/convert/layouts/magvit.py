"""The layouts of MAGVIT's reference code, flax names joined by '/', and its golden runs."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from transformer_zoo import naming
from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.layouts.maskgit import (
    VQVAE,
    convolution,
    vqgan,
    vqgan_arguments,
    vqvae_fields,
    vqvae_outputs,
)
from transformer_zoo.convert.table import Arrays, Rule, Table
from transformer_zoo.layers.discriminators import StyleGANDiscriminator
from transformer_zoo.models.tokenizers.magvit import MAGVITTokenizer
from transformer_zoo.tasks.adversarial import non_saturating, r1_penalty

R1_COST = 10.0


class Players(nn.Module):
    """The tokenizer and the discriminator that it is trained against, in one tree, as golden files have them."""

    tokenizer: MAGVITTokenizer
    discriminator: StyleGANDiscriminator

    def __call__(self, clips: jax.Array) -> Any:
        return self.tokenizer(clips), self.discriminator(clips)


def example(network: MAGVITTokenizer | Players) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    tokenizer = network.tokenizer if isinstance(network, Players) else network
    shape = (1, tokenizer.num_frames, *tokenizer.image_size, tokenizer.channels)
    return (jax.ShapeDtypeStruct(shape, np.float32),)


def tokenizer_table(tokenizer: MAGVITTokenizer, ours: str = "") -> Table:
    """The names of `models/vqvae.py VQVAE` with 3-D convolutions."""
    return vqgan(tokenizer, tokenizer.encoder_blocks, tokenizer.decoder_blocks, theirs="vqvae/", ours=ours)


def discriminator_table(discriminator: StyleGANDiscriminator, ours: str = "") -> Table:
    """The names of `models/stylegan_discriminator_3d.py StyleGANDiscriminator`."""
    theirs = "discriminator"
    rules: list[Rule] = []
    for number in range(len(discriminator.multipliers)):
        block, path = f"{theirs}/ResBlock_{number}", f"{ours}block{number}"
        rules += convolution(f"{block}/Conv_0", f"{path}/conv1")
        rules += convolution(f"{block}/Conv_1", f"{path}/shortcut", bias=False)
        rules += convolution(f"{block}/Conv_2", f"{path}/conv2")
    for name, path in (("Conv_0", "stem"), ("Conv_1", "last"), ("Dense_0", "hidden"), ("Dense_1", "head")):
        rules += convolution(f"{theirs}/{name}", f"{ours}{path}")
    return rules


def players_table(players: Players) -> Table:
    """Both."""
    return [
        *tokenizer_table(players.tokenizer, "tokenizer/"),
        *discriminator_table(players.discriminator, "discriminator/"),
    ]


def tokenizer_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `MAGVITTokenizer` that the arrays tell."""
    return vqgan_arguments(arrays)


def players_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of both networks that the arrays tell."""
    width = arrays["discriminator/Conv_0/kernel"].shape[-1]
    blocks = [f"discriminator/ResBlock_{n}" for n in range(count(arrays, "discriminator/ResBlock_{i}"))]
    multipliers = tuple(arrays[f"{block}/Conv_2/kernel"].shape[-1] // width for block in blocks)
    tokenizer = vqgan_arguments(arrays, "vqvae/") | {key: options[key] for key in UNTOLD if key in options}
    return {
        "tokenizer": MAGVITTokenizer(**tokenizer),
        "discriminator": StyleGANDiscriminator(width, multipliers),
    }


UNTOLD = ("num_frames", "image_size", "temporal_downsample", "activation")
LAYOUTS = {
    "players": Layout(
        table=players_table,
        marks=("vqvae/quantizer/codebook", "discriminator/Dense_1/kernel"),
        arguments=players_arguments,
    ),
    "tokenizer": Layout(
        table=tokenizer_table,
        marks=("encoder/Conv_0/kernel", "quantizer/codebook"),
        arguments=tokenizer_arguments,
        untold=UNTOLD,
        prefixes=("vqvae/",),
    ),
}

# `config.vqvae` of the reference beside what MaskGIT's has.
MORE = {
    "architecture": ("3dcnn", ""),
    "channel_multipliers": ((1, 2, 2, 4), "multipliers"),
    "filters": (64, "width"),
    "num_enc_res_blocks": (2, "encoder_blocks"),
    "num_dec_res_blocks": (2, "decoder_blocks"),
    "temporal_downsample": ((True, True, False), "temporal_downsample"),
}


def golden(config: Mapping[str, Any]) -> tuple[Players, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """Tokenizer and discriminator of a golden file, and their run: all outputs by the reference's names.

    Raises:
        ValueError: an architecture that is not '3dcnn'.
    """
    given = config["arguments"]
    if given["vqvae"].get("architecture", "3dcnn") != "3dcnn":
        raise ValueError(f"architecture is {given['vqvae']['architecture']!r}, but only '3dcnn' has a counterpart")
    _, frames, height, width, channels = config["inputs"]["video"]
    fields = vqvae_fields(given["vqvae"], VQVAE | MORE)
    fields |= {"num_frames": frames, "image_size": (height, width), "channels": channels}
    tokenizer = naming.construct(MAGVITTokenizer, fields, "arguments.vqvae")
    judge = given["discriminator"]
    discriminator = StyleGANDiscriminator(judge["filters"], tuple(judge["channel_multipliers"]))
    players = Players(tokenizer, discriminator)

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        params = variables["params"]

        def apply(*arguments: Any, **options: Any) -> Any:
            return tokenizer.apply({"params": params["tokenizer"]}, *arguments, **options)

        def judged(clips: jax.Array) -> Any:
            return discriminator.apply({"params": params["discriminator"]}, clips)

        outputs = vqvae_outputs(
            apply, inputs["video"], inputs["decode_ids"], tokenizer.multipliers, tokenizer.encoder_blocks
        )
        (real, aux), (fake, _) = judged(inputs["video"]), judged(inputs["fake_video"])
        generator_loss, discriminator_loss = non_saturating(real, fake)
        return outputs | {
            "disc_block1": aux["blocks"][0],
            "disc_real_logit": real[:, None],
            "disc_fake_logit": fake[:, None],
            "r1_penalty": R1_COST * r1_penalty(lambda clips: judged(clips)[0], inputs["video"]),
            "g_loss": generator_loss,
            "d_loss": discriminator_loss,
            "loss": outputs["vqvae_loss"] + discriminator_loss,
        }

    return players, run
