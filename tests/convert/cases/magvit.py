from transformer_zoo.convert.layouts.magvit import Players
from transformer_zoo.layers.discriminators import StyleGANDiscriminator
from transformer_zoo.models.tokenizers.magvit import MAGVITTokenizer

SMALL = dict(num_frames=4, image_size=(8, 12), width=4, multipliers=(1, 3, 3), temporal_downsample=(True, False))
SMALL |= dict(encoder_blocks=2, decoder_blocks=1, latent_width=3, num_codes=5)
OTHER = SMALL | dict(norm="layer", conv_downsample=True, activation="relu", channels=1, encoder_blocks=1)
CASES = {
    ("tokenizer", ""): MAGVITTokenizer(**SMALL),
    ("tokenizer", "other_parts"): MAGVITTokenizer(**OTHER),
    ("players", ""): Players(
        MAGVITTokenizer(width=4, multipliers=(2, 3, 3, 4), num_codes=5, latent_width=3),
        StyleGANDiscriminator(4, (2, 3)),
    ),
}
