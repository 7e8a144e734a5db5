"""Layouts of LPIPS: the whole state of `lpips.LPIPS(net='vgg')`, and its heads beside torchvision's VGG16.

The package keeps the heads in a file of their own (`weights/v0.1/vgg.pth`): import both files together.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from transformer_zoo.convert.layout import Layout
from transformer_zoo.convert.layouts.vgg16 import convolutions, example, numbers, torchvision_arguments, widths
from transformer_zoo.convert.table import Arrays, Constant, Rule, Table, axes
from transformer_zoo.models.features.vgg16 import LPIPS, SCALE, SHIFT

HEAD = axes("1 width 1 1 -> width")

__all__ = ["LAYOUTS", "example"]


def heads(theirs: str) -> list[Rule]:
    """The weights of the five scales' channels; `theirs` has '{}' in it."""
    return [Rule(theirs.format(scale - 1), f"head{scale}", HEAD) for scale in range(1, 6)]


def constants() -> list[Constant]:
    """What is taken off pixels, as the package stores it."""
    named = {"shift": SHIFT, "scale": SCALE}
    return [
        Constant(f"scaling_layer.{name}", np.asarray(value, np.float32)[None, :, None, None])
        for name, value in named.items()
    ]


def package(network: LPIPS) -> Table:
    """The names of `lpips.LPIPS`, which keeps every head twice."""
    return [
        *convolutions("net.slice{scale}.{number}", "vgg/"),
        *heads("lin{}.model.1.weight"),
        *heads("lins.{}.model.1.weight"),
        *constants(),
    ]


def package_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `LPIPS` that the arrays tell."""
    return widths(arrays, [f"net.slice{scale}.{first}.bias" for scale, (first, *_) in enumerate(numbers(), start=1)])


def torchvision(network: LPIPS) -> Table:
    """Torchvision's names beside the package's heads."""
    return [*convolutions("features.{number}", "vgg/"), *heads("lin{}.model.1.weight")]


LAYOUTS = {
    "package": Layout(
        table=package,
        marks=("net.slice1.0.weight", "net.slice5.28.weight", "lin0.model.1.weight"),
        arguments=package_arguments,
    ),
    "torchvision": Layout(
        table=torchvision,
        marks=("features.0.weight", "features.28.weight", "lin0.model.1.weight"),
        arguments=torchvision_arguments,
        ignored=(r"classifier\..*",),
    ),
}
