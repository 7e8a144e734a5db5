import numpy as np
import pytest
import timm
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from transformer_zoo.convert.layout import layout
from transformer_zoo.convert.preprocessing import Preprocessing
from transformer_zoo.models.backbones.vit import ViT


def picture(height, width):
    noise = np.random.default_rng(0).integers(0, 256, (height // 7, width // 7, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(300, 451), (517, 260), (224, 224), (97, 130)])
@pytest.mark.parametrize("image_size", [(224, 224), (96, 160), (384, 384)])
def test_timm_layout_prepares_as_timm_does(size, image_size):
    model = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=48, num_heads=3)
    config = resolve_model_data_config(model) | {"input_size": (3, *image_size)}
    image = picture(*size)
    theirs = create_transform(**config, is_training=False)(image).numpy().transpose(1, 2, 0)
    ours = layout("vit", "timm").preprocessing(ViT(image_size=image_size))(image)
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() <= 1e-6


@pytest.mark.parametrize("crop, interpolation", [(0.875, "bilinear"), (1.0, "bicubic"), (0.95, "bicubic")])
def test_other_crops_and_filters_as_timm_does(crop, interpolation):
    image = picture(241, 333)
    theirs = create_transform((3, 128, 128), crop_pct=crop, interpolation=interpolation)(image)
    ours = Preprocessing((128, 128), crop=crop, interpolation=interpolation)(image)
    assert np.abs(ours - theirs.numpy().transpose(1, 2, 0)).max() <= 1e-6


@pytest.mark.parametrize("size", [(300, 451), (100, 80)])
def test_transformers_layout_prepares_as_its_processor_does(size):
    image = picture(*size)
    theirs = ViTImageProcessorPil()(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    ours = layout("vit", "transformers").preprocessing(ViT())(image)
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() <= 1e-6
