import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.decoding.masked import decode_levels, decode_masked, extend_frames
from transformer_zoo.decoding.schedules import even_counts, hidden_after, ramp
from transformer_zoo.masking.tokens import hide_random, lowest

CODES, MASK = 5, 5
KEY = jax.random.key(0)


def fixed_logits(shape, seed=0, codes=CODES):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*shape, codes)), jnp.float32)


def decode(shape, unknown, times=1, **options):
    ids = jnp.asarray(np.random.default_rng(1).integers(0, CODES, shape), jnp.int32)
    found = fixed_logits(shape)
    options = {"hidden": MASK, "steps": 4} | options
    run = jax.jit(functools.partial(decode_masked, lambda ids, step: found, **options))
    return ids, *(run(ids, unknown, KEY) for _ in range(times))


@pytest.mark.parametrize(
    ("order", "shape"),
    [
        ("confidence", (2, 3, 4, 2)),
        ("random", (3, 12)),
        ("raster", (2, 3, 4)),
        ("highest_logit", (3, 12)),
        ("filtered_confidence", (3, 12)),
    ],
)
def test_known_tokens_never_change_and_all_others_become_codes(shape, order):
    unknown = jnp.asarray(np.random.default_rng(2).random(shape) < 0.7)
    ids, found, again = decode(shape, unknown, times=2, order=order)
    for filled, hidden in zip(found.history, found.unknown):
        assert np.array_equal(np.where(unknown, 0, filled), np.where(unknown, 0, ids))
        assert not (hidden & ~unknown).any()
    assert np.array_equal(np.where(unknown, 0, found.ids), np.where(unknown, 0, ids))
    assert (found.ids < CODES).all() and not found.unknown[-1].any()
    for before, after in zip(found.unknown, found.unknown[1:]):
        assert not (after & ~before).any()  # a token is fixed once
    assert np.array_equal(again.history, found.history)


@pytest.mark.parametrize(
    ("schedule", "steps"), [("cosine", 8), ("linear", 3), ("square", 5), ("arccos", 5), ("power2.5", 1)]
)
def test_the_number_left_after_each_step_is_the_schedules(schedule, steps):
    _, found = decode((2, 24), jnp.ones((2, 24), bool), schedule=schedule, steps=steps)
    expected = hidden_after(steps, schedule, 24)
    assert np.array_equal(found.unknown.sum(axis=2), np.stack([expected, expected], axis=1))
    assert expected[-1] == 0 and (np.diff(np.r_[24, expected]) < 0).all()


def test_given_numbers_are_kept_and_samples_may_have_unequally_many_unknown_tokens():
    _, found = decode((2, 10), jnp.ones((2, 10), bool), schedule=[7, 2, 1, 0])
    assert found.unknown.sum(axis=2).T.tolist() == [[7, 2, 1, 0]] * 2
    unknown = jnp.arange(10) < jnp.array([[8], [2]])
    _, found = decode((2, 10), unknown, schedule="linear")
    assert found.unknown.sum(axis=2).T.tolist() == [[6, 4, 2, 0], [1, 1, 1, 0]]


def test_steps_are_calls_and_a_step_knows_its_number():
    calls = []

    def logits(ids, step):
        jax.debug.callback(lambda index, ids: calls.append((int(index), int((ids == MASK).sum()))), step.index, ids)
        return fixed_logits(ids.shape)

    unknown = jnp.ones((1, 16), bool)
    found = decode_masked(logits, jnp.zeros((1, 16), jnp.int32), unknown, KEY, hidden=MASK, steps=6)
    jax.block_until_ready(found)
    jax.effects_barrier()
    assert calls == list(zip(range(6), [16, *hidden_after(6, "cosine", 16)[:-1]]))


def test_the_surest_tokens_stay_and_without_noise_the_highest_logits_win():
    _, found = decode((2, 12), jnp.ones((2, 12), bool), choice_temperature=0.0, temperature=0.0, schedule="linear")
    logits = fixed_logits((2, 12))
    assert np.array_equal(found.ids, logits.argmax(axis=-1))
    sure = jax.nn.log_softmax(logits, axis=-1).max(axis=-1)
    assert np.array_equal(found.unknown[0], lowest(sure, 9))


def test_noise_on_the_order_fades_to_none():
    flat, none, unknown = jnp.zeros((20, 8, CODES)), jnp.zeros((20, 8), jnp.int32), jnp.ones((20, 8), bool)
    found = decode_masked(lambda ids, step: flat, none, unknown, KEY, hidden=MASK, steps=2, temperature=0.0)
    chosen = map(tuple, found.unknown[0].tolist())
    assert len(set(chosen)) > 10
    assert ramp("falling", 4.5, 3).tolist() == pytest.approx([3.0, 1.5, 0.0])


