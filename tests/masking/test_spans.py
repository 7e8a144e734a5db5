import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.masking import spans

FIRST = 100


def by_hand(tokens, masked):
    """Input and target of one sequence, word by word."""
    given, asked, before, count = [], [], False, 0
    for token, hidden in zip(tokens, masked):
        if hidden:
            if not before:
                given.append(FIRST + count)
                asked.append(FIRST + count)
                count += 1
            asked.append(token)
        else:
            given.append(token)
        before = hidden
    return given, [*asked, FIRST + count]


def batch_of(masked, lengths, inputs, targets, seed=0):
    masked = np.asarray(masked, bool)
    length = masked.shape[1]
    ids = np.where(np.arange(length) < np.asarray(lengths)[:, None], 1 + np.arange(length), 0)
    arrays = (jnp.asarray(x) for x in (ids, lengths, masked, inputs, targets))
    found = spans.mask_spans(jax.random.key(seed), *arrays, FIRST)
    return ids, jax.tree.map(np.asarray, found)


def test_the_example_of_the_paper():
    _, found = batch_of([[0, 1, 1, 0, 1]], [5], [5], [9])
    assert found.values[0][found.inputs[0]].tolist() == [1, FIRST, 4, FIRST + 1]
    assert found.values[0][found.targets[0]].tolist() == [FIRST, 2, 3, FIRST + 1, 5, FIRST + 2]
    assert np.flatnonzero(found.targets[0]).tolist() == [5, 6, 7, 8, 9, 10]  # behind the budget of the input
    assert found.source[0, :5].tolist() == [0, -1, 3, -1, -1]


def test_any_mask_is_what_reading_word_by_word_gives():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 8, 200)
    masked = (rng.random((200, 7)) < rng.random((200, 1))) & (np.arange(7) < lengths[:, None])
    budgets = np.full(200, 7)
    ids, found = batch_of(masked, lengths, budgets, budgets * 2)
    for row in range(200):
        given, asked = by_hand(ids[row, : lengths[row]].tolist(), masked[row, : lengths[row]])
        assert found.values[row][found.inputs[row]].tolist() == given
        assert found.values[row][found.targets[row]].tolist() == asked
        assert not found.values[row][~(found.inputs[row] | found.targets[row])].any()


def test_without_a_budget_nothing_is_shown_and_all_is_asked():
    masked = [[1, 1, 1, 0]]
    _, found = batch_of(masked, [3], [0], [8])
    assert not found.inputs.any()
    assert found.values[0][found.targets[0]].tolist() == [FIRST, 1, 2, 3, FIRST + 1]


def test_a_target_past_its_budget_is_cut_from_a_sentinel_on():
    masked = [[1, 1, 0, 1, 0, 1, 1, 1]]  # target: S 1 2 S 4 S 6 7 8 S, ten ids
    _, whole = batch_of(masked, [8], [8], [10])
    target = whole.values[0][whole.targets[0]].tolist()
    begins = set()
    for seed in range(30):
        _, found = batch_of(masked, [8], [8], [6], seed)
        kept = found.values[0][found.targets[0]].tolist()
        begin = target.index(kept[0])
        assert kept == target[begin : begin + 6] and kept[0] >= FIRST
        begins.add(begin)
    # From the last span but the closing sentinel five ids are left, so the earliest whose rest fits is taken there.
    assert begins == {0, 3, 5}


def test_inputs_fit_their_budgets_and_share_what_is_kept():
    lengths, budget = jnp.full((3000,), 12), jnp.full((3000,), 4)
    keep = jnp.full((3000,), 0.5)
    masked = np.asarray(spans.choose_masked(jax.random.key(0), 15, lengths, budget, keep))
    assert not masked[:, 12:].any()
    runs = masked[:, 0] + (masked[:, 1:] & ~masked[:, :-1]).sum(axis=1)
    used = (~masked[:, :12]).sum(axis=1) + runs
    assert used.max() <= 4 and used.mean() > 2
    free = np.asarray(spans.choose_masked(jax.random.key(0), 15, lengths, jnp.full((3000,), 12), keep))
    assert abs((~free[:, :12]).mean() - 0.5) < 0.03


def test_everything_is_kept_or_nothing_where_that_is_asked():
    lengths, budget = jnp.asarray([5, 5]), jnp.asarray([5, 0])
    masked = spans.choose_masked(jax.random.key(0), 6, lengths, budget, jnp.ones(2))
    assert np.asarray(masked).tolist() == [[False] * 6, [True] * 5 + [False]]


def test_chunks_are_masked_as_one():
    lengths = jnp.full((500,), 9)
    masked = spans.choose_masked(jax.random.key(0), 10, lengths, jnp.full((500,), 9), jnp.full((500,), 0.5), chunk=2)
    masked = np.asarray(masked)
    assert (masked[:, 0:8:2] == masked[:, 1:8:2]).all() and 0 < masked[:, 8].mean() < 1 and not masked[:, 9].any()
