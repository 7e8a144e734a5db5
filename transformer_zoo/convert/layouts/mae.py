"""Layouts of MAE: facebookresearch/mae's, and that of transformers' `ViTMAEForPreTraining`; the golden run."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from transformer_zoo import naming
from transformer_zoo.convert.golden import golden_arguments
from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.layouts.vit import (
    IN_FILES,
    IN_STATE,
    fixed_positions,
    hidden_ratio,
    patch_embedding,
    stem,
    timm_blocks,
    transformers_blocks,
)
from transformer_zoo.convert.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from transformer_zoo.convert.table import ROW, Arrays, Rule, Table, linear, norm, numbered
from transformer_zoo.layers.patches import patchify, unpatchify
from transformer_zoo.masking.random import Mask, mask_from_scores, num_kept
from transformer_zoo.models.pretraining.mae import MAE
from transformer_zoo.tasks.masked_pixels import hidden_mean, normalise_patches


def example(mae: MAE) -> tuple[Any, ...]:
    """Abstract arguments of a call in which every patch is visible."""
    tokens = mae.grid[0] * mae.grid[1]
    indices = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    mask = Mask(keep=indices, restore=indices, hidden=jax.ShapeDtypeStruct((1, tokens), jnp.float32))
    return jax.ShapeDtypeStruct((1, *mae.image_size, mae.channels), jnp.float32), mask


def reference(mae: MAE) -> Table:
    """The names of `models_mae.MaskedAutoencoderViT`."""
    return [
        Rule("cls_token", "encoder/class_token", ROW),
        fixed_positions("pos_embed", mae.grid, mae.width, prefix=1),
        *patch_embedding("patch_embed.proj", "encoder/patch_embed", mae.patch_size),
        *timm_blocks("blocks.{i}", "encoder/blocks"),
        *norm("norm", "encoder/norm"),
        *linear("decoder_embed", "decoder/embed"),
        Rule("mask_token", "decoder/mask_token"),
        fixed_positions("decoder_pos_embed", mae.grid, mae.decoder_width, prefix=1),
        *timm_blocks("decoder_blocks.{i}", "decoder/blocks"),
        *norm("decoder_norm", "decoder/norm"),
        *linear("decoder_pred", "decoder/prediction"),
    ]


def reference_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `MAE` that a state_dict of the reference tells."""
    found = stem(arrays["patch_embed.proj.weight"], arrays["pos_embed"].shape[1], (1,), options)
    del found["prefix_rows"]
    return found | {
        "depth": count(arrays, "blocks.{i}"),
        "mlp_ratio": hidden_ratio(arrays["blocks.0.mlp.fc1.weight"]),
        "decoder_depth": count(arrays, "decoder_blocks.{i}"),
        "decoder_width": arrays["mask_token"].shape[-1],
    }


def transformers(mae: MAE, names: Mapping[str, Any], decoder: str) -> Table:
    """The names of `ViTMAEForPreTraining`, the blocks of its decoder called `decoder`."""
    return [
        Rule("vit.embeddings.cls_token", "encoder/class_token", ROW),
        fixed_positions("vit.embeddings.position_embeddings", mae.grid, mae.width, prefix=1),
        *patch_embedding("vit.embeddings.patch_embeddings.projection", "encoder/patch_embed", mae.patch_size),
        *transformers_blocks("vit." + names["blocks"], "encoder/blocks", names),
        *norm("vit.layernorm", "encoder/norm"),
        *linear("decoder.decoder_embed", "decoder/embed"),
        Rule("decoder.mask_token", "decoder/mask_token"),
        fixed_positions("decoder.decoder_pos_embed", mae.grid, mae.decoder_width, prefix=1),
        *transformers_blocks(decoder, "decoder/blocks", names),
        *norm("decoder.decoder_norm", "decoder/norm"),
        *linear("decoder.decoder_pred", "decoder/prediction"),
    ]


