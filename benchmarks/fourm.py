"""Speed of 4M's training against its reference: python -m benchmarks.fourm --reference=CHECKOUT.

Both sides do forward and backward of the same size on the same modalities, masks and budgets, in the same dtype and
with the same threads; ours draws its masks inside, the reference is given them. They take turns and the median of five
counts. The reference is apple/ml-4m, a checkout of which the caller provides: nothing of it is here or is fetched.
Without one the peer is a plain transformer of torch's own layers of the same depth, width and budgets, whose MLPs have
as many weights. Without torch there is no peer.
"""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer needs memory of the same GPU

import argparse
import functools
import importlib
import json
import random
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.step import Calls, finished, matmul_rate, measure, num_threads
from transformer_zoo import naming, zoo
from transformer_zoo.models.multimodal.fourm.embeddings import Tokens
from transformer_zoo.models.multimodal.fourm.task import FourMTask
from transformer_zoo.task import Context, Variables
from transformer_zoo.training import command
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.flops import count_flops

SIZES = ("Ti", "S", "B", "L", "XL")


def task_of(size: str, num_tokens: int, dtype: str) -> FourMTask:
    """The paper's size on seven modalities, as many tokens shown as asked for."""
    network = zoo.create("fourm", size, dtype=dtype)
    return FourMTask(network.clone(unroll=network.depth), num_inputs=num_tokens, num_targets=num_tokens)


def random_values(task: FourMTask, batch_size: int) -> dict[str, np.ndarray]:
    """Normal pixels, and ids behind all sentinels."""
    draws, found = np.random.default_rng(0), {}
    for name, leaf in task.spec(batch_size).items():
        if np.issubdtype(leaf.dtype, np.floating):
            found[name] = draws.normal(size=leaf.shape).astype(np.float32)
        else:
            found[name] = draws.integers(204, task.modalities[name].vocabulary, leaf.shape).astype(np.int32)
    return found


def our_calls(task: FourMTask, batch: Mapping[str, np.ndarray]) -> tuple[Calls, float]:
    """A call of forward and backward, and its FLOPs."""
    params = jax.jit(lambda key: task.init(key).params)(jax.random.key(0))
    placed = jax.device_put(dict(batch))

    def gradient(params: Any, batch: Any) -> Any:
        ctx = Context(jax.random.key(1), jnp.int32(0))
        return jax.value_and_grad(lambda params: task.loss(Variables(params), batch, ctx)[0])(params)

    flops = float(count_flops(gradient, params, placed).total)
    compiled = jax.jit(gradient)
    return {"forward and backward": lambda: finished(compiled, params, placed)}, flops


def reference_modules(path: Path) -> Any:
    """The reference's modules `fm`, `fm_utils` and those of embeddings, without what only its data pipeline needs.

    Raises:
        UserError: no checkout at `path`.
        ImportError: torch, einops or huggingface_hub is missing.
    """
    if not (path / "fourm" / "models" / "fm.py").is_file():
        raise UserError(f"--reference={path} is no checkout of apple/ml-4m: it has no fourm/models/fm.py")
    for name in ("fourm", "fourm.models", "fourm.utils", "fourm.utils.timm", "fourm.data"):
        package = types.ModuleType(name)
        package.__path__ = [str(path.joinpath(*name.split(".")))]
        sys.modules[name] = package
    given = {"fourm.utils.timm.registry": {"register_model": lambda function: function}}
    given["fourm.data.modality_info"] = {"MODALITY_INFO": {}}
    for name, members in given.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(members)
    names = ("fm", "fm_utils", "encoder_embeddings", "decoder_embeddings")
    found = types.SimpleNamespace(**{name: importlib.import_module(f"fourm.models.{name}") for name in names})
    # From Python 3.11 on nothing is sampled from the items of a dict, as the reference shuffles its modalities.
    found.fm.random = types.SimpleNamespace(sample=lambda items, count: random.sample(list(items), count))
    return found


