"""Quantization in a pyramid of layers by a fixed table: streaming averages (SPAE, Yu et al. 2023, arXiv 2306.17842)."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transformer_zoo.layers.quantizers.interface import Quantized, straight_through
from transformer_zoo.layers.quantizers.vector import nearest, squared_distances

Latents = Float[Array, "batch side side width"]
Ids = Int[Array, "batch tokens"]


def sampled_positions(grid: int, side: int) -> Int[np.ndarray, " grid"]:
    """Rows (and columns) of a side x side map that a layer of grid x grid tokens takes, spread evenly."""
    step = side // grid
    return step * np.arange(grid) + step // 2


class PyramidQuantizer(nn.Module):
    """Every layer puts one more code on some places; a place's value is the MEAN of its codes so far.

    With n codes behind it a place looks up (n + 1) z minus their sum, which is the code that brings the mean nearest to
    z. So every code stays on the scale of z and means what its vector means, where residual quantization looks up what
    is left over, and adds (`residual`). The table, `embedding` [codes, width] in the collection 'vocabulary', is never
    trained.

    Attributes:
        layers: grid of each, coarse to fine; the last one covers the whole map.
        vectors: gives the table, [codes, width].
        num_codes, width: its shape.
        commitment_weight: of the sum over layers of mean((z - sg(value so far))^2).
        residual: quantizes what is left over.
    """

    layers: tuple[int, ...]
    vectors: Callable[[], np.ndarray]
    num_codes: int
    width: int
    commitment_weight: float = 0.33
    residual: bool = False

    def setup(self) -> None:
        self.embedding = self.variable("vocabulary", "embedding", lambda: jnp.asarray(self.vectors(), jnp.float32))

    def __call__(self, z: Latents, *, train: bool = False) -> Quantized:
        """Codes for latents; ids are those of the layers one after the other, each row by row."""
        return self.quantize(z)[0]

    def quantize(self, z: Latents) -> tuple[Quantized, list[Array]]:
        """Codes, and what each layer looked up: [batch, grid, grid, width]."""
        z = z.astype(jnp.float32)
        codes = self.embedding.value
        total, count = jnp.zeros_like(z), np.zeros(z.shape[1:3])
        asked, ids = [], []
        commitment = jnp.zeros(())
        for grid in self.layers:
            places = np.ix_(sampled_positions(grid, z.shape[1]), sampled_positions(grid, z.shape[1]))
            behind = count[places][..., None]
            here, sums = z[:, *places], total[:, *places]
            target = here - sums if self.residual else (behind + 1) * here - sums
            chosen = nearest(-squared_distances(target, codes))
            asked.append(target)
            ids.append(chosen.reshape(len(z), -1))
            total = total.at[:, *places].add(jax.lax.stop_gradient(codes[chosen]))
            count[places] += 1
            value = self._value(total, count, grid)
            commitment += jnp.square(z - value).mean()
        losses = {"commitment": self.commitment_weight * commitment}
        return Quantized(straight_through(z, value), jnp.concatenate(ids, axis=1), losses), asked

    def lookup(self, ids: Ids, side: int) -> Latents:
        """The values of ids, of all layers or of the first ones."""
        total, count = jnp.zeros((len(ids), side, side, self.width)), np.zeros((side, side))
        first = 0
        for grid in self.layers:
            if first == ids.shape[1]:
                break
            places = np.ix_(sampled_positions(grid, side), sampled_positions(grid, side))
            chosen = ids[:, first : first + grid**2].reshape(-1, grid, grid)
            total = total.at[:, *places].add(self.embedding.value[chosen])
            count[places] += 1
            last, first = grid, first + grid**2
        return self._value(total, count, last)

    def _value(self, total: Latents, count: Float[np.ndarray, "side side"], grid: int) -> Latents:
        """Means (sums, of residuals); a place without any code has that of the nearest one in the latest layer."""
        value = total if self.residual else total / np.maximum(count, 1)[..., None]
        positions = sampled_positions(grid, total.shape[1])
        near = positions[np.abs(positions[None] - np.arange(total.shape[1])[:, None]).argmin(axis=1)]
        return jnp.where((count > 0)[..., None], value, value[:, *np.ix_(near, near)])


def num_tokens(layers: Sequence[int]) -> int:
    """Of all layers together."""
    return sum(grid**2 for grid in layers)
