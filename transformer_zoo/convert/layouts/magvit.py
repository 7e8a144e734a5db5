"""The layouts of MAGVIT's reference code, flax names joined by '/', and its golden runs."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
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
from transformer_zoo.masking.regions import condition_clip, region
from transformer_zoo.models.masked_generation.magvit import LABEL_SMOOTHING, MASK, commit
from transformer_zoo.models.tokenizers.magvit import MAGVITTokenizer
from transformer_zoo.tasks.adversarial import non_saturating, r1_penalty
from transformer_zoo.tasks.masked_tokens import token_loss

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


OTHER_MODES_TASK = "frame_prediction"  # on which golden files hold the condition modes beside COMMIT


def commit_outputs(variables: Any, inputs: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What golden files hold of COMMIT: conditions, masked inputs, weights and where decoding starts, by task."""
    given = config["arguments"]
    inputs = {name: jnp.asarray(array) for name, array in inputs.items()}
    ids, condition, scores = inputs["tokens"], inputs["cond_tokens"], inputs["mask_score"]
    outputs: dict[str, Any] = {}

    def masked(name: str, ratio: Any, mode: str = "commit", whole: bool = True) -> dict[str, Any]:
        tokens = latent_region(name)[None]
        return commit(ids, condition, jnp.asarray(tokens), scores, ratio, MASK, mode, whole)

    def latent_region(name: str) -> np.ndarray:
        return region(name, ids.shape[1:], given.get(name, {}).get("cond_latent_frames", 1))

    for name in given["tasks"]:
        frames = given.get(name, {}).get("cond_frames", 1)
        video = inputs["video"]
        if name != "full_generation":
            pixels = region(name, video.shape[1:4], frames)[None]
            outputs |= {
                f"{name}/cond_video": condition_clip(video, name, frames),
                f"{name}/video_mask": np.broadcast_to(pixels, video.shape[:4]).astype(np.int8),
                f"{name}/latent_mask": np.broadcast_to(latent_region(name)[None], ids.shape).astype(np.int8),
            }
        for number, ratio in enumerate(inputs["mask_ratio"]):
            found = masked(name, ratio)
            outputs |= {
                f"{name}/masked_inputs_{number}": found["shown"].astype(np.int16),
                f"{name}/uncond_masked_inputs_{number}": found["unconditional"].astype(np.int16),
                f"{name}/segment_ids_{number}": found["conditions"].astype(np.int16),
                f"{name}/weights_{number}": found["weights"].astype(np.int8),
            }
            if f"{name}/token_loss" in config["outputs"] and number == 0:
                smoothing = LABEL_SMOOTHING
                outputs[f"{name}/token_loss"] = token_loss(inputs["logits"], ids, found["weights"], smoothing)
        start = masked(name, 1.0, whole=False)
        outputs |= {
            f"{name}/decode_start": start["shown"].astype(np.int16),
            f"{name}/decode_unknown": start["weights"].astype(np.int8),
        }
    return outputs | other_modes(config, masked, inputs["mask_ratio"])


def other_modes(config: Mapping[str, Any], masked: Callable[..., Any], ratios: Any) -> dict[str, Any]:
    """The two condition modes that COMMIT is compared with."""
    outputs: dict[str, Any] = {}
    for theirs, ours in (("input_to_input", "fixed"), ("cond_to_cond", "fixed_condition")):
        if f"mode_{theirs}/weights" in config["outputs"]:
            found = masked(OTHER_MODES_TASK, ratios[0], ours)
            outputs |= {
                f"mode_{theirs}/masked_inputs": found["shown"].astype(np.int16),
                f"mode_{theirs}/weights": found["weights"].astype(np.int8),
                f"mode_{theirs}/targets": found["targets"].astype(np.int16),
            }
    return outputs


def golden(config: Mapping[str, Any]) -> tuple[Any, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """Tokenizer and discriminator of a golden file, and their run: all outputs by the reference's names.

    Raises:
        ValueError: an architecture that is not '3dcnn'.
    """
    if config["part"] == "commit":
        return None, functools.partial(commit_outputs, config=config)
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
