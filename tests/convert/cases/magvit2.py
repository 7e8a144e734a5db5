from transformer_zoo.models.tokenizers.magvit2 import MAGVIT2Tokenizer

SMALL = dict(image_size=(8, 12), width=4, multipliers=(1, 3, 3), num_blocks=2, bits=5)
CASES = {
    ("reference", ""): MAGVIT2Tokenizer(**SMALL, num_frames=5, temporal_downsample=(False, True)),
    ("reference", "images"): MAGVIT2Tokenizer(
        **SMALL | dict(num_blocks=1, channels=1), num_frames=0, temporal_downsample=(False, False)
    ),
}
