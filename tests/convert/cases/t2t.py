from transformer_zoo.models.backbones.t2t import T2TViT

SMALL = dict(image_size=(32, 32), depth=3, width=12, num_heads=2, mlp_ratio=1.5, token_width=8, num_classes=5)
CASES = {
    ("reference", "performer"): T2TViT(**SMALL),
    ("reference", "transformer"): T2TViT(**SMALL, token_attention="transformer"),
    ("reference", "not_square"): T2TViT(**SMALL | dict(image_size=(34, 50), channels=1, qkv_bias=True, num_classes=0)),
}