def transformers_arguments(
    arrays: Arrays, options: Mapping[str, Any], names: Mapping[str, Any], decoder: str
) -> dict[str, Any]:
    """Fields of `MAE` that the arrays of a `ViTMAEForPreTraining` tell."""
    rows = arrays["vit.embeddings.position_embeddings"].shape[1]
    found = stem(arrays["vit.embeddings.patch_embeddings.projection.weight"], rows, (1,), options)
    del found["prefix_rows"]
    first = numbered("vit." + names["blocks"], {"i": 0})
    return found | {
        "depth": count(arrays, "vit." + names["blocks"]),
        "mlp_ratio": hidden_ratio(arrays[f"{first}.{names['up']}.weight"]),
        "decoder_depth": count(arrays, decoder),
        "decoder_width": arrays["decoder.mask_token"].shape[-1],
        "norm_epsilon": 1e-12,
    }


def _transformers_layout(names: Mapping[str, Any], decoder: str) -> Layout:
    first = numbered(decoder, {"i": 0})
    return Layout(
        table=functools.partial(transformers, names=names, decoder=decoder),
        marks=("vit.embeddings.patch_embeddings.projection.weight", f"{first}.{names['up']}.weight"),
        arguments=functools.partial(transformers_arguments, names=names, decoder=decoder),
        untold=("num_heads", "decoder_num_heads"),
        preprocessing=lambda mae: Preprocessing(
            mae.image_size, IMAGENET_MEAN, IMAGENET_STD, crop=1.0, interpolation="bilinear", keep_aspect=False
        ),
    )


LAYOUTS = {
    "reference": Layout(
        table=reference,
        marks=("patch_embed.proj.weight", "mask_token", "decoder_blocks.0.attn.qkv.weight"),
        arguments=reference_arguments,
        untold=("num_heads", "decoder_num_heads"),
        preprocessing=lambda mae: Preprocessing(mae.image_size, IMAGENET_MEAN, IMAGENET_STD, crop=224 / 256),
    ),
    "transformers": _transformers_layout(IN_FILES, "decoder.decoder_layers.{i}"),
    # Release 5 renames 'layers.' wherever it stands when it saves a model.
    "transformers_saved": _transformers_layout(IN_FILES, "decoder.decoder_encoder.layer.{i}"),
    "transformers_state": _transformers_layout(IN_STATE, "decoder.decoder_layers.{i}"),
}

# The reference's constructor: its arguments, their defaults, and our names for those that are ours.
ARGUMENTS = {
    "img_size": (224, "image_size"),
    "patch_size": (16, "patch_size"),
    "in_chans": (3, "channels"),
    "embed_dim": (1024, "width"),
    "depth": (24, "depth"),
    "num_heads": (16, "num_heads"),
    "decoder_embed_dim": (512, "decoder_width"),
    "decoder_depth": (8, "decoder_depth"),
    "decoder_num_heads": (16, "decoder_num_heads"),
    "mlp_ratio": (4.0, "mlp_ratio"),
    "norm_pix_loss": (False, ""),
}


def golden(config: Mapping[str, Any]) -> tuple[MAE, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """The network of a golden file, and its run: all outputs by the reference's names.

    Raises:
        ValueError: an argument that the reference's constructor does not have.
    """
    fields = golden_arguments(config["arguments"], ARGUMENTS)
    normalised_loss = config["arguments"].get("norm_pix_loss", False)
    mae = naming.construct(MAE, fields, "arguments")

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        images = inputs["x"].transpose(0, 2, 3, 1)
        mask = mask_from_scores(inputs["noise"], num_kept(inputs["noise"].shape[1], config["settings"]["mask_ratio"]))
        prediction, aux = mae.apply(variables, images, mask)
        target = patchify(images, mae.patch_size)
        raw, normalised = (
            hidden_mean(jnp.square(prediction - wanted).mean(-1), mask)
            for wanted in (target, normalise_patches(target))
        )
        blocks = {f"block{i}": level for i, level in enumerate(aux["encoder"]["levels"])}
        decoder_blocks = {f"decoder_block{i}": level for i, level in enumerate(aux["decoder"]["levels"])}
        return {
            **blocks,
            **decoder_blocks,
            "patch_embed": aux["encoder"]["patches"],
            "latent": aux["encoder"]["encoded"],
            "decoder_embed": aux["decoder"]["embedded"],
            "pred": prediction,
            "mask": mask.hidden,
            "ids_restore": mask.restore,
            "patchify": target,
            "unpatchify_pred": unpatchify(prediction, mae.grid, mae.patch_size).transpose(0, 3, 1, 2),
            "loss": normalised if normalised_loss else raw,
            "loss_other_norm_pix": raw if normalised_loss else normalised,
        }

    return mae, run
