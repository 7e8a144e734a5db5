"""Batches: a function of (seed, batch number) alone, every record once an epoch, exact weights at the end."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from transformer_zoo.data import digits, draws, loader
from transformer_zoo.data.checks import CORRUPT, CorruptRecords, DataError
from transformer_zoo.data.timing import Timing


class Numbers:
    """A source whose records are their own indices, as numbers and as text."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def read(self, indices, seeds):
        names = np.array([f"number {index}" for index in indices], object)
        return {"index": np.asarray(indices), "draw": draws.uniforms(seeds, 0), "record": names}


def broken(bad):
    """A transform that finds the records `bad` corrupt and puts the first good one of the batch in their place."""

    def step(batch, seeds):
        wrong = np.isin(batch["index"], bad)
        texts = [f"{name}: bytes are missing" if flag else "" for name, flag in zip(batch["record"], wrong)]
        rows = np.where(wrong, np.argmin(wrong), np.arange(len(wrong)))
        return {name: values[rows] for name, values in batch.items()} | {CORRUPT: np.array(texts, object)}

    return [("break", step)]


def training(seed=0, length=10, batch_size=4, steps=(), limit=0.0, **options):
    source = Numbers(length)
    read = functools.partial(loader.read_training, source, steps, batch_size, seed, loader.process_part(batch_size))
    return loader.training_batches(read, {"": CorruptRecords(length, limit)}, **options)


def take(count, **options):
    batches = training(**options)
    return [next(batches) for _ in range(count)]


def evaluation(length=10, batch_size=4, count=3, steps=(), limit=0.0, **options):
    source = Numbers(length)
    read = functools.partial(loader.read_evaluation, source, steps, batch_size, "test", slice(None))
    return list(loader.evaluation_batches(read, CorruptRecords(length, limit), count, **options))


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_an_epoch_holds_every_record_once_in_an_order_of_its_own():
    indices = np.concatenate([batch["index"] for batch in take(5)])
    first, second = indices[:10], indices[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second) and list(first) != list(range(10))


def test_batches_from_number_n_on_are_those_of_a_run_that_consumed_n():
    assert_same(take(8, seed=3)[5:], take(3, seed=3, start=5))


def test_random_choices_do_not_depend_on_the_batch_size():
    small = np.concatenate([batch["draw"] for batch in take(6, seed=1, batch_size=2)])
    large = np.concatenate([batch["draw"] for batch in take(3, seed=1, batch_size=4)])
    np.testing.assert_array_equal(small, large)


def test_another_seed_gives_another_order():
    assert not np.array_equal(take(1, seed=0)[0]["index"], take(1, seed=1)[0]["index"])


def test_processes_read_disjoint_parts_that_make_up_the_batch(monkeypatch):
    whole = take(2, seed=5)
    parts = []
    monkeypatch.setattr(loader.jax, "process_count", lambda: 2)
    for index in range(2):
        monkeypatch.setattr(loader.jax, "process_index", lambda index=index: index)
        parts.append(take(2, seed=5))
    for number in range(2):
        for field in ("index", "draw"):
            joined = np.concatenate([part[number][field] for part in parts])
            np.testing.assert_array_equal(joined, whole[number][field])


def test_the_last_evaluation_batch_is_padded_with_weight_0():
    batches = evaluation()
    assert [batch["weight"].sum() for batch in batches] == [4, 4, 2]
    real = np.concatenate([batch["index"][batch["weight"] > 0] for batch in batches])
    np.testing.assert_array_equal(real, np.arange(10))
    assert_same(evaluation(workers=3), batches)  # threads here, one by one there


# Worker processes


def test_workers_make_the_same_batches_and_tell_what_they_cost():
    expected = take(5, seed=2, start=7, length=100)
    for workers in (1, 2):
        timing = Timing()
        batches = training(seed=2, start=7, length=100, workers=workers, timing=timing)
        first = [next(batches) for _ in range(workers)]  # now each of them has started
        for worker in multiprocessing.active_children():  # what a scheduler sends to a whole job
            os.kill(worker.pid, signal.SIGTERM)
            os.kill(worker.pid, signal.SIGINT)
        assert_same([*first, *(next(batches) for _ in range(5 - workers))], expected)
        assert set(timing._stages) == {"read"} and timing._stages["read"] > 0
        batches.close()
    assert not multiprocessing.active_children()


