from transformer_zoo.models.features.t5 import T5Encoder

SMALL = dict(vocabulary_size=11, depth=2, width=6, num_heads=2, head_dim=4, hidden=10, num_distances=8)
CASES = {
    ("transformers", ""): T5Encoder(**SMALL),
    ("transformers", "relu"): T5Encoder(**SMALL, activation="relu", gated=False),
}
