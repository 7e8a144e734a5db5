from transformer_zoo.convert.layouts.put import Players
from transformer_zoo.models.masked_generation.put import UQTransformer
from transformer_zoo.models.tokenizers.pvqvae import PVQVAE

SMALL = dict(image_size=(8, 12), width=6, num_blocks=2, num_codes=5, num_hole_codes=5)
UQ = dict(grid=(2, 2), feature_width=6, num_codes=5, depth=2, width=16, mlp_ratio=1.5)
CASES = {
    ("players", ""): Players(
        PVQVAE(width=6, num_blocks=2, num_codes=5, num_hole_codes=4, patch_size=4), UQTransformer(**UQ)
    ),
    ("transformer", ""): UQTransformer(**UQ | dict(num_heads=4)),
    ("tokenizer", ""): PVQVAE(**SMALL, patch_size=4),
    ("tokenizer", "one_channel"): PVQVAE(**SMALL | dict(num_blocks=1, channels=1), patch_size=2),
}
