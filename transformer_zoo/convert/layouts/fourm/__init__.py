"""Layouts of 4M's reference, apple/ml-4m, and of its released weights; golden runs of its parts."""

from collections.abc import Callable, Mapping
from typing import Any

from transformer_zoo.convert.layouts.fourm import divae, model, schedules, tokenizers, uvit
from transformer_zoo.models.multimodal.fourm.model import FourM
from transformer_zoo.models.multimodal.fourm.vit import FourMViT

LAYOUTS = {
    "reference": model.LAYOUT,
    "vit": model.VIT,
    "divae": divae.LAYOUT,
    "divae_uvit": uvit.LAYOUT,
    **tokenizers.LAYOUTS,
}


def example(network: Any) -> tuple[Any, ...]:
    """Abstract arguments of a call."""
    return (model if isinstance(network, FourM | FourMViT) else tokenizers).example(network)


def golden(config: Mapping[str, Any]) -> tuple[Any, Callable[[Any, Mapping[str, Any]], dict[str, Any]]]:
    """The network of a golden file, and its run: all outputs by the reference's names."""
    runs: dict[str, Any] = {"model": model.golden, "qknorm": model.golden, "vit": model.golden_vit}
    runs |= {"schedules": schedules.golden, "divae": divae.golden_divae}
    return runs.get(config["part"], tokenizers.golden)(config)
