from transformer_zoo.models.backbones.cswin import CSWin

SMALL = dict(image_size=(64, 64), depths=(1, 2, 2, 1), width=8, num_heads=(2, 2, 4, 4), stripe_widths=(1, 2, 4, 2))
SMALL |= dict(num_classes=5, mlp_ratio=2.5)
CASES = {
    ("reference", ""): CSWin(**SMALL),
    ("reference", "no_head"): CSWin(**SMALL | dict(num_classes=0, qkv_bias=False, channels=1)),
}
