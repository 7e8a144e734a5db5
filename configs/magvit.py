"""MAGVIT. `tiny`: clips of one moving object, by one network from a class, from their first frames, from their middle.

    python train.py --config=configs/magvit.py

Trains `tokenizer_tiny` first where there is none. Shows clips of every task in samples/, and their error where nothing
was given beside the tokenizer's and that of the filled-in clip. 500 seconds on one core behind the tokenizer; frames
predicted from two came to an error of 0.009 (0.016 where the last given one is repeated, 0.005 of the tokenizer); seen
in the pictures, objects go on for some frames and then fade, and from a class alone most clips lose theirs.
`fixed_tiny` is the same with fixed conditions in place of COMMIT, `prefix_tiny` with conditions in front of the
sequence; `prediction_tiny` trains one task alone.

`digits_tiny` makes clips of a real handwritten digit that moves from the digit alone: 29 minutes on one core behind the
tokenizer. A classifier sees the digit asked for in 0.45 (by chance 0.09, in reconstructions 0.87), in 0.31 without
guidance; after half of the steps, at a guidance of 3 and a choice temperature of 2, in 0.13, at the end in 0.35.

`Ti`, `S`, `B`, `L`, `H`: the paper's sizes for UCF-101's classes, on a folder of clips of your own; `B_multi`,
`L_multi`: eight tasks without classes, as for BAIR.

`tokenizer_tiny`: its 3D-VQ on the same clips, 8 x 32 x 32 pixels to 4 x 8 x 8 tokens. Shows originals above their
reconstructions in samples/, what a checker reads from either, and how the codes are used. 390 seconds on one core; it
came to 22.0 dB on objects, colours and the way they go read at 1.0 (0.85 where no place on the way may be read a pixel
off) and a perplexity of 80 of its 240 codes, with shapes still blunt (0.22).

`tokenizer_tiny_digits` does the same on real handwritten digits that move, which a classifier reads. 200 seconds on one
core; it came to 24.0 dB and digits read at 0.86 (the originals at 0.91).

`tokenizer_small` does the same on full scenes: up to three objects and a player, cameras that move, ground, sky and
snow that change. 30 minutes on one core; it came to 20.6 dB on objects, colours read at 0.96 (the originals at 0.98),
the way objects go at 0.83 (0.89), sizes at 0.82 (0.91), shapes at 0.49 (0.95), events at 0.67, and a perplexity of 297
of its 1,000 codes. Objects and cameras are seen to move; flakes of snow are lost, and the player (0.08) pales.

`tokenizer_B`, `tokenizer_L`, `tokenizer_H`: the paper's sizes for 16 frames of 128 pixels, on a folder of clips of your
own (--config.data.source=folder:/path/to/clips). They compare features of the network that `configs/vit.py:B16` trains,
which therefore has to be trained first.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config

TASKS = ("frame_prediction", "full_generation", "outpainting_c")
BAIR_TASKS = (
    "frame_prediction",
    "frame_interpolation",
    "outpainting_h",
    "outpainting_v",
    "outpainting_c",
    "outpainting_dv",
    "inpainting_c",
    "inpainting_dv",
)
TINY = {
    "tiny": {"tasks": TASKS},
    "fixed_tiny": {"tasks": TASKS, "condition_mode": "fixed_condition"},
    "prefix_tiny": {"tasks": TASKS, "condition_mode": "prefix"},
    "prediction_tiny": {"tasks": ("frame_prediction",)},
}


def get_config(variant="tiny"):
    config = base_config()
    if variant in TINY:
        return tiny(config, **TINY[variant])
    if variant == "digits_tiny":
        return digits_tiny(config)
    if variant in zoo.sizes("magvit") and not variant.startswith("tokenizer_"):
        return generator(config, variant)
    if variant == "tokenizer_tiny":
        recipes.tokenizer_scenes(config, 8, object_weight=8.0)
        return tokenizer_tiny(config, channels=3)
    if variant == "tokenizer_tiny_digits":
        recipes.tokenizer_digits(config, 8)
        return tokenizer_tiny(config, channels=1)
    if variant == "tokenizer_small":
        return tokenizer_small(config)
    if variant.startswith("tokenizer_") and variant in zoo.sizes("magvit"):
        return tokenizer(config, variant)
    variants = [
        "tiny",
        *zoo.sizes("magvit"),
        *[name for name in TINY if name != "tiny"],
        "digits_tiny",
        "tokenizer_tiny",
        "tokenizer_tiny_digits",
        "tokenizer_small",
    ]
    raise ValueError(f"no variant {variant!r}; there are: {', '.join(variants)}")


def tiny(config, tasks, condition_mode="commit"):
    recipes.caption_scenes(config, "configs/magvit.py:tokenizer_tiny", 8, label="colour")
    config.data.options.update({"fields": ("video",)})
    config.data.transforms = config.data.transforms[:1]
    del config.evaluators
    return few_blocks(config, tasks, num_classes=8, condition_mode=condition_mode)


def digits_tiny(config):
    recipes.moving_digits(config, 8)
    recipes.frozen_tokenizer(config, "configs/magvit.py:tokenizer_tiny_digits")
    config.evaluators = {"samples": {"name": "digit_samples", "scale": 2}}
    few_blocks(config, ("full_generation",), num_classes=10)
    config.task.condition_drop_rate = 0.1
    config.sampling = {"steps": 12, "guidance_scale": 2.0, "choice_temperature": 4.0}
    config.total_steps, config.eval.every_steps = 4000, 1000
    return config


def few_blocks(config, tasks, num_classes, condition_mode="commit"):
    config.model = zoo.model_config(
        "magvit",
        grid=(4, 8, 8),
        num_codes=240,
        num_classes=num_classes,
        depth=4,
        width=96,
        num_heads=3,
        dropout_rate=0.0,
        prefix_condition=condition_mode == "prefix",
        unroll=4,
    )
    config.task = {"name": "commit_tokens", "tasks": tasks, "condition_mode": condition_mode, "given_frames": 2}
    config.sampling = {"steps": 12, "choice_temperature": 2.0}
    recipes.few_steps(config, 1000, batch_size=16)
    config.optimizer.update({"learning_rate": 2e-3, "b2": 0.96, "clip_norm": 1.0})
    config.eval.update({"every_steps": 500, "batch_size": 16})
    return config


def generator(config, size):
    config.model = zoo.model_config("magvit", size)
    recipes.frozen_tokenizer(config, f"configs/magvit.py:tokenizer_{'L' if size[0] in 'LH' else 'B'}")
    recipes.clips(config, frames=16, size=128)
    multi = size.endswith("_multi")
    config.task = {"name": "commit_tokens", "tasks": BAIR_TASKS if multi else ("full_generation",)}
    config.sampling = {"steps": 12, "choice_temperature": 4.5}
    config.batch_size = 256
    config.total_steps = (1200 * 43_264 if multi else 2000 * 9_537) // config.batch_size  # clips of BAIR, of UCF-101
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 1e-4,
        "schedule": "cosine",
        "warmup_steps": 5000,
        "b2": 0.96,
        "weight_decay": 4.5e-2,
        "clip_norm": 1.0,
    }
    return config


def tokenizer_tiny(config, channels):
    config.model = zoo.model_config(
        "magvit_tokenizer",
        num_frames=8,
        image_size=(32, 32),
        channels=channels,
        patch=2,
        width=24,
        multipliers=(1, 2),
        temporal_downsample=(True,),
        encoder_blocks=1,
        decoder_blocks=1,
        levels=(8, 6, 5),
    )
    recipes.tokenizer_steps(config, 600, 2e-3)
    return config


def tokenizer_small(config):
    recipes.tokenizer_scenes(config, 8, difficulty="full")
    tokenizer_tiny(config, channels=3)
    config.model.update({"width": 32, "levels": (8, 5, 5, 5)})
    config.total_steps, config.eval.every_steps = 3000, 1000
    return config


def tokenizer(config, size):
    config.model = zoo.model_config("magvit", size)
    width = min(config.model.get("width", 64), 128)
    discriminator = zoo.model_config("stylegan_discriminator", width=width)
    recipes.clips(config, frames=16, size=128)
    recipes.vqgan(config, total_steps=1_000_000, discriminator=discriminator, field="video")
    return config
