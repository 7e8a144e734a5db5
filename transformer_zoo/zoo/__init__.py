"""The index of papers, and the one place that turns names into objects."""

from transformer_zoo.zoo.build import Built, build, build_task
from transformer_zoo.zoo.index import create, model_config, paper, papers, sizes

__all__ = ["Built", "build", "build_task", "create", "model_config", "paper", "papers", "sizes"]
