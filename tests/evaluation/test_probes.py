import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo import naming
from transformer_zoo.evaluation import classifiers
from transformer_zoo.evaluation.probes import FewShot, LinearProbe, NearestNeighbours, PixelBaseline, select_feature
from transformer_zoo.evaluation.run import Judge
from transformer_zoo.task import Aux, Context, Task, Variables

CLASSES, WIDTH = 5, 12


def records(seed, count, spread=1.0, shuffled=False):
    """Features around a centre for each class, at scales that differ a hundredfold and far from 0."""
    centres = np.random.default_rng(0).normal(size=(CLASSES, WIDTH))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    features = (centres[labels] + spread * rng.normal(size=(count, WIDTH))) * np.geomspace(0.1, 10, WIDTH) + 3
    return features.astype(np.float32), rng.permutation(labels) if shuffled else labels


def standardised(train, x):
    return (x - train.mean(axis=0)) / train.std(axis=0)


# Ridge


def test_ridge_is_ridge_regression_on_standardised_features_and_one_hot_labels():
    from sklearn.linear_model import Ridge

    features, labels = records(1, 200)
    weights = classifiers.ridge_weights(classifiers.moments((features, labels)), classifiers.STRENGTHS)
    inputs = standardised(features.astype(np.float64), features)
    for strength, (kernel, bias) in zip(classifiers.STRENGTHS, weights):
        reference = Ridge(strength).fit(inputs, np.eye(CLASSES)[labels])
        ours, theirs = features @ kernel + bias, reference.predict(inputs)
        assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
        scaled = kernel * features.std(axis=0)[:, None]
        assert np.abs(scaled - reference.coef_.T).max() < 1e-4 * np.abs(reference.coef_).max()


