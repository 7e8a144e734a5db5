import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo import naming
from transformer_zoo.evaluation.run import Judge
from transformer_zoo.task import Context, Variables
from transformer_zoo.tasks.classification import Classification
from transformer_zoo.tasks.masked_pixels import MaskedPixels, normalise_patches

CTX = Context(jax.random.key(3, impl="unsafe_rbg"), jnp.int32(0))


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def judged(task, name, variables, batches):
    judge = Judge(task.evaluators())
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    ctx = CTX.replace(train=False)
    return judge.run(name, variables, ctx, lambda split, limit: iter(batches), lambda _: device)[1]


def padded_batches(*fields):
    """Two batches of four; the last three rows repeat a record and count for nothing."""
    rows = np.array([0, 1, 2, 3, 4, 4, 4, 4])
    weight = np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)
    return [
        {name: values[rows[part]] for name, values in fields} | {"weight": weight[part]}
        for part in (slice(4), slice(4, 8))
    ]


# Classification


class Scores(nn.Module):
    """Logits are the pixels plus a bias."""

    num_classes: int = 4
    image_size: tuple[int, int] = (2, 2)
    channels: int = 1

    @nn.compact
    def __call__(self, images, *, train=False):
        logits = images.reshape(images.shape[0], -1) + self.param("bias", nn.initializers.zeros, (self.num_classes,))
        return logits, {"pooled": logits, "levels": logits[None, :, None]}


VARIABLES = Variables({"model": {"bias": np.array([0.3, -0.2, 0.5, 0.1], np.float32)}})
IMAGES, LABELS = normal(1, 5, 2, 2, 1), np.array([2, 3, 1, 1, 2], np.int32)
LOGITS = IMAGES.reshape(5, 4).astype(float) + VARIABLES.params["model"]["bias"]


