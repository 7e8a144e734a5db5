"""TNT. `tiny`: real digits at random places; nine sentences of 4x4 pixels, every pixel the centre of a word.

    python train.py --config=configs/tnt.py

Shows held-out accuracy of four blocks of 12 and 48 channels; about a minute on 2 cores.

The published sizes (`Ti`, `S`, `B`, and `S_legacy`, the form of the official weights) train on ImageNet-1k by DeiT's
recipe.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config


def get_config(variant="tiny"):
    config = base_config()
    config.task = {"name": "classification"}
    if variant == "tiny":
        config.model = zoo.model_config(
            "tnt",
            num_classes=10,
            image_size=(12, 12),
            patch_size=(4, 4),
            channels=1,
            depth=4,
            width=48,
            num_heads=3,
            inner_width=12,
            inner_heads=2,
            stride=1,
            unroll=4,
        )
        recipes.canvas_digits(config)
        return config
    if variant not in zoo.sizes("tnt"):
        raise ValueError(f"no variant {variant!r}; there are: {', '.join(['tiny', *zoo.sizes('tnt')])}")
    config.model = zoo.model_config("tnt", variant, drop_path_rate=0.1)
    recipes.deit(config, crop=0.9)
    return config
