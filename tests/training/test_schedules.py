import math

import pytest

from transformer_zoo.training.schedules import SCHEDULES, make_schedule

# Peak 2, 4 warm-up steps of 20: (schedule, other arguments, {step: learning rate by hand}).
BY_HAND = (
    ("constant", {}, {4: 2.0, 19: 2.0, 20: 2.0}),
    ("linear", {"final_learning_rate_ratio": 0.5}, {4: 2.0, 8: 1.75, 12: 1.5, 20: 1.0, 25: 1.0}),
    ("cosine", {}, {4: 2.0, 8: 1 + math.sqrt(0.5), 12: 1.0, 16: 1 - math.sqrt(0.5), 20: 0.0}),
    ("cosine", {"final_learning_rate_ratio": 0.1}, {4: 2.0, 12: 1.1, 20: 0.2, 30: 0.2}),
    ("rsqrt", {}, {4: 2.0, 9: 4 / 3, 16: 1.0, 20: 4 / math.sqrt(20)}),
    ("rsqrt", {"decay_steps": 8}, {9: 4 / 3, 12: 4 / math.sqrt(12), 16: 0.5, 20: 0.0}),
    ("warmup_stable_decay", {"decay_steps": 5}, {4: 2.0, 15: 2.0, 16: 1.6, 19: 0.4, 20: 0.0}),
    (
        "warmup_stable_decay",
        {"decay_steps": 16, "final_learning_rate_ratio": 0.5},
        {4: 2.0, 8: 1.75, 20: 1.0},
    ),
)


@pytest.mark.parametrize("name, arguments, expected", BY_HAND)
def test_rates_by_hand(name, arguments, expected):
    schedule = make_schedule(name, 2.0, total_steps=20, warmup_steps=4, **arguments)
    for step, rate in ({0: 0.0, 1: 0.5, 3: 1.5} | expected).items():
        assert float(schedule(step)) == pytest.approx(rate, abs=1e-6), step


def test_every_schedule_is_tried_by_hand():
    assert {name for name, _, _ in BY_HAND} == set(SCHEDULES)


def test_no_warm_up_starts_at_the_peak_and_all_warm_up_ends_there():
    assert float(make_schedule("cosine", 2.0, total_steps=20)(0)) == 2.0
    schedule = make_schedule("cosine", 2.0, total_steps=20, warmup_steps=20)
    assert [float(schedule(step)) for step in (10, 20)] == [1.0, 2.0]


@pytest.mark.parametrize(
    "name, arguments, error",
    [
        ("cosine", {"warmup_steps": 21}, "optimizer.warmup_steps is 21.* at most 20"),
        ("rsqrt", {"warmup_steps": 12, "decay_steps": 9}, "optimizer.decay_steps is 9.* at most 8"),
        ("warmup_stable_decay", {}, "optimizer.decay_steps is 0.* at least 1"),
        ("rsqrt", {}, "optimizer.warmup_steps is 0.* at least 1"),
    ],
)
def test_steps_that_do_not_fit_are_refused(name, arguments, error):
    with pytest.raises(ValueError, match=error):
        make_schedule(name, 2.0, total_steps=20, **arguments)
