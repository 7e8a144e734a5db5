from transformer_zoo.convert.layouts.maskgit import Players
from transformer_zoo.models.masked_generation.maskgit import MaskGIT
from transformer_zoo.models.tokenizers.maskgit_vqgan import MaskGITVQGAN

SMALL = dict(image_size=(8, 12), width=4, multipliers=(1, 3, 3), num_blocks=2, latent_width=3, num_codes=5)
BERT = dict(num_codes=5, num_conditions=3, depth=2, width=12, num_heads=3, mlp_ratio=1.5)
CASES = {
    ("players", ""): Players(
        MaskGITVQGAN(width=4, multipliers=(1, 3), num_blocks=1, latent_width=3, num_codes=5),
        MaskGIT(grid=(2, 2), **BERT),
    ),
    ("transformer", ""): MaskGIT(grid=(2, 3), **BERT),
    ("tokenizer", ""): MaskGITVQGAN(**SMALL),
    ("tokenizer", "other_parts"): MaskGITVQGAN(
        **SMALL | dict(norm="layer", conv_downsample=True, activation="relu", channels=1, num_blocks=1)
    ),
}
