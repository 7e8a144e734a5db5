import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.models.masked_generation.maskgit import MaskGIT
from transformer_zoo.task import Context, Variables
from transformer_zoo.tasks.masked_tokens import MaskedTokens, Sampling, token_loss


class Corners(nn.Module):
    """Ids 0 to 3, two pixels of every second row as bits, plus an offset."""

    input_shape = (4, 6, 1)
    grid = (2, 3)
    codebook_size = 4
    pixel_range = (0.0, 1.0)

    def setup(self):
        self.offset = self.param("offset", nn.initializers.zeros, ())

    def __call__(self, pixels, *, train=False):
        return self.detokenize(self.tokenize(pixels)), {}

    def tokenize(self, pixels):
        bits = (pixels[:, ::2, :, 0] > 0.5).astype(jnp.int32).reshape(-1, 2, 3, 2)
        return (bits @ jnp.array([1, 2]) + self.offset.astype(jnp.int32)) % 4

    def detokenize(self, ids):
        ids = (ids - self.offset.astype(jnp.int32)) % 4
        bits = jnp.stack([ids % 2, ids // 2], axis=-1).reshape(-1, 2, 6)
        return bits.repeat(2, axis=1)[..., None].astype(jnp.float32)


NETWORK = MaskGIT(grid=(2, 3), num_codes=4, num_conditions=6, null_condition=5, depth=1, width=8, num_heads=2)
KEY = jax.random.key(0)


def task(**options):
    return MaskedTokens(**dict(network=NETWORK, tokenizer=Corners()) | options)


@pytest.fixture(scope="module")
def variables():
    found = jax.eval_shape(task().init, KEY)
    leaves, structure = jax.tree.flatten(found.params)
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(structure, [rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])
    return Variables(params, {}, {"tokenizer": {"params": {"offset": jnp.float32(1)}, "state": {}}})


def batch(count=3):
    rng = np.random.default_rng(1)
    images = (rng.random((count, 4, 6, 1)) > 0.5).astype(np.float32)
    return {"image": jnp.asarray(images), "label": jnp.arange(count)}


def test_losses_are_means_over_samples_of_means_over_hidden_tokens():
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, 4)), jnp.float32)
    targets, hidden = jnp.array([[0, 1, 2], [3, 0, 1]]), jnp.array([[True, False, False], [True, True, False]])
    logs = np.asarray(jax.nn.log_softmax(logits))

    def smoothed(row, place):
        return -0.9 * logs[row, place, targets[row, place]] - 0.1 * logs[row, place].mean()

    expected = (smoothed(0, 0) + (smoothed(1, 0) + smoothed(1, 1)) / 2) / 2
    assert float(token_loss(logits, targets, hidden, 0.1)) == pytest.approx(expected, rel=1e-5)


def test_the_network_sees_mask_tokens_and_the_loss_is_of_hidden_ones(variables, monkeypatch):
    seen = []
    original = MaskedTokens.predict

    def predict(self, variables, shown, condition, hidden, **options):
        seen.append((shown, hidden, condition))
        return original(self, variables, shown, condition, hidden, **options)

    monkeypatch.setattr(MaskedTokens, "predict", predict)
    value, aux = task().loss(variables, batch(), Context(KEY, jnp.int32(0), train=False))
    (shown, hidden, condition), ids = seen[0], task().tokenize(variables, batch())
    assert ids.shape == (3, 2, 3) and (shown == jnp.where(hidden, NETWORK.mask_id, ids)).all()
    assert condition.tolist() == [0, 1, 2] and hidden.sum(axis=(1, 2)).min() >= 1
    logits = original(task(), variables, shown, condition, hidden)
    assert float(value) == pytest.approx(float(token_loss(logits, ids, hidden, 0.1)), rel=1e-6)
    assert 0 <= float(aux.metrics["accuracy"]) <= 1
    seen.clear()
    task(condition_drop_rate=0.99).loss(variables, batch(), Context(KEY, jnp.int32(0), train=True))
    assert (seen[0][2] == NETWORK.null_condition).all()


def test_samples_keep_known_tokens_and_guidance_moves_the_rest(variables):
    free = task(sampling=Sampling(steps=3, temperature=0.0, choice_temperature=0.0))
    pushed = task(sampling=Sampling(steps=3, temperature=0.0, choice_temperature=0.0, guidance_scale=40.0))
    labels = jnp.arange(4)
    ids = jnp.full((4, 2, 3), 2)
    unknown = jnp.zeros((4, 2, 3), bool).at[:, :, 1:].set(True)
    found = jax.jit(free.sample)(variables, labels, KEY, ids, unknown)
    assert (found[:, :, 0] == 2).all() and (found < 4).all()
    assert free.calls == 3 and pushed.calls == 6
    guided = jax.jit(pushed.sample)(variables, labels, KEY)
    assert not np.array_equal(guided, jax.jit(free.sample)(variables, labels, KEY))
    pictures = free.generate(variables, batch(4), KEY)
    assert pictures.shape == (4, 4, 6, 1)
    images = batch(4)["image"]
    reconstructed = free.reconstruct(variables, batch(4))
    assert np.array_equal(reconstructed[:, ::2], images[:, ::2])


def test_held_out_figures_stand_beside_guessing_the_commonest_id(variables):
    judge = task().evaluators()[""]
    ctx = Context(KEY, jnp.int32(0), train=False)
    state = None
    for count in (3, 2):
        arrays = jax.device_get(judge.compute(variables, batch(3), ctx))
        weight = np.r_[np.ones(count), np.zeros(3 - count)]
        state = judge.update(state, arrays, {"weight": weight})
    figures = judge.result(state).metrics
    ids = np.asarray(task().tokenize(variables, batch(3)))
    counts = np.bincount(np.r_[ids.ravel(), ids[:2].ravel()], minlength=4)
    assert figures["commonest_accuracy"] == pytest.approx(counts.max() / counts.sum())
    assert 0 <= figures["accuracy"] <= 1 and figures["loss"] > 0


def test_networks_that_do_not_fit_their_tokenizer_are_refused():
    with pytest.raises(ValueError, match=r"model\.grid is \(3, 3\), but the tokenizer's is \(2, 3\)"):
        task(network=NETWORK.clone(grid=(3, 3)))
    with pytest.raises(ValueError, match=r"model\.num_codes is 5, but the tokenizer has 4"):
        task(network=NETWORK.clone(num_codes=5))
    with pytest.raises(ValueError, match=r"need model\.null_condition"):
        task(network=NETWORK.clone(null_condition=-1), sampling=Sampling(guidance_scale=2.0))
