"""I3D, the network of FVD (Carreira and Zisserman 2017, arXiv 1705.07750; Unterthiner et al. 2018, arXiv 1812.01717).

Inception-v1 whose kernels also reach over time, trained on Kinetics-400. FVD feeds it clips of 224 pixels in [-1, 1],
resized from their corner (`resize_from_corner`), and takes the Frechet distance of its 400 logits, means over time;
some take the 1024 pooled features in front of them. Weights come in the names of `pytorch_i3d` and
`kinetics_i3d_pytorch`.
"""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo import naming
from transformer_zoo.layers.convolutions_3d import Conv3D, NewClip, Size
from transformer_zoo.layers.resizing import resize_from_corner

Clip = Float[Array, "batch frames height width channels"]

# Channels of a block's branches: 1; 1 and 3; 1 and 3; largest values and 1, where n is a kernel of n x n x n.
MIXED = {
    "mixed_3b": (64, 96, 128, 16, 32, 32),
    "mixed_3c": (128, 128, 192, 32, 96, 64),
    "mixed_4b": (192, 96, 208, 16, 48, 64),
    "mixed_4c": (160, 112, 224, 24, 64, 64),
    "mixed_4d": (128, 128, 256, 24, 64, 64),
    "mixed_4e": (112, 144, 288, 32, 64, 64),
    "mixed_4f": (256, 160, 320, 32, 128, 128),
    "mixed_5b": (256, 160, 320, 32, 128, 128),
    "mixed_5c": (384, 192, 384, 48, 128, 128),
}
POOLS: dict[str, tuple[Size, Size]] = {  # in front of blocks: sides and strides
    "mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "mixed_5b": ((2, 2, 2), (2, 2, 2)),
}
BRANCHES = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")  # units of a block
FEATURES = ("logits", "pooled")
MEANS = (2, 7, 7)  # frames, rows and columns that a pooled feature is the mean of


def units() -> Iterator[str]:
    """Paths of all units, 'mixed_3b/b0'."""
    yield from ("conv3d_1a_7x7", "conv3d_2b_1x1", "conv3d_2c_3x3")
    yield from (f"{block}/{branch}" for block in MIXED for branch in BRANCHES)


def largest(x: Clip, sides: Size, strides: Size) -> NewClip:
    """Largest values of `sides` neighbours, with TensorFlow's padding."""
    return nn.max_pool(x, sides, strides, "SAME")


class Unit(nn.Module):
    """A convolution without bias, batch normalisation with fixed statistics, ReLU."""

    width: int
    kernel_size: Size = (1, 1, 1)
    strides: Size = (1, 1, 1)
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Clip) -> NewClip:
        x = Conv3D(self.width, self.kernel_size, self.strides, use_bias=False, dtype=self.dtype, name="conv")(x)
        return jax.nn.relu(nn.BatchNorm(True, epsilon=1e-3, dtype=self.dtype, name="norm")(x))


class MixedBlock(nn.Module):
    """Four branches side by side, their channels one after another."""

    widths: tuple[int, ...]
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Clip) -> NewClip:
        def unit(name: str, x: Clip) -> Array:
            side = 3 if name in ("b1b", "b2b") else 1
            width = self.widths[BRANCHES.index(name)]
            return Unit(width, (side, side, side), dtype=self.dtype, name=name)(x)

        pooled = largest(x, (3, 3, 3), (1, 1, 1))
        branches = [unit("b0", x), unit("b1b", unit("b1a", x)), unit("b2b", unit("b2a", x)), unit("b3b", pooled)]
        return jnp.concatenate(branches, axis=-1)


class I3D(nn.Module):
    """The network of FVD, for colour.

    Attributes:
        num_classes: 400 of Kinetics.
        resize: pixels a side that it sees; the definition's are 224.
        feature: what a Frechet distance is taken of, 'logits' (FVD's definition) or 'pooled'.
        dtype: of the computation.
    """

    num_classes: int = 400
    resize: int = 224
    feature: str = "logits"
    dtype: Any = None

    over_time = True

    @property
    def extractor(self) -> str:
        """In the names of figures."""
        return f"i3d_{self.feature}{self.num_classes if self.feature == 'logits' else 1024}"

    @nn.compact
    def __call__(
        self, clips: Clip, *, train: bool = False
    ) -> tuple[Float[Array, "batch classes"], dict[str, Float[Array, "batch features"]]]:
        """Logits, and 'pooled' [batch, 1024], both means over time.

        Args:
            clips: in [0, 1], at least nine frames for the published behaviour: fewer, or less than 193 pixels, leave
                less to take means of than `MEANS`, and then all of it is taken. One channel counts as three.
            train: unused.

        Raises:
            ValueError: an unknown `feature`.
        """
        if self.feature not in FEATURES:
            raise naming.unknown("feature of I3D:", self.feature, FEATURES)
        x = jnp.repeat(clips, 3, axis=-1) if clips.shape[-1] == 1 else clips
        x = 2 * resize_from_corner(x, (self.resize, self.resize)) - 1
        x = Unit(64, (7, 7, 7), (2, 2, 2), self.dtype, name="conv3d_1a_7x7")(x)
        x = largest(x, (1, 3, 3), (1, 2, 2))
        x = Unit(64, dtype=self.dtype, name="conv3d_2b_1x1")(x)
        x = Unit(192, (3, 3, 3), dtype=self.dtype, name="conv3d_2c_3x3")(x)
        for name, widths in MIXED.items():
            x = largest(x, *POOLS[name]) if name in POOLS else x
            x = MixedBlock(widths, self.dtype, name=name)(x)
        means = tuple(min(most, side) for most, side in zip(MEANS, x.shape[1:4]))
        x = nn.avg_pool(x.astype(jnp.float32), means)
        pooled = x.mean(axis=(1, 2, 3))
        return nn.Dense(self.num_classes, name="logits")(pooled), {"pooled": pooled}

    def features(self, clips: Clip) -> Float[Array, "batch features"]:
        """What the Frechet distance is taken of."""
        logits, aux = self(clips)
        return logits if self.feature == "logits" else aux["pooled"]