def test_an_error_in_a_worker_is_raised_as_it_was():
    batches = training(steps=broken([4]), workers=1)
    with pytest.raises(DataError, match="number 4: bytes are missing"):
        for _ in range(3):
            next(batches)
    batches = training(steps=[("never", uneven)], workers=1)
    with pytest.raises(DataError, match=r"the field 'image' has records of different sizes .* \(1, 1, 3\) and"):
        next(batches)


ORPHANING = """
import functools, os
from transformer_zoo.data import loader, digits
from transformer_zoo.data.checks import CorruptRecords
if __name__ == "__main__":
    read = functools.partial(loader.read_training, digits.Digits("train"), [], 4, 0, slice(None))
    batches = loader.training_batches(read, {"": CorruptRecords(10, 0.0)}, workers=1)
    next(batches)
    import multiprocessing
    print(multiprocessing.active_children()[0].pid, flush=True)
    next(iter(int, 1))
"""


def test_workers_do_not_outlive_a_parent_that_was_killed(tmp_path):
    script = tmp_path / "orphaning.py"
    script.write_text(ORPHANING)
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    worker = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        with open(f"/proc/{worker}/stat") as stat:
            if stat.read().rpartition(")")[2].split()[0] == "Z":
                return
        time.sleep(0.1)
    raise AssertionError("the worker still runs")


# Records that are no arrays


def uneven(batch, seeds):
    images = np.empty(len(seeds), object)
    images[:] = [np.zeros((1 + row, 1, 3), np.uint8) for row in range(len(seeds))]
    return batch | {"image": images}


def encoded(batch, seeds):
    return batch | {"image": np.array([b"png"] * len(seeds), object)}


def test_records_that_are_no_arrays_after_the_last_transform_are_an_error():
    with pytest.raises(DataError, match=r"'image' has records of different sizes .*; put one of resize, random_"):
        take(1, steps=[("uneven", uneven)])
    with pytest.raises(DataError, match=r"'image' is still encoded after data.transforms; put 'decode' there"):
        take(1, steps=[("encoded", encoded)])


def refused(batch, seeds):
    raise ValueError("label 7 of number 3 is too large")


def test_what_a_source_or_a_transform_refuses_is_the_datas_fault():
    with pytest.raises(DataError, match="label 7 of number 3 is too large"):
        take(1, steps=[("refused", refused)])


def test_text_stays_on_the_host():
    batches = [{"member": {"index": np.arange(4), "record": np.array(["a"] * 4, object)}}, {"text": np.array(["b"])}]
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    (host, placed), (_, empty) = loader.to_device(batches, lambda _: device)
    assert list(host["member"]) == ["index", "record"] and list(placed["member"]) == ["index"] and empty == {}


def test_batches_are_on_the_device_two_steps_ahead():
    taken = []
    numbers = (taken.append(number) or {"x": np.full(1, number)} for number in range(5))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    batches = loader.to_device(numbers, lambda _: device)
    assert int(next(batches)[1]["x"][0]) == 0 and taken == [0, 1]
    assert [int(batch["x"][0]) for _, batch in batches] == [1, 2, 3, 4]


# Corrupt records


def test_corrupt_records_within_the_limit_are_named_once_and_weigh_nothing_in_evaluation(caplog):
    batches = evaluation(steps=broken([1, 6]), limit=0.2)
    assert [list(batch["weight"]) for batch in batches] == [[1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 0, 0]]
    assert all(CORRUPT not in batch for batch in batches)
    caplog.clear()
    trained = take(10, steps=broken([1, 6]), limit=0.2)  # four epochs
    assert CORRUPT not in trained[0] and not {1, 6} & set(np.concatenate([batch["index"] for batch in trained]))
    messages = [entry.getMessage() for entry in caplog.records]
    assert len(messages) == 2 and any("number 6: bytes are missing" in message for message in messages)


