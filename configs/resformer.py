"""ResFormer. `tiny`: real digits at random places of a canvas, trained at 12, 10 and 8 pixels a side.

    python train.py --config=configs/resformer.py

Shows held-out accuracy at 12 pixels and, as `resized_accuracy_SIZE`, at five sizes that it never saw; about a minute on
2 cores. `vit` is the same run of a ViT with learned positions, trained at 12 pixels alone.

`T`, `S` and `B` train on ImageNet-1k at 224, 160 and 128 pixels, `S_384` at 384, 224 and 128, by the reference's
recipe.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config

UNSEEN = (6, 14, 16, 20, 24)


def get_config(variant="tiny"):
    config = base_config()
    if variant in ("tiny", "vit"):
        small = dict(
            num_classes=10, image_size=(12, 12), patch_size=(2, 2), channels=1, depth=4, width=64, num_heads=4, unroll=4
        )
        config.model = zoo.model_config("resformer" if variant == "tiny" else "vit", **small)
        resolutions = (12, 10, 8) if variant == "tiny" else (12,)
        # At the paper's weight of 1 features become alike before they tell anything, and a minute is too short to part.
        config.task = {"name": "multi_resolution", "resolutions": resolutions, "consistency": 0.1}
        config.task.test_resolutions = UNSEEN
        recipes.canvas_digits(config)
        config.batch_size = 64
        return config
    if variant not in zoo.sizes("resformer"):
        known = ", ".join(["tiny", *zoo.sizes("resformer"), "vit"])
        raise ValueError(f"no variant {variant!r}; there are: {known}")
    base = variant == "B"
    config.model = zoo.model_config("resformer", variant, drop_path_rate=0.2 if base else 0.1)
    resolutions = (384, 224, 128) if variant == "S_384" else (224, 160, 128)
    config.task = {"name": "multi_resolution", "resolutions": resolutions, "test_resolutions": (96, 288)}
    recipes.deit(
        config,
        epochs=200 if base else 300,
        learning_rate=1.6e-3 if base else 1e-3,
        warmup_epochs=20 if base else 5,
        size=resolutions[0],
    )
    config.optimizer.weight_decay_table = ((".*(positions|local).*", 0.0), (".*kernel", 1.0), (".*", 0.0))
    if base:
        config.optimizer.clip_norm = 5.0
    return config
