from transformer_zoo.models.backbones.swin import Swin

SMALL = dict(image_size=(16, 16), patch_size=(2, 2), depths=(2, 3), width=8, num_heads=(2, 4), window_size=4)
SMALL |= dict(num_classes=5, mlp_ratio=1.5)
CASES = {(name, "classifier"): Swin(**SMALL) for name in ("timm", "reference", "transformers", "transformers_state")}
CASES["transformers", "levels"] = CASES["transformers_state", "levels"] = Swin(
    **SMALL | dict(num_classes=0, level_norms=True)
)
