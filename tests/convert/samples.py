"""Small networks of every kind that a layout knows, filled with random arrays."""

import numpy as np

from transformer_zoo.convert.layout import abstract_variables
from transformer_zoo.convert.table import flatten
from transformer_zoo.models.backbones.vit import ViT
from transformer_zoo.models.pretraining.mae import MAE

SMALL = dict(depth=2, width=12, num_heads=3, mlp_ratio=1.5, image_size=(4, 4), patch_size=(2, 2), num_classes=5)
MAE_SMALL = dict(depth=2, width=12, num_heads=3, mlp_ratio=2.0, image_size=(4, 4), patch_size=(2, 2)) | dict(
    decoder_depth=3, decoder_width=8, decoder_num_heads=2
)
VITS = {
    "class_token": dict(prefix_positions=True),
    "class_token_without_position": dict(representation_size=6, channels=1),
    "mean": dict(class_token=False, pool="mean", qkv_bias=False),
    "mean_pooled_norm": dict(class_token=False, pool="mean", final_norm="pooled", num_registers=4),
    "attention": dict(class_token=False, pool="attention", num_classes=0),
    "scaled": dict(prefix_positions=True, num_registers=2, layer_scale=1e-5, qk_norm=True),
    "no_positions": dict(positions="none"),
    "not_square": dict(image_size=(6, 8), patch_size=(2, 4), prefix_positions=True),
}


def vit(kind="class_token", **options):
    return ViT(**SMALL | VITS[kind] | options)


def mae(**options):
    return MAE(**MAE_SMALL | options)


def random_arrays(shapes):
    """Random arrays in every place, by path."""
    draws = np.random.default_rng(0)
    return {path: draws.standard_normal(leaf.shape).astype(np.float32) for path, leaf in shapes.items()}


def filled(key, module):
    """Random variables of a paper's network, by path."""
    return random_arrays(flatten(abstract_variables(key, module)))
