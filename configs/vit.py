"""ViT. `tiny`: classification of real digits placed at random on a 12x12 canvas.

    python train.py --config=configs/vit.py

Shows held-out accuracy of a four-block encoder; about 20 s on 2 cores. It is also the stage that fine-tunes in
configs/quickstart.py.

The published sizes (`vit.py:S16`, `vit.py:B16`, ..., all of `python -m transformer_zoo.zoo`) train on ImageNet-1k by
big_vision's recipe for ViT-B/16 (300 epochs), `S16_plain` by that of the better plain baseline (2205.01580, 90 epochs).
RandAugment has timm's operations and scale here, at magnitude 9 and 6; big_vision's own scale, of which it takes 15 and
10, has other ranges.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config

IMAGENET = recipes.IMAGENET


def get_config(variant="tiny"):
    config = base_config()
    config.task = {"name": "classification"}
    if variant == "tiny":
        config.model = zoo.model_config(
            "vit",
            num_classes=10,
            image_size=(12, 12),
            patch_size=(4, 4),
            channels=1,
            depth=4,
            width=96,
            num_heads=3,
            pool="mean",
            positions="sincos_2d",
            final_norm="pooled",
            unroll=4,
        )
        recipes.canvas_digits(config)
        return config
    if variant not in zoo.sizes("vit"):
        raise ValueError(f"no variant {variant!r}; there are: {', '.join(['tiny', *zoo.sizes('vit')])}")
    config.model = zoo.model_config("vit", variant)
    plain = variant == "S16_plain"
    size = config.model.get("image_size", (224, 224))[0]
    recipes.imagenet(config, size=size, scale=(0.05, 1.0), magnitude=6.0 if plain else 9.0, magnitude_std=0.0)
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup_steps": 10_000,
        "weight_decay": 0.1,  # of kernels; big_vision writes 1e-4, which it does not multiply by the learning rate
        "clip_norm": 1.0,
    }
    config.task.update({"mixup_alpha": 0.2})
    if plain:
        config.batch_size = 1024
        config.total_steps = 90 * IMAGENET // config.batch_size
    else:
        config.task.update({"loss_kind": "sigmoid"})
        config.batch_size = 4096
        config.total_steps = 300 * IMAGENET // config.batch_size
    return config
