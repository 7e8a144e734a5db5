"""FIT. `tiny`: real digits at random places of a 12x12 canvas, cut into nine groups that meet through their latents.

    python train.py --config=configs/fit.py

Shows held-out accuracy; about a minute on 2 cores. The denoiser and the autoregressive decoder of the paper are in
`models/backbones/fit.py` as well, equal to their references; they are not trained here.

`I224` and `I6400` train on ImageNet-1k by DeiT's recipe, at 224 pixels and at the 6400 of the paper's abstract; the
paper prints neither sizes nor a recipe for classification.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config


def get_config(variant="tiny"):
    config = base_config()
    config.task = {"name": "classification"}
    if variant == "tiny":
        config.model = zoo.model_config(
            "fit",
            num_classes=10,
            image_size=(12, 12),
            group_size=(4, 4),
            patch_size=(2, 2),
            channels=1,
            layers="(1)2(1)2",
            latents_per_group=2,
            width=48,
            num_heads=3,
            latent_width=96,
            latent_num_heads=3,
            unroll=2,
        )
        recipes.canvas_digits(config)
        return config
    if variant not in zoo.sizes("fit"):
        raise ValueError(f"no variant {variant!r}; there are: {', '.join(['tiny', *zoo.sizes('fit')])}")
    config.model = zoo.model_config("fit", variant, drop_path_rate=0.1)
    recipes.deit(config, size=config.model.image_size[0])
    if variant == "I6400":
        config.model.remat = "full"
    return config
