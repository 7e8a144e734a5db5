"""Swin beside timm and transformers on random weights: outputs and every gradient."""

import jax
import numpy as np
import pytest
import timm
import torch
from transformers import SwinBackbone, SwinConfig, SwinForImageClassification

from tests.parity.peers import agree, images, like, normal, randomise, to_torch, worst
from transformer_zoo.models.backbones.swin import Swin

SMALL = dict(num_classes=5, embed_dim=16, window_size=4, depths=(2, 2), num_heads=(2, 4), img_size=64)
TIMM = {
    "tiny": ("swin_tiny_patch4_window7_224", {}),
    "base_four_stages": (
        "swin_base_patch4_window7_224",
        {"depths": (2, 2, 4, 2), "num_heads": (1, 2, 4, 8), "window_size": 2, "embed_dim": 8},
    ),
    "last_stage_is_one_window": ("swin_small_patch4_window7_224", {"window_size": 8}),
    "not_square": ("swin_tiny_patch4_window7_224", {"img_size": (32, 64), "window_size": 4}),
    "no_head": ("swin_large_patch4_window12_384", {"num_classes": 0, "embed_dim": 24, "num_heads": (3, 6)}),
}


@pytest.mark.parametrize("case", TIMM)
def test_timm_outputs_and_gradients(case):
    name, options = TIMM[case]
    model = randomise(timm.create_model(name, **SMALL | options))
    size = model.patch_embed.img_size
    module = like("swin", "timm", Swin, model, image_size=size)
    pixels = images(2, *size)
    assert agree(module, "swin", "timm", model, model(to_torch(pixels)), pixels) <= 1e-4


HF = dict(embed_dim=16, patch_size=4, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=5)


def test_transformers_outputs_and_gradients():
    model = randomise(SwinForImageClassification(SwinConfig(image_size=32, **HF)))
    module = like("swin", "transformers_state", Swin, model, image_size=(32, 32))
    pixels = images(2, 32, 32)
    theirs = model(to_torch(pixels)).logits
    assert agree(module, "swin", "transformers_state", model, theirs, pixels) <= 1e-4


def test_levels_of_the_transformers_backbone_at_a_size_that_windows_do_not_tile():
    stages = ["stage1", "stage2"]
    model = randomise(SwinBackbone(SwinConfig(image_size=32, out_features=stages, **HF)))
    module = like("swin", "transformers_state", Swin, model, image_size=(52, 40), num_classes=0)
    pixels = images(2, 52, 40)
    theirs = model(to_torch(pixels)).feature_maps
    cotangents = [normal(3, *level.permute(0, 2, 3, 1).shape) for level in theirs]

    def loss(output, aux):
        return sum((level * cotangent).sum() for level, cotangent in zip(aux["levels"], cotangents))

    total = sum((level.permute(0, 2, 3, 1) * torch.from_numpy(c)).sum() for level, c in zip(theirs, cotangents))
    assert agree(module, "swin", "transformers_state", model, total, pixels, loss) <= 1e-4
    _, aux = jax.eval_shape(module.init_with_output, jax.random.key(0), pixels)[0]
    assert [level.shape[1:3] for level in aux["levels"]] == [(13, 10), (7, 5)]
    assert worst({"size": (np.array([13, 10]), np.array(theirs[0].shape[2:]))}) == 0
