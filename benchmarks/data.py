"""Examples a second by source and stage, beside what a GPU would eat: python -m benchmarks.data --json.

Sources: those of the package at 32 pixels, stills with depth, normals, instances and captions; a folder of JPEGs of
500x375, the mean size in ImageNet, cut from scikit-learn's two photographs and written to a temporary folder for this
measurement. Stages are those of one thread on a quiet machine; a row that says so is the whole pipeline as `train.py`
runs it, in a thread or in worker processes.
`peer` is the rate at which a training step of ViT-B/16 at 224x224 takes images on an H100 at half its peak:

    989e12 FLOP/s * 0.5 / (3 * 2 * 17.56e9 FLOP)     forward and backward are three forward passes of 2 FLOPs a MAC

computed below from the index, and printed with every run.
"""

import argparse
import collections
import contextlib
import functools
import io
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from benchmarks.step import num_threads
from transformer_zoo import naming, zoo
from transformer_zoo.data import loader, sources, transforms
from transformer_zoo.data.checks import CorruptRecords
from transformer_zoo.training import command
from transformer_zoo.training.devices import peak_flops
from transformer_zoo.training.errors import UserError

GPU, SHARE = "NVIDIA H100 80GB HBM3", 0.5
EATER = "ViT-B/16 training at 50 % of an H100"
BATCHES = 8  # that a rate is the mean of
JPEGS = 256
# Options of the package's own sources.
OPTIONS: dict[str, dict[str, Any]] = {
    "digits": {"side": 32},
    "photographs": {},
    "moving_digits": {"side": 32},
    "scenes:still": {"fields": ("image", "depth", "normal", "inst", "caption")},
    "scenes:clip": {},
}
TRAINING: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "digits": [("scale", {})],
    "photographs": [("scale", {})],
    "moving_digits": [],
    "scenes:still": [("scale", {})],
    "scenes:clip": [],
    "jpegs": [("decode", {}), ("random_resized_crop", {"size": 224}), ("flip", {}), ("normalise", {})],
    "jpegs_heavy": [
        ("decode", {}),
        ("random_resized_crop", {"size": 224}),
        ("flip", {}),
        ("rand_augment", {}),
        ("normalise", {}),
        ("random_erasing", {}),
    ],
}


class Files:
    """The bytes of files, read anew each time.

    Args:
        paths: one a record.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        """`image`, an object array [batch] of bytes."""
        records = np.empty(len(indices), object)
        records[:] = [self._paths[index].read_bytes() for index in indices]
        return {"image": records}


def write_jpegs(folder: Path) -> list[Path]:
    """`JPEGS` crops of 500x375 at random places of two photographs, at quality 90."""
    from sklearn.datasets import load_sample_images

    photographs = [PIL.Image.fromarray(picture) for picture in load_sample_images().images]
    draws, paths = np.random.default_rng(0), []
    for number in range(JPEGS):
        picture = photographs[number % len(photographs)]
        left, top = int(draws.integers(picture.width - 500 + 1)), int(draws.integers(picture.height - 375 + 1))
        data = io.BytesIO()
        picture.crop((left, top, left + 500, top + 375)).save(data, "jpeg", quality=90)
        paths.append(folder / f"{number}.jpg")
        paths[-1].write_bytes(data.getvalue())
    return paths


def eaten() -> tuple[float, str]:
    """Images a second that the GPU would take, and the arithmetic in words."""
    peak, macs = peak_flops(GPU), zoo.sizes("vit")["B16"]["macs"]
    assert peak is not None
    rate = peak * SHARE / (3 * 2 * macs)
    words = f"{peak:.4g} FLOP/s * {SHARE} / (3 * 2 * {macs / 1e9:.2f}e9 FLOP an image) = {rate:,.0f} images/s"
    return rate, words


def stage_rates(read: loader.Read, batch_size: int) -> dict[str, float]:
    """Examples a second of each stage alone, in one thread."""
    read(0)
    seconds: collections.Counter[str] = collections.Counter()
    for number in range(1, BATCHES + 1):
        seconds.update(read(number).seconds)
    return {stage: BATCHES * batch_size / taken for stage, taken in seconds.items()}


def pipeline_rate(read: loader.Read, batch_size: int, workers: int) -> float:
    """Examples a second that arrive, once as many batches are consumed as may have been prepared before."""
    batches = loader.training_batches(read, {"": CorruptRecords(1, 0.0)}, workers=workers)
    ready = loader.PREFETCH if workers == 0 else workers * (loader.WORKER_BUFFER + 1)
    with contextlib.closing(batches):
        collections.deque(itertools.islice(batches, ready + 1), maxlen=0)
        start = time.perf_counter()
        collections.deque(itertools.islice(batches, BATCHES + ready), maxlen=0)
        return (BATCHES + ready) * batch_size / (time.perf_counter() - start)


def rows(names: Sequence[str], workers: Sequence[int], batch_size: int, folder: Path) -> Iterator[dict[str, Any]]:
    """One row a stage, and one a number of workers, for each source; `ratio` is ours over what the GPU would eat."""
    for name in names:
        known = name in OPTIONS
        source = sources.open_source(name, "train", OPTIONS[name]) if known else Files(write_jpegs(folder))
        steps = transforms.chain(TRAINING[name])
        read = functools.partial(loader.read_training, source, steps, batch_size, 0, slice(None))
        rates: dict[str, tuple[float, int]] = {}
        for stage, rate in stage_rates(read, batch_size).items():
            rates[stage] = (rate, 0)
        for count in workers:
            made = f"{count} workers" if count else "a thread"
            rates[f"whole, {made}"] = (pipeline_rate(read, batch_size, count), count)
        for stage, (rate, count) in rates.items():
            yield {
                "name": f"{name} {stage}",
                "ours": rate,
                "peer": eaten()[0],
                "peer_name": EATER,
                "unit": "examples/s",
                "ratio": rate / eaten()[0],
                "device": "cpu",
                "dtype": "float32",
                "batch": batch_size,
                "threads": num_threads(),
                "workers": count,
                "share_of_matmul_rate": None,
            }


def main(arguments: Sequence[str]) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser("python -m benchmarks.data", description="Speed of the data pipeline.")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument(
        "--sources",
        default="digits,photographs,moving_digits,scenes:still,scenes:clip,jpegs",
        help=f"some of {','.join(TRAINING)}",
    )
    parser.add_argument("--workers", default="0,1,2", help="numbers of worker processes; 0 is a thread")
    parser.add_argument("--batch", type=int, default=64)
    flags = parser.parse_args(arguments)
    names = flags.sources.split(",")
    for name in names:
        if name not in TRAINING:
            raise UserError(str(naming.unknown("source", name, TRAINING)))
    workers = [int(count) for count in flags.workers.split(",")]
    print(f"{EATER}: {eaten()[1]}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        found = list(rows(names, workers, flags.batch, Path(folder)))
    if flags.json:
        print(json.dumps(found, indent=1))
        return
    for row in found:
        print(f"{row['name']:28} {row['ours']:12,.0f} {row['unit']}, {row['ratio']:.3g} of {row['peer']:,.0f}")


if __name__ == "__main__":
    command.main(main)
