"""Batches: a function of (seed, batch number) alone, every record once an epoch, exact weights at the end."""

import numpy as np
import pytest

from transformer_zoo.data import digits, draws, loader
from transformer_zoo.data.pipeline import open_data


class Numbers:
    """A source whose records are their own indices."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def read(self, indices, seeds):
        return {"index": np.asarray(indices), "draw": draws.uniforms(seeds, 0)}


def plain(batch, seeds):
    return batch


def take(count, **options):
    batches = loader.training_batches(
        Numbers(options.pop("length", 10)), plain, options.pop("batch_size", 4), **options
    )
    return [next(batches) for _ in range(count)]


def test_an_epoch_holds_every_record_once_in_an_order_of_its_own():
    indices = np.concatenate([batch["index"] for batch in take(5, seed=0)])
    first, second = indices[:10], indices[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second) and list(first) != list(range(10))


def test_batches_from_number_n_on_are_those_of_a_run_that_consumed_n():
    whole, resumed = take(8, seed=3), take(3, seed=3, start=5)
    for late, again in zip(whole[5:], resumed):
        np.testing.assert_array_equal(late["index"], again["index"])
        np.testing.assert_array_equal(late["draw"], again["draw"])


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
    batches = list(loader.evaluation_batches(Numbers(10), plain, 4, split="test"))
    assert [batch["weight"].sum() for batch in batches] == [4, 4, 2]
    real = np.concatenate([batch["index"][batch["weight"] > 0] for batch in batches])
    np.testing.assert_array_equal(real, np.arange(10))
    assert len(list(loader.evaluation_batches(Numbers(10), plain, 4, split="test", limit=2))) == 2


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


def test_a_mixture_draws_by_weight_and_resumes():
    digit = {"source": "digits", "options": {}, "transforms": ()}
    config = {"mixture": {"often": digit | {"weight": 3.0}, "seldom": digit | {"weight": 1.0}}}
    data = open_data(config, batch_size=2, eval_batch_size=2, seed=0)
    batches, resumed = data.train(0), data.train(150)
    whole = [next(batches) for _ in range(200)]
    names = [next(iter(batch)) for batch in whole]
    assert 0.65 < names.count("often") / 200 < 0.85
    for late in whole[150:]:
        again = next(resumed)
        assert again.keys() == late.keys()
        name = next(iter(late))
        np.testing.assert_array_equal(again[name]["image"], late[name]["image"])
    assert next(data.evaluate("seldom/test", 0))["image"].shape == (2, 8, 8, 1)
    with pytest.raises(ValueError, match="did you mean 'seldom/test'"):
        next(data.evaluate("seldoom/test", 0))


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
