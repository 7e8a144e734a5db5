"""Activator. `tiny`: real digits at random places, as a bag of patches.

    python train.py --config=configs/activator.py

Shows held-out accuracy of three blocks that never mix tokens; about 20 s on 2 cores. What a digit is depends on where
its strokes lie, so this is also where a bag of patches hurts: see its claims.

`cifar10`, `cifar100` and, without MLPs, `glu_cifar10`, `glu_cifar100`: the paper's networks by its recipe, Adam at 1e-3
for 100 epochs without augmentation.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config


def get_config(variant="tiny"):
    config = base_config()
    config.task = {"name": "classification"}
    if variant == "tiny":
        config.model = zoo.model_config(
            "activator",
            image_size=(12, 12),
            patch_size=(4, 4),
            channels=1,
            depth=3,
            width=96,
            hidden=192,
            use_mlp=False,
            unroll=3,
        )
        recipes.canvas_digits(config)
        return config
    if variant not in zoo.sizes("activator"):
        raise ValueError(f"no variant {variant!r}; there are: {', '.join(['tiny', *zoo.sizes('activator')])}")
    config.model = zoo.model_config("activator", variant)
    config.data.update(
        {"source": f"tfds:{variant.removeprefix('glu_')}", "transforms": (("decode", {}), ("scale", {}))}
    )
    config.batch_size, config.total_steps = 128, 100 * (50_000 // 128)
    config.optimizer = {"name": "adamw", "learning_rate": 1e-3, "schedule": "constant", "weight_decay": 0.0}
    return config
