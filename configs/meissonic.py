"""Meissonic. `tiny`: pictures of one object from captions, 8 x 8 tokens that are 4 x 4 inside, filled in 12 steps.

    python train.py --config=configs/meissonic.py

Trains MaskGIT's `tokenizer_tiny` first where there is none. Shows samples with their captions in samples/, and what a
checker reads from them beside what it reads from the tokenizer's reconstructions and what other captions would be
given. 600 seconds on one core behind the tokenizer; it came to the right colour in 0.77 (reconstructions 0.97, other
captions 0.15), place in 0.63 (0.93, 0.18), size in 0.65 (0.83, 0.37), one coherent object in 0.64 (0.88). `whole_tiny`
is the same without compression.

`P1024`: the paper's model for 1024 pixels, on a folder of pictures of your own with features of CLIP ViT-H/14's text
encoder (fields `text` [77, 1024] and `pooled` [1024]), which `python -m transformer_zoo.zoo.text_features` computes
once from captions beside the pictures (--config.data.options.features=DIR); its tokenizer has codes for patches of 16
pixels.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config

GUIDED = {"condition_drop_rate": 0.1, "label_smoothing": 0.0}


def get_config(variant="tiny"):
    config = base_config()
    if variant in ("tiny", "whole_tiny"):
        return tiny(config, compression=variant == "tiny")
    if variant == "P1024":
        return paper(config, variant)
    if variant == "tokenizer":
        return tokenizer(config)
    variants = ["tiny", *zoo.sizes("meissonic"), "whole_tiny", "tokenizer"]
    raise ValueError(f"no variant {variant!r}; there are: {', '.join(variants)}")


def tiny(config, compression):
    recipes.caption_scenes(config, "configs/maskgit.py:tokenizer_tiny")
    config.model = zoo.model_config(
        "meissonic",
        grid=(8, 8),
        num_codes=240,
        vocabulary_size=241,
        double_depth=2,
        single_depth=3,
        width=96,
        num_heads=3,
        axis_widths=(8, 12, 12),
        compression=compression,
        text_length=recipes.CAPTION_LENGTH,
        text_width=96,
        pooled_width=96,
        num_words=recipes.WORDS,
        text_depth=1,
        text_heads=3,
        null_word=recipes.NULL_WORD,
        unroll=3,
    )
    config.task = {
        "name": "meissonic_tokens",
        "condition": "caption",
        "condition_drop_rate": 0.1,
        "label_smoothing": 0.0,
    }
    config.sampling = {"steps": 12, "guidance_scale": 3.0, "choice_temperature": 2.0}
    recipes.few_steps(config, 3000, batch_size=32)
    config.optimizer.update({"learning_rate": 2e-3, "b2": 0.96, "clip_norm": 1.0})
    config.eval.update({"every_steps": 1500, "batch_size": 64})
    return config


def paper(config, size):
    config.model = zoo.model_config("meissonic", size)
    recipes.frozen_tokenizer(config, "configs/meissonic.py:tokenizer")
    config.data.source = "folder:pictures"
    config.data.transforms = (
        ("decode", {}),
        ("centre_crop", {"size": 1024, "crop": 1.0}),
        ("scale", {"low": 0.0, "high": 1.0}),
    )
    config.task = {"name": "meissonic_tokens"} | GUIDED
    config.sampling = {"steps": 48, "guidance_scale": 9.0, "choice_temperature": 2.0}
    config.batch_size, config.total_steps = 256, 100_000
    config.optimizer = {"name": "adamw", "learning_rate": 1e-4, "schedule": "constant", "clip_norm": 10.0}
    return config


def tokenizer(config):
    config.model = zoo.model_config(
        "maskgit_tokenizer",
        image_size=(1024, 1024),
        multipliers=(1, 2, 2, 4, 6),
        num_codes=8192,
        latent_width=64,
        shortcut_from_output=False,
    )
    recipes.imagenet_pixels(config, size=1024)
    discriminator = zoo.model_config("stylegan_discriminator")
    recipes.vqgan(config, total_steps=1_000_000, discriminator=discriminator)
    return config
