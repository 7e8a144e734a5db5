"""One sharding constraint a block: without it the axes of batch and tokens can be lost inside a scanned stack."""

import functools
import math
from typing import Any

import jax
from absl import logging
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

EXPERT_AXIS = "expert"  # beside the batch, the mesh axis over which the experts of a mixture are split
BATCH_AXES = ("data", "fsdp", EXPERT_AXIS)  # the mesh axes over which the batch is split
SEQUENCE_AXIS = "sequence"  # the mesh axis over which the tokens of long streams are split
# Tokens a device from which a stream is split. Windows, words and the one token of a decoding step stay whole: they are
# many of few tokens, or the same for all others.
FEWEST_TOKENS = 64


def constrain_batch(x: Array) -> Array:
    """Keeps the first axis of `x` split over the mesh's batch axes; does nothing where there is no mesh."""
    return _constrain(x, *(PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1))


def constrain_tokens(x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
    """`constrain_batch`, and the tokens split over the mesh's `sequence` axis, whatever their number leaves over."""
    parts = sequence_parts(x.shape[1])
    return constrain_batch(x) if parts == 1 else _constrain(x, SEQUENCE_AXIS, None)


def gather_rows(table: Float[Array, "rows width"]) -> Float[Array, "rows width"]:
    """A table of embeddings whose rows are whole where they are, gathered once for a loop that reads them often."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return table
    rows = "tensor" if "tensor" in mesh.axis_names else None
    return jax.lax.with_sharding_constraint(table, PartitionSpec(rows, None))


def constrain_experts(
    x: Float[Array, "experts batch places width"], moved: bool
) -> Float[Array, "experts batch places width"]:
    """Tokens with their experts, split over the batch axes or, once `moved`, by expert over the `expert` axis.

    Raises:
        ValueError: the axis does not divide the number of experts.
    """
    mesh = jax.sharding.get_abstract_mesh()
    size = dict(mesh.shape).get(EXPERT_AXIS, 1)
    if x.shape[0] % size:
        raise ValueError(f"{x.shape[0]} experts cannot be split over mesh.expert={size}; choose a divisor of them")
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)
    if mesh.empty or not axes:
        return x
    samples = tuple(axis for axis in axes if axis != EXPERT_AXIS)
    spec = PartitionSpec(EXPERT_AXIS if size > 1 else None, samples) if moved else PartitionSpec(None, axes)
    unconstrained = (PartitionSpec.UNCONSTRAINED,) * 2
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec, *unconstrained))


def sequence_parts(tokens: int) -> int:
    """Parts that a stream of so many tokens is split into: the size of the `sequence` axis, or 1 for few tokens."""
    size = dict(jax.sharding.get_abstract_mesh().shape).get(SEQUENCE_AXIS, 1)
    if size == 1:
        return 1
    parts = size if tokens >= size * FEWEST_TOKENS else 1
    _log_once(tokens, size, parts)
    return parts


def dividing_axes(names: tuple[str, ...], size: int) -> tuple[str, ...] | None:
    """Those of the mesh's automatic axes, if together they divide `size`; None leaves it whole."""
    mesh = jax.sharding.get_abstract_mesh()
    names = tuple(name for name in names if name in mesh.auto_axes)
    return names if names and size % math.prod(mesh.shape[name] for name in names) == 0 else None


def _constrain(x: Array, *others: Any) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)
    if mesh.empty or not axes:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *others))


def batch_shards() -> int:
    """Into how many parts the mesh splits the batch; 1 where there is no mesh."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(axis, 1) for axis in BATCH_AXES)


@functools.cache
def _log_once(tokens: int, size: int, parts: int) -> None:
    if parts == 1:
        logging.info(
            "streams of %d tokens stay whole: sequence=%d splits those of %d and more",
            tokens,
            size,
            size * FEWEST_TOKENS,
        )
    else:
        logging.info("streams of %d tokens are split over sequence=%d, %d a device", tokens, size, -(-tokens // size))
