from transformer_zoo.models.backbones.rmt import RMT

SMALL = dict(image_size=(16, 16), depths=(2, 1), widths=(8, 16), num_heads=(2, 4), mlp_ratios=(1.5, 2.0))
SMALL |= dict(decay_starts=(2.0, 3.0), decay_spreads=(4.0, 6.0), decomposed=(True, False), layer_scales=(0.0, 1e-6))
CASES = {("reference", ""): RMT(**SMALL, head_width=12, num_classes=5)}
