"""ENAT. `tiny`: pictures of one object from its colour, 8 x 8 tokens filled in 8 steps.

    python train.py --config=configs/enat.py

Trains MaskGIT's `tokenizer_tiny` first where there is none. Shows samples with their captions in samples/, and what a
checker reads from them (the colour is what the class says) beside what it reads from the tokenizer's reconstructions
and what other captions would be given. 700 seconds on one core behind the tokenizer; it came to the right colour in
0.73 (reconstructions 0.97, other captions 0.15) and one coherent object in 0.64 (0.88). `maskgit_tiny` trains a MaskGIT
of as many blocks on the same.

`L`, `B`: the paper's sizes on the tokens of ImageNet-1k at 256 pixels.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config

CLASSES = 8  # colours
SIZE = {"grid": (8, 8), "num_codes": 240, "width": 96, "num_heads": 3, "dropout_rate": 0.0}


def get_config(variant="tiny"):
    config = base_config()
    if variant == "tiny":
        config.model = zoo.model_config("enat", num_classes=CLASSES, encoder_depth=3, decoder_depth=1, unroll=3, **SIZE)
        config.task = {"name": "enat_tokens"}
        config.ema = {"decay": 0.99}
        return scenes(config)
    if variant == "maskgit_tiny":
        options = {"num_conditions": CLASSES + 1, "null_condition": CLASSES, "depth": 4, "unroll": 4}
        config.model = zoo.model_config("maskgit", **options, **SIZE)
        config.task = {"name": "masked_tokens"}
        return scenes(config)
    if variant in zoo.sizes("enat"):
        return imagenet(config, variant)
    variants = ["tiny", *zoo.sizes("enat"), "maskgit_tiny"]
    raise ValueError(f"no variant {variant!r}; there are: {', '.join(variants)}")


def scenes(config):
    recipes.caption_scenes(config, "configs/maskgit.py:tokenizer_tiny", label="colour")
    config.task.update({"condition": "label", "condition_drop_rate": 0.1, "label_smoothing": 0.0})
    config.sampling = {
        "steps": 8,
        "guidance_scale": 3.0,
        "guidance_ramp": "rising_from_zero",
        "choice_temperature": 1.5,
    }
    recipes.few_steps(config, 2400, batch_size=32)
    config.optimizer.update({"learning_rate": 2e-3, "b2": 0.96, "clip_norm": 1.0})
    config.eval.update({"every_steps": 1200, "batch_size": 64})
    return config


def imagenet(config, size):
    config.model = zoo.model_config("enat", size)
    recipes.imagenet_pixels(config, size=256)
    recipes.frozen_tokenizer(config, "configs/maskgit.py:tokenizer")
    config.task = {"name": "enat_tokens", "condition_drop_rate": 0.15}
    config.sampling = {
        "steps": 8,
        "guidance_scale": 3.5,
        "guidance_ramp": "rising_from_zero",
        "temperature": 6.0,
        "temperature_ramp": "falling",
        "choice_temperature": 1.5,
    }
    config.batch_size, config.total_steps = 2048, 500_000
    config.ema = {"decay": 0.9999}
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 4e-4,
        "schedule": "constant",
        "warmup_steps": 5000,
        "b1": 0.99,
        "b2": 0.99,
        "weight_decay": 0.03,
    }
    return config
