"""The layout of FID's Inception-v3: torchvision's names, as pytorch-fid and torch-fidelity use them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from transformer_zoo.convert.layout import Layout
from transformer_zoo.convert.layouts.rmt import batch_norm
from transformer_zoo.convert.table import CONVOLUTION, Arrays, Constant, Rule, Table, linear
from transformer_zoo.models.features.inception_v3 import InceptionV3, units


def example(network: InceptionV3) -> tuple[Any, ...]:
    """Abstract arguments of a call; the network resizes what it is given."""
    return (jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),)


def fid(network: InceptionV3) -> Table:
    """The names of pytorch-fid's `fid_inception_v3`."""
    rules: list[Rule | Constant] = [*linear("fc", "head")]
    for path in units():
        theirs = path.replace("/", ".").capitalize()
        rules.append(Rule(f"{theirs}.conv.weight", f"{path}/conv/kernel", CONVOLUTION))
        rules += batch_norm(f"{theirs}.bn", f"{path}/norm")
    return rules


def fid_arguments(arrays: Arrays, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `InceptionV3` that the arrays tell.

    Raises:
        ValueError: the auxiliary head of torchvision's own network, which pools otherwise and is not FID's.
    """
    if "AuxLogits.fc.weight" in arrays:
        raise ValueError("these are the weights of torchvision's own Inception-v3, not of FID's; see pytorch-fid's")
    return {"num_classes": len(arrays["fc.bias"])}


LAYOUTS = {
    "fid": Layout(
        table=fid,
        marks=("Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch_pool.bn.running_mean", "fc.bias"),
        arguments=fid_arguments,
    )
}
