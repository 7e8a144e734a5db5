"""The index of papers, and the one place that turns names into objects."""

from transformer_zoo.zoo.build import Built, build, build_task
from transformer_zoo.zoo.export import (
    export_stablehlo,
    load_parameters,
    load_stablehlo,
    save_as,
    save_parameters,
)
from transformer_zoo.zoo.index import create, model_config, paper, papers, sizes
from transformer_zoo.zoo.load import load, save

__all__ = [
    "Built",
    "build",
    "build_task",
    "create",
    "export_stablehlo",
    "load",
    "load_parameters",
    "load_stablehlo",
    "model_config",
    "paper",
    "papers",
    "save",
    "save_as",
    "save_parameters",
    "sizes",
]
