"""Frechet distances between sets of features, as FID and FVD define them, and the one on scenes as the checker reads.

A distance is worth what its features are: figures carry the extractor, the size of the pictures it saw and the number
of frames in their names, such as `frechet_scene_state16_32px_8f`, so that nobody takes one for an FID or FVD; those are
`fid_inception_v3_pool3_resize299` and `fvd_i3d_logits400_resize224_16f`, on weights by path.
"""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from transformer_zoo.data.pictures import to_uint8
from transformer_zoo.data.scenes import clip_checker
from transformer_zoo.task import Batch, Context, Evaluator, Result, Tree, Variables

EXTRACTOR = "extractor"  # in the frozen variables, the weights of an evaluator's network
Features = Float[np.ndarray, "samples width"]


class Moments(NamedTuple):
    """What a Frechet distance needs of any number of samples; moments of parts add up field by field.

    Attributes:
        samples: how many.
        sums: [width].
        products: [width, width], the sum of x x^T.
    """

    samples: float
    sums: np.ndarray
    products: np.ndarray


def moments(features: Features) -> Moments:
    """In float64."""
    x = np.asarray(features, np.float64)
    return Moments(float(len(x)), x.sum(axis=0), x.T @ x)


def frechet_distance(first: Moments, second: Moments) -> float:
    """|m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017, arXiv 1706.08500, equation 6).

    Covariances are unbiased, as in the published implementations.

    Raises:
        ValueError: fewer than two samples in either.
    """
    means, covariances = [], []
    for one in (first, second):
        if one.samples < 2:
            raise ValueError(f"a Frechet distance needs at least two samples, but a set has {one.samples:g}")
        mean = one.sums / one.samples
        means.append(mean)
        covariances.append((one.products - one.samples * np.outer(mean, mean)) / (one.samples - 1))
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # (C1 C2)^(1/2) has the eigenvalues of (R C2 R)^(1/2), R R = C1, which is symmetric.
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariances[1] @ root), 0)).sum()
    distance = np.square(means[0] - means[1]).sum() + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * shared
    return float(max(distance, 0.0))


@dataclasses.dataclass(frozen=True)
class Frechet(Evaluator):
    """Of what a task gives from the originals of its batches: a tokenizer's reconstructions or a generator's samples.

    A generator has `generate`, `reconstruct`, `pixels` and `pixel_range` (`MaskedTokens`); beside its samples' distance
    stands that of its tokenizer's reconstructions, `ceiling_...`. A tokenizer has `field`, `reconstruct` and `unit`
    (`Tokenization`). `..._between_halves` is the distance of one half of the originals from the other, of which even
    perfect copies of so few samples would fall short.
    """

    batches: int = 4
    task: Any = None

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        task, pixels = self.task, batch[self._field]
        if not hasattr(task, "generate"):
            reconstruction, _ = task.reconstruct(variables, pixels, ctx)
            return {"original": task.unit(pixels), "reconstruction": task.unit(reconstruction)}
        low, high = task.pixel_range
        found = {
            "original": pixels,
            "samples": task.generate(variables, batch, ctx.key),
            "reconstruction": task.reconstruct(variables, batch),
        }
        return {name: (jnp.clip(one, low, high) - low) / (high - low) for name, one in found.items()}

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        kept = batch["weight"] > 0
        found = {name: self.extract(values[kept]) for name, values in arrays.items()}
        halves = found["original"][::2], found["original"][1::2]
        new: dict[str, Any] = {name: moments(_rows(features)) for name, features in found.items()}
        new |= {"even": moments(_rows(halves[0])), "odd": moments(_rows(halves[1]))}
        new["name"] = self.title(batch[self._field].shape[1:])
        return new if state is None else self.merge(state, new)

    def merge(self, first: dict, second: dict) -> dict:
        added = {name: Moments(*(a + b for a, b in zip(first[name], second[name]))) for name in first if name != "name"}
        return added | {"name": first["name"]}

    def result(self, state: dict) -> Result:
        name = state["name"]
        names = (
            {"samples": name, "reconstruction": f"ceiling_{name}"} if "samples" in state else {"reconstruction": name}
        )
        figures = {title: frechet_distance(state["original"], state[kind]) for kind, title in names.items()}
        return Result(figures | {f"{name}_between_halves": frechet_distance(state["even"], state["odd"])})

    @property
    def _field(self) -> str:
        return self.task.pixels if hasattr(self.task, "generate") else self.task.field

    @abc.abstractmethod
    def extract(self, arrays: np.ndarray) -> Float[np.ndarray, "samples *frames width"]:
        """Features of what `compute` gives of each sample."""

    @abc.abstractmethod
    def title(self, shape: tuple[int, ...]) -> str:
        """The figure's name for pictures or clips of a shape: what extracts the features, and what it sees."""


