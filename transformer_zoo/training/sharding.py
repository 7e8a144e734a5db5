"""Where arrays live: one mesh, parameter shardings by rules on paths, batches split over data, fsdp and expert.

`data`, `fsdp` and `expert` split the samples, `sequence` the tokens of long streams within them (see
`layers/constraints.py`); `fsdp` and `tensor` split parameters and `expert` those of a mixture of experts.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from transformer_zoo.layers.constraints import BATCH_AXES
from transformer_zoo.naming import Options
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.processes import check_groups

AXES = ("data", "fsdp", "tensor", "sequence", "expert")
LARGE = 65536  # elements; a larger leaf that stays whole on a mesh that asked for sharding is an error

# (regex on a parameter's path, mesh axes of its TRAILING axes): stacked blocks have further axes in front.
# The first match whose axes divide the shape wins, axis by axis; what matches none is split by `_largest_axis`.
RULES = (
    (r"/(qkv|kv|q)/kernel$", ("fsdp", None, "tensor", None)),
    (r"/(qkv|kv|q)/bias$", (None, "tensor", None)),
    (r"attention/out/kernel$", ("tensor", None, "fsdp")),
    (r"experts/(up|gate)/kernel$", ("expert", "fsdp", "tensor")),
    (r"experts/(up|gate)/bias$", ("expert", "tensor")),
    (r"experts/down/kernel$", ("expert", "tensor", "fsdp")),
    (r"experts/down/bias$", ("expert", None)),
    (r"/mlp/(up|gate)/kernel$", ("fsdp", "tensor")),
    (r"/mlp/(up|gate)/bias$", ("tensor",)),
    (r"/mlp/down/kernel$", ("tensor", "fsdp")),
    (r"/(head|prediction|logits)/kernel$", ("fsdp", "tensor")),
    (r"/embedding$", ("tensor", "fsdp")),
)


def make_mesh(sizes: Options, devices: list[Any] | None = None) -> Mesh:
    """A mesh of all devices; one axis may be -1, "what is left".

    Raises:
        UserError: an unknown axis, or sizes whose product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(sizes, len(devices))
    return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_shape(sizes: Options, count: int) -> tuple[int, ...]:
    """The number of devices along each of `AXES`, of `count` in all.

    Raises:
        UserError: as `make_mesh`.
    """
    unknown = set(sizes) - set(AXES)
    if unknown:
        raise UserError(f"config.mesh has no axis {sorted(unknown)[0]!r}; there are {', '.join(AXES)}")
    shape = [int(sizes.get(axis, 1)) for axis in AXES]
    open_axes = [axis for axis, size in zip(AXES, shape) if size == -1]
    known = math.prod(size for size in shape if size != -1)
    described = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape) if size != 1) or "all axes 1"
    if len(open_axes) > 1 or any(size < 1 and size != -1 for size in shape):
        raise UserError(f"config.mesh ({described}): sizes are at least 1, and one axis at most may be -1")
    left, rest = divmod(count, known)
    if rest or (not open_axes and left != 1):
        raise UserError(f"config.mesh ({described}) needs a multiple of {known} devices, but there are {count}")
    return tuple(left if size == -1 else size for size in shape)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The first axis split over data, fsdp and expert, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(mesh: Mesh | AbstractMesh, batch_size: int, accumulate_steps: int = 1) -> None:
    """Raises UserError, with the numbers that clash, where the mesh cannot divide the batch."""
    parts = batch_parts(mesh)
    if isinstance(mesh, Mesh):
        check_groups(
            parts, ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "all axes 1"
        )
    if (batch_size // accumulate_steps) % parts:
        detail = f" / accumulate_steps {accumulate_steps}" if accumulate_steps > 1 else ""
        axes = [axis for axis in BATCH_AXES if axis != "expert" or mesh.shape[axis] > 1]
        raise UserError(
            f"config.batch_size {batch_size}{detail} cannot be split over "
            f"{' x '.join(f'{axis} {mesh.shape[axis]}' for axis in axes)} = {parts} groups of devices; the nearest "
            "that can is "
            f"{max(1, round(batch_size / accumulate_steps / parts)) * parts * accumulate_steps}"
        )


def path_of(path: tuple[Any, ...]) -> str:
    """A key path of jax.tree_util as 'a/b/c'."""
    return "/".join(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", "")))) for entry in path)


def partition_spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """How one array is split: by the first rule that matches its path, else along its largest axis over fsdp."""
    for pattern, axes in RULES:
        if re.search(pattern, path) and len(shape) >= len(axes):
            wanted = (None,) * (len(shape) - len(axes)) + axes
            kept = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(wanted, shape)]
            if any(axis and mesh.shape[axis] > 1 for axis in kept):
                return PartitionSpec(*kept)
    return _largest_axis(shape, mesh)


def _largest_axis(shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    size = mesh.shape["fsdp"]
    divisible = [(length, -index) for index, length in enumerate(shape) if length % size == 0 and length >= size]
    if size == 1 or math.prod(shape) < 1024 or not divisible:
        return PartitionSpec()
    index = -max(divisible)[1]
    return PartitionSpec(*(["fsdp" if i == index else None for i in range(len(shape))]))


def shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A NamedSharding for every (abstract) array of a tree, by its path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, partition_spec(path_of(path), leaf.shape, mesh)), tree
    )


def check_sharded(params: Any, placed: Any, mesh: Mesh) -> None:
    """Raises UserError naming the large parameters that stay whole although the mesh asks for sharding."""
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return
    whole = []
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(placed)):
        if leaf.size > LARGE and sharding.is_fully_replicated:
            whole.append(f"{path_of(path)} {tuple(leaf.shape)}")
    if whole:
        raise UserError(
            f"config.mesh asks for fsdp {mesh.shape['fsdp']} x tensor {mesh.shape['tensor']}, but these parameters "
            f"cannot be split by them: {'; '.join(whole[:10])}. Choose sizes that divide them"
        )
    logging.info("sharded %d parameters over %s", len(leaves), dict(mesh.shape))
