"""ViT. `tiny`: classification of real digits placed at random on a 12x12 canvas.

python train.py --config=configs/vit.py
"""

from transformer_zoo import zoo
from transformer_zoo.training.config import base_config


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
        config.data.update(
            {"source": "digits", "options": {"side": 12, "labels_per_class": 0}, "eval_options": {"placements": 4}}
        )
        config.total_steps, config.batch_size = 400, 128
        config.optimizer = {
            "name": "adamw",
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "warmup_steps": 40,
            "weight_decay": 0.05,
        }
        return config
    raise ValueError(f"no variant {variant!r}; there are: tiny")
