from transformer_zoo.models.backbones.resformer import ResFormer

SMALL = dict(image_size=(8, 8), patch_size=(4, 4), depth=3, width=16, num_heads=2, mlp_ratio=1.5, num_classes=5)
CASES = {("reference", ""): ResFormer(**SMALL)}
