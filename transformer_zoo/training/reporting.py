"""What a run tells: metrics.jsonl, TensorBoard events, samples to look at, a line or a bar in the terminal.

    WORKDIR/metrics.jsonl                  one strict JSON object a line: step, split, then names to numbers
    WORKDIR/run.json                       title, devices, sizes and training time of the latest start
    WORKDIR/tensorboard/                   the same figures and the pictures as events
    WORKDIR/samples/step_000400_NAME.png   pictures; .gif clips, .wav sounds, .txt texts
    WORKDIR/report.html                    all of it on one page (`report_page`)

Numbers that are not finite are written as null, because JSON has no other word for them.
"""

import contextlib
import errno
import io
import json
import math
import os
import platform
import re
import sys
import time
import wave
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import jax
import numpy as np
from jaxtyping import Float, UInt8

from transformer_zoo.task import Result
from transformer_zoo.training.devices import total_peak_flops
from transformer_zoo.training.errors import UserError

_MIN_TILE, _MIN_PICTURE = 64, 200  # pixels a side that a person can still look at
_GAP = 2  # pixels between the tiles of a grid
_FRAME_MILLISECONDS = 120
_SPEED = ("step_seconds", "examples_per_second", "mfu", "data_wait")
_STARVED = 0.1  # share of the time that devices waited for data, above which the slowest stage is named


class DiskFull(UserError):
    """The disk or a quota has no room left; the run resumes from its last checkpoint once there is some."""


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"disk full while writing {path}: free space and run the same command again to resume"
        raise DiskFull(message) from error


def write_file(path: Path, data: bytes) -> None:
    """Writes all or nothing, so that no reader meets half a file; raises DiskFull."""
    partial = path.with_name(path.name + ".partial")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        os.replace(partial, path)


