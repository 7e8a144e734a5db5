"""MAE. `tiny`: masked pretraining on real digits placed at random on a 12x12 canvas, probed at the end.

    python train.py --config=configs/mae.py

Shows reconstructions in samples/ and what a linear probe reads from the features, beside the same network untrained
and raw pixels. About 50 s on 2 cores.

`B16`, `L16`, `H14`: the paper's pretraining on ImageNet-1k, 800 epochs. `finetune_B16`, `finetune_L16`, `finetune_H14`:
its supervised fine-tuning of the encoders that those runs leave, with RandAugment, mixup, cutmix and erasing.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config

IMAGENET = recipes.IMAGENET  # images; the reference drops what is left of an epoch, hence // before epochs

# (epochs, base learning rate for 256 images, layer decay, drop path rate): the reference's FINETUNE.md
FINETUNE = {"B16": (100, 5e-4, 0.65, 0.1), "L16": (50, 1e-3, 0.75, 0.2), "H14": (50, 1e-3, 0.75, 0.3)}


def get_config(variant="tiny"):
    config = base_config()
    config.task = {"name": "masked_pixels", "mask_ratio": 0.75, "normalise_targets": True}
    if variant == "tiny":
        config.model = zoo.model_config(
            "mae",
            image_size=(12, 12),
            patch_size=(4, 4),
            channels=1,
            depth=4,
            width=96,
            num_heads=3,
            decoder_depth=1,
            decoder_width=64,
            decoder_num_heads=2,
            unroll=4,
        )
        config.task.update({"mask_ratio": 0.55, "normalise_targets": False})  # 4 of 9 patches visible
        placements = {"train_options": {"placements": 8}, "eval_options": {"placements": 4}}  # what probes learn from
        config.data.update({"source": "digits", "options": {"side": 12}} | placements)
        config.evaluators = {
            "pixel_baseline": {"name": "pixel_baseline"},
            "probe": {"name": "linear_probe"},
            "probe_random": {"name": "linear_probe", "untrained": True},
        }
        config.total_steps, config.batch_size = 2400, 128
        config.optimizer = {
            "name": "adamw",
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "warmup_steps": 200,
            "b2": 0.95,
            "weight_decay": 0.05,
        }
        config.log.every_steps = 100
        return config
    if variant in zoo.sizes("mae"):
        return pretrain(config, variant)
    if variant.removeprefix("finetune_") in FINETUNE:
        return finetune(config, variant.removeprefix("finetune_"))
    variants = ["tiny", *zoo.sizes("mae"), *(f"finetune_{size}" for size in FINETUNE)]
    raise ValueError(f"no variant {variant!r}; there are: {', '.join(variants)}")


def pretrain(config, size):
    config.model = zoo.model_config("mae", size)
    recipes.imagenet(config, scale=(0.2, 1.0))
    config.batch_size = 4096
    epoch = IMAGENET // config.batch_size
    config.total_steps = 800 * epoch
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 1.5e-4 * config.batch_size / 256,
        "schedule": "cosine",
        "warmup_steps": 40 * epoch,
        "b2": 0.95,
        "weight_decay": 0.05,
        # The reference spares biases and what is one-dimensional in torch, where the two tokens are (1, 1, width).
        "weight_decay_table": ((r".*/(kernel|class_token|mask_token)", 1.0), (".*", 0.0)),
    }
    return config


def finetune(config, size):
    epochs, base_rate, layer_decay, drop_path_rate = FINETUNE[size]
    arguments = dict(zoo.sizes("mae")[size]["arguments"])
    config.model = zoo.model_config(
        "vit",
        **arguments,
        pool="mean",
        positions="sincos_2d",
        final_norm="pooled",
        drop_path_rate=drop_path_rate,
    )
    config.task = {"name": "classification", "label_smoothing": 0.1, "mixup_alpha": 0.8, "cutmix_alpha": 1.0}
    recipes.imagenet(config, magnitude=9.0, erasing=0.25)
    config.requires = {"pretrained": f"configs/mae.py:{size}"}
    config.init_from = {
        "requires": "pretrained",
        "table": (("params/model/encoder/(?!norm/)(.*)", r"params/model/\1"),),  # the last norm belongs to the head
    }
    config.batch_size = 1024
    epoch = IMAGENET // config.batch_size
    config.total_steps = epochs * epoch
    config.optimizer = {
        "name": "adamw",
        "learning_rate": base_rate * config.batch_size / 256,
        "final_learning_rate_ratio": 1e-6 / (base_rate * config.batch_size / 256),  # the reference ends at 1e-6
        "schedule": "cosine",
        "warmup_steps": 5 * epoch,
        "weight_decay": 0.05,
        "layer_decay": layer_decay,
    }
    return config
