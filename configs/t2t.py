"""T2T-ViT. `tiny`: real digits at random places; two soft splits, 5x5 and 3x3, to nine tokens.

    python train.py --config=configs/t2t.py

Shows held-out accuracy of a four-block encoder; about 30 s on 2 cores.

The paper's sizes (`7` to `24` with Performer token blocks, `t_14` to `t_24` with exact attention, and its comparisons
`14_wide`, `14_resnext`, `14_384`) train on ImageNet-1k by its own recipe: DeiT's with 310 epochs, batches of 512 and a
moving average of the weights. The paper fine-tunes `14_384` from `14`; here it is trained like it.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config


def get_config(variant="tiny"):
    config = base_config()
    config.task = {"name": "classification"}
    if variant == "tiny":
        config.model = zoo.model_config(
            "t2t",
            num_classes=10,
            image_size=(12, 12),
            channels=1,
            depth=4,
            width=96,
            num_heads=4,
            mlp_ratio=2.0,
            kernel_sizes=(5, 3),
            strides=(2, 2),
            token_width=32,
            unroll=4,
        )
        recipes.canvas_digits(config)
        return config
    if variant not in zoo.sizes("t2t"):
        raise ValueError(f"no variant {variant!r}; there are: {', '.join(['tiny', *zoo.sizes('t2t')])}")
    config.model = zoo.model_config("t2t", variant, drop_path_rate=0.1)
    lite = variant in ("7", "10", "12")
    recipes.deit(
        config,
        epochs=310,
        batch_size=512,
        learning_rate=1e-3 if lite else 5e-4,
        weight_decay=0.03 if lite else 0.05,
        warmup_epochs=10,
        size=384 if variant.endswith("384") else 224,
        crop=0.9,
    )
    config.ema = {"decay": 0.99996}
    return config
