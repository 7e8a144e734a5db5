from transformer_zoo.models.tokenizers.maskgit_vqgan import MaskGITVQGAN

SMALL = dict(image_size=(8, 12), width=4, multipliers=(1, 3, 3), num_blocks=2, latent_width=3, num_codes=5)
CASES = {
    ("tokenizer", ""): MaskGITVQGAN(**SMALL),
    ("tokenizer", "other_parts"): MaskGITVQGAN(
        **SMALL | dict(norm="layer", conv_downsample=True, activation="relu", channels=1, num_blocks=1)
    ),
}
