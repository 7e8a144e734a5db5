"""Judges generators of scenes: captions in, pictures or clips out, read by the exact rules of `data/scenes`."""

import dataclasses

import numpy as np
from jaxtyping import UInt8

from transformer_zoo.data.scenes import checker, clip_checker, grammar
from transformer_zoo.evaluation.samples import Samples
from transformer_zoo.task import Batch


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
class SceneSamples(Samples):
    """Samples for captions: adherence, exactness, coherence and the right share of everything stated."""

    def truth(self, batch: Batch) -> np.ndarray:
        return batch["caption"]

    def judge(self, pixels: UInt8[np.ndarray, "batch *sides 3"], truth: np.ndarray) -> list[dict[str, float]]:
        programs = np.stack([grammar.read(caption) for caption in truth])
        return (picture_scores if pixels.ndim == 4 else clip_scores)(pixels, programs)

    def texts(self, truth: np.ndarray) -> list[str]:
        return [grammar.decode(caption) for caption in truth]
