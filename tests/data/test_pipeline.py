"""From a config to batches: mixtures, other transforms for evaluation, and what does not fit a task."""

import contextlib
import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from tests.training import toys
from transformer_zoo.data import pipeline, sources
from transformer_zoo.data.checks import DataError
from transformer_zoo.data.pipeline import checked, open_data
from transformer_zoo.tasks.classification import Classification
from transformer_zoo.training import command, loop
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.reporting import Reporter, read_metrics

DIGITS = {"source": "digits", "options": {}, "transforms": ()}


def jpeg(height, width, level=100):
    file = io.BytesIO()
    PIL.Image.new("RGB", (width, height), (level, 0, 0)).save(file, "jpeg")
    return file.getvalue()


class Folder:
    """Ten encoded pictures of different sizes; number 3 is cut in half."""

    split = "train"

    def __len__(self):
        return 10

    def read(self, indices, seeds):
        pictures = [jpeg(8 + index, 12, 20 * index) for index in indices]
        pictures = [data[: len(data) // 2] if index == 3 else data for data, index in zip(pictures, indices)]
        names = [f"cats/{index}.jpg" for index in indices]
        label = np.asarray(indices, np.int32)
        return {"image": np.array(pictures, object), "label": label, "record": np.array(names, object)}


@pytest.fixture
def folder(monkeypatch):
    """A config of that source."""
    monkeypatch.setattr(sources, "open_source", lambda name, split, options: Folder())
    return {
        "source": "folder",
        "transforms": (("decode", {}), ("random_resized_crop", {"size": 6}), ("normalise", {})),
        "eval_transforms": (("decode", {}), ("centre_crop", {"size": 4}), ("scale", {})),
        "max_corrupt_share": 0.1,
    }


def opened(config, batch_size=4):
    return open_data(config, batch_size=batch_size, eval_batch_size=batch_size, seed=0)


def take(config, count, start=0, batch_size=2):
    with contextlib.closing(opened(config, batch_size).train(start)) as batches:
        return [next(batches) for _ in range(count)]


def flat(batch, prefix=""):
    for name, value in batch.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for one, other in zip(first, second):
        one, other = dict(flat(one)), dict(flat(other))
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


# Mixtures


MIXTURE = {"mixture": {"often": DIGITS | {"weight": 3.0}, "seldom": DIGITS | {"weight": 1.0, "options": {"side": 9}}}}


def test_a_mixture_draws_by_weight_and_resumes(monkeypatch):
    monkeypatch.setattr(pipeline, "_BLOCK", 64)  # the places of members are counted over several blocks
    whole = take(MIXTURE, 200)
    names = [next(iter(batch)) for batch in whole]
    assert 0.65 < names.count("often") / 200 < 0.85
    assert_same(take(MIXTURE, 50, start=150), whole[150:])


def test_a_member_of_a_mixture_gives_its_own_batches_one_after_the_other():
    whole = take(MIXTURE, 30)
    often = [batch["often"] for batch in whole if "often" in batch]
    assert_same(often, take(DIGITS, len(often)))


def test_a_mixture_is_the_same_whatever_the_number_of_workers():
    assert_same(take(MIXTURE | {"workers": 2}, 6, start=3), take(MIXTURE, 6, start=3))


def test_stages_of_a_mixture_are_told_apart():
    data = opened(MIXTURE, 2)
    batches = data.train(0)
    for _ in range(8):
        next(batches)
    assert set(data.timing._stages) == {"often/read", "seldom/read"}


def test_a_mixture_is_judged_member_by_member():
    data = opened(MIXTURE, 2)
    assert next(data.evaluate("seldom/test", 0))["image"].shape == (2, 9, 9, 1)
    with pytest.raises(ValueError, match="did you mean 'seldom/test'"):
        next(data.evaluate("seldoom/test", 0))
    with pytest.raises(ValueError, match=r"data.mixture needs members with weights of at least 0, not all 0"):
        opened({"mixture": {"often": DIGITS | {"weight": 0.0}}})


# Training and evaluation


def test_evaluation_has_transforms_of_its_own_where_they_are_named(folder):
    data = opened(folder)
    trained, judged = next(data.train(0)), next(data.evaluate("test", 0))
    assert trained["image"].shape == (4, 6, 6, 3) and trained["image"].min() < -1.5  # normalised
    assert judged["image"].shape == (4, 4, 4, 3) and judged["image"].min() >= -1  # scaled
    same = next(opened(folder | {"eval_transforms": None}).evaluate("test", 0))
    assert same["image"].shape == (4, 6, 6, 3)


def test_a_corrupt_picture_is_replaced_with_its_label_and_weighs_nothing(folder, caplog):
    first = next(opened(folder).evaluate("test", 0))
    assert list(first["label"]) == [0, 1, 2, 0] and list(first["weight"]) == [1, 1, 1, 0]
    np.testing.assert_array_equal(first["image"][3], first["image"][0])
    assert "cats/3.jpg" in caplog.text
    batches = opened(folder).train(0)
    assert 3 not in np.concatenate([next(batches)["label"] for _ in range(5)])
    with pytest.raises(DataError, match=r"1 of 10 records do not decode \(10 %, but .* is 0.05\): cats/3.jpg: "):
        next(opened(folder | {"max_corrupt_share": 0.05}).evaluate("test", 0))


def test_pictures_of_different_sizes_are_an_error_that_says_what_makes_them_equal(folder):
    with pytest.raises(
        DataError, match=r"'image' has records of different sizes .* \(8, 12, 3\) and \(10, 12, 3\); put"
    ):
        next(opened(folder | {"eval_transforms": (("decode", {}),)}).evaluate("test", 0))


# What does not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transforms": (("flp", {}),)}, r"data.transforms: 'flp' is unknown; did you mean 'flip'"),
        ({"eval_transforms": (("flp", {}),)}, r"data.eval_transforms: 'flp' is unknown; did you mean 'flip'"),
        ({"transforms": (("resize", {"sise": 8}),)}, r"data.transforms.resize.sise: 'sise' is .*; did you mean 'size'"),
        ({"transforms": (("resize", {}),)}, r"data.transforms.resize lacks size"),
        ({"transforms": (("scale", {"low": "0"}),)}, r"data.transforms.scale.low is '0', but must be of type float"),
        ({"workers": -1}, r"data.workers is -1, but must be a whole number of at least 0"),
        ({"max_corrupt_share": 2}, r"data.max_corrupt_share is 2, but must lie between 0 and 1"),
    ],
)
def test_names_and_options_are_checked_when_data_is_opened(changes, message):
    with pytest.raises(ValueError, match=message):
        opened(DIGITS | changes)


