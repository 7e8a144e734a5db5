"""What a run leaves behind, read back: figures, events, samples, the page."""

import base64
import errno
import io
import json
import re
import struct
import subprocess
import sys
import wave

import numpy as np
import PIL.Image
import pytest

from transformer_zoo.task import Result
from transformer_zoo.training import report_page, reporting
from transformer_zoo.training.reporting import (
    DiskFull,
    Reporter,
    append_line,
    image_grid,
    read_metrics,
    truncate_metrics,
)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(reporting.time, "perf_counter", clock)
    return clock


def reporter(workdir, **options):
    return Reporter(workdir, **dict(total_steps=100, batch_size=32) | options)


def lines_of(workdir):
    return [
        json.loads(text, parse_constant=pytest.fail) for text in (workdir / "metrics.jsonl").read_text().splitlines()
    ]


def events_of(workdir):
    """All events of the run, in the framing of TFRecord: length, checksum, bytes, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


# Figures


def test_lines_are_strict_json_and_name_their_split(tmp_path, capsys):
    with reporter(tmp_path / "new" / "run") as run:
        run.log_training(10, {"loss": np.float32(1.5), "grad_norm": float("inf")})
        run.log_evaluation(10, "test", {"accuracy": 0.25, "loss": float("nan")})
    training, evaluation = lines_of(tmp_path / "new" / "run")
    speed = {name: training.pop(name) for name in ("step_seconds", "examples_per_second")}
    assert speed["step_seconds"] > 0
    assert training == {"step": 10, "split": "train", "loss": 1.5, "grad_norm": None}  # no mfu: a CPU has no known peak
    assert evaluation == {"step": 10, "split": "test", "test/accuracy": 0.25, "test/loss": None}
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step 10/100  loss 1.5  grad_norm inf  ") and " ms/step  " in first and "ETA " in first
    assert second == "step 10/100  test/accuracy 0.25  test/loss nan"


def test_speed_is_averaged_over_the_steps_since_the_last_line_without_pauses(tmp_path, clock, capsys):
    run = reporter(tmp_path, first_step=10, train_seconds=50.0)
    clock.now += 4
    with run.pause():
        clock.now += 1000
        with run.pause():
            clock.now += 1000
        clock.now += 1000
        assert run.train_seconds == pytest.approx(54)
    clock.now += 4
    run.log_training(14, {"loss": 1.0})
    clock.now += 1
    run.log_training(16, {"loss": 1.0})
    assert run.train_seconds == pytest.approx(59)
    run.log_training(16, {"loss": 1.0})
    first, second, third = lines_of(tmp_path)
    assert (first["step_seconds"], first["examples_per_second"]) == (pytest.approx(2), pytest.approx(16))
    assert (second["step_seconds"], second["examples_per_second"]) == (pytest.approx(0.5), pytest.approx(64))
    assert "step_seconds" not in third  # no step since: no rate
    assert "500 ms/step  64 examples/s  ETA 0:00:42" in capsys.readouterr().out
    clock.now += 1
    run.finish()
    assert json.loads((tmp_path / "run.json").read_text())["train_seconds"] == pytest.approx(60)


def test_utilisation_is_flops_a_second_over_the_known_peak(tmp_path, clock, monkeypatch, capsys):
    monkeypatch.setattr(reporting, "total_peak_flops", lambda kinds: 4e12)
    with reporter(tmp_path, flops_per_step=3_000_000_000_000) as run:
        clock.now += 10
        run.log_training(5, {"loss": 1.0})
    assert lines_of(tmp_path)[0]["mfu"] == pytest.approx(3e12 / 2 / 4e12)
    assert "MFU 37.5 %" in capsys.readouterr().out


def test_resuming_drops_later_lines_and_a_half_written_one(tmp_path):
    for step in (0, 10, 20, 30):
        append_line(tmp_path, {"step": step, "split": "train", "loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "spl')
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 10, 20, 30]
    with reporter(tmp_path, first_step=20) as run:
        run.log_training(25, {"loss": 0.5})
    assert [line["step"] for line in lines_of(tmp_path)] == [0, 10, 20, 25]
    truncate_metrics(tmp_path, 10)
    assert [line["step"] for line in lines_of(tmp_path)] == [0, 10]
    assert not list(tmp_path.glob("*.partial"))
    reporter(tmp_path).finish()  # a run from step 0 keeps nothing, or its first evaluation would stand there twice
    assert lines_of(tmp_path) == []


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "los\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2 is not a JSON object: '\{\"step\": 2, \"los'"):
        read_metrics(tmp_path)


def test_no_metrics_yet(tmp_path):
    assert read_metrics(tmp_path) == []
    truncate_metrics(tmp_path, 3)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_append_line_takes_numpy_numbers(tmp_path):
    append_line(
        tmp_path, {"step": 7, "split": "summary", "fid": np.float32("nan"), "best": np.float32(0.5), "name": "x"}
    )
    assert lines_of(tmp_path) == [{"step": 7, "split": "summary", "fid": None, "best": 0.5, "name": "x"}]


# A full disk


def test_a_full_disk_says_what_to_do(tmp_path):
    with pytest.raises(DiskFull) as raised, reporter(tmp_path) as run:
        (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
        run.log_training(1, {"loss": 1.0})
    path = tmp_path / "metrics.jsonl"
    assert str(raised.value) == f"disk full while writing {path}: free space and run the same command again to resume"
    assert raised.value.__cause__.errno == errno.ENOSPC


def test_a_full_disk_under_samples_and_events(tmp_path, monkeypatch):
    with reporter(tmp_path) as run:
        (tmp_path / "samples").mkdir()
        (tmp_path / "samples" / "step_000001_notes.txt.partial").symlink_to("/dev/full")
        with pytest.raises(DiskFull, match=r"samples/step_000001_notes\.txt: free"):
            run.write_result(1, "", Result({}, texts={"notes": ["a"]}))
        assert not (tmp_path / "samples" / "step_000001_notes.txt").exists()
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr("tensorboardX.record_writer.open_file", lambda path: full)
        with pytest.raises(DiskFull, match="tensorboard: free"):
            reporter(tmp_path)


def test_other_errors_keep_their_kind(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(IsADirectoryError):
        append_line(tmp_path, {"step": 1})


# Events, terminal, processes


def test_events_carry_figures_and_pictures_and_forget_what_came_after_the_checkpoint(tmp_path):
    with reporter(tmp_path, first_step=20) as run:
        run.log_training(30, {"loss": 0.5, "norm": float("nan")})
        run.log_evaluation(30, "test", {"accuracy": 0.75})
        run.write_result(30, "samples", Result({}, images={"grid": np.full((4, 16, 16, 3), 7, np.uint8)}))
    events = events_of(tmp_path)
    assert events[0].file_version == "brain.Event:2"
    assert events[1].step == 21 and events[1].session_log.status == 1  # START
    values = {value.tag: (event.step, value) for event in events for value in event.summary.value}
    assert values["train/loss"][0] == 30 and values["train/loss"][1].simple_value == 0.5
    assert values["test/accuracy"][1].simple_value == 0.75
    assert "train/norm" not in values
    picture = PIL.Image.open(io.BytesIO(values["samples/grid"][1].image.encoded_image_string))
    assert picture.getpixel((0, 0)) == (7, 7, 7)


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch, capsys, clock):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "160")
    with reporter(tmp_path, first_step=40) as run:
        run.advance(45)
        clock.now += 5
        run.log_training(50, {"loss": 0.5, "other": 2.0})
        run.log_evaluation(50, "test", {"accuracy": 0.75})
    shown = terminal.getvalue()
    assert " 50/100, loss 0.5  500 ms/step  64 examples/s  ETA 0:00:25" in shown and "other" not in shown
    assert capsys.readouterr().out == "step 50/100  test/accuracy 0.75\n"


def test_other_processes_keep_the_time_and_write_nothing(tmp_path, clock, capsys):
    with reporter(tmp_path / "run", primary=False, train_seconds=5.0) as run:
        clock.now += 2
        run.advance(1)
        run.log_training(1, {"loss": 1.0})
        run.log_evaluation(1, "test", {"loss": 1.0})
        run.write_result(1, "", Result({}, texts={"a": ["b"]}))
        assert run.train_seconds == pytest.approx(7)
    assert not (tmp_path / "run").exists() and capsys.readouterr().out == ""


def test_leaving_by_an_error_still_writes_the_page_and_keeps_the_error(tmp_path):
    with pytest.raises(KeyError, match="lost"), reporter(tmp_path) as run:
        run.log_training(1, {"loss": 0.123})
        raise KeyError("lost")
    page = (tmp_path / "report.html").read_text()
    assert "0.123" in page
    run.finish()
    assert (tmp_path / "report.html").read_text() == page


# Samples


@pytest.mark.parametrize(
    ("shape", "columns", "scale"),
    [((10, 8, 8), 3, 8), ((1, 28, 28), 1, 8), ((4, 128, 128), 2, 1), ((6, 32, 64), 2, 2), ((3, 8, 300), 1, 8)],
)
def test_grids_repeat_pixels_until_they_can_be_seen(shape, columns, scale):
    count, height, width = shape
    images = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    grid = image_grid(images)
    rows = -(-count // columns)
    assert grid.shape[:2] == (rows * (height * scale + 2) - 2, columns * (width * scale + 2) - 2)
    assert max(grid.shape) >= 196 and min(height, width) * scale >= 64
    for index, image in enumerate(images):
        top, left = index // columns * (height * scale + 2), index % columns * (width * scale + 2)
        tile = grid[top : top + height * scale, left : left + width * scale]
        np.testing.assert_array_equal(tile, image.repeat(scale, 0).repeat(scale, 1))
    assert (grid[: height * scale, width * scale : width * scale + 2] == 255).all()


def test_results_become_files_a_person_can_open(tmp_path):
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
    clips = np.zeros((2, 3, 16, 16, 3), np.uint8)
    clips[:, 1], clips[:, 2] = 120, 240
    sounds = np.array([[0.0, 0.5, -0.5, 2.0], [np.nan, -1.0, 1.0, 0.0]])
    result = Result(
        {"fid": 1.0},
        images={"best of/4": picture},
        clips={"": clips},
        sounds={"tone": (8000, sounds), "one": (4000, sounds[:1])},
        texts={"captions": ["ein Bär", "two"]},
    )
    with reporter(tmp_path) as run:
        run.write_result(400, "eval", result)
    folder = tmp_path / "samples"
    assert sorted(path.name for path in folder.iterdir()) == [
        "step_000400_eval.gif",
        "step_000400_eval_best-of-4.png",
        "step_000400_eval_captions.txt",
        "step_000400_eval_one.wav",
        "step_000400_eval_tone_0.wav",
        "step_000400_eval_tone_1.wav",
    ]
    with PIL.Image.open(folder / "step_000400_eval_best-of-4.png") as image:
        np.testing.assert_array_equal(np.asarray(image), picture.repeat(5, 0).repeat(5, 1))
    with PIL.Image.open(folder / "step_000400_eval.gif") as gif:
        assert gif.n_frames == 3
        for frame, brightness in enumerate([0, 120, 240]):
            gif.seek(frame)
            assert gif.convert("RGB").getpixel((5, 5)) == (brightness,) * 3
    expected = {"tone_0": [0, 16384, -16384, 32767], "tone_1": [0, -32767, 32767, 0]}
    for name, samples in expected.items():
        with wave.open(str(folder / f"step_000400_eval_{name}.wav")) as sound:
            assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (8000, 1, 2)
            assert np.frombuffer(sound.readframes(9), "<i2").tolist() == samples
    assert (folder / "step_000400_eval_captions.txt").read_text(encoding="utf-8") == "ein Bär\n\ntwo\n"


# The page


def polylines(page):
    """The points of every drawn curve."""
    paths = re.findall(r"d='M([^'H]*)'", page)
    return [[tuple(map(float, point.split(","))) for point in path.split("L")] for path in paths]


def test_the_page_stands_alone_and_shows_what_there_is(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model": {"depth": 6}, "name": "<script>alert(1)</script>"}))
    generator = np.random.default_rng(0)
    with reporter(tmp_path, title="ViT <small> & co", batch_size=77) as run:
        for step in range(0, 101, 20):
            run.log_evaluation(step, "test", {"accuracy": 0.5 + step / 1000})
            image = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            run.write_result(step, "", Result({}, images={"grid": image}, texts={"words": [f"<b>{step}</b>"]}))
            run.log_training(step + 1, {"loss": float("nan") if step == 40 else 1.0, "learning_rate": 0.1})
    append_line(tmp_path, {"step": 100, "split": "summary", "parameters": 987654321})
    page = report_page.write_report(tmp_path).read_text(encoding="utf-8")

    assert not re.search(r"(src|href)=(?!['\"]?(data:|#))|@import|url\(|<script", page)
    assert "<h1>ViT &lt;small&gt; &amp; co</h1>" in page and "&lt;script&gt;alert(1)" in page
    for step, expected in ((0, True), (40, False), (100, True)):  # the first and the latest of every name
        inlined = base64.b64encode((tmp_path / f"samples/step_{step:06d}_grid.png").read_bytes()).decode()
        assert (inlined in page) == expected
        assert (f"&lt;b&gt;{step}&lt;/b&gt;" in page) == expected
    assert re.findall(r"<td>(\w+/\w+)</td>", page) == ["test/accuracy"]  # training figures are not held out
    row = re.search(r"<td>test/accuracy</td>(.*?)</tr>", page)[1]
    assert re.findall(r">([\d.]+)<", row) == ["0.6", "100", "0.5", "0.5", "0.6"]  # final, step, first, lowest, highest
    assert "1 not finite" in page and "step 101 of 100" in page and ">77<" in page and "987" not in page
    assert (
        page.index(">Learning<") < page.index(">loss<") < page.index(">Optimisation<") < page.index(">learning_rate<")
    )
    assert page.index(">Throughput<") < page.index(">seconds per step<") < page.index("config.json")


def test_an_empty_folder_has_a_page(tmp_path):
    assert "no step logged yet" in report_page.write_report(tmp_path).read_text()


def test_long_curves_are_thinned_and_keep_their_extremes(tmp_path):
    generator = np.random.default_rng(0)
    values = generator.normal(size=5000).tolist()
    values[1234], values[4321] = 99.0, -99.0
    series = list(zip(range(5000), values))
    thinned = report_page.downsample(series)
    assert len(thinned) <= 500 and set(thinned) <= set(series) and thinned == sorted(thinned)
    assert {series[0], series[1234], series[4321], series[-1]} <= set(thinned)
    assert report_page.downsample(series[:500]) == series[:500]

    text = "".join(json.dumps({"step": i, "split": "train", "loss": v}) + "\n" for i, v in series)
    (tmp_path / "metrics.jsonl").write_text(text)
    page = report_page.write_report(tmp_path).read_text()
    raw, smooth = polylines(page)
    assert 400 < len(raw) <= 500 and len(smooth) == 100


def test_one_huge_value_does_not_spoil_the_curve_after_it(tmp_path):
    for step in range(1000):
        append_line(tmp_path, {"step": step, "split": "train", "loss": 1e30 if step == 20 else 0.5})
    raw, smooth = polylines(report_page.write_report(tmp_path).read_text())
    assert smooth[50][1] == raw[-1][1] == max(y for _, y in raw)  # y points downwards


@pytest.mark.parametrize(
    ("lowest", "shown"), [(1e-3, {"1", "0.1", "0.01", "0.001"}), (0.1, {"0.2", "0.4", "0.6", "0.8", "1"})]
)
def test_a_loss_over_more_than_two_decades_gets_a_log_scale(tmp_path, lowest, shown):
    for step, value in enumerate(np.geomspace(1, lowest, 20)):
        append_line(tmp_path, {"step": step, "split": "train", "loss": float(value)})
    page = report_page.write_report(tmp_path).read_text()
    assert set(re.findall(r"text-anchor=end>([\d.]+)<", page.split(">loss<")[1])) >= shown


def test_the_page_of_a_run_in_stages(tmp_path, capsys):
    for name, accuracy in (("pretrain", 0.25), ("probe", 0.75)):
        with reporter(tmp_path / name, title=name) as run:
            run.log_training(100, {"loss": 1.0})
            run.log_evaluation(100, "test", {"accuracy": accuracy})
            run.write_result(100, name, Result({}, texts={"words": [f"from {name}"]}))
    stages = [("pretrain", tmp_path / "pretrain"), ("probe", tmp_path / "probe"), ("tune", tmp_path / "tune")]
    path = report_page.write_stages_report(tmp_path, stages)
    page = path.read_text()
    assert path == tmp_path / "report.html"
    summary, first, second, third = page.split("<section class=stage")
    assert re.findall(r"test/accuracy <b>([\d.]+)</b>", summary) == ["0.25", "0.75"]
    assert re.findall(r"href='#(\w+)'>(\w+)<", summary) == [
        ("stage0", "pretrain"),
        ("stage1", "probe"),
        ("stage2", "tune"),
    ]
    assert "id=stage0" in first and "from pretrain" in first and "<svg" in first and "from probe" not in first
    assert "id=stage1" in second and "from probe" in second
    assert "id=stage2" in third and "no step logged yet" in third


def test_heavy_packages_are_imported_when_they_are_needed():
    code = (
        "import sys, transformer_zoo.training.reporting, transformer_zoo.training.report_page\n"
        "import transformer_zoo.training.flops, transformer_zoo.evaluation.sweeps\n"
        "print([name for name in ('matplotlib', 'tensorboardX', 'PIL', 'tqdm') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
