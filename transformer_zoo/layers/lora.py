"""LoRA (Hu et al. 2021, arXiv 2106.09685): kernels plus products of two narrow matrices, which alone are trained.

Kernels are changed and not the layers that use them, so any network can be adapted, and a fused network is the network.
"""

import math
import re
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from transformer_zoo import naming

SELF, CROSS = r"(^|/)attention/(qkv|out)/kernel", r"(^|/)cross_attention/(q|kv|out)/kernel"
MLP = r"(^|/)mlp/(up|gate|down)/kernel"
TARGETS = {
    "self_attention": SELF,
    "cross_attention": CROSS,
    "attention": f"{SELF}|{CROSS}",
    "mlp": MLP,
    "all": f"{SELF}|{CROSS}|{MLP}",
}
Tree = Any


def lora_parameters(key: Key[Array, ""], params: Tree, rank: int, targets: str = "attention") -> Tree:
    """'down' and 'up' in the place of every kernel that is adapted, all other parameters left out.

    A projection to several parts (queries, keys and values) has a bottleneck of `rank` for each. `down` is normal with
    deviation 1 / rank, `up` zero, so that nothing changes at first.

    Args:
        key: of the draws.
        params: of the network, arrays or what stands for them.
        rank: of an adapted kernel.
        targets: a key of `TARGETS`.

    Raises:
        ValueError: an unknown target, or none of such kernels.
    """
    if targets not in TARGETS:
        raise naming.unknown("targets of LoRA:", targets, TARGETS)
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    chosen = [path for path in flat if re.search(f"({TARGETS[targets]})$", path)]
    if not chosen:
        raise ValueError(f"the network has no kernels that are {targets!r}")
    found: dict[str, Any] = {}
    for number, path in enumerate(chosen):
        stack, inputs, outputs, parts = _sizes(path, flat[path].shape)
        width = rank * parts
        draws = jax.random.normal(jax.random.fold_in(key, number), (*stack, inputs, width))
        found |= {f"{path}/down": draws / rank, f"{path}/up": jnp.zeros((*stack, width, outputs))}
    return flax.traverse_util.unflatten_dict(found, sep="/")


def fuse(params: Tree, lora: Tree, scale: float = 1.0) -> Tree:
    """The network's parameters with kernel + scale * down up wherever there are such."""
    flat = dict(flax.traverse_util.flatten_dict(params, sep="/"))
    added = flax.traverse_util.flatten_dict(lora, sep="/")
    for path in (name.removesuffix("/down") for name in added if name.endswith("/down")):
        change = added[f"{path}/down"] @ added[f"{path}/up"]
        flat[path] = flat[path] + scale * change.reshape(flat[path].shape)
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _sizes(path: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, int, int]:
    """Stacked axes, inputs, outputs and parts of a kernel."""
    stacked = 1 if "blocks/" in path else 0
    stack, own = shape[:stacked], shape[stacked:]
    if len(own) == 4:  # HeadProjection: width, parts, heads, dim
        return stack, own[0], math.prod(own[1:]), own[1]
    if len(own) == 3:  # the output projection: heads, dim, width
        return stack, own[0] * own[1], own[2], 1
    return stack, own[0], own[1], 1
