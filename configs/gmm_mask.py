"""GMM mask. `tiny`: 20 labelled digits a class at random places, where a bias to near tokens is worth most.

    python train.py --config=configs/gmm_mask.py

Shows held-out accuracy of a four-block encoder with Gaussian mixture masks; about 40 s on 2 cores.

`cifar10`, `cifar100`, `plain_cifar10`, `plain_cifar100`: the paper's 32-pixel ViT with masks and its baseline with a
class token and none, on CIFAR by the paper's recipe (its AutoAugment is RandAugment here; repeated augmentation is left
out).
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config

IMAGES = 50_000  # of CIFAR's training split


def get_config(variant="tiny"):
    config = base_config()
    config.task = {"name": "classification"}
    if variant == "tiny":
        config.model = zoo.model_config(
            "gmm_mask",
            num_classes=10,
            image_size=(12, 12),
            patch_size=(3, 3),
            channels=1,
            depth=4,
            width=48,
            num_heads=4,
            drop_path_rate=0.0,
            unroll=4,
        )
        recipes.canvas_digits(config)
        config.data.options.labels_per_class = 20
        return config
    if variant not in zoo.sizes("gmm_mask"):
        raise ValueError(f"no variant {variant!r}; there are: {', '.join(['tiny', *zoo.sizes('gmm_mask')])}")
    config.model = zoo.model_config("gmm_mask", variant)
    recipes.deit(config, epochs=100, batch_size=128, warmup_epochs=10, size=32, mixup=1.0, images=IMAGES)
    normalise = config.data.transforms[4]
    config.data.source = f"tfds:{variant.removeprefix('plain_')}"
    config.data.transforms = (
        ("decode", {}),
        ("random_resized_crop", {"size": 32, "scale": (0.64, 1.0)}),
        ("flip", {}),
        ("rand_augment", {"num_layers": 2, "magnitude": 9.0, "magnitude_std": 0.5}),
        normalise,
        ("random_erasing", {"probability": 0.25}),
    )
    config.data.eval_transforms = (("decode", {}), normalise)
    return config
