"""The layout of ENAT's reference code, and its golden run."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.convert.golden import golden_arguments
from transformer_zoo.convert.layout import Layout, count
from transformer_zoo.convert.table import HEADS, HEADS_BIAS, HEADS_OUT, Arrays, Rule, Table, axes, linear, norm
from transformer_zoo.decoding.sampling import guide
from transformer_zoo.models.masked_generation.enat import ENAT, Previous
from transformer_zoo.tasks.masked_tokens import token_loss

FLAT = axes("1 1 code -> code")


def example(network: ENAT) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    return jax.ShapeDtypeStruct((1, *network.grid), np.int32), jax.ShapeDtypeStruct((1,), np.int32)


def blocks(theirs: str, ours: str) -> list[Rule]:
    """Blocks, of the encoder or of the decoder."""
    attention = f"{ours}/attention"
    rules = linear(f"{theirs}.adaLN_modulation.1", f"{ours}/modulation")
    for name, path in (("q", "q"), ("kv.A", "context_kv"), ("kv.B", "own_kv")):
        rules += [
            Rule(f"{theirs}.attn.{name}.weight", f"{attention}/{path}/kernel", HEADS),
            Rule(f"{theirs}.attn.{name}.bias", f"{attention}/{path}/bias", HEADS_BIAS),
        ]
    return [
        *rules,
        Rule(f"{theirs}.attn.proj.weight", f"{attention}/out/kernel", HEADS_OUT),
        Rule(f"{theirs}.attn.proj.bias", f"{attention}/out/bias"),
        *linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up"),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down"),
    ]


def reference(network: ENAT) -> Table:
    """The names of `libs.models.DiT`; its `prev_embedder`, which nothing reads, has no place."""
    return [
        Rule("x_embedder.word_embeddings.weight", "embed/embedding"),
        Rule("x_embedder.position_embeddings.weight", "positions"),
        *norm("x_embedder.LayerNorm", "embed_norm"),
        Rule("y_embedder.embedding_table.weight", "class_embed/embedding"),
        *norm("prev_proj.norm", "reuse_norm"),
        *linear("prev_proj.mlp.fc1", "reuse/up"),
        *linear("prev_proj.mlp.fc2", "reuse/down"),
        *blocks("blocks.{i}", "encoder_blocks"),
        *blocks(f"blocks.{{i+{network.encoder_depth}}}", "decoder_blocks"),
        *norm("norm", "norm"),
        *linear("mlm_layer.fc", "head_hidden"),
        *norm("mlm_layer.ln", "head_norm"),
        Rule("mlm_layer.bias", "head_bias", FLAT),
    ]


def reference_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ENAT` that the arrays tell; of the blocks only their number, so the decoder's is told apart by it."""
    vocabulary, width = arrays["x_embedder.word_embeddings.weight"].shape
    side = round(len(arrays["x_embedder.position_embeddings.weight"]) ** 0.5)
    decoder_depth = options.get("decoder_depth", ENAT.decoder_depth)
    return {
        "grid": (side, side),
        "num_codes": vocabulary - 1,
        "num_classes": len(arrays["y_embedder.embedding_table.weight"]) - 1,
        "width": width,
        "encoder_depth": count(arrays, "blocks.{i}") - decoder_depth,
        "mlp_ratio": arrays["blocks.0.mlp.fc1.weight"].shape[0] / width,
    }


LAYOUTS = {
    "reference": Layout(
        table=reference,
        marks=("x_embedder.word_embeddings.weight", "blocks.0.attn.kv.A.weight"),
        arguments=reference_arguments,
        untold=("num_heads", "decoder_depth"),
    )
}

# The reference's constructor.
ARGUMENTS = {
    "input_size": (16, ""),
    "hidden_size": (1024, "width"),
    "num_heads": (16, "num_heads"),
    "num_classes": (1000, "num_classes"),
    "codebook_size": (1024, "num_codes"),
    "enc_dec": ((22, 2), ""),
}
GUIDANCE_SCALE = 2.5  # of the stored generation steps


def golden(config: Mapping[str, Any]) -> tuple[ENAT, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """The network of a golden file, and its run: all outputs by the reference's names."""
    given, shapes = config["arguments"], config["outputs"]
    encoder_depth, decoder_depth = given["enc_dec"]
    network = ENAT(
        grid=(given["input_size"],) * 2,
        encoder_depth=encoder_depth,
        decoder_depth=decoder_depth,
        **golden_arguments(given, ARGUMENTS),
    )
    visible = shapes["enc_out"][1]
    reused = shapes["reuse_prev_proj"][1]
    steps = config["inputs"]["gen_ids"][0]

    def run(variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        label = inputs["label"][:, 0]

        def apply(ids: jax.Array, *arguments: Any) -> Any:
            logits, aux = network.apply(variables, ids.reshape(-1, *network.grid), *arguments)
            return logits.reshape(*ids.shape, network.num_codes), aux

        def smooth_loss(logits: jax.Array) -> jax.Array:
            labels = inputs["loss_labels"]
            return token_loss(logits, jnp.maximum(labels, 0), labels >= 0, 0.1)

        logits, aux = apply(inputs["masked_ids"], label, None, (0, visible))
        _, before = apply(inputs["prev_masked_ids"], label, None, (0, reused))
        previous = Previous(jax.lax.stop_gradient(before["features"]), inputs["prev_masked_ids"] == network.mask_id)
        reuse_logits, reuse = apply(inputs["masked_ids"], label, previous, (reused, visible - reused))
        outputs = {
            "embed": aux["embedded"],
            "enc_block1": aux["encoder"][0],
            "enc_out": aux["encoder"][-1],
            "dec_out": aux["decoder"][-1],
            "logits": logits,
            "feat": aux["features"],
            "reuse_prev_proj": reuse["reused"],
            "reuse_enc_block1": reuse["encoder"][0],
            "reuse_logits": reuse_logits,
            "reuse_feat": reuse["features"],
            "loss_no_reuse": smooth_loss(logits),
            "loss_reuse": smooth_loss(reuse_logits),
        }
        states: list[Any] = [None, None]
        for step in range(steps):
            ids = inputs["gen_ids"][step]
            found = []
            for number, condition in enumerate((label, jnp.full_like(label, network.null_condition))):
                one, more = apply(ids, condition, states[number])
                states[number] = Previous(more["features"], ids == network.mask_id)
                found.append(one)
            scale = 1 + step / steps * GUIDANCE_SCALE
            outputs[f"gen_logprob_{step}"] = jax.nn.log_softmax(guide(found[0], found[1], scale), axis=-1)
        outputs["gen_feat_last_cond"] = states[0].features
        return outputs | {"loss": outputs["loss_no_reuse"] + outputs["loss_reuse"]}

    return network, run
