"""Speed of a training step and of a forward pass against timm and transformers: python -m benchmarks.step --json.

On a GPU: python -m benchmarks.step --json --models vit_s16,vit_b16,vit_l16 --dtype bfloat16 --batch 256

Both sides compute the same function (erf GELU, no dropout) on the same device, with float32 parameters, the same dtype
of computation, batch and threads; a training step is forward, backward and AdamW as `train.py` runs it. They take turns
and the median of five counts. On a GPU the peer runs under torch.compile, on a CPU as it comes. `share_of_matmul_rate`
is what our step reaches of the rate of large matrix products in the same process, `mfu` what of the data sheet's, where
there is one; `memory` is what the compiled program holds in MiB, `peer_memory` the most that torch held on a GPU.
Without torch there is no peer.
"""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer needs memory of the same GPU

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import naming, zoo
from transformer_zoo.task import Context, Task
from transformer_zoo.tasks.classification import Classification
from transformer_zoo.tasks.masked_pixels import MaskedPixels
from transformer_zoo.tasks.networks import apply_network
from transformer_zoo.tasks.tokenization import Tokenization
from transformer_zoo.training import command, sharding
from transformer_zoo.training.devices import peak_flops
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.flops import count_flops
from transformer_zoo.training.optimizer import make_optimizer
from transformer_zoo.training.state import abstract_state, abstract_variables, create_state
from transformer_zoo.training.step import make_step

TURNS = 5
MODES = ("train step", "inference")
OPTIMIZER = {"name": "adamw", "learning_rate": 1e-4, "weight_decay": 0.05}


class Model(NamedTuple):
    """What is compared: a size of the index, its objective, the peer's library ('' for none) and its name there."""

    key: str
    size: str
    task: Callable[..., Task]
    library: str = ""
    peer: str = ""


MODELS = {
    "vit_ti16": Model("vit", "Ti16", Classification, "timm", "vit_tiny_patch16_224"),
    "vit_s16": Model("vit", "S16", Classification, "timm", "vit_small_patch16_224"),
    "vit_b16": Model("vit", "B16", Classification, "timm", "vit_base_patch16_224"),
    "vit_l16": Model("vit", "L16", Classification, "timm", "vit_large_patch16_224"),
    "mae_b16": Model("mae", "B16", MaskedPixels, "transformers", "ViTMAEForPreTraining"),
    "magvit_tokenizer": Model("magvit", "tokenizer_B", functools.partial(Tokenization, field="video")),
}
Calls = dict[str, Callable[[], Any]]  # mode to a call that has finished when it returns


class Ours(NamedTuple):
    """Our task, ready to be timed.

    Attributes:
        calls: on random data.
        flops: of each.
        memory: that each compiled program holds, in MiB.
    """

    calls: Calls
    flops: dict[str, float]
    memory: dict[str, float]


def our_calls(task: Task, batch_size: int) -> Ours:
    """Compiles a training step and a forward pass of our task."""
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    optimizers = {"model": make_optimizer(OPTIMIZER, abstract_variables(task).params["model"], total_steps=1000)}
    with jax.set_mesh(mesh):
        abstract = abstract_state(task, optimizers, False, mesh)
        state = create_state(task, optimizers, abstract, seed=0)
        batch = jax.device_put(random_batch(task, batch_size), sharding.batch_sharding(mesh))
    step = make_step(task, optimizers, seed=0, every={"model": 1})
    placed = (jax.tree.map(lambda leaf: leaf.sharding, abstract), None)
    jitted = jax.jit(step, static_argnums=2, donate_argnums=0, out_shardings=placed)
    with jax.set_mesh(mesh):
        compiled = jitted.lower(state, batch, None).compile()

    def forward(variables: Any, batch: Any) -> Any:
        ctx = Context(jax.random.key(0), jnp.int32(0), train=False)
        if isinstance(task, Classification):
            return apply_network(task.network, variables, batch["image"])[0]
        return task.loss(variables, batch, ctx)[0]

    def train() -> None:
        nonlocal state
        with jax.set_mesh(mesh):
            state, _ = finished(compiled, state, batch)

    compiled_forward = jax.jit(forward).lower(state.variables, batch).compile()

    def inference() -> None:
        finished(compiled_forward, state.variables, batch)

    flops = {
        "train step": float(count_flops(lambda state, batch: step(state, batch, None), state, batch).total),
        "inference": float(count_flops(forward, state.variables, batch).total),
    }
    memory = {"train step": mebibytes(compiled), "inference": mebibytes(compiled_forward)}
    return Ours({"train step": train, "inference": inference}, flops, memory)


def mebibytes(compiled: Any) -> float:
    """What a compiled program holds: arguments, results and temporaries."""
    stats = compiled.memory_analysis()
    sizes = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    return float(sizes - stats.alias_size_in_bytes) / 2**20


