"""Inception-v3 as FID reads it (Szegedy et al. 2015, arXiv 1512.00567; Heusel et al. 2017, arXiv 1706.08500).

The network is the one of TensorFlow's file of 2015-12-05 with 1008 classes, which differs from the one that papers
describe: means of neighbours leave out what lies outside of the map, and the last block takes largest values where the
others take means. Pictures are resized to 299 pixels from their corner (`resize_from_corner`), bytes less 128 by 128.
The features of a Frechet distance are the 2048 means over places behind the last block ('pool3'). Weights come from
pytorch-fid and torch-fidelity, whose names agree.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo.layers.resizing import resize_from_corner

Map = Float[Array, "batch height width channels"]


class Unit(NamedTuple):
    """A convolution without bias, batch normalisation with fixed statistics, ReLU."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


MEAN, LARGEST, LARGEST_HALF = "mean", "largest", "largest_half"  # of 3 x 3 neighbours, the last one by every second
Branch = tuple[Any, ...]  # steps one after another: units, pools, and tuples of units side by side
Block = tuple[Branch, ...]  # branches side by side
half = functools.partial(Unit, kernel=(3, 3), stride=2, padding="VALID")


def block_a(pool: int) -> Block:
    """35 x 35 places (figure 5 of the paper): 224 + `pool` channels."""
    return (
        (Unit("branch1x1", 64),),
        (Unit("branch5x5_1", 48), Unit("branch5x5_2", 64, (5, 5))),
        (Unit("branch3x3dbl_1", 64), Unit("branch3x3dbl_2", 96, (3, 3)), Unit("branch3x3dbl_3", 96, (3, 3))),
        (MEAN, Unit("branch_pool", pool)),
    )


def block_c(inner: int) -> Block:
    """17 x 17 places (figure 6): rows and columns of seven apart."""
    return (
        (Unit("branch1x1", 192),),
        (Unit("branch7x7_1", inner), Unit("branch7x7_2", inner, (1, 7)), Unit("branch7x7_3", 192, (7, 1))),
        (
            Unit("branch7x7dbl_1", inner),
            Unit("branch7x7dbl_2", inner, (7, 1)),
            Unit("branch7x7dbl_3", inner, (1, 7)),
            Unit("branch7x7dbl_4", inner, (7, 1)),
            Unit("branch7x7dbl_5", 192, (1, 7)),
        ),
        (MEAN, Unit("branch_pool", 192)),
    )


def block_e(pool: str) -> Block:
    """8 x 8 places (figure 7): a row of three beside a column of three."""
    return (
        (Unit("branch1x1", 320),),
        (Unit("branch3x3_1", 384), (Unit("branch3x3_2a", 384, (1, 3)), Unit("branch3x3_2b", 384, (3, 1)))),
        (
            Unit("branch3x3dbl_1", 448),
            Unit("branch3x3dbl_2", 384, (3, 3)),
            (Unit("branch3x3dbl_3a", 384, (1, 3)), Unit("branch3x3dbl_3b", 384, (3, 1))),
        ),
        (pool, Unit("branch_pool", 192)),
    )


STEM: tuple[Unit | str, ...] = (
    half("conv2d_1a_3x3", 32),
    Unit("conv2d_2a_3x3", 32, (3, 3), padding="VALID"),
    Unit("conv2d_2b_3x3", 64, (3, 3)),
    LARGEST_HALF,
    Unit("conv2d_3b_1x1", 80),
    Unit("conv2d_4a_3x3", 192, (3, 3), padding="VALID"),
    LARGEST_HALF,
)
BLOCKS: dict[str, Block] = {
    "mixed_5b": block_a(32),
    "mixed_5c": block_a(64),
    "mixed_5d": block_a(64),
    "mixed_6a": (
        (half("branch3x3", 384),),
        (Unit("branch3x3dbl_1", 64), Unit("branch3x3dbl_2", 96, (3, 3)), half("branch3x3dbl_3", 96)),
        (LARGEST_HALF,),
    ),
    "mixed_6b": block_c(128),
    "mixed_6c": block_c(160),
    "mixed_6d": block_c(160),
    "mixed_6e": block_c(192),
    "mixed_7a": (
        (Unit("branch3x3_1", 192), half("branch3x3_2", 320)),
        (
            Unit("branch7x7x3_1", 192),
            Unit("branch7x7x3_2", 192, (1, 7)),
            Unit("branch7x7x3_3", 192, (7, 1)),
            half("branch7x7x3_4", 192),
        ),
        (LARGEST_HALF,),
    ),
    "mixed_7b": block_e(MEAN),
    "mixed_7c": block_e(LARGEST),
}


