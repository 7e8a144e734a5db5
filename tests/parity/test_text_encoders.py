"""T5's encoder and CLIP's text encoder beside transformers on random weights: outputs, all states, every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from tests.parity.peers import gradients, like, load, normal, randomise, worst
from transformer_zoo.models.features.clip_text import CLIPText
from transformer_zoo.models.features.t5 import T5Encoder

RNG = np.random.default_rng(0)


def agree(key, module, model, ids, theirs, states, pooled=None):
    """Outputs, states of all blocks, and gradients for cotangents of what the generators read."""
    variables, table = load(key, "transformers", module, model)
    trained = {name for name, _ in model.named_parameters()}
    table = [rule for rule in table if "{" in rule.names[0] or rule.names[0] in trained]  # embeddings stand there twice
    ids = jnp.asarray(ids, jnp.int32)
    cotangents = [normal(seed, *one.shape) for seed, one in enumerate((theirs, *([] if pooled is None else [pooled])))]
    total = (theirs * torch.from_numpy(cotangents[0])).sum()
    if pooled is not None:
        total = total + (pooled * torch.from_numpy(cotangents[1])).sum()
    total.backward()

    @jax.jit
    def run(params):
        def loss(params):
            output, aux = module.apply({"params": params}, ids)
            value = (output * cotangents[0]).sum()
            return value + (0 if pooled is None else (aux["pooled"] * cotangents[1]).sum()), (output, aux)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, (output, aux)), grads = run(variables["params"])
    pairs = {f"state{number}": (state.detach().numpy(), aux["levels"][number]) for number, state in enumerate(states)}
    pairs["output"] = (theirs.detach().numpy(), output)
    if pooled is not None:
        pairs["pooled"] = (pooled.detach().numpy(), aux["pooled"])
    return worst(pairs | gradients(model, table, {"params": grads}))


T5 = dict(vocab_size=50, d_model=24, d_kv=5, d_ff=40, num_layers=3, num_heads=4, dropout_rate=0.0)


@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
@pytest.mark.parametrize("length", [9, 150])
def test_t5_encoder(kind, length):
    model = randomise(T5EncoderModel(T5Config(feed_forward_proj=kind, **T5)))
    module = like("t5", "transformers", T5Encoder, model)
    ids = RNG.integers(1, 50, (3, length))
    ids[1, length // 2 :] = 0
    given = torch.from_numpy(ids)
    found = model(input_ids=given, attention_mask=(given != 0).long(), output_hidden_states=True)
    error = agree("t5", module, model, ids, found.last_hidden_state, found.hidden_states[1:-1])
    assert error <= 1e-4


CLIP = dict(vocab_size=50, hidden_size=128, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2)
CLIP |= dict(max_position_embeddings=12, projection_dim=20, eos_token_id=49, bos_token_id=48, pad_token_id=1)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_text_encoder(activation):
    model = randomise(CLIPTextModelWithProjection(CLIPTextConfig(hidden_act=activation, **CLIP)))
    module = like("clip_text", "transformers", CLIPText, model, activation=activation)
    ids = RNG.integers(2, 48, (3, 12))
    for row, end in enumerate((11, 4, 7)):
        ids[row, end:] = 49
    found = model(input_ids=torch.from_numpy(ids), output_hidden_states=True)
    states = found.hidden_states[1:]
    error = agree("clip_text", module, model, ids, found.last_hidden_state, states, found.text_embeds)
    assert error <= 1e-4