def finished(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, once the device has computed it."""
    return jax.block_until_ready(function(*arguments))


def random_batch(task: Task, batch_size: int) -> dict[str, np.ndarray]:
    """Normal pixels and labels 0, as the task's spec asks for them."""
    draws = np.random.default_rng(0)
    return {
        name: np.asarray(draws.normal(size=leaf.shape), leaf.dtype)
        if name in ("image", "video")
        else np.zeros(leaf.shape, leaf.dtype)
        for name, leaf in task.spec(batch_size).items()
    }


def peer_calls(model: Model, dtype: str, batch_size: int) -> tuple[Calls, str]:
    """Calls of the peer on random data, and its name.

    Raises:
        ImportError: torch or the peer's library is missing.
        RuntimeError: torch does not see the device that JAX uses.
    """
    import torch

    device = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
    if device is None or (device == "cuda" and not torch.cuda.is_available()):
        raise RuntimeError(f"torch cannot use the {jax.default_backend()} that JAX uses")
    torch.set_num_threads(num_threads())
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it, as JAX's default
    network = peer_network(model).to(device)
    run = torch.compile(network) if device == "cuda" else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    images = torch.randn(batch_size, 3, 224, 224, device=device)
    labels = torch.zeros(batch_size, dtype=torch.long, device=device)
    cast = functools.partial(torch.autocast, device, torch.bfloat16, enabled=dtype == "bfloat16")

    def loss() -> Any:
        output = run(images)
        return torch.nn.functional.cross_entropy(output, labels) if model.library == "timm" else output.loss

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def train() -> None:
        run.train()
        optimizer.zero_grad(set_to_none=True)
        with cast():
            value = loss()
        value.backward()
        optimizer.step()
        finish()

    def inference() -> None:
        run.eval()
        with torch.inference_mode(), cast():
            run(images)
        finish()

    name = f"{model.library} {model.peer}" + (", torch.compile" if device == "cuda" else "")
    return {"train step": train, "inference": inference}, name


def peer_network(model: Model) -> Any:
    """The peer's module, with random weights.

    Raises:
        ImportError: its library is missing.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # a torchvision without its operators, which both ask for by name and never call
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    if model.library == "transformers":
        import transformers

        return transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(norm_pix_loss=True))
    import timm

    return timm.create_model(model.peer)


def measure(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """Median seconds of each call; they take turns, and one that is short is called often enough to be timed."""
    repeats = []
    for call in calls:
        call()  # compiles
        repeats.append(max(1, round(0.5 / seconds(call, 1))))
    turns = [[seconds(call, repeat) for call, repeat in zip(calls, repeats)] for _ in range(TURNS)]
    return [statistics.median(times) for times in zip(*turns)]


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Mean wall time of a call."""
    time.sleep(0.1)  # until threads of the call before have stopped spinning
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def matmul_rate(dtype: str) -> float:
    """FLOP/s of square matrix products, at the size from 1024 on that reaches most within a fifth of a second each."""
    best, size = 0.0, 1024
    product = jax.jit(jnp.matmul)
    while True:
        matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
        taken = measure([functools.partial(finished, product, matrix, matrix)])[0]
        best = max(best, 2 * size**3 / taken)
        if 8 * taken > 0.2 or size == 16384:
            return best
        size *= 2


def peer_memory(calls: Calls, mode: str) -> float | None:
    """The most MiB that torch holds on a GPU during a call."""
    if jax.default_backend() != "gpu":
        return None
    import torch

    torch.cuda.reset_peak_memory_stats()
    calls[mode]()
    return float(torch.cuda.max_memory_allocated()) / 2**20


def num_threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def unrolled(model: Model, dtype: str) -> Any:
    """The network with all its blocks in a row, as is fastest."""
    network = zoo.create(model.key, model.size, dtype=dtype)
    if not hasattr(network, "unroll"):
        return network
    return network.clone(unroll=max(network.depths) if hasattr(network, "depths") else network.depth)


def rows(models: Mapping[str, Model], dtype: str, batch_size: int) -> list[dict[str, Any]]:
    """One row a model and mode, in images a second; `ratio` is ours over the peer's."""
    rate, peak = matmul_rate(dtype), peak_flops(jax.devices()[0].device_kind)
    found = []
    for name, model in models.items():
        task = model.task(network=unrolled(model, dtype))
        ours, flops, memory = our_calls(task, batch_size)
        peer, peer_name = None, None
        try:
            peer, peer_name = peer_calls(model, dtype, batch_size) if model.library else (None, None)
        except (ImportError, RuntimeError) as error:
            print(f"{name}: no peer to compare with: {error}", file=sys.stderr)
        for mode in MODES:
            times = measure([ours[mode], *([peer[mode]] if peer else [])])
            found.append(
                {
                    "name": f"{name} {mode}",
                    "ours": batch_size / times[0],
                    "peer": batch_size / times[1] if peer else None,
                    "peer_name": peer_name,
                    "unit": "images/s",
                    "ratio": times[1] / times[0] if peer else None,
                    "device": jax.devices()[0].device_kind,
                    "dtype": dtype,
                    "batch": batch_size,
                    "threads": num_threads(),
                    "share_of_matmul_rate": flops[mode] / times[0] / rate,
                    "mfu": flops[mode] / times[0] / peak if peak else None,
                    "memory": memory[mode],
                    "peer_memory": peer_memory(peer, mode) if peer else None,
                }
            )
    return found


def main(
    arguments: Sequence[str],
    models: Mapping[str, Model] = MODELS,
    default: str = "vit_s16,mae_b16",
    module: str = "step",
) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(f"python -m benchmarks.{module}", description="Speed against other libraries.")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--models", default=default, help=f"some of {','.join(models)}")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=8)
    flags = parser.parse_args(arguments)
    names = flags.models.split(",")
    for name in names:
        if name not in models:
            raise UserError(str(naming.unknown("model", name, models)))
    found = rows({name: models[name] for name in names}, flags.dtype, flags.batch)
    if flags.json:
        print(json.dumps(found, indent=1))
        return
    for row in found:
        beside = f"{row['peer']:.1f} {row['peer_name']}, ratio {row['ratio']:.2f}" if row["peer"] else "no peer"
        share = f"{100 * row['share_of_matmul_rate']:.0f} % of the matmul rate"
        print(f"{row['name']:32} {row['ours']:8.1f} {row['unit']}, {share}; {beside}")


if __name__ == "__main__":
    command.main(main)
