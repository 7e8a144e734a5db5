"""What can be read from reconstructed pictures, beside what is read from the originals and what chance reads."""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from transformer_zoo.data.digits import Digits
from transformer_zoo.data.pictures import to_uint8
from transformer_zoo.data.scenes import checker, clip_checker
from transformer_zoo.evaluation import classifiers
from transformer_zoo.evaluation.samples import Samples
from transformer_zoo.task import Batch, Context, Evaluator, Result, Tree, Variables

Scores = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Reading(Evaluator):
    """Reads a task's reconstructions; the task has `field`, `reconstruct` and `unit` (see `Tokenization`).

    A figure 'x' comes with 'x_of_originals', the ceiling, and with 'x_by_chance', where the truth is another sample's.
    """

    batches: int = 4
    task: Any = None

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        pixels = batch[self.task.field]
        reconstruction, _ = self.task.reconstruct(variables, pixels, ctx)
        return {"original": self.task.unit(pixels), "reconstruction": self.task.unit(reconstruction)}

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        kept = batch["weight"] > 0
        truth = self.truth({name: values[kept] for name, values in batch.items() if isinstance(values, np.ndarray)})
        shown = {name: to_uint8(values[kept], 0.0, 1.0) for name, values in arrays.items()}
        others = {name: np.roll(values, 1, axis=0) for name, values in truth.items()}
        sums: dict[str, np.ndarray] = {}
        for suffix, pictures, fields in (
            ("", shown["reconstruction"], truth),
            ("_of_originals", shown["original"], truth),
            ("_by_chance", shown["reconstruction"], others),
        ):
            for score in self.read(pictures, fields):
                for kind, value in score.items():
                    sums[kind + suffix] = sums.get(kind + suffix, np.zeros(2)) + (value, 1)
        return sums if state is None else self.merge(state, sums)

    def merge(self, first: dict, second: dict) -> dict:
        nothing = np.zeros(2)
        return {kind: first.get(kind, nothing) + second.get(kind, nothing) for kind in {**first, **second}}

    def result(self, state: dict) -> Result:
        return Result({kind: float(total / count) for kind, (total, count) in state.items()})

    @abc.abstractmethod
    def truth(self, batch: Batch) -> dict[str, np.ndarray]:
        """The fields to judge by. Raises ValueError where the batch lacks one."""

    @abc.abstractmethod
    def read(self, pictures: UInt8[np.ndarray, "batch *sides 3"], truth: Mapping[str, np.ndarray]) -> list[Scores]:
        """Scores of every sample, or of every frame."""


@dataclasses.dataclass(frozen=True)
class SceneReading(Reading):
    """What the checker reads from scenes; their source must give the field `program` (and `cam` where it moves)."""

    def truth(self, batch: Batch) -> dict[str, np.ndarray]:
        if "program" not in batch:
            raise ValueError("scenes are judged by the field 'program': add it to data.options.fields")
        return {name: batch[name] for name in ("program", "cam") if name in batch}

    def read(self, pictures: UInt8[np.ndarray, "batch *sides 3"], truth: Mapping[str, np.ndarray]) -> list[Scores]:
        if pictures.ndim == 4:
            parsed = checker.parse_batch(pictures)
            return [checker.judge(one, program, pictures.shape[1]) for one, program in zip(parsed, truth["program"])]
        scores: list[Scores] = []
        for number, (video, program) in enumerate(zip(pictures, truth["program"])):
            scores.append(clip_checker.score(video, program, cam=truth["cam"][number] if "cam" in truth else None))
        return scores


@dataclasses.dataclass(frozen=True)
class DigitReading(Reading):
    """Which digit a classifier sees, frame by frame: `accuracy`. Its source shows one digit a picture (`label`).

    Attributes:
        scale: of the source's digits.
    """

    scale: int = 1

    def truth(self, batch: Batch) -> dict[str, np.ndarray]:
        if "label" not in batch:
            raise ValueError(f"digits are judged by the field 'label'; there are {', '.join(batch)}")
        return {"label": batch["label"]}

    def read(self, pictures: UInt8[np.ndarray, "batch *sides 3"], truth: Mapping[str, np.ndarray]) -> list[Scores]:
        right = digits_read(pictures, self.scale) == truth["label"][:, None]
        return [{"accuracy": float(one)} for one in right.ravel()]


@dataclasses.dataclass(frozen=True)
class DigitSamples(Samples):
    """Generated digits, or clips of one: the share of frames in which a classifier sees the digit asked for.

    Attributes:
        scale: of the source's digits.
    """

    scale: int = 1

    def truth(self, batch: Batch) -> np.ndarray:
        return batch["label"]

    def judge(self, pixels: UInt8[np.ndarray, "batch *sides 3"], truth: np.ndarray) -> list[dict[str, float]]:
        right = digits_read(pixels, self.scale) == truth[:, None]
        return [{"digit": float(share)} for share in right.mean(axis=1)]

    def texts(self, truth: np.ndarray) -> list[str]:
        return [f"a {label}" for label in truth]


def digits_read(pictures: UInt8[np.ndarray, "batch *sides 3"], scale: int = 1) -> Int[np.ndarray, "batch frames"]:
    """The digit that a classifier sees in every `scale`-th pixel of every frame; a picture is one frame."""
    ink = pictures[..., ::scale, ::scale, 0]
    ink = ink.reshape(-1, *ink.shape[-2:])
    return digit_classifier()(centred(ink)).reshape(len(pictures), -1)


WINDOW = 10  # pixels around the middle of a digit's ink


def centred(ink: UInt8[np.ndarray, "frames height width"]) -> Float[np.ndarray, "frames pixels"]:
    """The window around each frame's centre of ink, flat and in [0, 1]; what is all but black does not pull."""
    height, width = ink.shape[1:]
    weight = np.where(ink > 50, ink, 0).astype(np.float64)
    total = np.maximum(weight.sum(axis=(1, 2)), 1e-9)
    rows = np.round((weight.sum(axis=2) * np.arange(height)).sum(axis=1) / total).astype(int)
    columns = np.round((weight.sum(axis=1) * np.arange(width)).sum(axis=1) / total).astype(int)
    half = WINDOW // 2
    padded = np.pad(ink, ((0, 0), (half, half), (half, half)))
    offsets = np.arange(WINDOW)
    number = np.arange(len(ink))[:, None, None]
    found = padded[number, (rows[:, None] + offsets)[:, :, None], (columns[:, None] + offsets)[:, None]]
    return found.reshape(len(ink), -1).astype(np.float64) / 255


@functools.cache
def digit_classifier() -> classifiers.Predict:
    """Logistic regression on centred windows of the training digits, its strength chosen on the validation digits."""

    def records(split: str) -> tuple[Float[np.ndarray, "records pixels"], Int[np.ndarray, " records"]]:
        images, labels = Digits(split).records
        return centred(np.pad(images[..., 0] if images.ndim == 4 else images, ((0, 0), (4, 4), (4, 4)))), labels

    val = records("val")
    return max(classifiers.logistic(records("train")), key=lambda predict: classifiers.accuracy(predict, val))
