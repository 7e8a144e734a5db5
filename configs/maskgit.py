"""MaskGIT. `tiny`: pictures of one object from captions, 8 x 8 tokens filled in 8 steps.

    python train.py --config=configs/maskgit.py

Trains `tokenizer_tiny` first where there is none. Shows samples with their captions in samples/, and what a checker
reads from them beside what it reads from the tokenizer's reconstructions and what other captions would be given. About
4 minutes on 2 cores behind the tokenizer. It came to the right colour in 0.83 (reconstructions 0.97, other captions
0.16), place in 0.89 (0.93, 0.18) and size in 0.68 (0.83, 0.29), one coherent object in 0.70 (0.88); shapes stay blobs
(0.20 of 0.43).
`eval.py --sweep='sampling.steps=1,2,4,8,16;sampling.guidance_scale=1,2;sampling.choice_temperature=1,4.5'` judges one
checkpoint at many settings. `raster_tiny` is the causal transformer of as many blocks that draws token by token.

`digits_tiny`: real handwritten digits of a class, 6 x 6 tokens in 8 steps. 190 seconds on one core with its tokenizer,
`tokenizer_tiny_digits` (24.5 dB, digits read at 0.87, the originals at 0.93); a classifier sees the digit asked for in
0.55 (reconstructions 0.89, other classes 0.11).

`I256`: the paper's transformer on the tokens of ImageNet-1k at 256 pixels, 300 epochs.

`tokenizer_tiny`: its VQGAN on the same pictures, 32 x 32 pixels to 8 x 8 tokens. Shows originals above their
reconstructions in samples/, what a checker reads from either, and how the codes are used. Under a minute on 2 cores; it
came to a PSNR of 22.5 dB, 20.2 dB on objects, colours read at 0.98 and a perplexity of 135 of its 240 codes, with
shapes still blunt (0.36).

`tokenizer`: the paper's VQGAN on ImageNet-1k at 256 pixels. It compares features of the network that
`configs/vit.py:B16` trains, which therefore has to be trained first.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config


def get_config(variant="tiny"):
    config = base_config()
    if variant in ("tiny", "raster_tiny"):
        return tiny(config, raster=variant == "raster_tiny")
    if variant == "digits_tiny":
        return digits_tiny(config)
    if variant == "I256":
        return imagenet(config, variant)
    if variant == "tokenizer_tiny":
        recipes.tokenizer_scenes(config)
        return tokenizer_tiny(config)
    if variant == "tokenizer_tiny_digits":
        return tokenizer_tiny_digits(config)
    if variant == "tokenizer":
        return tokenizer(config, variant)
    variants = ["tiny", *zoo.sizes("maskgit"), "raster_tiny", "digits_tiny", "tokenizer_tiny", "tokenizer_tiny_digits"]
    raise ValueError(f"no variant {variant!r}; there are: {', '.join(variants)}")


def tiny(config, raster):
    recipes.caption_scenes(config, "configs/maskgit.py:tokenizer_tiny")
    config.model = zoo.model_config(
        "raster" if raster else "maskgit",
        grid=(8, 8),
        num_codes=240,
        num_conditions=recipes.WORDS,
        prefix_length=recipes.CAPTION_LENGTH,
        null_condition=recipes.NULL_WORD,
        depth=4,
        width=96,
        num_heads=3,
        unroll=4,
        **({} if raster else {"dropout_rate": 0.0}),
    )
    config.task = {"name": "raster_tokens" if raster else "masked_tokens", "condition": "caption"}
    config.task.update({"condition_drop_rate": 0.1, "label_smoothing": 0.0})
    config.sampling = {"steps": 8, "guidance_scale": 4.0, "choice_temperature": 2.0}
    return generator_steps(config, 2400)


def digits_tiny(config):
    digits(config)
    recipes.frozen_tokenizer(config, "configs/maskgit.py:tokenizer_tiny_digits")
    config.evaluators = {"samples": {"name": "digit_samples"}}
    sizes = dict(grid=(6, 6), num_codes=240, depth=4, width=96, num_heads=3, unroll=4)
    config.model = zoo.model_config("maskgit", **sizes, num_conditions=11, null_condition=10, dropout_rate=0.0)
    config.task = {"name": "masked_tokens", "condition_drop_rate": 0.1, "label_smoothing": 0.0}
    config.sampling = {"steps": 8, "guidance_scale": 3.0, "choice_temperature": 2.0}
    return generator_steps(config, 2000)


def generator_steps(config, total_steps):
    recipes.few_steps(config, total_steps, batch_size=32)
    config.optimizer.update({"learning_rate": 2e-3, "b2": 0.96, "clip_norm": 1.0})
    config.eval.update({"every_steps": total_steps // 2, "batch_size": 64})
    return config


def imagenet(config, size):
    config.model = zoo.model_config("maskgit", size)
    recipes.frozen_tokenizer(config, "configs/maskgit.py:tokenizer")
    recipes.imagenet(config, size=256)
    for chain in ("transforms", "eval_transforms"):  # pixels in [0, 1]
        steps = [step for step in config.data[chain] if step[0] != "normalise"]
        config.data[chain] = (*steps, ("scale", {"low": 0.0, "high": 1.0}))
    config.task = {"name": "masked_tokens", "label_smoothing": 0.1}
    config.sampling = {"steps": 8, "choice_temperature": 4.5}
    config.batch_size = 256
    config.total_steps = 300 * (recipes.IMAGENET // config.batch_size)
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 1e-4,
        "schedule": "constant",
        "warmup_steps": 5000,
        "b2": 0.96,
        "weight_decay": 4.5e-2,
    }
    return config


def tokenizer_tiny(config):
    config.model = zoo.model_config(
        "maskgit_tokenizer",
        image_size=(32, 32),
        patch=2,
        width=32,
        multipliers=(1, 2),
        num_blocks=1,
        levels=(8, 6, 5),
        shortcut_from_output=False,
    )
    recipes.tokenizer_steps(config, 500, 2e-3)
    return config


def tokenizer_tiny_digits(config):
    digits(config)
    config.task = {"name": "tokenization", "field": "image", "object_weight": 4.0}
    config.evaluators = {"digits": {"name": "digit_reading"}}
    tokenizer_tiny(config)
    config.model.update({"image_size": (12, 12), "channels": 1, "multipliers": (1,)})
    config.total_steps = 1000
    return config


def digits(config):
    recipes.canvas_digits(config)
    config.data.transforms = (("scale", {"low": 0.0, "high": 1.0}),)


def tokenizer(config, size):
    config.model = zoo.model_config("maskgit", size)
    recipes.imagenet_pixels(config, size=256)
    recipes.vqgan(config, total_steps=1_000_000, discriminator=zoo.model_config("stylegan_discriminator"))
    return config
