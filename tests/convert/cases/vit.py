from tests.convert.samples import VITS, vit

CLASSIFIER = vit(prefix_positions=True, norm_epsilon=1e-12)
POOLER = vit(prefix_positions=True, norm_epsilon=1e-12, num_classes=0, representation_size=12, qkv_bias=False)
CASES = {("timm", kind): vit(kind) for kind in VITS}
for name in ("transformers", "transformers_state"):
    CASES |= {(name, "classifier"): CLASSIFIER, (name, "pooler"): POOLER}