def test_raster_and_random_order_ask_for_what_they_fill_only():
    seen = []

    def logits(ids, step):
        seen.append(np.asarray(step.asked))
        return fixed_logits(ids.shape)

    unknown = jnp.ones((1, 6), bool)
    options = dict(hidden=MASK, steps=3, schedule=even_counts(3, 6), unroll=True)
    decode_masked(logits, jnp.zeros((1, 6), jnp.int32), unknown, KEY, order="raster", **options)
    assert [row.tolist() for row in np.concatenate(seen).astype(int)] == [
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1],
    ]
    seen.clear()
    decode_masked(logits, jnp.zeros((1, 6), jnp.int32), unknown, KEY, order="random", **options)
    assert np.array_equal(np.concatenate(seen).sum(axis=0), np.ones(6)) and np.array_equal(
        np.concatenate(seen).sum(axis=1), [2, 2, 2]
    )


def test_hidden_places_show_what_the_condition_gives():
    condition = jnp.arange(6).reshape(1, 6) % CODES
    shown = []

    def logits(ids, step):
        shown.append((np.asarray(ids), np.asarray(step.unknown)))
        return fixed_logits(ids.shape)

    ids = jnp.full((1, 6), 9)
    unknown = jnp.array([[True] * 5 + [False]])
    found = decode_masked(logits, ids, unknown, KEY, hidden=condition, steps=3, unroll=True)
    for ids, hidden in shown:
        assert np.array_equal(ids[hidden], np.asarray(condition)[hidden]) and ids[0, 5] == 9
    assert found.ids[0, 5] == 9


def test_a_carry_goes_from_call_to_call_and_unrolled_steps_give_the_same():
    def logits(ids, step):
        return fixed_logits(ids.shape) + step.carry[:, None, None], step.carry + 1

    arguments = jnp.zeros((2, 8), jnp.int32), jnp.ones((2, 8), bool), KEY
    looped, unrolled = (
        decode_masked(logits, *arguments, hidden=MASK, steps=3, carry=jnp.zeros(2), unroll=unroll)
        for unroll in (False, True)
    )
    assert looped.carry.tolist() == [3, 3] and np.array_equal(looped.history, unrolled.history)


def test_levels_follow_each_other_and_later_ones_see_the_earlier():
    seen = []

    def logits(ids, step, level):
        jax.debug.callback(lambda ids, level=level: seen.append((level, np.asarray(ids))), ids, ordered=True)
        return fixed_logits((ids.shape[0], ids.shape[2]), seed=level)

    ids, unknown = jnp.zeros((2, 3, 6), jnp.int32), jnp.ones((2, 3, 6), bool).at[:, 0, 0].set(False)
    found = decode_levels(logits, ids, unknown, KEY, hidden=MASK, steps=(3, 2, 1))
    jax.effects_barrier()
    assert [level for level, _ in seen] == [0, 0, 0, 1, 1, 2]
    assert found.shape == (2, 3, 6) and (found < CODES).all() and (found[:, 0, 0] == 0).all()
    assert np.array_equal(seen[3][1][:, 0], found[:, 0]) and (seen[3][1][:, 1:] == MASK).all()


def test_clips_grow_by_chunks_whose_first_frames_are_the_last_ones_before():
    def decode(ids, unknown, key, number):
        return jnp.where(unknown, 10 * number, ids)

    first = jnp.arange(4).reshape(1, 4, 1, 1) * jnp.ones((2, 1, 2, 2), jnp.int32)
    chunks = extend_frames(decode, first, KEY, chunks=2, keep=1)
    assert [chunk[0, :, 0, 0].tolist() for chunk in chunks] == [[0, 1, 2, 3], [3, 10, 10, 10], [10, 20, 20, 20]]
    with pytest.raises(ValueError, match="keep is 4, but must be at least 1 and below the 4"):
        extend_frames(decode, first, KEY, chunks=1, keep=4)


def test_training_masks_hide_what_the_schedule_draws_at_uniform_places():
    hidden = np.asarray(hide_random(KEY, (4000, 3, 4)))
    counts = hidden.sum(axis=(1, 2))
    assert counts.min() >= 1 and counts.max() == 12
    expected = np.ceil(12 * np.cos(np.pi / 2 * (np.arange(20000) + 0.5) / 20000)).mean()
    assert counts.mean() == pytest.approx(expected, abs=0.2)
    share = hidden.mean(axis=0)
    assert np.abs(share - share.mean()).max() < 0.04
    shared = np.asarray(hide_random(KEY, (50, 12), shared=True)).sum(axis=1)
    assert len(set(shared)) == 1


def test_wrong_names_and_numbers_are_refused():
    unknown = jnp.ones((1, 4), bool)
    with pytest.raises(ValueError, match="order 'rastre' is unknown; did you mean 'raster'"):
        decode((1, 4), unknown, order="rastre")
    with pytest.raises(ValueError, match="mask schedule 'cosin' is unknown; did you mean 'cosine'"):
        decode((1, 4), unknown, schedule="cosin")
    with pytest.raises(ValueError, match="schedule has 2 numbers, but there are 4 steps"):
        decode((1, 4), unknown, schedule=[1, 0])
    with pytest.raises(ValueError, match="steps is 0"):
        decode((1, 4), unknown, steps=0)


def test_even_counts_reveal_the_rest_first():
    assert even_counts(4, 10).tolist() == [7, 4, 2, 0]
