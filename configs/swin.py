"""Swin. `tiny`: real digits at random places of a 16 x 16 canvas, 8 x 8 tokens, windows of 4 x 4.

    python train.py --config=configs/swin.py

Shows held-out accuracy of a two-stage pyramid; a digit is as wide as a window and mostly lies in two or four of them.
About a minute on 2 cores.

The published sizes (`T`, `S`, `B`, `L`, `B384`, `L384`) train on ImageNet-1k by the paper's recipe: DeiT's with 20
epochs of warm-up and clipped gradients. The 384-pixel sizes and L are fine-tuned there from ImageNet-22k; here they are
trained alike.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config


def get_config(variant="tiny"):
    config = base_config()
    config.task = {"name": "classification"}
    if variant == "tiny":
        config.model = zoo.model_config(
            "swin",
            num_classes=10,
            image_size=(16, 16),
            patch_size=(2, 2),
            channels=1,
            depths=(2, 2),
            width=48,
            num_heads=(2, 4),
            window_size=4,
            unroll=2,
        )
        recipes.canvas_digits(config, side=16)
        return config
    if variant not in zoo.sizes("swin"):
        raise ValueError(f"no variant {variant!r}; there are: {', '.join(['tiny', *zoo.sizes('swin')])}")
    config.model = zoo.model_config("swin", variant)
    size = config.model.get("image_size", (224, 224))[0]
    recipes.deit(config, warmup_epochs=20, size=size, crop=1.0 if size == 384 else 0.9)
    config.optimizer.clip_norm = 5.0
    return config
