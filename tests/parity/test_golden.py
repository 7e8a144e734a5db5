"""`convert check` on other configurations than the stored one, with transformers in the place of the reference."""

import json

import numpy as np
import pytest
import torch

from tests.parity.peers import images, load, state, to_torch
from tests.parity.test_mae import HEADS, mae_model
from transformer_zoo.convert import __main__ as cli
from transformer_zoo.convert.layout import layout
from transformer_zoo.convert.table import export_arrays, flatten, import_arrays
from transformer_zoo.models.pretraining.mae import MAE


@pytest.mark.parametrize("size, mask_ratio, normalise", [(24, 0.5, False), (40, 0.9, True)])
def test_check_runs_other_configurations_of_the_reference(size, mask_ratio, normalise, tmp_path, capsys):
    model = mae_model(size, mask_ratio=mask_ratio, norm_pix_loss=normalise, layer_norm_eps=1e-6)
    pixels = to_torch(images(2, size, size))
    noise = torch.from_numpy(np.random.default_rng(3).random((2, (size // 8) ** 2), np.float32))
    outputs = model(pixels, noise=noise)
    outputs.loss.backward()
    module = MAE(**HEADS | layout("mae", "transformers_state").arguments(state(model), {}))
    variables, rules = load("mae", "transformers_state", module, model)
    gradients = {name: value.grad.numpy() for name, value in model.named_parameters() if value.requires_grad}
    gradients = import_arrays(rules, gradients, flatten(variables))
    arrays = {
        "in/x": pixels.numpy(),
        "in/noise": noise.numpy(),
        "out/pred": outputs.logits.detach().numpy(),
        "out/mask": outputs.mask.numpy(),
        "out/ids_restore": outputs.ids_restore.numpy(),
        "out/loss": outputs.loss.detach().numpy(),
    }
    table = layout("mae", "reference").table(module)
    arrays |= {f"param/{name}": array for name, array in export_arrays(table, flatten(variables)).items()}
    rules = [rule for rule in table if hasattr(rule, "ours")]
    arrays |= {f"grad/{name}": array for name, array in export_arrays(rules, gradients).items()}
    arguments = dict(img_size=size, patch_size=8, embed_dim=48, depth=2, num_heads=3, mlp_ratio=3, decoder_depth=2)
    arguments |= dict(decoder_embed_dim=24, decoder_num_heads=2, norm_pix_loss=normalise)
    config = {"paper": "mae", "arguments": arguments, "settings": {"mask_ratio": mask_ratio}}
    np.savez(tmp_path / "mae.npz", config=json.dumps(config), **arrays)
    compared = [name for name in arrays if name.startswith(("out/", "grad/"))]
    cli.main(["check", str(tmp_path / "mae.npz")])
    assert f"{len(compared)} of {len(compared)} arrays agree" in capsys.readouterr().out
