"""A network out of the zoo: parameters as safetensors, the forward pass as StableHLO."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from transformer_zoo.convert.files import read_safetensors, write_arrays
from transformer_zoo.convert.layout import layout
from transformer_zoo.convert.table import export_arrays, flatten, unflatten

FORMAT = {"format": "transformer_zoo"}  # marks files with our names


def save_parameters(variables: Mapping[str, Any], file: str | Path) -> None:
    """Writes linen variables as safetensors by path 'a/b/c'; those outside 'params' start with their collection."""
    arrays = {path: np.asarray(leaf) for path, leaf in flatten(variables).items()}
    collections = ",".join(sorted(set(variables) - {"params"}))
    write_arrays(file, arrays, FORMAT | {"collections": collections})


def load_parameters(file: str | Path) -> dict[str, Any]:
    """The variables that `save_parameters` wrote.

    Raises:
        ValueError: a file with other names than ours, or a damaged one.
    """
    arrays, metadata = read_safetensors(file)
    if metadata.get("format") != FORMAT["format"]:
        raise ValueError(f"{file} does not have our names; zoo.load reads other layouts")
    variables = unflatten(arrays, filter(None, metadata.get("collections", "").split(",")))
    return jax.tree.map(jnp.asarray, variables)


def save_as(key: str, name: str, module: Any, variables: Mapping[str, Any], file: str | Path) -> None:
    """Writes a paper's network in the layout `name` of another library, as safetensors or .npz.

    Raises:
        ValueError: an unknown layout (the nearest is named), or a network that it has no place for.
    """
    arrays = {path: np.asarray(leaf) for path, leaf in flatten(variables).items()}
    # transformers loads safetensors only where they say that they hold torch's tensors.
    write_arrays(file, export_arrays(layout(key, name).table(module), arrays), {"format": "pt"})


def export_stablehlo(
    module: Any, variables: Mapping[str, Any], example_shape: tuple[int, ...], file: str | Path
) -> None:
    """Writes the jitted forward pass with its parameters, for any batch size, to be run without this package.

    Args:
        module: called as module(images), giving an output, or (output, aux), of which aux is left out.
        variables: of the module; become constants of the program.
        example_shape: [batch, height, width, channels] of float32 images; the batch's length does not matter.
        file: where to.
    """

    def forward(images: Array) -> Any:
        output = module.apply(variables, images)
        return output[0] if isinstance(output, tuple) else output

    shape = jax.export.symbolic_shape(", ".join(["batch", *map(str, example_shape[1:])]))
    exported = jax.export.export(jax.jit(forward))(jax.ShapeDtypeStruct(shape, jnp.float32))
    Path(file).write_bytes(exported.serialize())


def load_stablehlo(file: str | Path) -> Callable[[Float[Array, "batch height width channels"]], Any]:
    """The forward pass that `export_stablehlo` wrote, on the platform it was written on."""
    return jax.export.deserialize(bytearray(Path(file).read_bytes())).call
