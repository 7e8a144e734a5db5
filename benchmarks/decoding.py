"""Speed of filling a grid of tokens, in parallel and token by token: python -m benchmarks.decoding --json.

One transformer of as many blocks each: MaskGIT's, which fills all tokens in a few steps, and a causal one that draws a
token a call with its keys and values kept. The peer of parallel decoding is once our autoregressive decoding, and once
a plain loop in PyTorch over the same post-norm transformer, where torch is there. Both sides take turns and the median
of five counts, as in `benchmarks.step`.
"""

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.step import finished, matmul_rate, measure, num_threads
from transformer_zoo.decoding.autoregressive import decode_autoregressive
from transformer_zoo.decoding.masked import decode_masked
from transformer_zoo.decoding.schedules import hidden_after
from transformer_zoo.models.masked_generation.maskgit import MaskGIT
from transformer_zoo.models.masked_generation.raster import Raster
from transformer_zoo.training import command
from transformer_zoo.training.flops import count_flops

NETWORK = {"num_codes": 1024, "num_conditions": 1000, "width": 384, "num_heads": 6}
Call = Callable[[], Any]


def variables_of(network: Any, *arguments: Any) -> Any:
    """Random variables of a network."""
    return jax.jit(network.init)(jax.random.key(0), *arguments)


def parallel_call(network: MaskGIT, batch: int, steps: int) -> tuple[Call, float]:
    """A call that fills grids in parallel, and its FLOPs."""
    ids = jnp.zeros((batch, *network.grid), jnp.int32)
    labels = jnp.zeros((batch,), jnp.int32)
    variables = variables_of(network, ids, labels)

    def sample(variables: Any, key: Any) -> Any:
        def logits(shown: Any, step: Any) -> Any:
            return network.apply(variables, shown, labels)[0]

        unknown = jnp.ones(ids.shape, bool)
        return decode_masked(logits, ids, unknown, key, hidden=network.mask_id, steps=steps).ids

    key = jax.random.key(0)
    return functools.partial(finished, jax.jit(sample), variables, key), counted(sample, variables, key)


def autoregressive_call(network: Raster, batch: int) -> tuple[Call, float]:
    """A call that draws grids token by token, and its FLOPs."""
    prompt = jnp.full((batch, 1), network.num_codes, jnp.int32)
    variables = variables_of(network, prompt)
    length = math.prod(network.grid)

    def sample(variables: Any, key: Any) -> Any:
        def logits(tokens: Any, cache: Any, index: Any) -> Any:
            found, aux = network.apply(variables, tokens, cache)
            return found[:, -1], aux["cache"]

        return decode_autoregressive(logits, prompt, network.empty_cache(batch), key, length=length)

    key = jax.random.key(0)
    return functools.partial(finished, jax.jit(sample), variables, key), counted(sample, variables, key)


