"""Which axes of a parameter are one matrix, and the optimizers that have to know: Muon, Adafactor, LARS.

Stacked blocks, experts and the parts of a fused projection share an array but are matrices of their own, so each is
normalised on its own. Which is which goes by the parameter's path.
"""

import dataclasses
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from transformer_zoo.task import Tree

STACKED = re.compile(r"(^|/)(\w+_)?blocks(/|$)")
MIN_FACTORED = 128  # Adafactor keeps the second moments of matrices with fewer rows or columns in full
TRUST_COEFFICIENT = 0.001  # of LARS: norm of an update over that of its layer's parameters, before the learning rate
_EXPERTS = re.compile(r"^(\w+_)?experts$")
_PROJECTION = re.compile(r"(^|/)(\w+_)?(qkv|kv|q)/(kernel|bias)$")
_ATTENTION_OUT = re.compile(r"attention\w*/out/kernel$")
_MATRIX = re.compile(r"(^|/)(kernel|embedding)$")
_INPUT_OR_OUTPUT = re.compile(r"(^|/)(\w*embed\w*|(\w+_)?heads?(_\w+)?|logits)(/|$)")


@dataclasses.dataclass(frozen=True)
class MatrixAxes:
    """The axes of one array that make up a matrix; all others tell matrices apart.

    Attributes:
        rows: axes that a dense layer sums over; none for what is no matrix.
        columns: axes of its output; all axes of one layer for what is no matrix.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def layer(self) -> tuple[int, ...]:
        """All axes of one matrix or vector."""
        return self.rows + self.columns


def stack_axes(path: str) -> int:
    """How many leading axes count stacked blocks: one for every path component `blocks` or `..._blocks`."""
    return sum(bool(STACKED.search(part)) for part in path.split("/"))


def matrix_axes(path: str, ndim: int) -> MatrixAxes:
    """The matrix axes of the parameter `path` with `ndim` axes.

    After the stack axes, and one more below a component `experts` or `..._experts`, the layouts are
        qkv, kv, q: kernel [width, parts, heads, head_dim] is `parts` matrices [width, heads * head_dim], bias alike;
        attention/out: kernel [heads, head_dim, width] is one matrix [heads * head_dim, width];
        other kernels [*window, in, out] and embeddings [rows, width]: one matrix with the last axis as columns;
        all else is no matrix.
    """
    experts = sum(bool(_EXPERTS.search(part)) for part in path.split("/"))
    axes = tuple(range(stack_axes(path) + experts, ndim))
    if _PROJECTION.search(path) and len(axes) == 4:
        return MatrixAxes(axes[:1], axes[2:])
    if _PROJECTION.search(path) and len(axes) == 3:
        return MatrixAxes((), axes[1:])
    if _ATTENTION_OUT.search(path) and len(axes) == 3:
        return MatrixAxes(axes[:2], axes[2:])
    if _MATRIX.search(path) and len(axes) >= 2:
        return MatrixAxes(axes[:-1], axes[-1:])
    return MatrixAxes((), axes)


def scale_by_muon(
    names: Tree, axes: Tree, momentum: float, rest: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised matrix by matrix with five Newton-Schulz steps (Jordan et al. 2024, Muon).

    Embeddings, heads and what is no matrix go through `rest`. Matrices are scaled by 0.2 sqrt(max(rows, columns)),
    which gives them the root mean square of an Adam update, so that both share learning rate and weight decay (Liu et
    al. 2025, arXiv 2502.16982, section 2.2).

    Args:
        names: the parameters' paths.
        axes: their `MatrixAxes`.
        momentum: decay of the momentum.
        rest: the transformation of all other parameters.
    """

    def scale(label: str, update: jax.Array, axes: MatrixAxes) -> jax.Array:
        rows, columns = (math.prod(update.shape[i] for i in side) for side in (axes.rows, axes.columns))
        return update * (0.2 * max(rows, columns) ** 0.5) if label == "muon" else update

    labels = jax.tree.map(
        lambda name, axes: "muon" if axes.rows and not _INPUT_OR_OUTPUT.search(name) else "rest", names, axes
    )
    # optax hides the parameters of the other group behind MaskedNode, here too.
    numbers = jax.tree.map(
        lambda label, axes: (
            optax.contrib.MuonDimensionNumbers(axes.rows, axes.columns) if label == "muon" else optax.MaskedNode()
        ),
        labels,
        axes,
    )
    muon = optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=numbers)
    return optax.chain(
        optax.partition({"muon": muon, "rest": rest}, labels),
        optax.stateless(lambda updates, _: jax.tree.map(scale, labels, updates, axes)),
    )


