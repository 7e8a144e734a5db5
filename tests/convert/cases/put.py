from transformer_zoo.models.tokenizers.pvqvae import PVQVAE

SMALL = dict(image_size=(8, 12), width=6, num_blocks=2, num_codes=5, num_hole_codes=5)
CASES = {
    ("tokenizer", ""): PVQVAE(**SMALL, patch_size=4),
    ("tokenizer", "one_channel"): PVQVAE(**SMALL | dict(num_blocks=1, channels=1), patch_size=2),
}
