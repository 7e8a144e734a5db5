"""MetaFormer. `tiny`: PoolFormer tells the shape of one object in generated 32 x 32 pictures.

    python train.py --config=configs/metaformer.py

Shows held-out accuracy over six shapes; about a minute on 2 cores.

The published sizes (`poolformer_s12`, ..., `caformer_b36`: `python -m transformer_zoo.zoo` lists them) train on
ImageNet-1k by DeiT's recipe with the papers' batch of 4096 and rate of 4e-3.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config


def get_config(variant="tiny"):
    config = base_config()
    config.task = {"name": "classification"}
    if variant == "tiny":
        config.model = zoo.model_config(
            "metaformer",
            num_classes=6,
            image_size=(32, 32),
            depths=(2, 2, 2),
            widths=(24, 48, 96),
            mixers=("pooling", "pooling", "pooling"),
            residual_scale_from=3,
            layer_scale=0.1,
            norm_map=True,
            stem_kernel=3,
            stem_stride=2,
            stem_padding=1,
            unroll=2,
        )
        recipes.easy_scenes(config, "shape")
        return config
    if variant not in zoo.sizes("metaformer"):
        raise ValueError(f"no variant {variant!r}; there are: {', '.join(['tiny', *zoo.sizes('metaformer')])}")
    config.model = zoo.model_config("metaformer", variant)
    crop = 1.0 if "norm" in config.model else 0.95 if config.model.widths[0] == 96 else 0.9
    recipes.deit(config, batch_size=4096, learning_rate=4e-3, crop=crop)
    return config
