from transformer_zoo.models.backbones.activator import Activator

SMALL = dict(image_size=(8, 8), patch_size=(4, 2), depth=3, width=12, hidden=20, num_classes=5)
CASES = {("reference", "full"): Activator(**SMALL), ("reference", "unit"): Activator(**SMALL, use_mlp=False)}
