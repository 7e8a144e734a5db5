import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from tests.parity.peers import gradients, images, load, randomise, state, to_torch, worst
from transformer_zoo.convert.layout import layout
from transformer_zoo.layers.patches import patchify
from transformer_zoo.layers.positions import sincos_2d
from transformer_zoo.masking.random import mask_from_scores, num_kept
from transformer_zoo.models.pretraining.mae import MAE
from transformer_zoo.tasks.masked_pixels import hidden_mean, normalise_patches
from transformer_zoo.zoo.export import save_as
from transformer_zoo.zoo.load import load as load_file

SIZES = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=144, patch_size=8)
DECODER = dict(decoder_hidden_size=24, decoder_num_hidden_layers=2, decoder_num_attention_heads=2)
HEADS = dict(num_heads=3, decoder_num_heads=2)
TABLES = ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed")


def mae_model(size=32, **options):
    """Random, but for the fixed tables, which transformers leaves at zero in a fresh network."""
    config = ViTMAEConfig(**SIZES, **DECODER, decoder_intermediate_size=72, image_size=size, **options)
    model = randomise(ViTMAEForPreTraining(config), keep=TABLES)
    with torch.no_grad():
        for name, width in zip(TABLES, (48, 24)):
            table = np.pad(sincos_2d((size // 8, size // 8), width), ((1, 0), (0, 0)))
            model.get_parameter(name).copy_(torch.from_numpy(table))
    return model


def run(module, variables, pixels, noise, mask_ratio, normalise):
    @jax.jit
    def loss(variables, pixels, noise):
        mask = mask_from_scores(noise, num_kept(noise.shape[1], mask_ratio))
        prediction, aux = module.apply(variables, pixels, mask)
        target = patchify(pixels, module.patch_size)
        target = normalise_patches(target) if normalise else target
        return hidden_mean(jnp.square(prediction - target).mean(-1), mask), (prediction, aux["encoder"]["encoded"])

    return jax.value_and_grad(loss, has_aux=True)(variables, pixels, noise)


@pytest.mark.parametrize("size, mask_ratio, normalise", [(32, 0.75, True), (32, 0.75, False), (40, 0.6, True)])
def test_transformers_loss_outputs_and_gradients(size, mask_ratio, normalise):
    model = mae_model(size, mask_ratio=mask_ratio, norm_pix_loss=normalise)
    pixels = images(3, size, size)
    noise = np.random.default_rng(3).random((3, (size // 8) ** 2), np.float32)
    theirs = model(to_torch(pixels), noise=torch.from_numpy(noise))
    theirs.loss.backward()
    module = MAE(**HEADS | layout("mae", "transformers_state").arguments(state(model), {}))
    variables, table = load("mae", "transformers_state", module, model)
    (loss, (prediction, _)), grads = run(module, variables, pixels, noise, mask_ratio, normalise)
    pairs = {"loss": (theirs.loss.detach().numpy(), loss), "prediction": (theirs.logits.detach().numpy(), prediction)}
    assert worst(pairs | gradients(model, table, grads)) <= 1e-4


@pytest.mark.parametrize("name", ["transformers", "transformers_saved"])
def test_files_of_transformers_load_both_ways(name, tmp_path):
    model = mae_model()
    model.save_pretrained(tmp_path / "theirs")
    module, variables, _ = load_file("mae", "", tmp_path / "theirs" / "model.safetensors", **HEADS)
    pixels, noise = images(2, 32, 32), np.random.default_rng(3).random((2, 16), np.float32)
    (_, (ours, _)), _ = run(module, variables, pixels, noise, 0.75, False)
    theirs = model(to_torch(pixels), noise=torch.from_numpy(noise)).logits.detach().numpy()
    assert worst({"their file": (theirs, ours)}) <= 1e-4
    variables = jax.tree.map(lambda leaf: leaf * 1.5, variables)
    model.config.save_pretrained(tmp_path / "ours")
    save_as("mae", name, module, variables, tmp_path / "ours" / "model.safetensors")
    model = ViTMAEForPreTraining.from_pretrained(tmp_path / "ours").eval()
    (_, (ours, _)), _ = run(module, variables, pixels, noise, 0.75, False)
    theirs = model(to_torch(pixels), noise=torch.from_numpy(noise)).logits.detach().numpy()
    assert worst({"our file": (theirs, ours)}) <= 1e-4
