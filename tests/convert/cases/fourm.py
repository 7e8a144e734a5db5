from transformer_zoo.models.multimodal.fourm.model import FourM
from transformer_zoo.models.multimodal.fourm.published import FOURM_21

SMALL = dict(width=8, num_heads=2, depth=2, decoder_depth=3)
WORDS = dict(kind="sequence", length=4, vocabulary=9, max_positions=6)
MODALITIES = {
    "pixels": dict(kind="pixels", grid=(2, 3), patch_size=(2, 2), channels=1),
    "ids": dict(kind="tokens", grid=(2, 3), vocabulary=5),
    "global": dict(kind="tokens", grid=(1, 2), vocabulary=4, positions="learned"),
    "words": WORDS,
    "seen_words": WORDS | dict(output=False),
    "vectors": dict(kind="embeddings", length=3, width=6, max_positions=6),
    "narrow": dict(kind="embeddings", length=3, width=6, max_positions=6, bottleneck=2),
}
PUBLISHED = {
    name: dict(FOURM_21[name]) | {"input": True, "output": name != "rgb@224"}
    for name in ("rgb@224", "tok_semseg@224", "human_poses", "tok_imagebind_global")
}
CASES = {
    ("reference", ""): FourM(modalities=MODALITIES, tied=False, **SMALL),
    ("reference", "tied"): FourM(
        modalities=MODALITIES, num_registers=2, qk_norm=True, gated=False, activation="gelu", **SMALL
    ),
    ("reference", "biased"): FourM(modalities=PUBLISHED, use_bias=True, qk_norm=True, mlp_ratio=1.5, **SMALL),
}
