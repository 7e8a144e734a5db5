"""Layouts of 4M's reference, apple/ml-4m, and of its released weights; golden runs of its parts."""

from collections.abc import Callable, Mapping
from typing import Any

from transformer_zoo.convert.layouts.fourm import model

LAYOUTS = {"reference": model.LAYOUT}


def example(network: Any) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    return model.example(network)


def golden(config: Mapping[str, Any]) -> tuple[Any, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """The network of a golden file, and its run: all outputs by the reference's names."""
    return model.golden(config)
