"""FLOPs of a function, counted from its jaxpr: matrix products and convolutions, no compiler and no data.

A compiler's own count sees the body of a scan once and counts what a backend happened to fuse; this one multiplies by
the length and depends on shapes alone. Two FLOPs a multiply-accumulate; papers mostly print multiply-accumulates
(`macs`), often under the name FLOPs. Elementwise work, reductions, FFTs and decompositions are not counted.

Results that nobody reads are removed before counting, as jit removes them. A rematerialised forward pass is counted
again where the gradient recomputes it: such a step counts what the hardware executes. For model FLOPs in the sense of
PaLM (arXiv:2204.02311, appendix B) count the same step without rematerialisation.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.interpreters import partial_eval

from transformer_zoo.layers.loops import expected_turns

# Kernels whose work no jaxpr of ours shows; they are named in `Flops.opaque` and counted as nothing.
_OPAQUE = ("pallas_call", "ffi_call", "triton_kernel_call", "dot_product_attention", "scaled_matmul", "cudnn_fusion")


@dataclasses.dataclass(frozen=True)
class Flops:
    """What `count_flops` found.

    Attributes:
        by_primitive: FLOPs by primitive: dot_general, conv_general_dilated, ragged_dot_general.
        unknown_loops: loops that contain FLOPs and whose number of turns nobody knows; each was counted as one turn.
        opaque: names of fused kernels that were met and counted as nothing; count a plain implementation instead.
    """

    by_primitive: Mapping[str, int]
    unknown_loops: int = 0
    opaque: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """All FLOPs."""
        return sum(self.by_primitive.values())

    @property
    def convolution(self) -> int:
        """FLOPs of convolutions."""
        return self.by_primitive.get("conv_general_dilated", 0)

    @property
    def matmul(self) -> int:
        """FLOPs of matrix products."""
        return self.total - self.convolution


def count_flops(function: Callable[..., Any], *abstract_args: Any) -> Flops:
    """FLOPs of one call, from arrays or ShapeDtypeStructs; nothing is compiled or run.

    A scan counts its body times its length, a loop times the turns that `layers.loops.about` noted, a conditional its
    most expensive branch, and under `shard_map` the sum over the devices of its mesh.
    """
    jaxpr = jax.make_jaxpr(function)(*abstract_args).jaxpr
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(live)


def macs(function: Callable[..., Any], *abstract_args: Any) -> int:
    """Multiply-accumulates of one call: half of `count_flops(...).total`."""
    return count_flops(function, *abstract_args).total // 2


def _count(jaxpr: Any) -> Flops:
    by_primitive: collections.Counter[str] = collections.Counter()
    unknown_loops = 0
    opaque: set[str] = set()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _LEAVES:
            by_primitive[name] += 2 * _LEAVES[name](equation)
        elif name.startswith(_OPAQUE):
            opaque.add(name)
        else:
            inner = [_count(sub) for sub in _inner_jaxprs(equation)]
            if name == "cond" and inner:
                inner = [max(inner, key=lambda branch: branch.total)]
            times = _repeats(equation)
            if name == "while" and not times:
                times = 1
                unknown_loops += any(part.total for part in inner)
            for part in inner:
                by_primitive.update({key: times * count for key, count in part.by_primitive.items()})
                unknown_loops += part.unknown_loops
                opaque.update(part.opaque)
    return Flops(dict(by_primitive), unknown_loops, tuple(sorted(opaque)))


def _inner_jaxprs(equation: Any) -> list[Any]:
    values = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns"))
    jaxprs = [getattr(value, "jaxpr", value) for value in values]
    return [jaxpr for jaxpr in jaxprs if hasattr(jaxpr, "eqns")]


def _repeats(equation: Any) -> int:
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name == "while":
        return expected_turns(str(equation.source_info.name_stack))
    if equation.primitive.name == "shard_map":  # its body has the shapes of one device
        return math.prod(equation.params["mesh"].shape[axis] for axis in equation.params["newly_manual_axes"])
    return 1


def _dot_general_macs(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs = equation.invars[0].aval.shape
    return math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[axis] for axis in contracted)


def _ragged_dot_macs(equation: Any) -> int:
    # Every row meets one group's matrix. With the ragged axis contracted the groups share that axis between them.
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (_, contracted), (_, batch) = numbers.dot_dimension_numbers
    lhs, rhs = (variable.aval.shape for variable in equation.invars[:2])
    not_free = {*contracted, *batch, *numbers.rhs_group_dimensions}
    return math.prod(lhs) * math.prod(size for axis, size in enumerate(rhs) if axis not in not_free)


def _convolution_macs(equation: Any) -> int:
    """Products of a convolution, padding included (as papers count), zeros between dilated inputs left out.

    Along one axis any two of input, kernel tap and output fix the third, so the products are at most outputs x taps /
    input dilation (a forward convolution), inputs x taps (a transposed one, or the gradient to the input of a strided
    one) and, among dilated inputs, inputs x outputs. So forward and both gradients of a convolution agree.
    """
    params = equation.params
    numbers = params["dimension_numbers"]
    lhs, rhs = (variable.aval.shape for variable in equation.invars[:2])
    out = equation.outvars[0].aval.shape
    macs = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * rhs[numbers.rhs_spec[1]]
    axes = zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], params["lhs_dilation"])
    for lhs_axis, rhs_axis, out_axis, dilation in axes:
        inputs, taps, outputs = lhs[lhs_axis], rhs[rhs_axis], out[out_axis]
        products = min(inputs * taps, -(-outputs * taps // dilation))
        macs *= products if dilation == 1 else min(products, inputs * outputs)
    return macs


_LEAVES: dict[str, Callable[[Any], int]] = {
    "dot_general": _dot_general_macs,
    "ragged_dot_general": _ragged_dot_macs,
    "conv_general_dilated": _convolution_macs,
}
