from transformer_zoo.models.backbones.illama import ILLaMA

SMALL = dict(image_size=(8, 8), patch_size=(4, 4), depth=3, width=12, num_heads=2, hidden=20, num_classes=5)
CASES = {("reference", ""): ILLaMA(**SMALL), ("reference", "not_square"): ILLaMA(**SMALL | dict(image_size=(8, 12)))}