def counted(function: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs of a call."""
    return float(count_flops(function, *arguments).total)


def torch_call(network: MaskGIT, batch: int, steps: int) -> Call:
    """A call that fills grids in parallel with a plain PyTorch loop over the same network.

    Raises:
        ImportError: torch is missing.
        RuntimeError: torch does not see the device that JAX uses.
    """
    import torch

    device = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
    if device is None or (device == "cuda" and not torch.cuda.is_available()):
        raise RuntimeError(f"torch cannot use the {jax.default_backend()} that JAX uses")
    torch.set_num_threads(num_threads())
    width, total = network.width, math.prod(network.grid)
    hidden = int(network.mlp_ratio * width)
    gelu = torch.nn.GELU(approximate="tanh")
    layer = torch.nn.TransformerEncoderLayer(width, network.num_heads, hidden, 0.0, gelu, 1e-12, batch_first=True)
    blocks = torch.nn.TransformerEncoder(layer, network.depth, enable_nested_tensor=False).to(device).eval()
    words = torch.nn.Embedding(network.mask_id + 1, width, device=device)
    places = torch.randn(1 + total, width, device=device)
    norm, head_norm = (torch.nn.LayerNorm(width, 1e-12, device=device) for _ in range(2))
    head = torch.nn.Linear(width, width, device=device)
    left = hidden_after(steps, "cosine", total).tolist()

    @torch.inference_mode()
    def sample() -> Any:
        ids = torch.full((batch, total), network.mask_id, device=device)
        label = torch.full((batch, 1), network.num_codes, device=device)
        for index, count in enumerate(left):
            x = norm(words(torch.cat([label, ids], 1)) + places)
            y = head_norm(gelu(head(blocks(x))))
            logits = (y @ words.weight.T)[:, 1:, : network.num_codes]
            logs = torch.log_softmax(logits, -1)
            drawn = torch.distributions.Categorical(logits=logs).sample()
            unknown = ids == network.mask_id
            tokens = torch.where(unknown, drawn, ids)
            noise = -torch.log(-torch.log(torch.rand(ids.shape, device=device)))
            sure = logs.gather(-1, tokens[..., None])[..., 0] + 4.5 * (1 - (index + 1) / steps) * noise
            sure = torch.where(unknown, sure, torch.inf)
            again = sure.argsort(1).argsort(1) < count
            ids = torch.where(again, network.mask_id, tokens)
        if device == "cuda":
            torch.cuda.synchronize()
        return ids

    return sample


def rows(depth: int, side: int, batch: int, steps: int, dtype: str) -> list[dict[str, Any]]:
    """One row a comparison, in images a second; `ratio` is ours over the peer's."""
    sizes: dict[str, Any] = NETWORK | {"grid": (side, side), "depth": depth, "unroll": depth, "dtype": dtype}
    network = MaskGIT(dropout_rate=0.0, **sizes)
    parallel, work = parallel_call(network, batch, steps)
    raster, raster_work = autoregressive_call(Raster(**sizes), batch)
    rate = matmul_rate(dtype)
    fast, slow = measure([parallel, raster])
    name = f"parallel, {steps} steps of {side * side} tokens"
    found = [
        row(name, batch, fast, slow, "our autoregressive decoding", work / fast / rate, dtype),
        row(f"autoregressive, {side * side} tokens", batch, slow, None, None, raster_work / slow / rate, dtype),
    ]
    try:
        other = torch_call(network, batch, steps)
    except (ImportError, RuntimeError) as error:
        print(f"{name}: no PyTorch to compare with: {error}", file=sys.stderr)
        return found
    ours, theirs = measure([parallel, other])
    return [*found, row(name, batch, ours, theirs, "plain PyTorch loop", work / ours / rate, dtype)]


def row(
    name: str, batch: int, ours: float, peer: float | None, peer_name: str | None, share: float, dtype: str
) -> dict[str, Any]:
    """A row of seconds a batch."""
    return {
        "name": name,
        "ours": batch / ours,
        "peer": batch / peer if peer else None,
        "peer_name": peer_name,
        "unit": "images/s",
        "ratio": peer / ours if peer else None,
        "device": jax.devices()[0].device_kind,
        "dtype": dtype,
        "batch": batch,
        "threads": num_threads(),
        "share_of_matmul_rate": share,
    }


def main(arguments: Sequence[str]) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser("python -m benchmarks.decoding", description="Speed of sampling tokens.")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--side", type=int, default=16, help="rows and columns of tokens")
    parser.add_argument("--steps", type=int, default=8, help="of parallel decoding")
    flags = parser.parse_args(arguments)
    found = rows(flags.depth, flags.side, flags.batch, flags.steps, flags.dtype)
    if flags.json:
        print(json.dumps(found, indent=1))
        return
    for one in found:
        beside = f"{one['peer']:.2f} {one['peer_name']}, ratio {one['ratio']:.2f}" if one["peer"] else "no peer"
        print(f"{one['name']:36} {one['ours']:8.2f} {one['unit']}; {beside}")


if __name__ == "__main__":
    command.main(main)