def units() -> Iterator[str]:
    """Paths of all units, 'mixed_5b/branch1x1'."""

    def below(prefix: str, steps: tuple[Any, ...]) -> Iterator[str]:
        for step in steps:
            if isinstance(step, Unit):
                yield prefix + step.name
            elif isinstance(step, tuple):
                yield from below(prefix, step)

    yield from below("", STEM)
    for name, branches in BLOCKS.items():
        yield from below(f"{name}/", branches)


class ConvolutionUnit(nn.Module):
    """What `Unit` says."""

    unit: Unit
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, "batch rows columns features"]:
        unit = self.unit
        strides = (unit.stride, unit.stride)
        x = nn.Conv(unit.width, unit.kernel, strides, unit.padding, use_bias=False, dtype=self.dtype, name="conv")(x)
        return jax.nn.relu(nn.BatchNorm(True, epsilon=1e-3, dtype=self.dtype, name="norm")(x))


def pool(x: Map, kind: str) -> Float[Array, "batch rows columns channels"]:
    """Means or largest values of 3 x 3 neighbours; over the edge, of those that lie inside."""
    if kind == MEAN:
        return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
    if kind == LARGEST:
        return nn.max_pool(x, (3, 3), padding="SAME")
    return nn.max_pool(x, (3, 3), (2, 2))


class MixedBlock(nn.Module):
    """Branches side by side, their channels one after another."""

    branches: Block
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, "batch rows columns features"]:
        def follow(x: Map, step: Any) -> Array:
            if isinstance(step, Unit):
                return ConvolutionUnit(step, self.dtype, name=step.name)(x)
            if isinstance(step, str):
                return pool(x, step)
            return jnp.concatenate([follow(x, one) for one in step], axis=-1)

        return jnp.concatenate([functools.reduce(follow, branch, x) for branch in self.branches], axis=-1)


class InceptionV3(nn.Module):
    """The network of FID.

    Attributes:
        num_classes: of its head, which FID does not read.
        resize: pixels a side that it sees; the definition's are 299, and fewer than 75 leave nothing.
        dtype: of the computation.
    """

    num_classes: int = 1008
    resize: int = 299
    dtype: Any = None

    extractor = "inception_v3_pool3"  # in the names of figures
    over_time = False

    @nn.compact
    def __call__(
        self, images: Map, *, train: bool = False
    ) -> tuple[Float[Array, "batch classes"], dict[str, Float[Array, "batch features"]]]:
        """Logits, and 'pooled', the features of FID [batch, 2048].

        Args:
            images: in [0, 1]; one channel counts as three.
            train: unused.
        """
        x = jnp.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
        x = (resize_from_corner(255 * x, (self.resize, self.resize)) - 128) / 128
        for step in STEM:
            x = pool(x, step) if isinstance(step, str) else ConvolutionUnit(step, self.dtype, name=step.name)(x)
        for name, branches in BLOCKS.items():
            x = MixedBlock(branches, self.dtype, name=name)(x)
        pooled = x.astype(jnp.float32).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, name="head")(pooled), {"pooled": pooled}

    def features(self, images: Map) -> Float[Array, "batch features"]:
        """What the Frechet distance is taken of."""
        return self(images)[1]["pooled"]
