"""RMT. `tiny`: tells the shape of one object in generated 32 x 32 pictures.

    python train.py --config=configs/rmt.py

Shows held-out accuracy over six shapes of two stages of 8 x 8 and 4 x 4 tokens; about a minute on 2 cores.

`T`, `S`, `B` and `L` train on ImageNet-1k by DeiT's recipe; the token labels of its starred figures are left out.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config


def get_config(variant="tiny"):
    config = base_config()
    config.task = {"name": "classification"}
    if variant == "tiny":
        config.model = zoo.model_config(
            "rmt",
            num_classes=6,
            image_size=(32, 32),
            depths=(2, 2),
            widths=(32, 64),
            num_heads=(2, 4),
            mlp_ratios=(3.0, 3.0),
            decay_starts=(2.0, 2.0),
            decay_spreads=(4.0, 6.0),
            decomposed=(True, False),
            layer_scales=(0.0, 0.0),
            head_width=128,
            unroll=2,
        )
        recipes.easy_scenes(config, "shape")
        return config
    if variant not in zoo.sizes("rmt"):
        raise ValueError(f"no variant {variant!r}; there are: {', '.join(['tiny', *zoo.sizes('rmt')])}")
    config.model = zoo.model_config("rmt", variant)
    recipes.deit(config)
    return config
