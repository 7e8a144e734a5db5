"""Judges stories of scenes: clips that go on with another caption (Villegas et al. 2023, arXiv 2210.02399)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from transformer_zoo.data.scenes import clip_checker, grammar
from transformer_zoo.evaluation.samples import to_bytes
from transformer_zoo.task import Batch, Context, Evaluator, Result, Tree, Variables

# The ways an object may go, as words of a caption: turned about word by word, for stories that take a turn.
OPPOSITES = (("left", "right"), ("up", "down"), ("rises", "falls"))


def turned_about(captions: Int[Array, "batch words"]) -> Int[Array, "batch words"]:
    """Captions of easy clips of scenes in which the object goes the other way."""
    table = np.arange(grammar.VOCABULARY_SIZE)
    for one, other in OPPOSITES:
        table[[grammar.IDS[one], grammar.IDS[other]]] = grammar.IDS[other], grammar.IDS[one]
    return jnp.asarray(table)[captions]


@dataclasses.dataclass(frozen=True)
class SceneStories(Evaluator):
    """Clips of two parts, in the second of which the object shall turn about (Phenaki, section 3.3).

    Figures: the share of clips whose object goes as the part's caption says, from first to last place seen, in the
    first part and in the new frames of the second; the share of second parts that go on as if nothing had changed; and
    the share whose object has one colour in both.

    Attributes:
        task: has `story`, (variables, captions of the parts, key) to clips, `condition_of`, `kept_frames` and
            `pixel_range`.
        num_clips: that are shown.
    """

    batches: int = 2
    task: Any = None
    num_clips: int = 4

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        captions = self.task.condition_of(batch)
        parts = self.task.story(variables, (captions, turned_about(captions)), ctx.key)
        new = parts[1][:, self.task.kept_frames - 1 :]  # from the last frame that was kept
        low, high = self.task.pixel_range
        return {"first": to_bytes(parts[0], low, high), "second": to_bytes(new, low, high)}

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        rows = np.flatnonzero(batch["weight"])
        captions = np.asarray(batch["caption"])[rows]
        turned = np.asarray(turned_about(jnp.asarray(captions)))
        sums = {name: np.zeros(2) for name in ("first_direction", "second_direction", "unturned_direction", "identity")}
        for row, before, after in zip(rows, map(grammar.read, captions), map(grammar.read, turned)):
            stays = any(c[0] == grammar.MOTION and tuple(c[2:]) == (1, 1) for c in before)
            if stays:
                continue
            first, second = arrays["first"][row], arrays["second"][row]
            sums["first_direction"] += (clip_checker.score(first, before)["direction"], 1)
            sums["second_direction"] += (clip_checker.score(second, after)["direction"], 1)
            sums["unturned_direction"] += (clip_checker.score(second, before)["direction"], 1)
            colours = [self.colours(clip) for clip in (first, second)]
            sums["identity"] += (bool(colours[0]) and colours[0] == colours[1], 1)
        if state is not None:
            return self.merge(state, {"sums": sums})
        clips = np.concatenate([arrays["first"], arrays["second"][:, 1:]], axis=1)
        shown = rows[: self.num_clips]
        texts = [f"{grammar.decode(one)} -> {grammar.decode(two)}" for one, two in zip(captions, turned)]
        return {"sums": sums, "clips": clips[shown], "texts": texts[: self.num_clips]}

    @staticmethod
    def colours(clip: np.ndarray) -> set[int]:
        """Of the objects that a clip shows often enough."""
        window = clip_checker.stated_windows(np.zeros((0, 4), int), *clip.shape[:2])
        return {track.colour for track in clip_checker.parse(clip, window).tracks}

    def merge(self, first: dict, second: dict) -> dict:
        return first | {"sums": {name: first["sums"][name] + second["sums"][name] for name in first["sums"]}}

    def result(self, state: dict) -> Result:
        metrics = {name: float(total / max(count, 1)) for name, (total, count) in state["sums"].items()}
        return Result(metrics, clips={"stories": state["clips"]}, texts={"captions": state["texts"]})