def test_ridge_with_fewer_records_than_features_and_with_a_constant_feature():
    from sklearn.linear_model import Ridge

    features, labels = records(2, 8)
    features[:, 3] = 7.3
    inputs = np.delete(features, 3, axis=1).astype(np.float64)
    reference = Ridge(1.0).fit(standardised(inputs, inputs), np.eye(CLASSES)[labels])
    ((kernel, bias),) = classifiers.ridge_weights(classifiers.moments((features, labels)), [1.0])
    assert np.abs(kernel[3]).max() < 1e-9
    elsewhere = records(3, 50)[0]  # where the feature that was constant is not
    theirs = reference.predict(standardised(inputs, np.delete(elsewhere, 3, axis=1)))
    assert np.abs(elsewhere @ kernel + bias - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_moments_of_parts_add_up_also_where_one_has_not_seen_the_last_classes():
    features, labels = records(4, 60)
    order = np.argsort(labels, kind="stable")
    features, labels = features[order], labels[order]
    whole = classifiers.moments((features, labels))
    first, second = ((features[part], labels[part]) for part in (slice(20), slice(20, None)))
    assert first[1].max() < second[1].max()
    for parts in ((first, second), (second, first)):
        added = classifiers.add_moments(*map(classifiers.moments, parts))
        for ours, expected in zip(added, whole):
            assert ours.shape == expected.shape and np.allclose(ours, expected, rtol=1e-12)


def test_ridge_predicts_only_classes_it_has_seen():
    features, labels = records(5, 100)
    for predict in classifiers.ridge(classifiers.moments((features, labels * 10 + 2))):
        assert set(predict(features)) <= set(labels * 10 + 2)


# Softmax regression by gradient descent


def test_sgd_reaches_logistic_regression_where_classes_can_be_told():
    train, val, test = records(1, 400, 0.8), records(2, 200, 0.8), records(3, 1000, 0.8)
    accuracy = classifiers.chosen_accuracy(classifiers.softmax_sgd(train), val, test)
    logistic = classifiers.chosen_accuracy(classifiers.logistic(train), val, test)
    assert logistic > 0.9 and abs(accuracy - logistic) < 0.02


def test_no_method_tells_shuffled_labels_from_chance():
    train, val, test = (records(seed, count, shuffled=True) for seed, count in ((1, 400), (2, 200), (3, 1000)))
    sigma = np.sqrt((1 / CLASSES) * (1 - 1 / CLASSES) / 1000)
    fitted = {
        "sgd": classifiers.softmax_sgd(train),
        "logistic": classifiers.logistic(train),
        "ridge": classifiers.ridge(classifiers.moments(train)),
        "nearest": [classifiers.nearest_neighbours(train)],
    }
    for candidates in fitted.values():
        assert abs(classifiers.chosen_accuracy(candidates, val, test) - 1 / CLASSES) < 3 * sigma


def test_momentum_and_cosine_decay_follow_their_formulas():
    features, labels = records(7, 30)
    inputs, onehot = standardised(features, features), np.eye(CLASSES)[labels]
    kernel, bias = np.zeros((WIDTH, CLASSES)), np.zeros(CLASSES)
    running_kernel, running_bias = np.zeros_like(kernel), np.zeros_like(bias)
    for step in range(6):  # full batches, so that their order is no matter
        logits = inputs @ kernel + bias
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = (shares / shares.sum(axis=1, keepdims=True) - onehot) / 30
        running_kernel = 0.7 * running_kernel + inputs.T @ error
        running_bias = 0.7 * running_bias + error.sum(axis=0)
        rate = np.array([0.2, 2.0])[1] * 0.5 * (1 + np.cos(np.pi * step / 6))
        kernel, bias = kernel - rate * running_kernel, bias - rate * running_bias
    ours = classifiers._descend(
        jnp.asarray(inputs, jnp.float32),
        jnp.asarray(labels),
        jax.random.key(0),
        jnp.array([0.2, 2.0]),
        num_classes=CLASSES,
        epochs=6,
        batch_size=30,
        momentum=0.7,
    )
    assert np.allclose(ours[0][1], kernel, rtol=1e-4, atol=1e-5) and np.allclose(ours[1][1], bias, rtol=1e-4, atol=1e-5)
    assert not np.allclose(ours[0][0], ours[0][1], rtol=0.1)


# Nearest neighbours


@pytest.mark.parametrize(
    "k, temperature, train_chunk, query_chunk",  # at once, and in parts that do not divide the whole
    [(1, 0.07, 90, 33), (7, 0.07, 20, 8), (90, 1.0, 20, 8)],
)
def test_nearest_neighbours_vote_as_in_a_plain_loop(k, temperature, train_chunk, query_chunk):
    (features, labels), queries = records(1, 90, 2.0), records(2, 33, 2.0)[0]
    features, queries, labels = features - 3, queries - 3, labels * 3 + 1  # cosines of both signs, classes with gaps
    expected = []
    for query in queries:
        cosines = features @ query / np.linalg.norm(features, axis=1) / np.linalg.norm(query)
        votes = np.zeros(labels.max() + 1)
        for near in np.argsort(-cosines)[:k]:
            votes[labels[near]] += np.exp(cosines[near] / temperature)
        expected.append(votes.argmax())
    predict = classifiers.nearest_neighbours((features, labels), k, temperature, train_chunk, query_chunk)
    assert np.array_equal(predict(queries), expected)
    assert len(set(expected)) > 2


def test_a_low_temperature_lets_the_nearest_decide_and_a_high_one_counts():
    features = np.array([[1.0, 0.0], [0.9, 0.1], [0.9, 0.1]], np.float32)
    train, query = (features, np.array([0, 1, 1])), np.array([[1.0, 0.0]], np.float32)
    assert classifiers.nearest_neighbours(train, 3, 1e-4)(query) == [0]
    assert classifiers.nearest_neighbours(train, 3, 1.0)(query) == [1]


@pytest.mark.parametrize("k", [0, 11])
def test_more_neighbours_than_records_are_refused(k):
    with pytest.raises(ValueError, match=f"k is {k}, but must lie between 1 and the 10 training records"):
        classifiers.nearest_neighbours(records(1, 10), k)


# Few shots


def test_more_shots_tell_more_and_a_choice_has_as_many_records_of_each_class(monkeypatch):
    train, val, test = records(1, 300, 1.2), records(2, 200, 1.2), records(3, 500, 1.2)
    seen = []
    whole = classifiers.moments
    monkeypatch.setattr(classifiers, "moments", lambda chosen: seen.append(chosen) or whole(chosen))
    one, ten = (classifiers.few_shot_accuracy(train, val, test, shots, 3) for shots in (1, 10))
    assert 1.5 / CLASSES < one < ten - 0.05
    for shots, choices, figure in ((1, seen[:3], one), (10, seen[3:], ten)):
        fitted = [classifiers.ridge(whole(chosen)) for chosen in choices]
        by_strength = {}  # one strength for all choices: of the best sum on val, the first among equals
        for candidates in zip(*fitted):
            on_val = sum((predict(val[0]) == val[1]).sum() for predict in candidates)
            by_strength.setdefault(on_val, np.mean([predict(test[0]) == test[1] for predict in candidates]))
        assert figure == pytest.approx(by_strength[max(by_strength)])
        assert len(by_strength) > 3
        rows = [{tuple(x) for x in features} for features, _ in choices]
        assert all(np.array_equal(np.bincount(labels), [shots] * CLASSES) for _, labels in choices)
        assert len(rows) == 3 and all(len(chosen) == shots * CLASSES for chosen in rows)
        assert rows[0] != rows[1] != rows[2]
        for features, labels in choices:  # each with its own label
            assert all(train[1][(train[0] == x).all(axis=1)] == [y] for x, y in zip(features, labels))


def test_a_class_with_too_few_records_is_named():
    features, labels = records(1, 60)
    keep = np.concatenate([np.flatnonzero(labels != 3), np.flatnonzero(labels == 3)[:4]])
    train = features[keep], labels[keep]
    with pytest.raises(ValueError, match="shots is 5, but class 3 has 4 training records; choose at most 4"):
        classifiers.few_shot_accuracy(train, train, train, 5, 1)


# Choosing and judging


def test_val_chooses_and_test_is_read_once():
    calls = []

    def constant(label):
        return lambda features: calls.append((label, len(features))) or np.full(len(features), label)

    val, test = (np.zeros((3, 1)), np.array([1, 1, 2])), (np.zeros((4, 1)), np.array([2, 2, 2, 1]))
    assert classifiers.chosen_accuracy([constant(0), constant(1), constant(2)], val, test) == 0.25
    assert [call for call in calls if call[1] == 4] == [(1, 4)]


# Evaluators


@dataclasses.dataclass(frozen=True)
class Vectors(Task):
    """Offers the batch's vectors times a parameter, and the same as tokens and levels."""

    def spec(self, batch_size=1):
        return {"x": jax.ShapeDtypeStruct((batch_size, WIDTH), jnp.float32)}

    def init(self, key):
        return Variables({"model": {"scale": jnp.zeros(WIDTH)}})

    def loss(self, variables, batch, ctx):
        return jnp.float32(0), Aux()

    def features(self, variables, batch, ctx):
        pooled = batch["x"] * variables.params["model"]["scale"]
        levels = jnp.stack([jnp.zeros_like(pooled), pooled])[:, :, None] * jnp.array([3.0, -1.0])[:, None]
        return {"pooled": pooled, "levels": levels}


SIZES = {"train": 90, "val": 40, "test": 70}
SPLITS = {name: records(seed, count, 1.2) for seed, (name, count) in enumerate(SIZES.items())}
VARIABLES = Variables({"model": {"scale": jnp.ones(WIDTH)}})


def batches(split, limit=0, size=16):
    """Padding rows repeat the last record with a wrong label, so that counting them would show."""
    features, labels = SPLITS[split]
    for start in range(0, len(labels), size):
        rows = np.arange(start, start + size)
        real = rows < len(labels)
        rows = rows.clip(max=len(labels) - 1)
        label = np.where(real, labels[rows], (labels[rows] + 1) % CLASSES)
        image = features[rows].reshape(-1, 2, WIDTH // 2, 1)
        yield {"x": features[rows], "image": image, "label": label, "weight": real.astype(np.float32)}


def judged(probe):
    judge = Judge({"probe": probe})
    ctx = Context(jax.random.key(0), jnp.int32(0), train=False)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    split, result = judge.run("probe", VARIABLES, ctx, batches, lambda _: device)
    assert split == "test"
    return result.metrics


DIRECT = {
    "logistic": lambda train, val, test: classifiers.chosen_accuracy(classifiers.logistic(train), val, test),
    "ridge": lambda train, val, test: classifiers.chosen_accuracy(
        classifiers.ridge(classifiers.moments(train)), val, test
    ),
    "sgd": lambda train, val, test: classifiers.chosen_accuracy(classifiers.softmax_sgd(train), val, test),
}


@pytest.mark.parametrize("method", DIRECT)
def test_a_linear_probe_fits_judges_and_never_counts_padding(method):
    expected = {"accuracy": DIRECT[method](*SPLITS.values())}
    assert judged(LinearProbe(task=Vectors(), method=method)) == expected
    assert 0.5 < expected["accuracy"] < 1


def test_neighbours_few_shots_and_pixels_as_evaluators():
    train, val, test = SPLITS.values()
    neighbours = classifiers.accuracy(classifiers.nearest_neighbours(train, 5, 0.1), test)
    assert judged(NearestNeighbours(task=Vectors(), k=5, temperature=0.1)) == {"accuracy": neighbours}
    few = {f"accuracy_{shots}_shot": classifiers.few_shot_accuracy(train, val, test, shots, 2) for shots in (1, 4)}
    assert judged(FewShot(task=Vectors(), shots=(1, 4), seeds=2)) == few
    ridge = {"accuracy": DIRECT["ridge"](train, val, test)}
    assert judged(PixelBaseline(task=Vectors(), method="ridge")) == ridge


def test_an_untrained_network_is_the_one_that_init_gives():
    # Its scale is 0, so all features are equal and nothing can be told.
    largest = np.bincount(SPLITS["test"][1]).max() / 70
    assert judged(LinearProbe(task=Vectors(), method="ridge", untrained=True))["accuracy"] <= largest


@pytest.mark.parametrize(
    "kind, options",
    [(LinearProbe, {"method": "ridge"}), (LinearProbe, {}), (NearestNeighbours, {}), (FewShot, {"shots": (1, 2)})],
)
def test_states_of_two_processes_add_up(kind, options):
    probe = kind(task=Vectors(), **options)
    whole, halves = [], []
    for split in probe.splits:
        parts = list(batches(split))
        whole.append(gathered(probe, parts))
        halves.append(probe.merge(gathered(probe, parts[:2]), gathered(probe, parts[2:])))
    assert probe.result(*halves).metrics == probe.result(*whole).metrics


def gathered(probe, parts):
    state = None
    for batch in parts:
        state = probe.update(state, {"features": batch["x"]}, batch)
    return state


def test_ridge_keeps_no_training_records_where_it_is_told_of_the_split():
    probe = LinearProbe(task=Vectors(), method="ridge")
    results = []
    for told, expected in ((False, [90, 40, 70]), (True, [0, 40, 70])):
        states = [
            gathered(probe, [batch | ({"split": split} if told else {}) for batch in batches(split)])
            for split in probe.splits
        ]
        assert [sum(map(len, state["features"])) for state in states] == expected
        results.append(probe.result(*states).metrics)
    assert results[0] == results[1]


# Features


def test_a_feature_is_chosen_by_name_level_and_pool():
    tokens = jnp.arange(2 * 3 * 4 * 5, dtype=jnp.float32).reshape(2, 3, 4, 5)
    features = {"pooled": tokens[0, :, 0], "map": tokens[0].reshape(3, 2, 2, 5), "levels": tokens}
    chosen = {
        "pooled": (select_feature(features), tokens[0, :, 0]),
        "last level": (select_feature(features, "levels"), tokens[1].mean(axis=1)),
        "first level": (select_feature(features, "levels", level=0), tokens[0].mean(axis=1)),
        "first token": (select_feature(features, "levels", level=-2, pool="first"), tokens[0, :, 0]),
        "map": (select_feature(features, "map"), tokens[0].mean(axis=1)),
        "pyramid": (select_feature({"levels": (tokens[0], tokens[1, :, :2])}, "levels"), tokens[1, :, :2].mean(axis=1)),
    }
    for name, (ours, expected) in chosen.items():
        assert np.allclose(ours, expected), name


def test_probes_read_the_feature_they_are_told():
    # The last level is the pooled feature times 3 and -1 by tokens: their mean and their first keep its direction.
    expected = judged(LinearProbe(task=Vectors(), method="ridge"))
    for options in ({"level": -1}, {"level": 1, "pool": "first"}):
        assert judged(LinearProbe(task=Vectors(), method="ridge", feature="levels", **options)) == expected
    blind = judged(LinearProbe(task=Vectors(), method="ridge", feature="levels", level=0))
    assert blind["accuracy"] < expected["accuracy"] - 0.2


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (LinearProbe, {"feature": "pool"}, "feature 'pool' is unknown; did you mean 'pooled'.*pooled, levels"),
        (LinearProbe, {"feature": "levels", "level": 2}, "level 2 is none of the 2 levels; choose from -2 to 1"),
        (LinearProbe, {"pool": "max"}, "pool 'max' is unknown.*mean, first"),
        (LinearProbe, {"method": "rigde"}, "method 'rigde' is unknown; did you mean 'ridge'"),
        (LinearProbe, {"methods": "ridge"}, "evaluators.probe.methods: 'methods' is unknown|did you mean 'method'"),
        (LinearProbe, {"splits": ("train", "test")}, "splits is .* must name 3 splits"),
        (NearestNeighbours, {"k": 0}, "k is 0, but must be at least 1"),
        (NearestNeighbours, {"k": 91}, "k is 91, but must lie between 1 and the 90 training records"),
        (NearestNeighbours, {"temperature": 0.0}, "temperature is 0.0, but must be above 0"),
        (FewShot, {"shots": ()}, r"shots is \(\), but must name numbers of at least 1"),
        (FewShot, {"shots": (0, 1)}, r"shots is \(0, 1\), but must name numbers of at least 1"),
        (FewShot, {"seeds": 0}, "seeds is 0, but must be at least 1"),
        (FewShot, {"shots": (50,)}, "shots is 50, but class . has .* training records"),
    ],
)
def test_errors_name_the_field_the_value_and_what_would_serve(kind, options, message):
    with pytest.raises(ValueError, match=message):
        judged(naming.construct(kind, options, "evaluators.probe", {"task": Vectors()}))


@pytest.mark.parametrize(
    "label, message",
    [
        (None, "a probe needs the field 'label', but the data has weight"),
        (np.zeros((2, 3), np.int32), r"needs one class number .* labels are int32 \[2, 3\]"),
        (np.zeros(2, np.float32), "needs one class number .* labels are float32"),
        (np.array([0, -1]), "needs one class number .* the smallest -1"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(label, message):
    batch = {"weight": np.ones(2)} | ({} if label is None else {"label": label})
    with pytest.raises(ValueError, match=message):
        LinearProbe().update(None, {"features": np.zeros((2, 3), np.float32)}, batch)
