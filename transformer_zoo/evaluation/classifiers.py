"""Simple classifiers on fixed features: in closed form, by gradient descent, or by looking at neighbours.

What fits several strengths of a hyper-parameter returns one `Predict` for each, and `chosen_accuracy` takes the one
that is best on validation data.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

Features = Float[np.ndarray, "records width"]
Labels = Int[np.ndarray, " records"]
# [records, width] and [records]; one call may take several, so their number has no name in the type.
Records = tuple[Float[np.ndarray, "_ width"], Int[np.ndarray, " _"]]
Predict = Callable[[Features], Labels]

# Of ridge regression on standardised features; the grid of big_vision's few-shot evaluator.
STRENGTHS = tuple(2.0**exponent for exponent in range(-10, 20))


def accuracy(predict: Predict, records: Records) -> float:
    """Share of the records whose label is predicted."""
    return float((predict(records[0]) == records[1]).mean())


def chosen_accuracy(candidates: Sequence[Predict], val: Records, test: Records) -> float:
    """Accuracy on `test` of the candidate that is best on `val`, the first among equals; `test` is read once."""
    return accuracy(max(candidates, key=lambda predict: accuracy(predict, val)), test)


def _linear(classes: Labels, kernel: np.ndarray, bias: np.ndarray) -> Predict:
    """The class of the largest output."""

    def predict(features: Features) -> Labels:
        return classes[(features @ kernel + bias).argmax(axis=1)]

    return predict


def logistic(train: Records) -> list[Predict]:
    """Multinomial logistic regression on standardised features (scikit-learn), for four strengths of the L2 penalty."""
    from sklearn.linear_model import LogisticRegression  # a second to import: only where a probe is fitted
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    def fitted(strength: float) -> Predict:
        with threadpool_limits(1):  # threads wait for each other: on two cores they take fifty times as long as one
            return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=3000)).fit(*train).predict

    return [fitted(strength) for strength in (1e-3, 1e-2, 1e-1, 1.0)]  # scikit-learn's C, the penalty's inverse


class Moments(NamedTuple):
    """What least squares needs of any number of records; moments of parts add up (`add_moments`).

    Attributes:
        counts: [classes] records of each class.
        sums: [classes, width] sums of the features of each class.
        products: [width, width] sum of x x^T over all records.
    """

    counts: Float[np.ndarray, " classes"]
    sums: Float[np.ndarray, "classes width"]
    products: Float[np.ndarray, "width width"]


def moments(records: Records) -> Moments:
    """Moments in float64; classes are counted up to the largest label."""
    features, labels = records[0].astype(np.float64), records[1]
    targets = np.eye(labels.max(initial=-1) + 1)[labels]
    return Moments(targets.sum(axis=0), targets.T @ features, features.T @ features)


def add_moments(first: Moments, second: Moments) -> Moments:
    """Moments of both together, whichever of them has seen more classes."""
    classes = max(len(first.counts), len(second.counts))

    def padded(x: np.ndarray) -> np.ndarray:
        return np.pad(x, [(0, classes - len(x)), *[(0, 0)] * (x.ndim - 1)])

    return Moments(
        padded(first.counts) + padded(second.counts),
        padded(first.sums) + padded(second.sums),
        first.products + second.products,
    )


def ridge_weights(
    train: Moments, strengths: Sequence[float]
) -> list[tuple[Float[np.ndarray, "width classes"], Float[np.ndarray, " classes"]]]:
    """Kernel and bias of one-vs-all least squares on one-hot labels, for every strength of the L2 penalty.

    Minimises sum ||onehot - kernel^T x - bias||^2 + strength ||D kernel||^2 with D the features' standard deviations,
    which is ridge regression on standardised features, its bias free. One eigendecomposition serves all strengths.
    """
    count = train.counts.sum()
    mean = train.sums.sum(axis=0) / count
    scatter = train.products - count * np.outer(mean, mean)
    variance = np.diag(scatter) / count
    # A feature that never changes keeps its scale, and so gets a weight of 0 rather than one of rounding errors.
    varies = variance > 1e-12 * np.diag(train.products) / count
    deviation = np.sqrt(np.where(varies, variance, 1))
    values, vectors = np.linalg.eigh(scatter / np.outer(deviation, deviation))
    cross = ((train.sums - train.counts[:, None] * mean) / deviation) @ vectors
    weights = []
    for strength in strengths:
        kernel = vectors @ (cross / (values.clip(0) + strength)).T / deviation[:, None]
        weights.append((kernel, train.counts / count - mean @ kernel))
    return weights


def ridge(train: Moments, strengths: Sequence[float] = STRENGTHS) -> list[Predict]:
    """Classifiers by the largest output of `ridge_weights`, among the classes that were seen."""
    seen = np.flatnonzero(train.counts)
    return [_linear(seen, kernel[:, seen], bias[seen]) for kernel, bias in ridge_weights(train, strengths)]


def softmax_sgd(
    train: Records,
    *,
    learning_rates: Sequence[float] = (0.01, 0.03, 0.1, 0.3),
    epochs: int = 90,
    batch_size: int = 256,
    momentum: float = 0.9,
    seed: int = 0,
) -> list[Predict]:
    """Softmax regression by mini-batches with momentum and cosine decay, for every learning rate.

    Features are standardised with the training records' statistics, as by the batch normalisation without scale and
    shift of MAE's linear probe (arXiv 2111.06377, appendix A.1); no weight decay. All rates see the same batches.

    Args:
        train: what to fit.
        learning_rates: at the start of the decay to 0.
        epochs: passes over the records; what is left over after the last whole batch is skipped, others each pass.
        batch_size: records a step, at most all.
        momentum: of the gradients' running sum.
        seed: of the order of the records; weights start at 0.
    """
    features, labels = train
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-6
    classes, targets = np.unique(labels, return_inverse=True)
    kernels, biases = jax.device_get(
        _descend(
            jnp.asarray((features - mean) / deviation, jnp.float32),
            jnp.asarray(targets),
            jax.random.key(seed),
            jnp.asarray(learning_rates, jnp.float32),
            num_classes=len(classes),
            epochs=epochs,
            batch_size=min(batch_size, len(labels)),
            momentum=momentum,
        )
    )
    kernels = kernels.astype(np.float64) / deviation[:, None]
    return [_linear(classes, kernel, bias - mean @ kernel) for kernel, bias in zip(kernels, biases)]


@functools.partial(jax.jit, static_argnames=("num_classes", "epochs", "batch_size", "momentum"))
def _descend(
    features: Float[Array, "records width"],
    targets: Int[Array, " records"],
    key: Key[Array, ""],
    learning_rates: Float[Array, " rates"],
    *,
    num_classes: int,
    epochs: int,
    batch_size: int,
    momentum: float,
) -> tuple[Float[Array, "rates width classes"], Float[Array, "rates classes"]]:
    """Kernels and biases after the last step."""
    count, width = features.shape
    steps = count // batch_size
    # The update is linear in the rate, so one optimizer of rate 1 serves all of them.
    optimizer = optax.sgd(optax.cosine_decay_schedule(1.0, epochs * steps), momentum)
    rates = len(learning_rates)
    weights = (jnp.zeros((rates, width, num_classes)), jnp.zeros((rates, num_classes)))

    def loss(weights: tuple[Array, Array], rows: Array) -> Array:
        logits = jnp.einsum("bw,rwc->rbc", features[rows], weights[0]) + weights[1][:, None]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets[rows][None])
        return losses.mean(axis=1).sum()  # no rate's loss depends on another's weights

    def step(carry: tuple, rows: Array) -> tuple[tuple, None]:
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss)(weights, rows), state)
        kernel, bias = updates
        updates = (kernel * learning_rates[:, None, None], bias * learning_rates[:, None])
        return (optax.apply_updates(weights, updates), state), None

    def epoch(carry: tuple, key: Array) -> tuple[tuple, None]:
        rows = jax.random.permutation(key, count)[: steps * batch_size].reshape(steps, batch_size)
        return jax.lax.scan(step, carry, rows)

    (weights, _), _ = jax.lax.scan(epoch, (weights, optimizer.init(weights)), jax.random.split(key, epochs))
    return weights


def nearest_neighbours(
    train: Records, k: int = 20, temperature: float = 0.07, train_chunk: int = 8192, query_chunk: int = 512
) -> Predict:
    """The weighted vote of the `k` records of highest cosine similarity, exp(similarity / temperature) each.

    Of DINO (Caron et al. 2021, arXiv 2104.14294, appendix F.1), after Wu et al. 2018 (arXiv 1805.01978). Among equally
    similar records the earlier one is nearer, among equal votes the smaller label wins.

    Args:
        train: the records that vote.
        k: how many of them.
        temperature: small values let the nearest decide alone.
        train_chunk: most records compared at a time.
        query_chunk: most queries at a time.

    Raises:
        ValueError: k is below 1 or above the number of records.
    """
    count = len(train[1])
    if not 1 <= k <= count:
        raise ValueError(
            f"k is {k}, but must lie between 1 and the {count} training records; try {min(max(k, 1), count)}"
        )
    classes, labels = np.unique(train[1], return_inverse=True)
    size = min(train_chunk, count)
    chunks = -(-count // size)
    padding = chunks * size - count
    features = np.pad(_normalised(train[0]), ((0, padding), (0, 0))).reshape(chunks, size, -1)
    labels = np.pad(labels, (0, padding), constant_values=-1).reshape(chunks, size)
    memory = jnp.asarray(features), jnp.asarray(labels)

    def predict(queries: Features) -> Labels:
        queries = _normalised(queries)
        rows = min(query_chunk, len(queries))
        found = []
        for start in range(0, len(queries), rows):
            part = queries[start : start + rows]
            padded = jnp.asarray(np.pad(part, ((0, rows - len(part)), (0, 0))))
            votes = _votes(*memory, padded, jnp.float32(temperature), k=k, num_classes=len(classes))
            found.append(np.asarray(votes.argmax(axis=1))[: len(part)])
        return classes[np.concatenate(found)]

    return predict


def _normalised(features: Features) -> Features:
    features = features.astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)


@functools.partial(jax.jit, static_argnames=("k", "num_classes"))
def _votes(
    features: Float[Array, "chunks size width"],
    labels: Int[Array, "chunks size"],
    queries: Float[Array, "queries width"],
    temperature: Float[Array, ""],
    *,
    k: int,
    num_classes: int,
) -> Float[Array, "queries classes"]:
    """Shares of the vote; records of label -1 do not exist."""
    count = len(queries)

    def nearer(best: tuple[Array, Array], chunk: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        features, labels = chunk
        new = jnp.matmul(queries, features.T, precision="highest")
        similarities = jnp.concatenate([best[0], jnp.where(labels >= 0, new, -jnp.inf)], axis=1)
        candidates = jnp.concatenate([best[1], jnp.broadcast_to(labels, new.shape)], axis=1)
        similarities, places = jax.lax.top_k(similarities, k)
        return (similarities, jnp.take_along_axis(candidates, places, axis=1)), None

    start = (jnp.full((count, k), -jnp.inf), jnp.full((count, k), -1, labels.dtype))
    (similarities, found), _ = jax.lax.scan(nearer, start, (features, labels))
    weights = jax.nn.softmax(similarities / temperature, axis=1)  # exp would overflow at a low temperature
    return jnp.zeros((count, num_classes)).at[jnp.arange(count)[:, None], found].add(weights)


def few_shot_accuracy(train: Records, val: Records, test: Records, shots: int, seeds: int) -> float:
    """Mean test accuracy over random choices of `shots` training records a class, each with a ridge regression.

    The strength is the one of best mean accuracy on `val`, one for all choices. With one seed, the choice of fewer
    shots is a part of that of more.

    Args:
        train: records to choose from.
        val: chooses the strength.
        test: read once a choice.
        shots: records of each class.
        seeds: number of choices.

    Raises:
        ValueError: a class has fewer records than `shots`.
    """
    features, labels = train
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < shots:
        raise ValueError(
            f"shots is {shots}, but class {classes[counts.argmin()]} has {counts.min()} training records; "
            f"choose at most {counts.min()}"
        )
    fitted = []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(labels))
        by_class = order[np.argsort(labels[order], kind="stable")]
        rows = by_class[(counts.cumsum() - counts)[:, None] + np.arange(shots)].ravel()
        fitted.append(ridge(moments((features[rows], labels[rows]))))
    on_val = np.mean([[accuracy(predict, val) for predict in candidates] for candidates in fitted], axis=0)
    return float(np.mean([accuracy(candidates[on_val.argmax()], test) for candidates in fitted]))