def append_line(workdir: Path, line: Mapping[str, Any]) -> None:
    """Appends one object to metrics.jsonl; numbers that are not finite become null."""
    path = Path(workdir) / "metrics.jsonl"
    numbers = {key: float(value) if isinstance(value, np.floating) else value for key, value in line.items()}
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in numbers.items()
    }
    with _writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(finite, allow_nan=False) + "\n")


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl in order; none where there is no file. A half-written last line is left out."""
    path = Path(workdir) / "metrics.jsonl"
    if not path.is_file():
        return []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            if number < len(texts):
                raise ValueError(f"{path}:{number} is not a JSON object: {text[:80]!r}") from error
    return lines


def truncate_metrics(workdir: Path, step: int) -> None:
    """Drops the lines beyond `step` and a half-written last one; the file is replaced as a whole or not at all."""
    path = Path(workdir) / "metrics.jsonl"
    if path.is_file():
        kept = [line for line in read_metrics(workdir) if line.get("step", 0) <= step]
        write_file(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


class Reporter:
    """Keeps the record of one run. Processes that are not primary keep the time and write nothing.

    The clock runs from construction on; whatever is no training (evaluation, compilation, a checkpoint) belongs inside
    `pause()`. No method takes device arrays, so none waits for a device.

    Args:
        workdir: the run's folder; created if missing.
        total_steps: where training ends.
        batch_size: examples of one step on all devices together.
        first_step: completed steps of the checkpoint that was resumed from; later lines of metrics.jsonl are dropped.
            A run from step 0 starts an empty file.
        flops_per_step: of one step on all devices together; where it is given and the peak of every device is known,
            lines carry the model FLOPs utilisation `mfu`, a fraction.
        train_seconds: training time before `first_step`, from the checkpoint.
        primary: whether this process writes.
        title: heading of the report.
        wandb_project: if not empty, figures also go to this project of Weights & Biases (extra `wandb`).

    Raises:
        UserError: a project is named, but wandb is not installed.
        DiskFull: from every method that writes.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        total_steps: int,
        batch_size: int,
        first_step: int = 0,
        flops_per_step: float | int | None = None,
        train_seconds: float = 0.0,
        primary: bool = True,
        title: str = "",
        wandb_project: str = "",
    ) -> None:
        self._workdir = Path(workdir)
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._flops_per_step = flops_per_step
        self._primary = primary
        self._peak_flops = total_peak_flops([device.device_kind for device in jax.devices()])
        self._seconds, self._running_since = float(train_seconds), time.perf_counter()
        self._paused = self._finished = False
        self._logged_step, self._logged_seconds = first_step, self._seconds
        self._bar: Any = None
        self._events: Any = None
        self._wandb: Any = None
        if not primary:
            return
        with _writing(self._workdir):
            self._workdir.mkdir(parents=True, exist_ok=True)
        truncate_metrics(self._workdir, first_step if first_step else -1)
        self._run = {
            "title": title,
            "device_kind": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "processes": jax.process_count(),
            "cpus": os.cpu_count(),
            "jax": jax.__version__,
            "python": platform.python_version(),
            "total_steps": total_steps,
            "batch_size": batch_size,
            "flops_per_step": flops_per_step,
            "peak_flops": self._peak_flops,
        }
        self._write_run()
        if wandb_project:
            self._wandb = open_wandb(wandb_project, self._workdir)
        self._open_events(first_step)
        if sys.stderr.isatty():
            import tqdm

            layout = "{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt}{postfix}"
            self._bar = tqdm.tqdm(
                total=total_steps, initial=first_step, bar_format=layout, file=sys.stderr, dynamic_ncols=True
            )

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # A full disk is told once, by the error already on its way.
        with contextlib.suppress(DiskFull) if kind else contextlib.nullcontext():
            self.finish()

    @property
    def train_seconds(self) -> float:
        """Seconds spent training, over all starts of this run and without the pauses."""
        return self._seconds if self._paused else self._seconds + time.perf_counter() - self._running_since

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside does not count as training; pauses may be nested."""
        if self._paused:
            yield
            return
        self._seconds, self._paused = self.train_seconds, True
        try:
            yield
        finally:
            self._running_since, self._paused = time.perf_counter(), False

    def advance(self, step: int) -> None:
        """Moves the bar to `step` completed steps."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def log_training(
        self, step: int, metrics: Mapping[str, SupportsFloat], waited: Mapping[str, float] | None = None
    ) -> None:
        """Writes a line of split 'train', with step time and throughput averaged over the steps since the last one.

        Args:
            step: number of completed steps.
            metrics: figures to log.
            waited: seconds since the last line that devices waited for data, by the stage to blame; the line carries
                their share of the time as `data_wait` and the terminal names the slowest stage where it is large.
        """
        seconds = self.train_seconds
        steps = step - self._logged_step
        step_seconds = (seconds - self._logged_seconds) / steps if steps > 0 else 0.0
        self._logged_step, self._logged_seconds = step, seconds
        values = {name: float(value) for name, value in metrics.items()}
        if step_seconds > 0:
            values |= {"step_seconds": step_seconds, "examples_per_second": self._batch_size / step_seconds}
            if self._flops_per_step and self._peak_flops:
                values["mfu"] = self._flops_per_step / step_seconds / self._peak_flops
            if waited is not None:
                values["data_wait"] = min(1.0, sum(waited.values()) / (step_seconds * steps))
        if not self._primary:
            return
        append_line(self._workdir, {"step": step, "split": "train", **values})
        self._write_scalars(step, {f"train/{name}": value for name, value in values.items()})
        speed = _speed_words(values, waited or {}, self._total_steps - step)
        words = [f"{name} {_number(value)}" for name, value in values.items() if name not in _SPEED]
        if self._bar is None:
            print("  ".join([f"step {step}/{self._total_steps}", *words, *speed]), flush=True)
        else:
            self.advance(step)
            self._bar.set_postfix_str("  ".join([word for word in words if word.startswith("loss ")] + speed))

    def log_evaluation(self, step: int, split: str, metrics: Mapping[str, SupportsFloat]) -> None:
        """Writes a line of this split; names come without the split and are written as 'split/name'."""
        values = {f"{split}/{name}": float(value) for name, value in metrics.items()}
        if not self._primary:
            return
        append_line(self._workdir, {"step": step, "split": split, **values})
        self._write_scalars(step, values)
        told = "  ".join(f"{name} {_number(value)}" for name, value in values.items())
        line = f"step {step}/{self._total_steps}  {told}"
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line)

    def write_result(self, step: int, name: str, result: Result) -> None:
        """Writes an evaluator's pictures, clips, sounds and texts to samples/; its metrics are logged elsewhere."""
        if not self._primary:
            return
        write_samples(self._workdir, step, name, result)
        for key, images in result.images.items():
            self._write_image(step, "/".join(filter(None, [name, key])), image_grid(images))

    def finish(self) -> None:
        """Writes report.html and closes what is open; a second call does nothing."""
        if self._finished:
            return
        self._finished = True
        if self._bar is not None:
            self._bar.close()
        if not self._primary:
            return
        from transformer_zoo.training.report_page import write_report  # which reads with this module

        try:
            self._write_run()
            write_report(self._workdir)
        finally:
            with _writing(self._workdir / "tensorboard"):
                self._events.close()
            if self._wandb is not None:
                self._wandb.finish()

    def _write_run(self) -> None:
        run = self._run | {"train_seconds": self.train_seconds}
        write_file(self._workdir / "run.json", (json.dumps(run, indent=2) + "\n").encode())

    # The event file is written directly: SummaryWriter hands events to a thread through a bounded queue; a full disk
    # would end that thread and leave training waiting at the queue for ever.
    def _open_events(self, first_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = self._workdir / "tensorboard"
        with _writing(folder):
            folder.mkdir(exist_ok=True)
            self._events = EventsWriter(str(folder / "events"), filename_suffix=f".step_{first_step:06d}")
            # Tells TensorBoard to forget what an earlier start wrote beyond the step resumed from.
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(step=first_step + 1, wall_time=time.time(), session_log=start))
            self._events.flush()

    def _write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        self._write_events(step, [scalar(name, value) for name, value in values.items() if math.isfinite(value)])
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def _write_image(self, step: int, name: str, picture: UInt8[np.ndarray, "height width 3"]) -> None:
        from tensorboardX.summary import image

        self._write_events(step, [image(name, picture, dataformats="HWC")])

    def _write_events(self, step: int, summaries: list[Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with _writing(self._workdir / "tensorboard"):
            for summary in summaries:
                self._events.write_event(Event(step=step, wall_time=time.time(), summary=summary))
            self._events.flush()


def open_wandb(project: str, workdir: Path) -> Any:
    """A run of Weights & Biases, named and resumed by its workdir; raises UserError where wandb is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise UserError("config.log.wandb_project is set, but wandb is missing: pip install -e '.[wandb]'") from error
    return wandb.init(project=project, name=workdir.name, id=workdir.name, dir=str(workdir), resume="allow")


def write_samples(workdir: Path, step: int, name: str, result: Result) -> None:
    """Writes what a result has to look at, listen to or read into WORKDIR/samples; raises DiskFull."""
    folder = Path(workdir) / "samples"
    for key, images in result.images.items():
        write_file(folder / _file_name(step, name, key, "png"), _png(image_grid(images)))
    for key, clips in result.clips.items():
        write_file(folder / _file_name(step, name, key, "gif"), _gif(clips))
    for key, (rate, sounds) in result.sounds.items():
        for number, sound in enumerate(sounds):
            part = f"{key}_{number}" if len(sounds) > 1 else key
            write_file(folder / _file_name(step, name, part, "wav"), _wav(rate, sound))
    for key, texts in result.texts.items():
        write_file(folder / _file_name(step, name, key, "txt"), ("\n\n".join(texts) + "\n").encode())


def image_grid(
    images: UInt8[np.ndarray, "count height width 3"] | UInt8[np.ndarray, "height width 3"],
) -> UInt8[np.ndarray, "grid_height grid_width 3"]:
    """Tiles images to a grid that is about square, each pixel repeated until small images are large enough to see."""
    images = images[None] if images.ndim == 3 else images
    count, height, width, _ = images.shape
    columns = min(count, max(1, round(math.sqrt(count * height / width))))
    rows = -(-count // columns)
    scale = max(-(-_MIN_TILE // min(height, width)), -(-_MIN_PICTURE // max(rows * height, columns * width)))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    tiles = np.full((rows * columns, height * scale + _GAP, width * scale + _GAP, 3), 255, np.uint8)
    tiles[:count, :-_GAP, :-_GAP] = images
    tiles = tiles.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2)
    return tiles.reshape(rows * tiles.shape[1], -1, 3)[:-_GAP, :-_GAP]


def _png(picture: UInt8[np.ndarray, "height width 3"]) -> bytes:
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(picture).save(file, "png", optimize=True)
    return file.getvalue()


def _gif(clips: UInt8[np.ndarray, "count frames height width 3"]) -> bytes:
    import PIL.Image

    first, *others = [PIL.Image.fromarray(image_grid(clips[:, frame])) for frame in range(clips.shape[1])]
    file = io.BytesIO()
    first.save(file, "gif", save_all=True, append_images=others, duration=_FRAME_MILLISECONDS, loop=0)
    return file.getvalue()


def _wav(rate: int, sound: Float[np.ndarray, "samples"]) -> bytes:
    samples = np.round(np.clip(np.nan_to_num(sound), -1, 1) * 32767).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(samples.tobytes())
    return file.getvalue()


def _file_name(step: int, name: str, key: str, suffix: str) -> str:
    label = "_".join(filter(None, [name, key])) or "sample"
    return f"step_{step:06d}_{re.sub(r'[^A-Za-z0-9_.-]+', '-', label)}.{suffix}"


def _number(value: float) -> str:
    return f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3g}"


def _data_words(share: float, waited: Mapping[str, float]) -> str:
    if share <= _STARVED:
        return f"data {100 * share:.0f} %"
    slowest = max(waited, key=lambda stage: waited[stage])
    part = 100 * waited[slowest] / sum(waited.values())
    return f"data: {100 * share:.0f} % of the time waiting, of which {slowest} {part:.0f} %"


def _speed_words(values: Mapping[str, float], waited: Mapping[str, float], steps_left: int) -> list[str]:
    if "step_seconds" not in values:
        return []
    words = [f"{1000 * values['step_seconds']:.4g} ms/step", f"{values['examples_per_second']:,.0f} examples/s"]
    if "mfu" in values:
        words.append(f"MFU {100 * values['mfu']:.1f} %")
    if "data_wait" in values:
        words.append(_data_words(values["data_wait"], waited))
    minutes, seconds = divmod(round(values["step_seconds"] * steps_left), 60)
    return [*words, f"ETA {minutes // 60}:{minutes % 60:02d}:{seconds:02d}"]
