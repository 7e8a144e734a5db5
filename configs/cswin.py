"""CSWin. `tiny`: real digits at random places of a 16 x 16 canvas, 8 x 8 tokens in stripes of width 2, then 4 x 4.

    python train.py --config=configs/cswin.py

Shows held-out accuracy of two stages of two blocks; about a minute on 2 cores.

The paper's sizes (`T`, `S`, `B`, `L`, and with stripes of width 12 at 384 pixels `B384`, `L384`) train on ImageNet-1k
by its own recipe: DeiT's with longer warm-up, a moving average of the weights, and rates that depend on the size. The
paper fine-tunes the 384-pixel sizes from those at 224 and trains `L` on ImageNet-22k first; here all are trained like
`B`.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config


def get_config(variant="tiny"):
    config = base_config()
    config.task = {"name": "classification"}
    if variant == "tiny":
        config.model = zoo.model_config(
            "cswin",
            num_classes=10,
            image_size=(16, 16),
            channels=1,
            stride=2,
            depths=(2, 2),
            width=32,
            num_heads=(2, 4),
            stripe_widths=(2, 2),
            unroll=2,
        )
        recipes.canvas_digits(config, side=16)
        return config
    if variant not in zoo.sizes("cswin"):
        raise ValueError(f"no variant {variant!r}; there are: {', '.join(['tiny', *zoo.sizes('cswin')])}")
    config.model = zoo.model_config("cswin", variant)
    small = variant in ("T", "S")
    recipes.deit(
        config,
        batch_size=2048 if small else 1024,
        learning_rate=2e-3 if small else 1e-3,
        weight_decay=0.05 if small else 0.1,
        warmup_epochs=20,
        size=384 if variant.endswith("384") else 224,
        crop=1.0 if variant.endswith("384") else 0.9,
    )
    config.ema = {"decay": 0.99984 if small else 0.99992}
    return config
