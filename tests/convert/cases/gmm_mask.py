from transformer_zoo.models.backbones.gmm_mask import GMMViT

SMALL = dict(image_size=(8, 8), patch_size=(4, 4), depth=3, width=12, num_heads=2, num_classes=5, mlp_ratio=1.5)
CASES = {
    ("reference", "gmm"): GMMViT(**SMALL, num_kernels=3),
    ("reference", "slm"): GMMViT(**SMALL, mask="slm"),
    ("reference", "plain"): GMMViT(**SMALL, mask="none", class_token=True),
}