def reference_loss(path: Path, task: FourMTask, batch: Mapping[str, np.ndarray], device: str) -> tuple[Any, Any]:
    """The reference's module, and its loss on our masks, as a call."""
    import torch

    reference, network = reference_modules(path), task.network
    inputs, outputs, information = {}, {}, {}
    for number, (name, one) in enumerate(task.modalities.items()):
        image = dict(patch_size=one.patch_size[0], image_size=one.grid[0] * one.patch_size[0])
        text = dict(vocab_size=one.vocabulary, max_length=one.length)
        information[name] = {"id": number, "type": "seq" if one.kind == "sequence" else "img"}
        if one.kind == "pixels":
            inputs[name] = reference.encoder_embeddings.ImageEncoderEmbedding(num_channels=one.channels, **image)
            continue
        kind, options = ("Sequence", text) if one.kind == "sequence" else ("ImageToken", image)
        options = {"vocab_size": one.vocabulary, **options}
        inputs[name] = getattr(reference.encoder_embeddings, f"{kind}EncoderEmbedding")(**options)
        outputs[name] = getattr(reference.decoder_embeddings, f"{kind}DecoderEmbedding")(**options)
    module = reference.fm.FourM(
        inputs,
        outputs,
        information,
        dim=network.width,
        encoder_depth=network.depth,
        decoder_depth=network.decoder_depth,
        num_heads=network.num_heads,
        qkv_bias=False,
        proj_bias=False,
        mlp_bias=False,
        act_layer=torch.nn.SiLU,
        norm_layer=functools.partial(reference.fm_utils.LayerNorm, eps=1e-6, bias=False),
        gated_mlp=True,
    ).to(device)
    masked = jax.device_get(task.mask(jax.random.key(2), task.values(Variables({}), batch)))
    told = {name: told_reference(task, name, one, device) for name, one in masked.items()}
    return module, lambda: module(told, task.num_inputs, task.num_targets, loss_type="mod")[0]


def told_reference(task: FourMTask, name: str, tokens: Tokens, device: str) -> dict[str, Any]:
    """A masked modality as the reference takes it: masks are True where a place is not used."""
    import torch

    kind, values, targets = task.modalities[name].kind, np.asarray(tokens.values), np.asarray(tokens.targets)
    first = targets & (np.cumsum(targets, axis=1) == 1)
    told = {
        "tensor": values.transpose(0, 3, 1, 2) if kind == "pixels" else values.astype(np.int64),
        "input_mask": ~np.asarray(tokens.inputs),
        "target_mask": ~targets,
        "decoder_attention_mask": (targets if kind == "sequence" else first * targets.sum(axis=1, keepdims=True)) * 1,
    }
    return {field: torch.from_numpy(np.ascontiguousarray(one)).to(device) for field, one in told.items()}


def plain_loss(task: FourMTask, batch_size: int, device: str) -> tuple[Any, Any]:
    """Torch's own encoder and decoder layers, and as a call their loss on tokens of one vocabulary each."""
    import torch

    network, outputs = task.network, task.network.outputs
    options: dict[str, Any] = dict(dim_feedforward=round(1.5 * network.hidden), dropout=0.0, activation="gelu")
    options |= dict(batch_first=True, norm_first=True, bias=False)
    encoder = torch.nn.TransformerEncoderLayer(network.width, network.num_heads, **options)
    decoder = torch.nn.TransformerDecoderLayer(network.width, network.num_heads, **options)
    module = torch.nn.ModuleDict(
        {
            "encoder": torch.nn.TransformerEncoder(encoder, network.depth),
            "decoder": torch.nn.TransformerDecoder(decoder, network.decoder_depth),
            "logits": torch.nn.ModuleList(
                [torch.nn.Linear(network.width, one.vocabulary, bias=False) for one in outputs.values()]
            ),
        }
    ).to(device)
    shown, asked = (
        torch.randn(batch_size, count, network.width, device=device) for count in (task.num_inputs, task.num_targets)
    )

    def loss() -> Any:
        decoded = module["decoder"](asked, module["encoder"](shown)).flatten(0, 1)
        parts = torch.tensor_split(decoded, len(outputs))  # as many targets of each modality
        total = 0.0
        for part, head in zip(parts, module["logits"]):
            logits = head(part)
            total = total + torch.nn.functional.cross_entropy(logits, logits.new_zeros(len(part), dtype=torch.long))
        return total / len(outputs)

    return module, loss


