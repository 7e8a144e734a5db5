"""MetaFormer beside timm on random weights: outputs and every gradient."""

import pytest
from timm.models.metaformer import (
    Attention,
    GroupNorm1,
    GroupNorm1NoBias,
    LayerNorm2dNoBias,
    LayerNormNoBias,
    MetaFormer,
    Pooling,
    SepConv,
)
from torch import nn

from tests.parity.peers import agree, images, like, randomise, to_torch
from transformer_zoo.models.backbones import metaformer

POOLFORMER = dict(
    downsample_norm=None,
    mlp_act=nn.GELU,
    mlp_bias=True,
    norm_layers=GroupNorm1,
    layer_scale_init_values=1e-5,
    res_scale_init_values=None,
    use_mlp_head=False,
)
CAFORMER = dict(
    token_mixers=[SepConv, SepConv, Attention, Attention],
    norm_layers=[LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2,
)
TIMM = {  # the arguments of timm's own poolformer_s12, poolformerv2_s12, convformer_s18 and caformer_s18
    "poolformer": dict(token_mixers=Pooling, **POOLFORMER),
    "poolformerv2": dict(norm_layers=GroupNorm1NoBias, use_mlp_head=False),
    "convformer": dict(token_mixers=SepConv, norm_layers=LayerNorm2dNoBias),
    "caformer": CAFORMER,
    "caformer_no_head": CAFORMER | dict(num_classes=0, in_chans=1),
}


@pytest.mark.parametrize("size", [(32, 64), (33, 47)])
@pytest.mark.parametrize("case", TIMM)
def test_timm_outputs_and_gradients(case, size):
    options = dict(depths=(2, 1, 2, 1), dims=(8, 16, 32, 64), num_classes=5) | TIMM[case]
    model = randomise(MetaFormer(**options))
    module = like("metaformer", "timm", metaformer.MetaFormer, model, image_size=size)
    pixels = images(2, *size, module.channels)
    # StarReLU's two numbers sum over all places, and a bias before pooling cancels: torch itself is inaccurate there.
    theirs, again = model(to_torch(pixels)), lambda twin, pixels: twin(pixels)
    assert agree(module, "metaformer", "timm", model, theirs, pixels, again=again) <= 1e-4
