"""One sharding constraint a block: without it the batch axis can be lost inside a scanned stack."""

import math

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

BATCH_AXES = ("data", "fsdp")  # the mesh axes over which the batch is split


def constrain_batch(x: Array) -> Array:
    """Keeps the first axis of `x` split over the mesh's batch axes; does nothing where there is no mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)
    if mesh.empty or not axes:
        return x
    unconstrained = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *unconstrained))


def batch_shards() -> int:
    """Into how many parts the mesh splits the batch; 1 where there is no mesh."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(axis, 1) for axis in BATCH_AXES)
