"""MAGVIT. `tokenizer_tiny`: its 3D-VQ on generated clips of one moving object, 8 x 32 x 32 pixels to 4 x 8 x 8 tokens.

    python train.py --config=configs/magvit.py

Shows originals above their reconstructions in samples/, what a checker reads from either, and how the codes are used.
`tokenizer_tiny_digits` does the same on real handwritten digits that move, which a classifier reads.

`tokenizer_B`, `tokenizer_L`, `tokenizer_H`: the paper's sizes for 16 frames of 128 pixels, on a folder of clips of your
own (--config.data.source=folder:/path/to/clips). They compare features of the network that `configs/vit.py:B16` trains,
which therefore has to be trained first.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config


def get_config(variant="tiny"):
    config = base_config()
    if variant in ("tiny", "tokenizer_tiny"):
        recipes.tokenizer_scenes(config, 8)
        return tokenizer_tiny(config, channels=3)
    if variant == "tokenizer_tiny_digits":
        recipes.tokenizer_digits(config, 8)
        return tokenizer_tiny(config, channels=1)
    if variant.startswith("tokenizer_") and variant in zoo.sizes("magvit"):
        return tokenizer(config, variant)
    variants = ["tiny", *zoo.sizes("magvit"), "tokenizer_tiny", "tokenizer_tiny_digits"]
    raise ValueError(f"no variant {variant!r}; there are: {', '.join(variants)}")


def tokenizer_tiny(config, channels):
    config.model = zoo.model_config(
        "magvit_tokenizer",
        num_frames=8,
        image_size=(32, 32),
        channels=channels,
        width=16,
        multipliers=(1, 2, 4),
        temporal_downsample=(True, False),
        encoder_blocks=1,
        decoder_blocks=1,
        levels=(8, 5, 5, 5),
    )
    recipes.few_steps(config, 300, batch_size=16)
    config.optimizer.update({"learning_rate": 3e-3, "warmup_steps": 20, "weight_decay": 1e-4, "clip_norm": 1.0})
    config.eval.update({"every_steps": 100, "batch_size": 32})
    return config


def tokenizer(config, size):
    config.model = zoo.model_config("magvit", size)
    width = min(config.model.get("width", 64), 128)
    discriminator = zoo.model_config("stylegan_discriminator", width=width)
    config.data.source = "folder:clips"
    config.data.options = {"kind": "clips"}
    frames, side = ("sample_frames", {"frames": 16}), ("random_resized_crop", {"size": 128})
    scale = ("scale", {"low": 0.0, "high": 1.0})
    config.data.transforms = (("decode", {}), frames, side, scale)
    config.data.eval_transforms = (
        ("decode", {}),
        ("sample_frames", {"frames": 16, "random": False}),
        ("centre_crop", {"size": 128}),
        scale,
    )
    recipes.vqgan(config, total_steps=1_000_000, discriminator=discriminator, field="video")
    return config