def test_more_corrupt_records_than_the_limit_are_an_error_with_their_names_and_share():
    message = r"2 of 10 records do not decode \(20 %, but data.max_corrupt_share is 0.15\): number 1: .*; number 6: "
    with pytest.raises(DataError, match=message):
        evaluation(steps=broken([1, 6]), limit=0.15)
    with pytest.raises(DataError, match=message):
        take(10, steps=broken([1, 6]), limit=0.15)


# Time


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("transformer_zoo.data.timing.time.perf_counter", clock)
    return clock


class Step:
    """What a step returns, as far as waiting goes: ready when told."""

    def __init__(self):
        self.event = threading.Event()

    def block_until_ready(self):
        self.event.wait()
        return self


def take_batch(timing, clock, before=0.0, after=0.0, transfer=0.0, step=None):
    """Takes a batch that comes after `before` + `after` seconds, between which `step` ends; moves it in `transfer`."""
    with timing.waiting():
        with timing.in_queue():
            clock.now += before
            if step:
                step.event.set()
                timing._finished.result()
            clock.now += after
        with timing.in_transfer():
            clock.now += transfer


def test_a_wait_counts_from_the_end_of_the_step_before_and_is_split_over_the_stages(clock):
    timing, step = Timing(), Step()
    timing.add_stages({"read": 1.0, "decode": 3.0})
    take_batch(timing, clock, after=4.0)  # no step before it: all of it counts
    timing.dispatched(step)
    timing.add_stages({"read": 1.0, "decode": 3.0})
    take_batch(timing, clock, before=5.0, after=2.0, transfer=2.0, step=step)  # 4 of 9 seconds after the step's end
    assert timing.waited() == pytest.approx(
        {"transfer": 8 * 2 / 13, "read": 8 * 11 / 13 / 4, "decode": 8 * 11 / 13 * 3 / 4}
    )
    assert sum(timing.waited().values()) == 0, "told once"


def test_a_wait_while_the_devices_still_compute_costs_nothing(clock):
    timing, step = Timing(), Step()
    timing.dispatched(step)
    take_batch(timing, clock, after=5.0)
    assert sum(timing.waited().values()) == 0
    step.event.set()


def test_each_transform_is_timed_by_its_name(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loader.time, "perf_counter", clock)

    def lasting(seconds):
        def step(batch, seeds):
            clock.now += seconds
            return batch

        return step

    steps = [("decode", lasting(3.0)), ("flip", lasting(0.5)), ("decode", lasting(1.0))]
    found = loader.read_batch(Numbers(4), steps, np.arange(4), np.arange(4, dtype=np.uint64))
    assert found.seconds == {"read": 0.0, "decode": 4.0, "flip": 0.5}


# Draws


@pytest.mark.parametrize("size", [1, 2, 3, 64, 65, 1000])
def test_permutation_hits_every_number_once(size):
    seeds = draws.record_seeds(7, 0, np.zeros(size, int))
    assert sorted(draws.permute(np.arange(size), size, seeds)) == list(range(size))


def test_uniform_draws_are_uniform_and_slots_independent():
    seeds = draws.record_seeds(0, 1, np.arange(20_000))
    first, second = draws.uniforms(seeds, 0), draws.uniforms(seeds, 1)
    counts = np.histogram(first, 10, (0, 1))[0]
    assert abs(counts - 2000).max() < 5 * np.sqrt(2000)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


# Digits


def test_canvas_digits_are_the_digits_moved():
    source = digits.Digits("train", 12)
    seeds = draws.record_seeds(0, 0, np.arange(200))
    batch = source.read(np.arange(200), seeds)
    images, labels = source.records
    np.testing.assert_array_equal(batch["label"], labels[:200])
    np.testing.assert_array_equal(batch["image"].sum(axis=(1, 2, 3)), images[:200].sum(axis=(1, 2)))
    corners = [(row, column) for row in range(5) for column in range(5)]
    places = {
        (row, column)
        for row, column in corners
        if (batch["image"][:, row : row + 8, column : column + 8, 0] == images[:200]).all(axis=(1, 2)).any()
    }
    assert len(places) == 25, "every place on the canvas occurs"


def test_splits_are_disjoint_and_few_labels_are_few():
    parts = [digits.Digits(split).records[0] for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == 1797
    few = digits.Digits("train", labels_per_class=10).records[1]
    assert list(np.bincount(few)) == [10] * 10
