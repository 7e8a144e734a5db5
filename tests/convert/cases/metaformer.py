from transformer_zoo.models.backbones.metaformer import MetaFormer

SMALL = dict(image_size=(32, 32), depths=(2, 1), widths=(8, 32), num_classes=5, mlp_ratio=2.0, residual_scale_from=2)
BASELINE = SMALL | dict(layer_scale=0.0, norm_epsilon=1e-6, transition_norms=True, activation="star_relu")
BASELINE |= dict(use_bias=False, residual_scale_from=1, norm="layer")
CASES = {
    ("timm", "poolformer"): MetaFormer(**SMALL, mixers=("pooling", "pooling")),
    ("timm", "caformer"): MetaFormer(**BASELINE, mixers=("convolution", "attention"), head="mlp"),
    ("timm", "no_head"): MetaFormer(**BASELINE | dict(num_classes=0), mixers=("convolution", "convolution")),
    ("reference", "poolformer"): MetaFormer(**SMALL, mixers=("pooling", "pooling"), norm_map=True),
}
