from transformer_zoo.models.backbones.tnt import TNT

SMALL = dict(image_size=(16, 16), patch_size=(8, 8), depth=3, width=12, num_heads=3, inner_width=6, inner_heads=2)
SMALL |= dict(num_classes=5, mlp_ratio=1.5)
CASES = {
    ("timm", ""): TNT(**SMALL),
    ("timm", "legacy"): TNT(**SMALL, legacy=True),
    ("timm", "not_square"): TNT(**SMALL | dict(image_size=(8, 24), num_classes=0, qkv_bias=True, channels=1)),
}