def cross_entropies(kind, smoothing, labels):
    """A plain loop over records and classes."""
    losses = []
    for logits, label in zip(LOGITS, labels):
        loss = 0.0
        for number, logit in enumerate(logits):
            target = (1 - smoothing) * (number == label) + smoothing / 4
            if kind == "softmax":
                loss -= target * (logit - np.log(np.exp(logits).sum()))
            else:
                probability = 1 / (1 + np.exp(-logit))
                loss -= target * np.log(probability) + (1 - target) * np.log(1 - probability)
        losses.append(loss)
    return np.array(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_classification_has_the_loss_of_its_formula_with_and_without_smoothing(kind, smoothing):
    task = Classification(Scores(), loss_kind=kind, label_smoothing=smoothing)
    value, aux = jax.jit(task.loss)(VARIABLES, {"image": IMAGES, "label": LABELS}, CTX)
    assert np.isclose(value, cross_entropies(kind, smoothing, LABELS).mean(), rtol=1e-5)
    assert np.isclose(aux.metrics["accuracy"], 1 / 5)


def test_accuracy_and_loss_on_held_out_data_ignore_padding():
    labels = LOGITS.argmax(axis=1).astype(np.int32)
    labels[[1, 4]] = LOGITS[[1, 4]].argmin(axis=1)  # the padded record is wrong, so that its repetitions would show
    batches = padded_batches(("image", IMAGES), ("label", labels))
    metrics = judged(Classification(Scores()), "", VARIABLES, batches).metrics
    losses = cross_entropies("softmax", 0.0, labels)
    assert metrics == pytest.approx({"accuracy": 3 / 5, "loss": losses.mean()}, rel=1e-5)


def test_the_batch_that_classification_asks_for_is_the_one_it_takes():
    task = Classification(Scores())
    shapes = jax.eval_shape(task.loss, VARIABLES, task.spec(6), CTX)
    assert shapes[0].shape == () and task.spec(6)["label"].shape == (6,)
    features = jax.eval_shape(task.features, VARIABLES, task.spec(6), CTX)
    assert {name: leaf.shape for name, leaf in features.items()} == {"pooled": (6, 4), "levels": (1, 6, 1, 4)}


# Masked pixels


class Guess(nn.Module):
    """Predicts the same pixels for every image."""

    image_size: tuple[int, int] = (4, 6)
    patch_size: tuple[int, int] = (2, 2)
    channels: int = 3
    grid: tuple[int, int] = (2, 3)

    @nn.compact
    def __call__(self, images, mask, *, train=False):
        guess = self.param("guess", nn.initializers.zeros, (6, 12))
        return jnp.broadcast_to(guess, (images.shape[0], 6, 12)), {}


GUESS = normal(2, 6, 12)
GUESSING = Variables({"model": {"guess": GUESS}})
PICTURES = normal(3, 5, 4, 6, 3) * 2 + 1


def patches_of(image):
    return np.stack([image[r : r + 2, c : c + 2].ravel() for r in (0, 2) for c in (0, 2, 4)])


def normalised(patch):
    return (patch - patch.mean()) / np.sqrt(((patch - patch.mean()) ** 2).sum() / (len(patch) - 1) + 1e-6)


def hidden_losses(image, hidden, prediction, normalise):
    """Squared errors of the hidden patches of one image, a figure each."""
    targets = [normalised(patch) if normalise else patch for patch in patches_of(image)]
    return [np.mean((prediction[n] - targets[n]) ** 2) for n in range(6) if hidden[n]]


def test_patches_are_normalised_by_their_unbiased_variance():
    patches = normal(4, 2, 3, 12) * 5 + 2
    expected = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    assert np.allclose(normalise_patches(jnp.asarray(patches)), expected, atol=1e-5)
    assert np.array_equal(normalise_patches(jnp.full((1, 1, 12), 3.0)), np.zeros((1, 1, 12)))


@pytest.mark.parametrize("normalise", [True, False])
def test_masked_pixels_counts_hidden_patches_only(normalise):
    task = MaskedPixels(Guess(), mask_ratio=0.6, normalise_targets=normalise)
    value, _ = jax.jit(task.loss)(GUESSING, {"image": PICTURES}, CTX)
    mask = task._mask(jax.random.split(CTX.key)[0], jnp.asarray(PICTURES))
    hidden = np.asarray(mask.hidden)
    assert np.array_equal(hidden.sum(axis=1), [4] * 5)  # two of six are kept: 2.4 rounded down
    losses = [hidden_losses(image, row, GUESS, normalise) for image, row in zip(PICTURES, hidden)]
    assert np.isclose(value, np.mean(losses), rtol=1e-5)
    other, _ = jax.jit(task.loss)(GUESSING, {"image": PICTURES}, CTX.replace(key=jax.random.key(4, impl="unsafe_rbg")))
    assert abs(other - value) > 1e-4  # another key hides other patches


@pytest.mark.parametrize("normalise", [True, False])
def test_reconstruction_judges_hidden_patches_against_the_mean_of_visible_ones_and_draws_both(normalise):
    task = MaskedPixels(Guess(), mask_ratio=0.5, normalise_targets=normalise, num_pictures=2)
    batches = padded_batches(("image", PICTURES))
    result = judged(task, "reconstruction", GUESSING, batches)
    losses, guesses, first = [], [], None
    for number, batch in enumerate(batches):
        hidden = np.asarray(task._mask(jax.random.fold_in(CTX.key, number), jnp.asarray(batch["image"])).hidden)
        first = hidden if first is None else first
        for image, row, weight in zip(batch["image"], hidden, batch["weight"]):
            if not weight:
                continue
            patches = patches_of(image)
            mean = patches[row == 0].mean()
            guess = [
                (mean - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6) if normalise else mean for patch in patches
            ]
            losses.append(np.mean(hidden_losses(image, row, GUESS, normalise)))
            guesses.append(np.mean(hidden_losses(image, row, guess, normalise)))
    expected = {"loss": np.mean(losses), "mean_of_visible_loss": np.mean(guesses)}
    assert len(losses) == 5 and result.metrics == pytest.approx(expected, rel=1e-4)
    check_pictures(task, batches[0]["image"], first, normalise)


def check_pictures(task, images, hidden, normalise):
    """Masked, reconstructed and original image: hidden patches are 0, predicted pixels, and themselves."""
    judge = task.evaluators()["reconstruction"]
    ctx = CTX.replace(key=jax.random.fold_in(CTX.key, 0), train=False)
    views = jax.jit(judge.compute)(GUESSING, {"image": images}, ctx)["pictures"]
    assert views.shape == (2, 3, 4, 6, 3)
    for sample in range(2):
        for number, original in enumerate(patches_of(images[sample])):
            masked, filled, whole = (patches_of(np.asarray(view))[number] for view in views[sample])
            predicted = GUESS[number]
            if normalise:
                predicted = predicted * np.sqrt(original.var(ddof=1) + 1e-6) + original.mean()
            assert np.array_equal(whole, original)
            assert np.allclose(masked, 0 if hidden[sample, number] else original)
            assert np.allclose(filled, predicted if hidden[sample, number] else original, atol=1e-4)


# Errors


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (Classification, {"loss_kind": "hinge"}, "task.loss_kind is 'hinge', but must be 'softmax' or 'sigmoid'"),
        (Classification, {"label_smoothing": 1.0}, "task.label_smoothing is 1.0, but must be at least 0 and below 1"),
        (Classification, {"label_smoothing": -0.1}, "task.label_smoothing is -0.1, but must be at least 0"),
        (Classification, {"label_smooth": 0.1}, "task.label_smooth.*did you mean 'label_smoothing'"),
        (Classification, {"loss_kind": 3}, "task.loss_kind is 3, but must be of type str"),
        (MaskedPixels, {"mask_ratio": 0}, "task.mask_ratio is 0.0, but must lie between 0 and 1, both excluded"),
        (MaskedPixels, {"mask_ratio": 1.0}, "task.mask_ratio is 1.0, but must lie between 0 and 1, both excluded"),
        (MaskedPixels, {"normalise_targets": 1}, "task.normalise_targets is 1, but must be of type bool"),
    ],
)
def test_wrong_fields_are_named_with_what_would_serve(kind, options, message):
    with pytest.raises(ValueError, match=message):
        naming.construct(kind, options, "task", {"network": Scores()})
