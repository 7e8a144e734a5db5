"""MaskGIT. `tokenizer_tiny`: its VQGAN on generated pictures of one object, 32 x 32 pixels to 8 x 8 tokens.

    python train.py --config=configs/maskgit.py

Shows originals above their reconstructions in samples/, what a checker reads from either, and how the codes are used.

`tokenizer`: the paper's VQGAN on ImageNet-1k at 256 pixels. It compares features of the network that
`configs/vit.py:B16` trains, which therefore has to be trained first.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config


def get_config(variant="tiny"):
    config = base_config()
    if variant in ("tiny", "tokenizer_tiny"):
        return tokenizer_tiny(config)
    if variant == "tokenizer":
        return tokenizer(config, variant)
    variants = ["tiny", *zoo.sizes("maskgit"), "tokenizer_tiny"]
    raise ValueError(f"no variant {variant!r}; there are: {', '.join(variants)}")


def tokenizer_tiny(config):
    config.model = zoo.model_config(
        "maskgit_tokenizer",
        image_size=(32, 32),
        width=32,
        multipliers=(1, 2, 2),
        num_blocks=1,
        levels=(8, 5, 5, 5),
        shortcut_from_output=False,
    )
    recipes.tokenizer_scenes(config)
    recipes.few_steps(config, 300, batch_size=32)
    config.optimizer.update({"learning_rate": 3e-3, "warmup_steps": 20, "weight_decay": 1e-4, "clip_norm": 1.0})
    config.eval.update({"every_steps": 100, "batch_size": 128})
    return config


def tokenizer(config, size):
    config.model = zoo.model_config("maskgit", size)
    recipes.imagenet(config, size=256)
    for chain in ("transforms", "eval_transforms"):  # pixels in [0, 1]
        steps = [step for step in config.data[chain] if step[0] != "normalise"]
        config.data[chain] = (*steps, ("scale", {"low": 0.0, "high": 1.0}))
    recipes.vqgan(config, total_steps=1_000_000, discriminator=zoo.model_config("stylegan_discriminator"))
    return config
