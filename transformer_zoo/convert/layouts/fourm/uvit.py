"""The layout of `vqvae.DiVAE`, whose decoder is `uvit.UViT`: its convolutions have the names of diffusers' blocks."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.layouts.fourm.tokenizers import convolution, encoder, encoder_arguments
from transformer_zoo.convert.layouts.vit import attention_out, heads, patch_embedding
from transformer_zoo.convert.table import Arrays, Constant, Rule, Table, axes, linear, norm
from transformer_zoo.models.multimodal.fourm.divae import FourMDiVAE
from transformer_zoo.models.multimodal.fourm.embeddings import grid_table


def timed_block(theirs: str, ours: str, shortcut: bool) -> list[Rule]:
    """A `ResnetBlock2D` as `TimedResidualBlock`, with a shortcut of its own where channels change."""
    return [
        *norm(f"{theirs}.norm1", f"{ours}/norm1"),
        *convolution(f"{theirs}.conv1", f"{ours}/conv1"),
        *linear(f"{theirs}.time_emb_proj", f"{ours}/time"),
        *norm(f"{theirs}.norm2", f"{ours}/norm2"),
        *convolution(f"{theirs}.conv2", f"{ours}/conv2"),
        *(convolution(f"{theirs}.conv_shortcut", f"{ours}/shortcut") if shortcut else []),
    ]


def middle(network: FourMDiVAE) -> list[Rule | Constant]:
    """The transformer."""
    theirs, block, ours = "decoder.mid_block", "decoder.mid_block.mid_block.{i}", "decoder/blocks"
    grid, width = network.position_grid, network.middle_width
    crosses = network.conditioning == "cross_attention"
    return [
        Constant(f"{theirs}.mid_pos_emb", np.asarray(grid_table(grid, width)).T.reshape(1, width, *grid)),
        *linear(f"{theirs}.mid_proj_in", "decoder/middle_in"),
        *linear(f"{theirs}.mid_proj_out", "decoder/middle_out"),
        *norm(f"{block}.norm1", f"{ours}/norm1"),
        *heads(f"{block}.{'self_attn' if crosses else 'attn'}.qkv", f"{ours}/attention/qkv"),
        *attention_out(f"{block}.{'self_attn' if crosses else 'attn'}.proj", f"{ours}/attention/out"),
        *(crossing(block, ours) if crosses else adding(theirs)),
        *norm(f"{block}.norm2", f"{ours}/norm2"),
        *linear(f"{block}.mlp.fc1", f"{ours}/mlp/up"),
        *linear(f"{block}.mlp.fc2", f"{ours}/mlp/down"),
        *linear(f"{block}.adaLN_modulation", f"{ours}/modulation"),
        *linear(f"{block}.adaLN_gate", f"{ours}/gate"),
    ]


def adding(theirs: str) -> list[Rule]:
    """Codes that are added to the places that they stand at."""
    return [*linear(f"{theirs}.mid_cond_proj", "decoder/codes"), Rule(f"{theirs}.mask_token", "decoder/mask_token")]


def crossing(theirs: str, ours: str) -> list[Rule]:
    """Codes that every place looks at."""
    return [
        *heads(f"{theirs}.cross_attn.q", f"{ours}/cross_attention/q"),
        *heads(f"{theirs}.cross_attn.kv", f"{ours}/cross_attention/kv"),
        *attention_out(f"{theirs}.cross_attn.proj", f"{ours}/cross_attention/out"),
        *norm(f"{theirs}.query_norm", f"{ours}/query_norm"),
        *norm(f"{theirs}.context_norm", f"{ours}/context_norm"),
    ]


def divae_uvit(network: FourMDiVAE) -> Table:
    """The names of a `DiVAE` whose decoder is a `UViT`."""
    rows, columns = network.decoder_patch_size
    rules: list[Rule | Constant] = [
        *encoder(network),
        *linear("decoder.time_embedding.linear_1", "decoder/time1"),
        *linear("decoder.time_embedding.linear_2", "decoder/time2"),
        *patch_embedding("decoder.conv_in", "decoder/stem", network.decoder_patch_size),
        *middle(network),
        *norm("decoder.conv_norm_out", "decoder/norm"),
        Rule(
            "decoder.conv_out.weight",
            "decoder/patches/kernel",
            axes("width channel row column -> width (row column channel)", row=rows, column=columns),
        ),
        Rule("decoder.conv_out.bias", "decoder/bias"),
    ]
    if network.halve_middle:
        # There it has two names, `conv` being the other; safetensors keeps the first of the alphabet.
        rules += convolution("decoder.downsample_mid.Conv2d_0", "decoder/down_middle/convolution")
        rules += convolution("decoder.upsample_mid.conv", "decoder/up_middle")
    last = len(network.multipliers) - 1
    for level in range(last + 1):
        grows = network.multipliers[level] != network.multipliers[max(level - 1, 0)]
        theirs, ours = f"decoder.down_blocks.{level}", f"decoder/down{level}"
        for block in range(network.num_blocks):
            rules += timed_block(f"{theirs}.resnets.{block}", f"{ours}_block{block}", grows and block == 0)
        if level < last:
            rules += convolution(f"{theirs}.downsamplers.0.conv", f"{ours}/convolution")
        theirs, ours = f"decoder.up_blocks.{last - level}", f"decoder/up{level}"
        for block in range(network.num_blocks + 1):
            rules += timed_block(f"{theirs}.resnets.{block}", f"{ours}_block{block}", True)
        if level:
            rules += convolution(f"{theirs}.upsamplers.0.conv", ours)
    return rules


def divae_uvit_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `FourMDiVAE` that the arrays tell."""
    width, _, rows, columns = arrays["decoder.conv_in.weight"].shape
    levels = count(arrays, "decoder.down_blocks.{i}")
    widths = [arrays[f"decoder.down_blocks.{level}.resnets.0.conv1.bias"].shape[0] for level in range(levels)]
    adds = "decoder.mid_block.mid_cond_proj.weight" in arrays
    return encoder_arguments(arrays) | {
        "decoder_kind": "uvit",
        "decoder_patch_size": (rows, columns),
        "decoder_width": width,
        "multipliers": tuple(one // width for one in widths),
        "num_blocks": count(arrays, "decoder.down_blocks.0.resnets.{i}"),
        "halve_middle": "decoder.downsample_mid.Conv2d_0.weight" in arrays,
        "middle_depth": count(arrays, "decoder.mid_block.mid_block.{i}"),
        "middle_width": arrays["decoder.mid_block.mid_proj_in.bias"].shape[0],
        "conditioning": "concat" if adds else "cross_attention",
        "position_grid": tuple(arrays["decoder.mid_block.mid_pos_emb"].shape[2:]),
    }


LAYOUT = Layout(
    table=divae_uvit,
    marks=("encoder.proj.weight", "decoder.time_embedding.linear_1.weight", "quantize._codebook.embed"),
    arguments=divae_uvit_arguments,
    untold=("num_heads", "middle_num_heads"),
    network="fourm_divae",
    ignored=(r"decoder\.downsample_mid\.conv\.(weight|bias)",),
)