def _rows(features: Float[np.ndarray, "samples *frames width"]) -> Float[np.ndarray, "rows width"]:
    return features.reshape(-1, features.shape[-1])


@dataclasses.dataclass(frozen=True)
class SceneFrechet(Frechet):
    """On the 16 numbers that the checker tells of a clip or a still."""

    def extract(self, arrays: np.ndarray) -> Features:
        return scene_states(to_uint8(arrays, 0.0, 1.0))

    def title(self, shape: tuple[int, ...]) -> str:
        return f"frechet_scene_state16_{shape[-2]}px_{shape[0] if len(shape) == 4 else 1}f"


@dataclasses.dataclass(frozen=True)
class NetworkFrechet(Frechet):
    """On a published network's features: FID on Inception-v3's, FVD on I3D's, by their standard definitions.

    Pictures and clips are rounded to bytes first, as files would be. A network of pictures takes a clip's frames apart.

    Attributes:
        network: has `features`, `extractor`, `resize`, and `over_time`, whether it takes clips.
        weights: its variables.
        frames: of a clip, from its first on; clips of fewer are taken whole, and the figure's name says how many.
    """

    batches: int = 0
    network: Any = None
    weights: Any = dataclasses.field(default=None, compare=False, repr=False)
    frames: int = 16

    def equip(self, variables: Variables) -> Variables:
        return variables.replace(frozen={**variables.frozen, EXTRACTOR: self.weights})

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        return {name: self._features(variables, one) for name, one in super().compute(variables, batch, ctx).items()}

    def _features(self, variables: Variables, pixels: Array) -> Array:
        if pixels.ndim == 4 and self.network.over_time:
            raise ValueError(f"{self.network.extractor} takes clips, but {self._field!r} holds pictures")
        seen = pixels if pixels.ndim == 4 else pixels[:, : self.frames]
        seen = jnp.round(jnp.clip(seen, 0, 1) * 255) / 255
        lead = seen.shape[: -4 if self.network.over_time else -3]
        samples = seen.reshape(-1, *seen.shape[len(lead) :])
        found = self.network.apply(variables.frozen[EXTRACTOR], samples, method="features")
        return found.reshape(*lead, -1)

    def extract(self, arrays: np.ndarray) -> np.ndarray:
        return arrays

    def title(self, shape: tuple[int, ...]) -> str:
        kind = "fvd" if self.network.over_time else "fid"
        frames = f"_{min(shape[0], self.frames)}f" if len(shape) == 4 else ""
        return f"{kind}_{self.network.extractor}_resize{self.network.resize}{frames}"


def scene_states(pictures: UInt8[np.ndarray, "batch *sides 3"]) -> Features:
    """`clip_checker.state` of clips, or of stills as clips of one frame."""
    clips = pictures[:, None] if pictures.ndim == 4 else pictures
    frames, side = clips.shape[1:3]
    window = np.tile([0, 0, side], (frames, 1))  # the camera stays
    return np.stack([clip_checker.state(clip, window) for clip in clips])
