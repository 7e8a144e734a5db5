from transformer_zoo.models.multimodal.fourm.divae import FourMDiVAE
from transformer_zoo.models.multimodal.fourm.model import FourM
from transformer_zoo.models.multimodal.fourm.published import FOURM_21
from transformer_zoo.models.multimodal.fourm.tokenizers import FourMTokenizer, FourMVectorTokenizer
from transformer_zoo.models.multimodal.fourm.vit import FourMViT

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

TOKENIZER = dict(image_size=(4, 12), patch_size=(2, 4), channels=1, depth=2, width=8, num_heads=2, mlp_ratio=1.5)
TOKENIZER |= dict(latent_width=3, num_codes=5)
VQ = TOKENIZER | dict(decoder_depth=1, decoder_width=4, decoder_num_heads=1)
UNET = dict(decoder_patch_size=(2, 2), decoder_width=32, multipliers=(1, 2), num_blocks=2, attention_levels=(1,))
UVIT = dict(decoder_kind="uvit", decoder_patch_size=(2, 2), decoder_width=32, multipliers=(1, 2), num_blocks=2)
UVIT |= dict(middle_depth=2, middle_width=8, middle_num_heads=2, position_grid=(2, 3), image_size=(8, 16))
VIT = dict(image_size=(8, 8), patch_size=(4, 4), width=8, depth=2, num_heads=2)
CASES |= {
    ("vq", ""): FourMTokenizer(**VQ, out_channels=2, output_blocks=2),
    ("vq", "plain"): FourMTokenizer(**VQ, post_mlp=False),
    ("divae", ""): FourMDiVAE(**TOKENIZER, **UNET),
    ("divae_uvit", ""): FourMDiVAE(**TOKENIZER | UVIT),
    ("divae_uvit", "crossing"): FourMDiVAE(**TOKENIZER | UVIT, conditioning="cross_attention", halve_middle=False),
    ("memcodes", ""): FourMVectorTokenizer(
        channels=3, depth=2, width=6, expansion=1.5, latent_width=4, num_codes=5, num_heads=2
    ),
    ("vit", ""): FourMViT(**VIT, num_classes=3),
    ("vit", "headless"): FourMViT(**VIT, head="none", use_bias=True, qk_norm=True, num_registers=2, channels=1),
}
