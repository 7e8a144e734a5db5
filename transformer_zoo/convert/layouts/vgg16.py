"""The layout of VGG16's convolutions in torchvision; the dense layers of a whole file have no place and need none."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from transformer_zoo.convert.layout import Layout
from transformer_zoo.convert.table import CONVOLUTION, Arrays, Rule, Table
from transformer_zoo.models.features.vgg16 import DEPTHS, LPIPS, VGG16


def example(network: VGG16 | LPIPS) -> tuple[Any, ...]:
    """Abstract arguments of a call, at the smallest size."""
    return (jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32),)


def numbers() -> list[list[int]]:
    """Torchvision's number of every convolution by scale: a ReLU follows each, and a pool each scale."""
    found, number = [], 0
    for depth in DEPTHS:
        found.append([number + 2 * place for place in range(depth)])
        number += 2 * depth + 1
    return found


def convolutions(theirs: str, ours: str) -> list[Rule]:
    """All convolutions; `theirs` has '{scale}' and '{number}' in it."""
    rules = []
    for scale, found in enumerate(numbers(), start=1):
        for place, number in enumerate(found, start=1):
            name, path = theirs.format(scale=scale, number=number), f"{ours}conv{scale}_{place}"
            rules += [Rule(f"{name}.weight", f"{path}/kernel", CONVOLUTION), Rule(f"{name}.bias", f"{path}/bias")]
    return rules


def widths(arrays: Arrays, names: Sequence[str]) -> dict[str, Any]:
    """The channels of each scale, by the names of its first convolutions' biases."""
    return {"widths": tuple(len(arrays[name]) for name in names)}


def torchvision(network: VGG16) -> Table:
    """The names of `torchvision.models.vgg16`."""
    return convolutions("features.{number}", "")


def torchvision_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `VGG16` that the arrays tell."""
    return widths(arrays, [f"features.{first}.bias" for first, *_ in numbers()])


LAYOUTS = {
    "torchvision": Layout(
        table=torchvision,
        marks=("features.0.weight", "features.28.weight"),
        arguments=torchvision_arguments,
        ignored=(r"classifier\..*",),
    )
}
