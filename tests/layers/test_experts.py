"""Mixtures of experts: both routings against loops, and experts split over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.layers.experts import MixtureOfExperts, places_of
from transformer_zoo.training import sharding
from transformer_zoo.training.planner.programs import traffic

BATCH, TOKENS, WIDTH, HIDDEN, EXPERTS = 8, 16, 6, 10, 4


def network(**options):
    module = MixtureOfExperts(EXPERTS, HIDDEN, **options)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, TOKENS, WIDTH)).astype(np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    return module, params, x


def expert(params, number, token):
    up, down = params["experts"]["up"], params["experts"]["down"]
    return (
        np.maximum(token @ up["kernel"][number] + up["bias"][number], 0) @ down["kernel"][number] + down["bias"][number]
    )


def by_loops(params, x, routing, top_k, places):
    """(y, the share of tokens without expert, the balance loss), token by token."""
    logits = x @ params["router"]["kernel"]
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    y, served, asked = np.zeros_like(x), np.zeros(x.shape[:2], bool), np.zeros(EXPERTS)
    for b in range(BATCH):
        taken = np.zeros(EXPERTS, int)
        if routing == "expert":
            pairs = [(t, e) for e in range(EXPERTS) for t in np.argsort(-probabilities[b, :, e])[:places]]
            gates = probabilities[b]
        else:
            order = np.argsort(-probabilities[b], axis=-1)[:, :top_k]
            pairs = [(t, order[t, choice]) for choice in range(top_k) for t in range(TOKENS)]
            chosen = np.take_along_axis(probabilities[b], order, -1).sum(-1, keepdims=True)
            gates = probabilities[b] / (chosen if top_k > 1 else 1)
        for t, e in pairs:
            asked[e] += 1
            if taken[e] < places:
                taken[e] += 1
                served[b, t] = True
                y[b, t] += gates[t, e] * expert(params, e, x[b, t])
    balance = EXPERTS * (asked / asked.sum() * probabilities.mean((0, 1))).sum()
    return y, 1 - served.mean(), balance if routing == "token" else 0.0


@pytest.mark.parametrize(
    ("routing", "top_k", "capacity_factor", "places"),
    [("token", 1, 1.0, 4), ("token", 2, 0.5, 4), ("token", 3, 4.0, 16), ("expert", 2, 1.0, 8), ("expert", 1, 0.3, 1)],
)
def test_tokens_go_where_the_loops_send_them(routing, top_k, capacity_factor, places):
    module, params, x = network(routing=routing, top_k=top_k, capacity_factor=capacity_factor, activation="relu")
    assert places_of(capacity_factor, top_k, TOKENS, EXPERTS) == places
    y, aux = jax.jit(module.apply)({"params": params}, x)
    expected, unrouted, balance = by_loops(params, x, routing, top_k, places)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(aux["unrouted"], unrouted, rtol=1e-5)
    np.testing.assert_allclose(aux["balance_loss"], balance, rtol=1e-5)
    if (routing, top_k) == ("token", 1):
        assert unrouted > 0.1, "nothing was dropped, so dropping was not tested"


def test_an_even_load_has_a_balance_loss_of_one_and_a_lopsided_one_more():
    module, params, x = network()
    even = jax.tree.map(np.zeros_like, params)
    lopsided = even | {"router": {"kernel": np.eye(WIDTH, EXPERTS, dtype=np.float32) * 20}}
    x = np.abs(x) * (np.arange(WIDTH) == 0).astype(np.float32)
    found = [float(jax.jit(module.apply)({"params": p}, x)[1]["balance_loss"]) for p in (even, lopsided)]
    assert found[0] == pytest.approx(1) and found[1] > 1.5


def test_names_and_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="routing 'tokens' is unknown; did you mean 'token'"):
        network(routing="tokens")


def loss_and_gradients(module, params, x):
    def loss(params, x):
        y, aux = module.apply({"params": params["mlp"]}, x)
        return ((x + y) ** 2).mean() + 0.01 * aux["balance_loss"]

    return jax.value_and_grad(loss, (0, 1))({"mlp": params}, x)


@functools.cache
def sharded(routing, **sizes):
    module, params, x = network(routing=routing, capacity_factor=0.75)
    mesh = sharding.make_mesh(sizes, jax.devices() if sizes else jax.devices()[:1])
    placed = sharding.shardings({"mlp": params}, mesh)["mlp"]
    of_batch = sharding.batch_sharding(mesh)
    with jax.set_mesh(mesh):
        step = jax.jit(functools.partial(loss_and_gradients, module), out_shardings=(None, ({"mlp": placed}, of_batch)))
        arguments = jax.device_put(params, placed), jax.device_put(x, of_batch)
        compiled = step.lower(*arguments).compile()
        found = jax.device_get(compiled(*arguments))
    return found, traffic(compiled.as_text()).collectives, placed


@pytest.mark.devices(8)
@pytest.mark.parametrize("routing", ["token", "expert"])
@pytest.mark.parametrize(
    "sizes",
    [{"data": 4, "expert": 2}, {"data": 1, "fsdp": 2, "expert": 4}, {"data": 2, "sequence": 2, "expert": 2}],
    ids=["data_expert", "fsdp_expert", "data_sequence_expert"],
)
def test_split_experts_have_the_loss_and_gradients_of_one_device_and_stay_where_they_are(routing, sizes):
    expected, _, _ = sharded(routing)
    found, collectives, placed = sharded(routing, **sizes)
    for (path, wanted), leaf in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found)):
        np.testing.assert_allclose(leaf, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max(), err_msg=str(path))
    assert placed["experts"]["up"]["kernel"].spec[0] == "expert"
    parts, fsdp = sizes["expert"], sizes.get("fsdp", 1)
    weights = EXPERTS // parts * WIDTH * HIDDEN * 4  # of one device's experts, whole
    gathers = [one for one in collectives if one.kind == "all-gather" and one.size >= weights / 2]
    assert all(fsdp > 1 and one.devices == fsdp and one.size <= weights for one in gathers), gathers
    tokens = BATCH // (sizes["data"] * fsdp * parts) * places_of(0.75, 2, TOKENS, EXPERTS) * EXPERTS * WIDTH * 4
    exchanges = [one for one in collectives if one.kind == "all-to-all" and one.devices == parts]
    # There and back, and the same for gradients.
    assert sum(one.size * one.times for one in exchanges) == 4 * tokens, exchanges


@pytest.mark.devices(8)
def test_experts_that_the_mesh_does_not_divide_are_refused_with_the_numbers():
    module, params, x = network()
    with (
        jax.set_mesh(sharding.make_mesh({"data": 1, "expert": 8})),
        pytest.raises(ValueError, match=r"4 experts cannot be split over mesh\.expert=8"),
    ):
        jax.eval_shape(module.apply, {"params": params}, jnp.asarray(x))