class Factors(NamedTuple):
    """Mean squares of a matrix over its columns and over its rows; the axes that were averaged have size 1."""

    rows: jax.Array
    columns: jax.Array


class FactoredState(NamedTuple):
    """The number of updates, and for every parameter either `Factors` or its mean squares in full."""

    step: jax.Array
    moments: Tree


def scale_by_factored_rms(axes: Tree) -> optax.GradientTransformation:
    """Divides by root mean squares, factored for matrices (Shazeer and Stern 2018, arXiv 1804.04235, algorithm 4).

    The decay at update t is 1 - t^-0.8. optax.scale_by_factored_rms is the same but takes the two largest axes of an
    array as the matrix, which mixes stacked blocks.
    """

    def first_moment(param: jax.Array, axes: MatrixAxes) -> Any:
        rows, columns = (math.prod(param.shape[i] for i in side) for side in (axes.rows, axes.columns))
        if not axes.rows or min(rows, columns) < MIN_FACTORED:
            return jnp.zeros_like(param)
        return Factors(jnp.zeros_like(_mean(param, axes.columns)), jnp.zeros_like(_mean(param, axes.rows)))

    def init(params: Tree) -> FactoredState:
        return FactoredState(jnp.zeros([], jnp.int32), jax.tree.map(first_moment, params, axes))

    def update(updates: Tree, state: FactoredState, params: Tree = None) -> tuple[Tree, FactoredState]:
        step = optax.safe_increment(state.step)
        decay = 1 - step.astype(jnp.float32) ** -0.8

        def next_moment(gradient: jax.Array, moment: Any, axes: MatrixAxes) -> Any:
            square = jnp.square(gradient) + 1e-30
            if not isinstance(moment, Factors):
                return decay * moment + (1 - decay) * square
            return Factors(
                decay * moment.rows + (1 - decay) * _mean(square, axes.columns),
                decay * moment.columns + (1 - decay) * _mean(square, axes.rows),
            )

        def scale(gradient: jax.Array, moment: Any, axes: MatrixAxes) -> jax.Array:
            if not isinstance(moment, Factors):
                return gradient * jax.lax.rsqrt(moment)
            rows = moment.rows / _mean(moment.rows, axes.rows)
            return gradient * jax.lax.rsqrt(rows) * jax.lax.rsqrt(moment.columns)

        moments = jax.tree.map(next_moment, updates, state.moments, axes)
        return jax.tree.map(scale, updates, moments, axes), FactoredState(step, moments)

    return optax.GradientTransformation(init, update)


def clip_by_layer_rms(axes: Tree) -> optax.GradientTransformation:
    """Limits the root mean square of every layer's update to 1 (Shazeer and Stern 2018, section 6)."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda u, axes: u / jnp.maximum(1.0, _rms(u, axes)), updates, axes)
    )


def scale_by_layer_rms(axes: Tree) -> optax.GradientTransformation:
    """Multiplies by the root mean square of the layer's parameters, at least 1e-3 (Shazeer and Stern 2018, section 8).

    For what is no matrix a layer is all of it, but for the stack axes.
    """
    return optax.stateless(
        lambda updates, params: jax.tree.map(
            lambda u, p, axes: u * jnp.maximum(1e-3, _rms(p, axes)), updates, params, axes
        )
    )


def scale_by_trust_ratio(names: Tree, axes: Tree) -> optax.GradientTransformation:
    """Multiplies by 0.001 |parameters| / |update| of the layer (You et al. 2017, arXiv 1708.03888, equation 6).

    Where either norm is 0, and for biases and the scales of norms, the factor is 1.
    """

    def scale(name: str, update: jax.Array, param: jax.Array, axes: MatrixAxes) -> jax.Array:
        if name.rsplit("/", 1)[-1] in ("bias", "scale"):
            return update
        norm, update_norm = _rms(param, axes), _rms(update, axes)  # their quotient is that of the norms
        nonzero = (norm > 0) & (update_norm > 0)
        return update * jnp.where(nonzero, TRUST_COEFFICIENT * norm / update_norm, 1.0)

    return optax.stateless(lambda updates, params: jax.tree.map(scale, names, updates, params, axes))


def _mean(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.mean(x, axes, keepdims=True)


def _rms(x: jax.Array, axes: MatrixAxes) -> jax.Array:
    return jnp.sqrt(_mean(jnp.square(x), axes.layer))
