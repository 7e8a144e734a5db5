"""Vector quantization: the nearest code of a table, which gradients or moving averages keep."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from transformer_zoo.layers.quantizers.interface import (
    Ids,
    Latents,
    Quantized,
    Weights,
    mean_where,
    squared_error,
    straight_through,
    unit,
)

Codes = Float[Array, "codes width"]
Rows = Float[Array, "rows width"]
ENTROPIES = ("softmax", "argmax")
EPSILON = 1e-5  # in logarithms of shares, as the references have it


def squared_distances(z: Latents, codes: Codes) -> Float[Array, "*places codes"]:
    """|z - c|^2 for every code, by one matrix product."""
    products = jnp.einsum("...d,kd->...k", z, codes, precision="highest")
    return jnp.square(z).sum(-1, keepdims=True) + jnp.square(codes).sum(-1) - 2 * products


def cosines(z: Latents, codes: Codes) -> Float[Array, "*places codes"]:
    """The cosine of the angle to every code."""
    return jnp.einsum("...d,kd->...k", unit(z), unit(codes), precision="highest")


def nearest(affinity: Float[Array, "*places codes"], allowed: Bool[Array, "*#places codes"] | None = None) -> Ids:
    """The code of the greatest affinity, among those allowed at a place; the lowest id of equals."""
    if allowed is not None:
        affinity = jnp.where(allowed, affinity, -jnp.inf)
    return jnp.argmax(affinity, axis=-1).astype(jnp.int32)


def entropy_loss(
    affinity: Float[Array, "*places codes"], weights: Weights | None, temperature: float, kind: str = "softmax"
) -> Float[Array, ""]:
    """Mean entropy of a place's codes minus the entropy of the mean: low where codes are sure and evenly used.

    `kind` 'argmax' counts hard choices, with the gradient of the soft ones (MaskGIT's and MAGVIT's tokenizers).
    """
    logits = affinity / temperature
    shares, logs = jax.nn.softmax(logits), jax.nn.log_softmax(logits)
    if kind == "argmax":
        hard = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
        shares = straight_through(shares, hard)
    mean = jax.vmap(lambda column: mean_where(column, weights), in_axes=-1)(shares)
    return mean_where(-(shares * logs).sum(-1), weights) + (mean * jnp.log(mean + EPSILON)).sum()


class VectorQuantizer(nn.Module):
    """Nearest code by Euclidean distance, trained by gradients (van den Oord et al. 2017, arXiv 1711.00937, eq. 3).

    Attributes:
        num_codes, width: shape of the table.
        commitment_weight: of mean((sg(code) - z)^2).
        codebook_weight: of mean((code - sg(z))^2).
        entropy_weight: of `entropy_loss` over negative distances; 0 leaves it out.
        entropy_temperature, entropy_kind: see `entropy_loss`.
        cosine: latents and codes are first scaled to length one, and so are the values (ViT-VQGAN, arXiv 2110.04627,
            section 3.2; Phenaki).
    """

    num_codes: int
    width: int
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0
    entropy_weight: float = 0.0
    entropy_temperature: float = 0.01
    entropy_kind: str = "softmax"
    cosine: bool = False

    def setup(self) -> None:
        if self.entropy_kind not in ENTROPIES:
            raise ValueError(f"entropy_kind is {self.entropy_kind!r}, but must be one of {', '.join(ENTROPIES)}")
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        self.embedding = self.param("embedding", init, (self.num_codes, self.width), jnp.float32)

    @property
    def codes(self) -> Codes:
        """The table as it is looked up."""
        return unit(self.embedding) if self.cosine else self.embedding

    def __call__(self, z: Latents, weights: Weights | None = None, *, train: bool = False) -> Quantized:
        """Codes for latents [..., width]; no random draws, and the same while training."""
        z = z.astype(jnp.float32)
        z, codes = unit(z) if self.cosine else z, self.codes
        distances = squared_distances(z, codes)
        ids = nearest(-distances)
        values = codes[ids]
        losses = {
            "commitment": self.commitment_weight * squared_error(jax.lax.stop_gradient(values), z, weights),
            "codebook": self.codebook_weight * squared_error(values, jax.lax.stop_gradient(z), weights),
        }
        if self.entropy_weight:
            entropy = entropy_loss(-distances, weights, self.entropy_temperature, self.entropy_kind)
            losses["entropy"] = self.entropy_weight * entropy
        return Quantized(straight_through(z, values), ids, losses)

    def lookup(self, ids: Ids) -> Latents:
        """The codes of ids."""
        return self.codes[ids]


def cell_sums(z: Rows, ids: Int[Array, "rows"], weights: Float[Array, "rows"], num_codes: int) -> tuple[Array, Codes]:
    """Weighted number [codes] and sum [codes, width] of the rows of every code, over the whole (sharded) batch."""
    chosen = jax.nn.one_hot(ids, num_codes) * weights[:, None]
    return chosen.sum(axis=0), jnp.einsum("rk,rd->kd", chosen, z, precision="highest")


def rows_for_dead(
    key: Key[Array, ""], z: Rows, weights: Float[Array, "rows"], dead: Bool[Array, "codes"]
) -> tuple[Codes, Bool[Array, "codes"]]:
    """A random row of the batch for every dead code, and which codes get one; shapes do not depend on how many.

    Rows of weight 0 are never taken, and no row twice before all have been taken once.
    """
    counts = weights > 0
    order = jnp.argsort(jnp.where(counts, jax.random.uniform(key, counts.shape), 2.0))
    rank = jnp.cumsum(dead) - 1
    return z[order[rank % jnp.maximum(counts.sum(), 1)]], dead & counts.any()


class EmaVectorQuantizer(nn.Module):
    """Nearest code by Euclidean distance; a code is the moving average of its latents (1711.00937, appendix A.1).

    A code without any usage so far keeps its vector. The collection 'codebook' holds `embedding` [codes, width],
    `usage` [codes] and `sums` [codes, width].

    Attributes:
        num_codes, width: shape of the table.
        commitment_weight: of mean((sg(code) - z)^2).
        decay: of the averages.
        epsilon: Laplace smoothing of the usage.
        dead_share: a code used less than this share of an even use (latents / codes) is replaced by a random latent of
            the batch; 0 replaces none. Usage starts at 0, so the first batch fills the table.
    """

    num_codes: int
    width: int
    commitment_weight: float = 0.25
    decay: float = 0.99
    epsilon: float = 1e-5
    dead_share: float = 0.0

    def setup(self) -> None:
        shape = (self.num_codes, self.width)
        self.embedding = self.variable("codebook", "embedding", lambda: _random(self, shape))
        self.usage = self.variable("codebook", "usage", jnp.zeros, (self.num_codes,), jnp.float32)
        self.sums = self.variable("codebook", "sums", jnp.zeros, shape, jnp.float32)

    def __call__(
        self,
        z: Latents,
        weights: Weights | None = None,
        *,
        train: bool = False,
        allowed: Bool[Array, "*#places codes"] | None = None,
    ) -> Quantized:
        """Codes for latents [..., width]; `allowed` tells which codes a place may take (all)."""
        z = z.astype(jnp.float32)
        ids = nearest(-squared_distances(z, self.embedding.value), allowed)
        values = self.embedding.value[ids]
        losses = {"commitment": self.commitment_weight * squared_error(values, z, weights)}
        if train and _updates(self):
            self._update(*_rows(z, ids, weights))
        return Quantized(straight_through(z, values), ids, losses)

    def lookup(self, ids: Ids) -> Latents:
        """The codes of ids."""
        return self.embedding.value[ids]

    def _update(self, z: Rows, ids: Int[Array, "rows"], weights: Float[Array, "rows"]) -> None:
        counts, sums = cell_sums(z, ids, weights, self.num_codes)
        usage = self.decay * self.usage.value + (1 - self.decay) * counts
        sums = self.decay * self.sums.value + (1 - self.decay) * sums
        total = usage.sum()
        smoothed = (usage + self.epsilon) / (total + self.num_codes * self.epsilon) * total
        used = (usage > 0)[:, None]
        embedding = jnp.where(used, sums / jnp.where(used, smoothed[:, None], 1.0), self.embedding.value)
        if self.dead_share:
            least = self.dead_share * weights.sum() / self.num_codes
            fresh, dead = rows_for_dead(self.make_rng("dropout"), z, weights, usage < least)
            usage = jnp.where(dead, least, usage)
            embedding = jnp.where(dead[:, None], fresh, embedding)
            sums = jnp.where(dead[:, None], least * fresh, sums)
        self.embedding.value, self.usage.value, self.sums.value = embedding, usage, sums


class CosineQuantizer(nn.Module):
    """The code of the smallest angle; codes move to the mean direction of their latents (4M's tokenizers).

    Lookup scales codes to length one; the values are the rows as they are, a little shorter, because averages of unit
    vectors are not scaled back. An unused code keeps its direction while its length drifts to one. The collection
    'codebook' holds `embedding` [codes, width] and `usage` [codes].

    Attributes:
        num_codes, width: shape of the table.
        commitment_weight: of mean((sg(code) - z)^2), with z as it comes, not scaled.
        decay: of the averages.
        dead_share: see `EmaVectorQuantizer`.
    """

    num_codes: int
    width: int
    commitment_weight: float = 1.0
    decay: float = 0.99
    dead_share: float = 1 / 32

    def setup(self) -> None:
        shape = (self.num_codes, self.width)
        self.embedding = self.variable("codebook", "embedding", lambda: unit(_random(self, shape)))
        self.usage = self.variable("codebook", "usage", jnp.zeros, (self.num_codes,), jnp.float32)

    def __call__(self, z: Latents, weights: Weights | None = None, *, train: bool = False) -> Quantized:
        """Codes for latents [..., width]."""
        z = z.astype(jnp.float32)
        ids = nearest(cosines(z, self.embedding.value))
        values = self.embedding.value[ids]
        losses = {"commitment": self.commitment_weight * squared_error(values, z, weights)}
        if train and _updates(self):
            self._update(*_rows(unit(z), ids, weights))
        return Quantized(straight_through(z, values), ids, losses)

    def lookup(self, ids: Ids) -> Latents:
        """The codes of ids."""
        return self.embedding.value[ids]

    def _update(self, z: Rows, ids: Int[Array, "rows"], weights: Float[Array, "rows"]) -> None:
        counts, sums = cell_sums(z, ids, weights, self.num_codes)
        directions = unit(jnp.where(counts[:, None] > 0, sums, self.embedding.value))
        embedding = self.decay * self.embedding.value + (1 - self.decay) * directions
        usage = self.decay * self.usage.value + (1 - self.decay) * counts
        if self.dead_share:
            least = self.dead_share * weights.sum() / self.num_codes
            fresh, dead = rows_for_dead(self.make_rng("dropout"), z, weights, usage < least)
            usage = jnp.where(dead, least, usage)
            embedding = jnp.where(dead[:, None], fresh, embedding)
        self.embedding.value, self.usage.value = embedding, usage


def _random(module: nn.Module, shape: tuple[int, int]) -> Codes:
    return jax.random.normal(module.make_rng("params"), shape)


def _updates(module: nn.Module) -> bool:
    return module.is_mutable_collection("codebook") and not module.is_initializing()


def _rows(z: Latents, ids: Ids, weights: Weights | None) -> tuple[Any, Any, Any]:
    """Places as rows, cut off from gradients, with a weight each."""
    weights = jnp.ones(ids.shape, jnp.float32) if weights is None else weights
    return jax.lax.stop_gradient(z).reshape(-1, z.shape[-1]), ids.reshape(-1), weights.reshape(-1)
