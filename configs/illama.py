"""iLLaMA. `tiny`: real digits at random places, the mask turning causal over the first quarter of the steps.

    python train.py --config=configs/illama.py

Shows held-out accuracy of a four-block decoder under its causal mask; about 40 s on 2 cores.

The paper's sizes (`T16`, `S16`, `B16`, `L16`, `B16_384`, `L16_384`) train on ImageNet-1k by its own recipe: batches of
4096, the soft mask constant (T) or linear, mixing that grows with the size. The 384-pixel sizes and L16 are fine-tuned
there from runs that are not published in full; here they are trained alike.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config

# (mixup, cutmix, drop path rate, epochs of the soft mask, its schedule, warm-up epochs): the reference's scripts
RECIPES = {
    "T16": (0.1, 0.1, 0.0, 50, "constant", 5),
    "S16": (0.5, 0.5, 0.1, 50, "linear", 5),
    "B16": (0.95, 1.0, 0.4, 25, "linear", 50),
}


def get_config(variant="tiny"):
    config = base_config()
    config.task = {"name": "soft_mask_classification", "soft_mask_schedule": "linear", "soft_mask_steps": 100}
    if variant == "tiny":
        config.model = zoo.model_config(
            "illama",
            num_classes=10,
            image_size=(12, 12),
            patch_size=(3, 3),
            channels=1,
            depth=4,
            width=96,
            num_heads=4,
            unroll=4,
        )
        recipes.canvas_digits(config)
        return config
    if variant not in zoo.sizes("illama"):
        raise ValueError(f"no variant {variant!r}; there are: {', '.join(['tiny', *zoo.sizes('illama')])}")
    mixup, cutmix, drop_path_rate, mask_epochs, schedule, warmup = RECIPES.get(variant, RECIPES["B16"])
    config.model = zoo.model_config("illama", variant, drop_path_rate=drop_path_rate)
    size = config.model.image_size[0] if "image_size" in config.model else 224
    recipes.deit(
        config,
        batch_size=4096,
        learning_rate=4e-3,
        warmup_epochs=warmup,
        size=size,
        crop=1.0 if size == 384 else 0.875,
        mixup=mixup,
        cutmix=cutmix,
    )
    config.task.soft_mask_schedule = schedule
    config.task.soft_mask_steps = mask_epochs * (recipes.IMAGENET // config.batch_size)
    return config
