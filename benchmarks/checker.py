"""What the judge of scenes can tell, the ceiling of every claim that it judges: python -m benchmarks.checker [--json].

Pictures and clips of the test split, as generated and made worse in five ways, are scored by their own captions
(`ours`) and by the captions of others (`peer`: chance). Of stills, `whole_objects` is the share of objects nothing
hides that are read right. The rows of `speed` are samples a second on one core.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from transformer_zoo.data.scenes import checker, clip, clip_checker, shapes, slots, still
from transformer_zoo.training import command

STILLS, CLIPS = 500, 60  # samples a row
SIDES = (32, 64)
SPEED_BATCH = 256
Damage = Callable[[np.ndarray], np.ndarray]


def noisy(sigma: float) -> Damage:
    """Adds Gaussian noise of a standard deviation in units of the whole range."""

    def damage(images: np.ndarray) -> np.ndarray:
        return to_bytes(images + np.random.default_rng(0).normal(0, 255 * sigma, images.shape))

    return damage


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def blurred(images: np.ndarray) -> np.ndarray:
    spread = (*[0] * (images.ndim - 3), 0.7, 0.7, 0)
    return to_bytes(ndimage.gaussian_filter(images.astype(float), spread))


def boxed(images: np.ndarray) -> np.ndarray:
    size = (*[1] * (images.ndim - 3), 3, 3, 1)
    return to_bytes(ndimage.uniform_filter(images.astype(float), size))


DAMAGES: dict[str, Damage] = {
    "as generated": lambda images: images,
    "noise 0.05": noisy(0.05),
    "noise 0.1": noisy(0.1),
    "blur 0.7": blurred,
    "box 3x3": boxed,
}


def row(name: str, ours: float, peer: float, peer_name: str, unit: str, batch: int, **extra: Any) -> dict[str, Any]:
    """One row of the table that all benchmarks share."""
    compared = {"name": name, "ours": ours, "peer": peer, "peer_name": peer_name, "unit": unit, "ratio": ours / peer}
    fixed = {"device": "cpu", "dtype": "uint8", "batch": batch, "threads": 1, "share_of_matmul_rate": None}
    return compared | fixed | extra


def stills(side: int, count: int) -> still.Fields:
    return still.Fields(still.draw(slots.scene_seeds(0, "still", "test", np.arange(count)), "test", side))


def clips(side: int, count: int, easy: bool) -> clip.Fields:
    seeds = slots.scene_seeds(0, "clip", "test", np.arange(count))
    return clip.Fields(clip.draw(seeds, "test", side, 8, easy, "always" if easy else ""))


def whole_objects(found: still.Fields, parsed: Sequence[checker.Parsed], side: int) -> dict[str, float]:
    """Right shares of objects nothing hides, each compared with what of its colour is read within side / 16 of it."""
    area = np.append(np.diff(shapes.atlas(side).first), -2)[found.sprite]
    right: dict[str, list[bool]] = {"colour": [], "shape": [], "size": [], "all": []}
    for k, number in zip(*np.nonzero(found.obj[..., 5] == area)):
        shape, colour, size, *centre = map(int, found.obj[k, number, :5])
        near = [one for one in parsed[k].objects if np.abs(np.subtract(one[3:5], centre)).max() <= side // 16]
        kinds = [(one.shape, one.size) for one in near if one.colour == colour]
        right["colour"].append(bool(kinds))
        right["shape"].append(shape in [one for one, _ in kinds])
        right["size"].append(size in [one for _, one in kinds])
        right["all"].append((shape, size) in kinds)
    return {kind: float(np.mean(values)) for kind, values in right.items()}


def accuracy_rows(still_count: int, clip_count: int) -> list[dict[str, Any]]:
    """Adherence of pictures and clips to their captions and to those of others."""
    rows = []
    for side in SIDES:
        found = stills(side, still_count)
        others = np.roll(found.program, 1, axis=0)
        for name, damage in DAMAGES.items():
            parsed = checker.parse_batch(damage(found.image))
            right, chance = (
                checker.mean_scores(checker.judge(one, program, side) for one, program in zip(parsed, programs))
                for programs in (found.program, others)
            )
            extra = {"scores": right, "chance": chance, "whole_objects": whole_objects(found, parsed, side)}
            compared = right["adherence"], chance["adherence"], "captions of others", "adherence"
            rows.append(row(f"still {side}, {name}", *compared, still_count, **extra))
        for kind in ("full", "easy"):
            shown = clips(side, clip_count, kind == "easy")
            truth = {name: getattr(shown, name) for name in ("program", "cam", "action")}
            wrong = {name: np.roll(field, 1, axis=0) for name, field in truth.items()}
            for name, damage in DAMAGES.items():
                video = damage(shown.video)
                right, chance = (clip_checker.evaluate(video, given) for given in (truth, wrong))
                compared = right["adherence"], chance["adherence"], "captions of others", "adherence"
                extra = {"scores": right, "chance": chance}
                rows.append(row(f"clip {side} {kind}, {name}", *compared, clip_count, **extra))
    return rows


def speed_rows(seconds: float) -> list[dict[str, Any]]:
    """Samples a second drawn at side 32, and judged; the best of the batches that fit into `seconds`."""

    def draw_stills(number: int) -> None:
        seeds = slots.scene_seeds(0, "still", "train", np.arange(SPEED_BATCH) + number * SPEED_BATCH)
        found = still.Fields(still.draw(seeds, "train", 32))
        for name in ("image", "depth", "normal", "inst", "caption"):
            getattr(found, name)

    def draw_clips(number: int) -> None:
        seeds = slots.scene_seeds(0, "clip", "train", np.arange(SPEED_BATCH) + number * SPEED_BATCH)
        found = clip.Fields(clip.draw(seeds, "train", 32, 8))
        for name in ("video", "caption"):
            getattr(found, name)

    shown, video = stills(32, SPEED_BATCH), clips(32, 8, False)

    def judge_stills(number: int) -> None:
        checker.evaluate(shown.image, shown.program)

    def judge_clips(number: int) -> None:
        clip_checker.evaluate(video.video, {"program": video.program})

    wanted = (
        ("speed: stills drawn, with depth, normals, instances, caption", draw_stills, SPEED_BATCH, 5000, "stills/s"),
        ("speed: clips of eight frames drawn, with caption", draw_clips, SPEED_BATCH, 300, "clips/s"),
        ("speed: stills judged", judge_stills, SPEED_BATCH, 500, "stills/s"),
        ("speed: clips of eight frames judged", judge_clips, 8, 60, "clips/s"),
    )
    rows = []
    for name, work, batch, target, unit in wanted:
        work(0)
        times, number, began = [], 0, time.perf_counter()
        while not times or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            work(number := number + 1)
            times.append(time.perf_counter() - start)
        rows.append(row(name, batch / min(times), target, "wanted", unit, batch))
    return rows


def main(arguments: Sequence[str]) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser("python -m benchmarks.checker", description="What the judge of scenes can tell.")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--stills", type=int, default=STILLS, help="pictures a row")
    parser.add_argument("--clips", type=int, default=CLIPS, help="clips a row")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each speed")
    flags = parser.parse_args(arguments)
    found = accuracy_rows(flags.stills, flags.clips) + speed_rows(flags.seconds)
    if flags.json:
        print(json.dumps(found, indent=1))
        return
    for one in found:
        print(f"{one['name']:64} {one['ours']:9.3f} {one['unit']}, {one['peer_name']} {one['peer']:.3f}")
        for kind in ("whole_objects", "scores", "chance"):
            if kind in one:
                print(f"    {kind:14}", " ".join(f"{name} {value:.3f}" for name, value in one[kind].items()))


if __name__ == "__main__":
    command.main(main)
