"""Judges generators of scenes: captions in, pictures or clips out, read by the exact rules of `data/scenes`.

Beside every figure stand what the tokenizer's own reconstructions of true pictures reach, which no generator on top of
it can pass (`ceiling`), and what the same samples reach with captions of others (`chance`).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from transformer_zoo.data.pictures import captioned
from transformer_zoo.data.scenes import checker, clip_checker, grammar
from transformer_zoo.task import Batch, Context, Evaluator, Result, Tree, Variables

Sums = dict[str, np.ndarray]  # figure to (sum, count)


def to_bytes(pixels: Float[Array, "*shape"], low: float, high: float) -> UInt8[Array, "*shape"]:
    """Pixels between `low` and `high` as uint8."""
    return jnp.clip(jnp.round((pixels - low) / (high - low) * 255), 0, 255).astype(jnp.uint8)


def picture_scores(images: UInt8[np.ndarray, "batch side side 3"], programs: np.ndarray) -> list[dict[str, float]]:
    """`checker.judge` of each picture, with 'coherent': it shows as many whole objects as its caption."""
    scores = []
    for parsed, program in zip(checker.parse_batch(images), programs):
        stated = int((program[:, 0] == grammar.OBJECT).sum())
        found = checker.judge(parsed, program, images.shape[1])
        scores.append(found | {"coherent": float(len(parsed.objects) == stated)} if stated else found)
    return scores


def clip_scores(clips: UInt8[np.ndarray, "batch frames side side 3"], programs: np.ndarray) -> list[dict[str, float]]:
    """`clip_checker.score` of each clip, with 'coherent': every frame shows as many whole objects as its caption."""
    scores = []
    for video, program in zip(clips, programs):
        stated = int((program[:, 0] == grammar.OBJECT).sum())
        window = clip_checker.stated_windows(program, *video.shape[:2])
        frames = clip_checker.parse(video, window).frames
        whole = all(len(frame.objects) == stated for frame in frames)
        scores.append(clip_checker.score(video, program) | {"coherent": float(whole)})
    return scores


@dataclasses.dataclass(frozen=True)
class SceneSamples(Evaluator):
    """Samples for held-out captions: adherence, exactness, coherence and the right share of everything stated.

    Attributes:
        task: has `generate` and `reconstruct`, (variables, batch, key) and (variables, batch) to pixels in
            `pixel_range`, and `calls`, the passes of the network that a sample takes.
        num_pictures: samples that are shown.
    """

    batches: int = 2
    task: Any = None
    num_pictures: int = 16

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        low, high = self.task.pixel_range
        return {
            "samples": to_bytes(self.task.generate(variables, batch, ctx.key), low, high),
            "reconstructions": to_bytes(self.task.reconstruct(variables, batch), low, high),
        }

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        rows = np.flatnonzero(batch["weight"])
        captions = np.asarray(batch["caption"])[rows]
        programs = np.stack([grammar.read(caption) for caption in captions])
        judged = {
            "": (arrays["samples"][rows], programs),
            "ceiling_": (arrays["reconstructions"][rows], programs),
            "chance_": (arrays["samples"][rows], np.roll(programs, 1, axis=0)),
        }
        sums: Sums = {}
        for prefix, (pixels, wanted) in judged.items():
            scores = (picture_scores if pixels.ndim == 4 else clip_scores)(pixels, wanted)
            for score in scores:
                for kind, value in score.items():
                    sums[prefix + kind] = sums.get(prefix + kind, np.zeros(2)) + (value, 1)
        if state is not None:
            return self.merge(state, {"sums": sums})
        shown = slice(0, self.num_pictures)
        return {
            "sums": sums,
            "samples": arrays["samples"][rows][shown],
            "reconstructions": arrays["reconstructions"][rows][shown],
            "captions": [grammar.decode(caption) for caption in captions[shown]],
        }

    def merge(self, first: dict, second: dict) -> dict:
        sums = {
            name: first["sums"].get(name, np.zeros(2)) + second["sums"].get(name, np.zeros(2))
            for name in {*first["sums"], *second["sums"]}
        }
        return first | {"sums": sums}

    def result(self, state: dict) -> Result:
        metrics = {name: float(total / count) for name, (total, count) in sorted(state["sums"].items())}
        metrics |= {"calls": float(self.task.calls)}
        views = {name: state[name] for name in ("samples", "reconstructions")}
        captions = {"captions": state["captions"]}
        if state["samples"].ndim == 5:
            return Result(metrics, clips=views, texts=captions)
        pictures = {name: captioned(view, state["captions"]) for name, view in views.items()}
        return Result(metrics, images=pictures, texts=captions)