def fitting(data, spec):
    return checked(data, spec, lambda batch: None, ["test"]).verify


IMAGES = {"image": jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32), "label": jax.ShapeDtypeStruct((1,), jnp.int32)}


def test_fields_are_compared_with_the_task():
    scaled = DIGITS | {"transforms": (("scale", {}),)}
    fitting(opened(scaled), IMAGES)()
    text = "There are: image float32 [8, 8, 1], label int32 []"
    with pytest.raises(DataError, match=r"a training batch has no field 'labels'; the nearest is 'label'. " + text[:9]):
        fitting(opened(scaled), {"labels": IMAGES["label"]})()
    with pytest.raises(
        DataError, match=r"'image' is uint8 \[8, 8, 1\], but the task takes float32 \[8, 8, 1\]; 'scale'"
    ):
        fitting(opened(DIGITS), IMAGES)()
    wider = {"image": jax.ShapeDtypeStruct((1, 9, 9, 1), jnp.float32)}
    with pytest.raises(DataError) as error:
        fitting(opened(scaled), wider)()
    assert str(error.value).endswith(f"the task takes float32 [9, 9, 1]. {text}")
    judged = scaled | {"eval_transforms": (("resize", {"size": 9}), ("scale", {}))}
    with pytest.raises(DataError, match=r"a batch of 'test': the field 'image' is float32 \[9, 9, 1\]"):
        fitting(opened(judged), IMAGES)()


