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


def agree(key, module, model, ids, theirs, states, pooled=None, layout="transformers"):
    """Outputs, states of all blocks, and gradients for cotangents of what the generators read."""
    variables, table = load(key, layout, module, model)
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


class OpenCLIPBlock(torch.nn.Module):
    """A block with the names of OpenAI's and OpenCLIP's, whose attention is torch's own."""

    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.attn = torch.nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = torch.nn.ModuleDict({"c_fc": torch.nn.Linear(width, 96), "c_proj": torch.nn.Linear(96, width)})

    def forward(self, x):
        y, later = self.ln_1(x), torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        x = x + self.attn(y, y, y, attn_mask=later, need_weights=False)[0]
        return x + self.mlp["c_proj"](torch.nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


class OpenCLIPText(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.token_embedding = torch.nn.Embedding(50, 128)
        self.positional_embedding = torch.nn.Parameter(torch.empty(12, 128))
        self.transformer = torch.nn.Module()
        self.transformer.resblocks = torch.nn.ModuleList(OpenCLIPBlock(128, 2) for _ in range(2))
        self.ln_final = torch.nn.LayerNorm(128)
        self.text_projection = torch.nn.Parameter(torch.empty(128, 20))

    def forward(self, ids):
        x = self.token_embedding(ids) + self.positional_embedding
        for block in self.transformer.resblocks:
            x = block(x)
        x = self.ln_final(x)
        return x, x[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection


def test_clip_text_encoder_in_the_names_of_openclip():
    model = randomise(OpenCLIPText())
    module = like("clip_text", "openclip", CLIPText, model, activation="gelu")
    ids = RNG.integers(2, 48, (3, 12))
    for row, end in enumerate((11, 4, 7)):
        ids[row, end:] = (49, *[0] * (11 - end))
    theirs, pooled = model(torch.from_numpy(ids))
    assert agree("clip_text", module, model, ids, theirs, [], pooled, layout="openclip") <= 1e-4
