"""Layouts of I3D: `pytorch_i3d`'s, and `kinetics_i3d_pytorch`'s."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from transformer_zoo.convert.layout import Layout
from transformer_zoo.convert.layouts.rmt import batch_norm
from transformer_zoo.convert.table import Arrays, Constant, Rule, Table, axes
from transformer_zoo.models.features.i3d import I3D, units

CONVOLUTION_3D = axes("out in frame row column -> frame row column in out")
POINTWISE_3D = axes("out in 1 1 1 -> in out")
BRANCHES = {"b0": "branch_0", "b1a": "branch_1.0", "b1b": "branch_1.1"} | {
    "b2a": "branch_2.0",
    "b2b": "branch_2.1",
    "b3b": "branch_3.1",
}


def example(network: I3D) -> tuple[Any, ...]:
    """Abstract arguments of a call; the network resizes what it is given."""
    return (jax.ShapeDtypeStruct((1, 9, 32, 32, 3), jnp.float32),)


def short(path: str) -> str:
    """The name of a unit in `pytorch_i3d`, 'Mixed_3b.b0'."""
    return path.replace("/", ".").capitalize()


def long(path: str) -> str:
    """The name of a unit in `kinetics_i3d_pytorch`, 'mixed_3b.branch_0'."""
    block, _, branch = path.partition("/")
    return f"{block}.{BRANCHES[branch]}" if branch else block


def table(network: I3D, name: Callable[[str], str], norm: str, head: str) -> Table:
    """The rules of a library that calls a unit `name` of our path, and its parts 'conv3d' and `norm`."""
    rules: list[Rule | Constant] = [
        Rule(f"{head}.conv3d.weight", "logits/kernel", POINTWISE_3D),
        Rule(f"{head}.conv3d.bias", "logits/bias"),
    ]
    for path in units():
        rules.append(Rule(f"{name(path)}.conv3d.weight", f"{path}/conv/kernel", CONVOLUTION_3D))
        rules += batch_norm(f"{name(path)}.{norm}", f"{path}/norm")
    return rules


def arguments(arrays: Arrays, options: Mapping[str, Any], head: str) -> dict[str, Any]:
    """Fields of `I3D` that the arrays tell."""
    return {"num_classes": len(arrays[f"{head}.conv3d.bias"])}


def _layout(name: Callable[[str], str], norm: str, head: str) -> Layout:
    return Layout(
        table=functools.partial(table, name=name, norm=norm, head=head),
        marks=(f"{name('conv3d_1a_7x7')}.conv3d.weight", f"{head}.conv3d.bias"),
        arguments=functools.partial(arguments, head=head),
    )


LAYOUTS = {
    "pytorch_i3d": _layout(short, "bn", "logits"),
    "kinetics_i3d_pytorch": _layout(long, "batch3d", "conv3d_0c_1x1"),
}
