"""MAE. `tiny`: masked pretraining on real digits placed at random on a 12x12 canvas, probed at the end.

    python train.py --config=configs/mae.py

Shows reconstructions in samples/ and what a linear probe reads from the features, beside the same network untrained
and raw pixels. About 50 s on 2 cores.
"""

from transformer_zoo import zoo
from transformer_zoo.training.config import base_config


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
            decoder_depth=2,
            decoder_width=64,
            decoder_num_heads=2,
            unroll=4,
        )
        config.task.update({"mask_ratio": 0.65, "normalise_targets": False})  # 3 of 9 patches visible
        config.data.update({"source": "digits", "options": {"side": 12}, "eval_options": {"placements": 4}})
        config.evaluators = {
            "pixel_baseline": {"name": "pixel_baseline"},
            "probe": {"name": "linear_probe"},
            "probe_random": {"name": "linear_probe", "untrained": True},
        }
        config.total_steps, config.batch_size = 3000, 128
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
    raise ValueError(f"no variant {variant!r}; there are: tiny")