def peer_calls(task: FourMTask, batch: Mapping[str, np.ndarray], reference: str, dtype: str) -> tuple[Calls, str]:
    """A call of the peer's forward and backward, and its name.

    Raises:
        ImportError: torch, or what the reference needs beside it, is missing.
        RuntimeError: torch does not see the device that JAX uses.
    """
    import torch

    device = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
    if device is None or (device == "cuda" and not torch.cuda.is_available()):
        raise RuntimeError(f"torch cannot use the {jax.default_backend()} that JAX uses")
    torch.set_num_threads(num_threads())
    torch.set_float32_matmul_precision("high")
    count = len(next(iter(batch.values())))
    if reference:
        module, loss = reference_loss(Path(reference), task, batch, device)
    else:
        module, loss = plain_loss(task, count, device)
    cast = functools.partial(torch.autocast, device, torch.bfloat16, enabled=dtype == "bfloat16")

    def call() -> None:
        module.zero_grad(set_to_none=True)
        with cast():
            value = loss()
        value.backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return {"forward and backward": call}, "apple/ml-4m" if reference else "plain torch transformer"


def row(size: str, num_tokens: int, batch_size: int, dtype: str, reference: str) -> dict[str, Any]:
    """What was measured, in tokens a second, shown and asked for together; `ratio` is ours over the peer's."""
    task = task_of(size, num_tokens, dtype)
    batch = random_values(task, batch_size)
    ours, flops = our_calls(task, batch)
    peer, peer_name = None, None
    try:
        peer, peer_name = peer_calls(task, batch, reference, dtype)
    except (ImportError, RuntimeError) as error:
        print(f"no peer to compare with: {error}", file=sys.stderr)
    times = measure([*ours.values(), *(peer.values() if peer else ())])
    tokens = 2 * num_tokens * batch_size
    return {
        "name": f"fourm {size} forward and backward",
        "ours": tokens / times[0],
        "peer": tokens / times[1] if peer else None,
        "peer_name": peer_name,
        "unit": "tokens/s",
        "ratio": times[1] / times[0] if peer else None,
        "device": jax.devices()[0].device_kind,
        "dtype": dtype,
        "batch": batch_size,
        "threads": num_threads(),
        "share_of_matmul_rate": flops / times[0] / matmul_rate(dtype),
    }


def main(arguments: Sequence[str]) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser("python -m benchmarks.fourm", description="Speed of 4M against its reference.")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--reference", default="", help="a checkout of apple/ml-4m")
    parser.add_argument("--size", default="B", help=f"one of {','.join(SIZES)}")
    parser.add_argument("--tokens", type=int, default=128, help="shown, and asked for")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=8)
    flags = parser.parse_args(arguments)
    if flags.size not in SIZES:
        raise UserError(str(naming.unknown("size", flags.size, SIZES)))
    found = row(flags.size, flags.tokens, flags.batch, flags.dtype, flags.reference)
    if flags.json:
        print(json.dumps([found], indent=1))
        return
    beside = f"{found['peer']:.0f} {found['peer_name']}, ratio {found['ratio']:.2f}" if found["peer"] else "no peer"
    share = f"{100 * found['share_of_matmul_rate']:.0f} % of the matmul rate"
    print(f"{found['name']:32} {found['ours']:8.0f} {found['unit']}, {share}; {beside}")


if __name__ == "__main__":
    command.main(main)
