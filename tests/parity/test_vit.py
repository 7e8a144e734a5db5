import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from tests.parity import peers
from tests.parity.peers import images, load, normal, randomise, to_torch, worst
from transformer_zoo.layers.positions import resize_positions
from transformer_zoo.models.backbones.vit import ViT
from transformer_zoo.zoo.export import save_as
from transformer_zoo.zoo.load import load as load_file

SMALL = dict(depth=2, embed_dim=48, num_heads=3, img_size=(32, 32), patch_size=8, num_classes=7)
TIMM = {
    "class_token": ("vit_tiny_patch16_224", {}),
    "class_token_without_its_position": ("vit_tiny_patch16_224", {"no_embed_class": True}),
    "class_token_mean": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "mean": ("vit_base_patch16_gap_224", {}),
    "siglip_mean": ("vit_base_patch16_siglip_gap_224", {}),
    "siglip_attention": ("vit_base_patch16_siglip_224", {}),
    "registers": ("vit_base_patch16_reg4_gap_256", {}),
    "class_token_and_registers": ("vit_tiny_patch16_224", {"reg_tokens": 3, "num_classes": 0}),
    "not_square": ("vit_tiny_patch16_224", {"img_size": (24, 40), "patch_size": (4, 8)}),
    "layer_scale_qk_norm": ("vit_tiny_patch16_224", {"init_values": 1e-5, "qk_norm": True, "qkv_bias": False}),
    "other_mlp_and_channels": ("vit_tiny_patch16_224", {"mlp_ratio": 3.7362, "in_chans": 1}),
}


def timm_model(case):
    name, options = TIMM[case]
    return randomise(timm.create_model(name, **SMALL | options))


def like(model, name, size):
    return peers.like("vit", name, functools.partial(ViT, num_heads=3), model, image_size=size)


def agree(module, name, model, theirs, pixels):
    return peers.agree(module, "vit", name, model, theirs, pixels)


@pytest.mark.parametrize("case", TIMM)
def test_timm_outputs_and_gradients(case):
    model = timm_model(case)
    module = like(model, "timm", tuple(model.patch_embed.img_size))
    pixels = images(2, *module.image_size, module.channels)
    assert agree(module, "timm", model, model(to_torch(pixels)), pixels) <= 1e-4


HF = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=80, patch_size=8)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("kind", ["pooled", "class_token", "classifier"])
def test_transformers_outputs_and_gradients(kind, size):
    config = ViTConfig(**HF, image_size=size, num_labels=5)
    if kind == "classifier":
        model = ViTForImageClassification(config)
    else:
        model = ViTModel(config, add_pooling_layer=kind == "pooled")
    model = randomise(model)
    pixels = images(2, *size)
    output = model(to_torch(pixels))
    theirs = {
        "pooled": lambda: output.pooler_output,
        "class_token": lambda: output.last_hidden_state[:, 0],
        "classifier": lambda: output.logits,
    }[kind]()
    module = like(model, "transformers_state", size)
    assert agree(module, "transformers_state", model, theirs, pixels) <= 1e-4


@pytest.mark.parametrize("case", ["class_token", "class_token_without_its_position", "registers"])
def test_timm_at_another_size(case):
    name, options = TIMM[case]
    model = randomise(timm.create_model(name, **SMALL | options, dynamic_img_size=True))
    module = like(model, "timm", (32, 32))
    variables, _ = load("vit", "timm", module, model)
    for size in ((48, 24), (16, 56)):
        pixels = images(1, *size)
        ours = jax.jit(module.apply)(variables, pixels)[0]
        assert worst({f"{size}": (model(to_torch(pixels)).detach().numpy(), ours)}) <= 1e-4


@pytest.mark.parametrize("new", [(7, 9), (3, 2), (4, 6), (16, 3)])
def test_resized_positions_are_timms(new):
    table = normal(3, 2 + 4 * 6, 8)
    theirs = resample_abs_pos_embed(torch.from_numpy(table)[None], list(new), [4, 6], num_prefix_tokens=2)[0].numpy()
    ours = resize_positions(jnp.asarray(table), (4, 6), new, "bicubic", prefix=2)
    assert worst({f"{new}": (theirs, ours)}) <= 1e-5


@pytest.mark.parametrize("case", TIMM)
def test_export_loads_into_timm(case, tmp_path):
    model = timm_model(case)
    module = like(model, "timm", tuple(model.patch_embed.img_size))
    variables = jax.tree.map(lambda leaf: leaf[...] * 1.5, load("vit", "timm", module, model)[0])
    file = tmp_path / "theirs.npz"
    save_as("vit", "timm", module, variables, file)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in np.load(file).items()}, strict=True)
    pixels = images(2, *module.image_size, module.channels)
    ours = jax.jit(module.apply)(variables, pixels)[0]
    assert worst({case: (model(to_torch(pixels)).detach().numpy(), ours)}) <= 1e-4


def test_files_of_transformers_load_both_ways(tmp_path):
    model = randomise(ViTForImageClassification(ViTConfig(**HF, image_size=32, num_labels=5)))
    model.save_pretrained(tmp_path / "theirs")
    module, variables, _ = load_file("vit", "", tmp_path / "theirs" / "model.safetensors", num_heads=3)
    pixels = images(2, 32, 32)
    ours = jax.jit(module.apply)(variables, pixels)[0]
    assert worst({"their file": (model(to_torch(pixels)).logits.detach().numpy(), ours)}) <= 1e-4
    variables = jax.tree.map(lambda leaf: leaf * 1.5, variables)
    model.config.save_pretrained(tmp_path / "ours")
    save_as("vit", "transformers", module, variables, tmp_path / "ours" / "model.safetensors")
    model = ViTForImageClassification.from_pretrained(tmp_path / "ours").eval()
    ours = jax.jit(module.apply)(variables, pixels)[0]
    assert worst({"our file": (model(to_torch(pixels)).logits.detach().numpy(), ours)}) <= 1e-4


def test_torch_files_are_read(tmp_path):
    model = timm_model("registers")
    weights = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "model": weights}, tmp_path / "checkpoint.pth")
    module, variables, _ = load_file("vit", "", tmp_path / "checkpoint.pth", num_heads=3)
    pixels = images(2, 32, 32)
    ours = jax.jit(module.apply)(variables, pixels)[0]
    assert worst({"logits": (model(to_torch(pixels)).detach().numpy(), ours)}) <= 1e-4
    torch.save({"model": weights, "config": TorchOnly()}, tmp_path / "pickle.pth")
    with pytest.raises(ValueError, match=r"pickle.pth is refused"):
        load_file("vit", "", tmp_path / "pickle.pth", num_heads=3)
    half = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    torch.save(half, tmp_path / "half.bin")
    _, rounded, _ = load_file("vit", "", tmp_path / "half.bin", num_heads=3)
    wanted = half["patch_embed.proj.bias"].float().numpy()
    assert np.array_equal(rounded["params"]["patch_embed"]["projection"]["bias"], wanted)


class TorchOnly:
    """Something that a pickle would run code for."""
