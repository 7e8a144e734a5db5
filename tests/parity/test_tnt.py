"""TNT beside timm on random weights: outputs and every gradient, in both forms."""

import pytest
import timm

from tests.parity.peers import agree, images, like, randomise, to_torch
from transformer_zoo.models.backbones.tnt import TNT

SMALL = dict(num_classes=5, embed_dim=24, inner_dim=12, depth=2, num_heads_outer=3, num_heads_inner=2, img_size=32)
TIMM = {
    "small": ("tnt_s_patch16_224", {}),
    "legacy": ("tnt_s_legacy_patch16_224", {}),
    "base_not_square": ("tnt_b_patch16_224", {"img_size": (32, 48), "qkv_bias": True}),
    "legacy_not_square_small_patches": ("tnt_s_legacy_patch16_224", {"img_size": (16, 40), "patch_size": 8}),
    "stride_that_does_not_tile_a_patch": ("tnt_s_patch16_224", {"first_stride": 3, "mlp_ratio": 2.1}),
    "no_head": ("tnt_s_patch16_224", {"num_classes": 0, "in_chans": 1}),
}


@pytest.mark.parametrize("case", TIMM)
def test_timm_outputs_and_gradients(case):
    name, options = TIMM[case]
    options = SMALL | options
    model = randomise(timm.create_model(name, **options))
    heads = {"num_heads": options["num_heads_outer"], "inner_heads": options["num_heads_inner"]}
    places = {"image_size": model.pixel_embed.img_size, "patch_size": model.pixel_embed.patch_size}
    module = like("tnt", "timm", TNT, model, **heads, **places, stride=options.get("first_stride", 4))
    pixels = images(2, *module.image_size, module.channels)
    assert agree(module, "tnt", "timm", model, model(to_torch(pixels)), pixels) <= 1e-4
