from transformer_zoo.models.features.clip_text import CLIPText

SMALL = dict(vocabulary_size=11, length=7, depth=2, width=64, num_heads=1, mlp_ratio=1.5)
CASES = {(name, ""): CLIPText(**SMALL, projection_width=6) for name in ("transformers", "openclip")}
CASES |= {("transformers", "no_projection"): CLIPText(**SMALL, activation="gelu", projection_width=0)}