def test_fields_of_every_member_are_compared():
    spec = {name: {"image": jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.uint8)} for name in ("often", "seldom")}
    with pytest.raises(DataError, match=r"a training batch of 'seldom': the field 'image' is uint8 \[9, 9, 1\]"):
        checked(opened(MIXTURE), spec, lambda batch: None).verify()
    spec["seldom"] = {"image": jax.ShapeDtypeStruct((1, 9, 9, 1), jnp.uint8)}
    checked(opened(MIXTURE), spec, lambda batch: None, ["seldom/test", "often/val"]).verify()
    with pytest.raises(DataError, match=r"a training batch has no field 'never'"):
        checked(opened(MIXTURE), spec | {"never": {}}, lambda batch: None).verify()


class Scores:
    num_classes = 3


def test_a_label_out_of_range_names_the_record(folder):
    task = Classification.__new__(Classification)
    object.__setattr__(task, "network", Scores())
    data = checked(opened(folder), {}, task.check)
    message = r"record cats/\d.jpg has label [4-9], but model.num_classes is 3: labels are 0 to 2"
    with pytest.raises(DataError, match=message):
        list(data.evaluate("test", 0))
    with pytest.raises(DataError, match=message):
        next(data.train(0))
    task.check({"label": np.array([0, 1, 2])})
    with pytest.raises(ValueError, match="row 1 of a batch has label -1"):
        task.check({"label": np.array([0, -1, 2])})


def test_the_loop_refuses_data_that_does_not_fit_before_it_makes_a_workdir(tmp_path):
    data = checked(opened(DIGITS), toys.Regression().spec(), lambda batch: None)
    with pytest.raises(
        UserError, match=r"config: a training batch has no field 'x'; .*There are: image uint8 \[8, 8, 1\]"
    ):
        loop.train(toys.toy_config(), toys.Regression(), {}, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_commands_print_what_is_wrong_with_data_in_one_line(monkeypatch, capsys):
    def fail(arguments):
        raise DataError("2 of 10 records do not decode")

    monkeypatch.setattr(command, "keep_freed_memory", lambda: None)
    with pytest.raises(SystemExit) as error:
        command.main(fail)
    assert error.value.code == 2 and capsys.readouterr().err == "error: data: 2 of 10 records do not decode\n"


# A step that waits


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_starved_step_names_the_stage_that_starves_it(tmp_path, monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)

    def slow(start):
        for number in itertools.count(start):
            if data.timing._finished is not None:
                data.timing._finished.result()  # the step before ends, then the batch is made
            clock.now += 2.0
            data.timing.add_stages({"read": 0.5, "decode": 1.5})
            yield toys.toy_batch(number)

    data = pipeline.Data(slow, toys.toy_data().evaluate)
    loop.train(toys.toy_config(log={"every_steps": 4}), toys.Regression(), {}, data, tmp_path)
    told = [line for line in capsys.readouterr().out.splitlines() if "data" in line]
    assert len(told) == 2 and all("data: 100 % of the time waiting, of which decode 75 %" in line for line in told)
    training = [line for line in read_metrics(tmp_path) if line["split"] == "train"]
    assert [line["data_wait"] for line in training] == [1.0, 1.0]


def test_a_line_tells_the_share_of_waiting_and_a_stage_only_where_it_matters(tmp_path, monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)
    run = Reporter(tmp_path, total_steps=100, batch_size=32)
    for step, seconds in ((10, 0.9), (20, 2.0)):
        clock.now += 10
        run.log_training(step, {"loss": 1.0}, {"read": 0.0, "decode": 0.7 * seconds, "transfer": 0.3 * seconds})
    first, second = capsys.readouterr().out.splitlines()
    assert "examples/s  data 9 %  ETA" in first
    assert "data: 20 % of the time waiting, of which decode 70 %  ETA" in second
    run.finish()
