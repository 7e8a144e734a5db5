"""Phenaki. `tokenizer_tiny`: C-ViViT on generated clips of one moving object, 9 x 32 x 32 pixels to 5 x 8 x 8 tokens.

    python train.py --config=configs/phenaki.py

Shows originals above their reconstructions in samples/, what a checker reads from either, and how the codes are used.
`tokenizer_tiny_digits` does the same on real handwritten digits that move, which a classifier reads.
`tokenizer_tiny_frames` makes tokens of every frame alone, with as many blocks: what C-ViViT is compared with.

`tokenizer`, `tokenizer_BAIR`, `tokenizer_K600`: the paper's sizes, on a folder of clips of your own
(--config.data.source=folder:/path/to/clips). They compare features of the network that `configs/vit.py:B16` trains,
frame by frame, which therefore has to be trained first; the paper's perceptual loss on clips is left out.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config


def get_config(variant="tiny"):
    config = base_config()
    if variant in ("tiny", "tokenizer_tiny", "tokenizer_tiny_frames"):
        recipes.tokenizer_scenes(config, 9)
        tokenizer_tiny(config, channels=3)
        if variant == "tokenizer_tiny_frames":
            config.model.update({"patch_frames": 1, "spatial_depth": 4, "temporal_depth": 0})
        return config
    if variant == "tokenizer_tiny_digits":
        recipes.tokenizer_digits(config, 9)
        return tokenizer_tiny(config, channels=1)
    if variant in zoo.sizes("phenaki"):
        return tokenizer(config, variant)
    more = ["tokenizer_tiny", "tokenizer_tiny_digits", "tokenizer_tiny_frames"]
    raise ValueError(f"no variant {variant!r}; there are: {', '.join(['tiny', *zoo.sizes('phenaki'), *more])}")


def tokenizer_tiny(config, channels):
    config.model = zoo.model_config(
        "phenaki_tokenizer",
        num_frames=9,
        image_size=(32, 32),
        channels=channels,
        patch_size=(4, 4),
        width=96,
        num_heads=3,
        spatial_depth=2,
        temporal_depth=2,
        latent_width=8,
        num_codes=256,
        unroll=4,
    )
    recipes.few_steps(config, 800, batch_size=8)
    config.optimizer.update({"learning_rate": 2e-3, "warmup_steps": 50, "weight_decay": 1e-4, "clip_norm": 1.0})
    config.eval.update({"every_steps": 200, "batch_size": 32})
    return config


def tokenizer(config, size):
    config.model = zoo.model_config("phenaki", size)
    frames, side = config.model.num_frames, config.model.image_size[0]
    recipes.clips(config, frames=frames, size=side)
    discriminator = zoo.model_config("stylegan_discriminator", multipliers=(1, 1, 1, 1, 1))
    recipes.vqgan(config, total_steps=1_000_000, discriminator=discriminator, batch_size=128, field="video")
    config.task.r1_weight = 0.0
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 1e-4,
        "schedule": "cosine",
        "warmup_steps": 100_000,
        "b1": 0.9,
        "b2": 0.99,
        "weight_decay": 1e-4,
        "clip_norm": 10.0,
    }
    return config
