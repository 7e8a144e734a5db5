import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from transformer_zoo.layers import attention
from transformer_zoo.layers.attention import Attention, attend, choose_implementation, empty_cache
from transformer_zoo.layers.attention_kernels import chunked, cudnn, pallas, plain
from transformer_zoo.layers.blocks import scan_blocks
from transformer_zoo.layers.positions import grid_positions
from transformer_zoo.layers.rope import rope_tables

BATCH, QUERIES, KEYS, HEADS, DIM = 2, 7, 9, 3, 4


@pytest.fixture(autouse=True, scope="module")
def exact():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.default_matmul_precision("highest"):
        yield
    jax.config.update("jax_disable_most_optimizations", before)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def hidden(seed, *shape):
    """A mask whose first query sees no key at all."""
    mask = np.random.default_rng(seed).random(shape) > 0.4
    mask[0, :, 0] = False
    return jnp.asarray(mask)


# Every hook alone, in the shapes that callers use, and all together.
HOOKS = {
    "none": {},
    "bias": dict(bias=normal(1, 1, HEADS, QUERIES, KEYS)),
    "bias of samples": dict(bias=normal(2, BATCH, 1, QUERIES, KEYS)),
    "mask": dict(mask=hidden(3, BATCH, 1, QUERIES, KEYS)),
    "mask of heads": dict(mask=hidden(4, 1, HEADS, QUERIES, KEYS)),
    "mask of keys": dict(mask=jnp.asarray(np.arange(KEYS) < [[[[5]]], [[[0]]]])),
    "causal": dict(causal=True),
    "causal, bias": dict(causal=True, bias=normal(14, 1, 1, QUERIES, KEYS)),
    "left window": dict(causal=True, window=(2, None)),
    "left window, bias": dict(window=(2, 0), bias=normal(15, 1, HEADS, 1, KEYS)),
    "window": dict(window=(2, 1)),
    "left window, mask of keys": dict(causal=True, window=(3, None), mask=hidden(5, BATCH, 1, 1, KEYS)),
    "multiplier": dict(logit_multiplier=normal(6, BATCH, HEADS, QUERIES, KEYS)),
    "probability mask": dict(probability_mask=normal(7, 1, 1, QUERIES, KEYS)),
    "bias and mask": dict(bias=normal(8, 1, 1, QUERIES, KEYS), mask=hidden(9, 1, HEADS, QUERIES, KEYS)),
    "everything": dict(
        bias=normal(10, BATCH, HEADS, 1, KEYS),
        mask=hidden(11, BATCH, HEADS, QUERIES, KEYS),
        causal=True,
        window=(4, None),
        logit_multiplier=normal(12, 1, HEADS, QUERIES, 1),
        probability_mask=normal(13, BATCH, 1, QUERIES, KEYS),
    ),
}


def inputs(queries=QUERIES, keys=KEYS, value_dim=DIM):
    lengths = (queries, DIM), (keys, DIM), (keys, value_dim)
    return tuple(normal(20 + n, BATCH, tokens, HEADS, dim) for n, (tokens, dim) in enumerate(lengths))


def outputs_and_gradients(arrays, hooks, *functions):
    """For each function the output and the gradients of a fixed random projection of it, for every float input."""
    learned = {name: x for name, x in hooks.items() if isinstance(x, jax.Array) and x.dtype == jnp.float32}
    fixed = {name: x for name, x in hooks.items() if name not in learned}

    def run(function, arrays, learned):
        output, pull = jax.vjp(
            lambda arrays, learned: function(*arrays, scale=0.3, **learned, **fixed), arrays, learned
        )
        return output, pull(normal(30, *output.shape))

    return jax.jit(lambda *inputs: [run(function, *inputs) for function in functions])(arrays, learned)


def difference(found, wanted):
    """The largest difference over all arrays, each relative to its largest value."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return max(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(b).max() for a, b in pairs)


def definition(arrays, hooks, scale=0.3):
    """What `outputs_and_gradients` finds, from the formulas in float64."""
    query, key, value = (np.asarray(x, np.float64).swapaxes(1, 2) for x in arrays)
    bias, times, kept = (
        hooks.get(name, n) for name, n in (("bias", 0), ("logit_multiplier", 1), ("probability_mask", 1))
    )
    queries, keys = query.shape[2], key.shape[2]
    left, right = hooks.get("window") or (None, None)
    seen = np.broadcast_to(hooks.get("mask", True), (*query.shape[:3], keys)).copy()
    for i, j in np.ndindex(queries, keys):
        place = i + keys - queries
        if (hooks.get("causal") and j > place) or (left is not None and j < place - left):
            seen[:, :, i, j] = False
        if right is not None and j > place + right:
            seen[:, :, i, j] = False
    products = query @ key.swapaxes(2, 3) * scale
    logits = np.where(seen, products * times + bias, np.finfo(np.float32).min)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    softmax = weights / weights.sum(-1, keepdims=True)
    output = (softmax * kept) @ value
    grad = np.asarray(normal(30, *output.swapaxes(1, 2).shape), np.float64).swapaxes(1, 2)
    grad_kept = grad @ value.swapaxes(2, 3)
    grad_softmax = grad_kept * kept
    grad_logits = softmax * (grad_softmax - (grad_softmax * softmax).sum(-1, keepdims=True)) * seen
    grad_products = grad_logits * times * scale
    grads = (
        grad_products @ key,
        grad_products.swapaxes(2, 3) @ query,
        (softmax * kept).swapaxes(2, 3) @ grad,
    )
    of_hooks = dict(bias=grad_logits, logit_multiplier=grad_logits * products, probability_mask=grad_kept * softmax)

    def unbroadcast(x, shape):
        return x.sum(tuple(axis for axis in range(4) if shape[axis] == 1), keepdims=True)

    of_hooks = {name: unbroadcast(x, hooks[name].shape) for name, x in of_hooks.items() if name in hooks}
    return output.swapaxes(1, 2), (tuple(x.swapaxes(1, 2) for x in grads), of_hooks)


# What is left out here differs for the fused kernels only, which care about broadcasting and equal lengths.
OF_PLAIN = [name for name in HOOKS if name not in ("mask of heads", "causal, bias", "left window", "left window, bias")]
OF_CHUNKED = ["bias", "mask of keys", "window", "bias and mask", "everything"]


@pytest.mark.parametrize("name", OF_PLAIN)
def test_plain_and_chunked_have_the_outputs_and_gradients_of_the_definition(name):
    functions = [plain] + [functools.partial(chunked, chunk_size=3)] * (name in OF_CHUNKED)
    for found in outputs_and_gradients(inputs(), HOOKS[name], *functions):
        assert difference(found, definition(inputs(), HOOKS[name])) < 1e-5


def test_a_query_that_sees_nothing_gets_the_mean_of_all_values():
    blind = jax.jit(functools.partial(attend, mask=jnp.zeros((1, 1, 1, KEYS), bool), causal=True))
    output = blind(*inputs())
    assert difference(output, np.broadcast_to(np.mean(inputs()[2], 1, keepdims=True), output.shape)) < 1e-6


def largest_array(jaxpr):
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [math.prod(x.aval.shape) for x in equation.outvars]
        inner = [x for x in jax.tree.leaves(equation.params) if isinstance(x, (Jaxpr, ClosedJaxpr))]
        sizes += [largest_array(getattr(x, "jaxpr", x)) for x in inner]
    return max(sizes)


@pytest.mark.parametrize("name, fraction", [("chunked", 8), ("xla", 1)])
def test_chunked_never_holds_more_logits_than_a_chunk_also_backward(name, fraction):
    queries, chunk = 64, 8
    arrays = [normal(seed, 1, queries, 2, 2) for seed in (40, 41, 42)]

    def loss(*arrays):
        return attend(*arrays, causal=True, implementation=name, chunk_size=chunk).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(*arrays)
    assert largest_array(jaxpr.jaxpr) == 2 * queries * queries // fraction


xla_attention = jax.nn.dot_product_attention


def fake_cudnn(query, key, value, bias, mask, *, scale, is_causal, local_window_size, implementation):
    """The kernel's limits and its way to mask, with XLA's arithmetic."""
    assert implementation == "cudnn"
    logits = (query.shape[2], query.shape[1], key.shape[1])
    assert local_window_size is None or (is_causal and bias is None and mask is None)
    if bias is not None:
        assert bias.shape == (1, *logits)
        assert bias.dtype == query.dtype
    if bias is not None or mask is not None:
        assert query.shape[1] % 2 == key.shape[1] % 2 == 0
        assert mask is None or mask.shape[2:] == logits[1:]
        bias = (0 if bias is None else bias) + (0 if mask is None else jnp.where(mask, 0.0, -2.0 * 2**40))
    return xla_attention(query, key, value, bias, scale=scale, is_causal=is_causal, local_window_size=local_window_size)


@pytest.mark.parametrize(
    "name, keys",
    [(name, KEYS) for name in ("none", "bias", "mask", "mask of heads", "mask of keys", "window", "bias and mask")]
    + [(name, QUERIES) for name in ("causal", "causal, bias", "left window", "left window, bias")],
)
def test_cudnn_pads_masks_and_broadcasts_as_the_kernel_needs(monkeypatch, name, keys):
    shapes = [jax.ShapeDtypeStruct((*x.shape[:-1], 8), jnp.bfloat16) for x in inputs(keys=keys)]
    hooks = {hook: x[..., :keys] if isinstance(x, jax.Array) else x for hook, x in HOOKS[name].items()}
    assert choose_implementation("cudnn", *shapes, platform="gpu", capability=8.0, **hooks)[0] == "cudnn"
    monkeypatch.setattr(jax.nn, "dot_product_attention", fake_cudnn)
    (found,) = outputs_and_gradients(inputs(keys=keys), hooks, cudnn)
    assert difference(found, definition(inputs(keys=keys), hooks)) < 1e-5


@pytest.mark.parametrize(
    "hooks",
    [
        dict(window=(5, 3), mask=hidden(50, BATCH, 1, 1, 131)),
        dict(mask=jnp.asarray(np.arange(131) < [[[[100]]], [[[0]]]])),
    ],
)
def test_pallas_kernel_interpreted(hooks):
    arrays = inputs(130, 131)
    (found,) = outputs_and_gradients(arrays, hooks, functools.partial(pallas, interpret=True))
    assert difference(found, definition(arrays, hooks)) < 1e-5


def test_a_mesh_of_tpus_gets_the_kernel_on_each_devices_own_samples_and_heads():
    tpu = AbstractDevice("TPU v5 lite", 1, platform="tpu")
    mesh = AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, abstract_device=tpu)
    shape = jax.ShapeDtypeStruct((8, 1100, 6, 64), jnp.bfloat16)

    def loss(query, key, value):
        return attend(query, key, value).astype(jnp.float32).sum()

    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(shape, shape, shape)
    calls = [
        line for line in traced.lower(lowering_platforms=("tpu",)).as_text().splitlines() if "tpu_custom_call" in line
    ]
    assert len(calls) == 3
    assert all("tensor<2x3x1152x64xbf16>" in call for call in calls)


LONG = jax.ShapeDtypeStruct((2, 2048, 4, 64), jnp.bfloat16)
SHORT = jax.ShapeDtypeStruct((2, 197, 4, 64), jnp.bfloat16)
ONE = jax.ShapeDtypeStruct((2, 1, 4, 64), jnp.bfloat16)
WIDE = jax.ShapeDtypeStruct((2, 2048, 4, 256), jnp.bfloat16)
ODD = jax.ShapeDtypeStruct((2, 2048, 4, 36), jnp.bfloat16)
FLOAT = jax.ShapeDtypeStruct((2, 2048, 4, 64), jnp.float32)
BIAS = jax.ShapeDtypeStruct((1, 4, 2048, 2048), jnp.float32)
BIASES = jax.ShapeDtypeStruct((2, 4, 2048, 2048), jnp.float32)
PAIRS = jax.ShapeDtypeStruct((2, 1, 2048, 2048), jnp.bool_)
PADDING = jax.ShapeDtypeStruct((2, 1, 1, 2048), jnp.bool_)


@pytest.mark.parametrize(
    "name, reason, query, key, platform, capability, hooks",
    [
        ("xla", "197 x 197 logits are few", SHORT, SHORT, "gpu", 9.0, {}),
        ("xla", "1 x 2048 logits are few", ONE, LONG, "tpu", 0.0, {}),
        ("chunked", "2048 x 2048 logits are many on cpu", LONG, LONG, "cpu", 0.0, {}),
        ("cudnn", "many on gpu", LONG, LONG, "gpu", 8.0, dict(mask=PAIRS)),
        ("cudnn", "many on gpu", LONG, LONG, "gpu", 8.0, dict(bias=BIAS, causal=True)),
        ("cudnn", "many on gpu", WIDE, WIDE, "gpu", 9.0, {}),
        ("chunked", "head size that is a multiple of 8 up to 128, not 256", WIDE, WIDE, "gpu", 8.0, {}),
        ("chunked", "head size that is a multiple of 8 up to 128, not 36", ODD, ODD, "gpu", 8.0, {}),
        ("chunked", "capability 8.0 or more, not gpu 7.5", LONG, LONG, "gpu", 7.5, {}),
        ("chunked", "bfloat16 or float16, not float32", FLOAT, FLOAT, "gpu", 9.0, {}),
        ("chunked", "bias gradient", LONG, LONG, "gpu", 9.0, dict(bias=BIASES)),
        ("chunked", "bias gradient", LONG, LONG, "gpu", 9.0, dict(bias=BIAS, mask=PADDING)),
        ("chunked", "no logit_multiplier", LONG, LONG, "gpu", 9.0, dict(logit_multiplier=BIAS)),
        ("chunked", "no probability_mask", LONG, LONG, "gpu", 9.0, dict(probability_mask=BIAS)),
        ("pallas", "many on tpu", FLOAT, FLOAT, "tpu", 0.0, dict(mask=PADDING, causal=True)),
        ("chunked", "masks keys", LONG, LONG, "tpu", 0.0, dict(mask=PAIRS)),
        ("chunked", "no bias", LONG, LONG, "tpu", 0.0, dict(bias=BIAS)),
        (
            "chunked",
            "without any of 2048 keys",
            jax.ShapeDtypeStruct((2, 2050, 4, 64), jnp.bfloat16),
            LONG,
            "tpu",
            0.0,
            dict(window=(1, 1)),
        ),
    ],
)
def test_the_choice_follows_backend_length_dtype_and_hooks(name, reason, query, key, platform, capability, hooks):
    chosen, why = choose_implementation("auto", query, key, key, platform=platform, capability=capability, **hooks)
    assert chosen == name
    assert reason in why


def test_an_implementation_asked_for_is_taken_or_refused_with_a_way_out():
    assert choose_implementation("chunked", SHORT, SHORT, SHORT, platform="gpu")[0] == "chunked"
    assert choose_implementation("cudnn", SHORT, SHORT, SHORT, platform="gpu", capability=9.0)[0] == "cudnn"
    with pytest.raises(
        ValueError, match=r"'cudnn' cannot serve this call: it needs an NVIDIA GPU .* not cpu; 'chunked' can"
    ):
        attend(*inputs(), implementation="cudnn")
    with pytest.raises(ValueError, match="'pallas' cannot serve this call: it needs a TPU, not cpu"):
        attend(*inputs(), implementation="pallas")
    with pytest.raises(ValueError, match="'flash' is none of auto, xla, chunked, cudnn, pallas, ring"):
        attend(*inputs(), implementation="flash")


def test_a_choice_is_logged_once(monkeypatch):
    lines = []
    attention.log_once.cache_clear()
    monkeypatch.setattr(attention.logging, "info", lambda message, *values: lines.append(message % values))
    for implementation in ("auto", "auto", "chunked"):
        jax.eval_shape(functools.partial(attend, implementation=implementation), *inputs())
    assert lines == ["attention runs as xla: 7 x 9 logits are few", "attention runs as chunked: it was asked for"]


@pytest.mark.parametrize("implementation", ["xla", "chunked"])
def test_the_softmax_of_bfloat16_is_float32(implementation):
    # Whole logits are exact in bfloat16; a tenth of 99 is not, and would be wrong by 2 %.
    key = jnp.arange(101.0).reshape(1, 101, 1, 1)
    arrays = [x.astype(jnp.bfloat16) for x in (jnp.ones_like(key), key, key == 99)]
    output = jax.jit(functools.partial(attend, scale=0.1, implementation=implementation))(*arrays)
    assert output.dtype == jnp.bfloat16
    assert difference(output, definition(arrays, {}, 0.1)[0]) < 5e-3


def apply(module, x, *inputs, seed=0, **options):
    """Applies with every parameter at random, and returns the parameters too."""
    shapes = jax.eval_shape(functools.partial(module.init, **options), jax.random.key(0), x, *inputs)
    leaves, tree = jax.tree.flatten(shapes)
    params = tree.unflatten([normal(seed + n, *leaf.shape) for n, leaf in enumerate(leaves)])
    return jax.jit(module.apply)(params, x, *inputs, **options), jax.tree.map(np.asarray, params["params"])


def project(params, x, part):
    return np.einsum("bnd,dhk->bnhk", x, params["kernel"][:, part]) + params["bias"][part]


def project_out(params, x):
    return np.einsum("bnhk,hkd->bnd", x, params["out"]["kernel"]) + params["out"]["bias"]


@pytest.mark.parametrize("kind", [None, "layer", "rms"])
def test_attention_is_its_formula(kind):
    x = normal(60, 2, 5, 6)
    y, params = apply(Attention(2, qk_norm=kind is not None, qk_norm_kind=kind or "layer"), x)
    query, key, value = (project(params["qkv"], x, part) for part in range(3))

    def norm(x, p):
        if kind == "layer":
            centred = x - x.mean(-1, keepdims=True)
            return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]

    if kind is not None:
        query, key = norm(query, params["q_norm"]), norm(key, params["k_norm"])
    out = definition((query, key, value), {}, 3**-0.5)[0]
    assert difference(y, project_out(params, out)) < 1e-5


def test_cross_attention_is_its_formula():
    x, context = normal(61, 2, 5, 6), normal(62, 2, 4, 3)
    y, params = apply(Attention(2, scale=0.2), x, context)
    query, key, value = project(params["q"], x, 0), *(project(params["kv"], context, part) for part in range(2))
    out = definition((query, key, value), {}, 0.2)[0]
    assert difference(y, project_out(params, out)) < 1e-5


def test_head_projection_initialises_every_part_as_a_matrix_of_its_own():
    params = jax.jit(Attention(4).init)(jax.random.key(0), jnp.zeros((1, 2, 64)))["params"]
    kernel = params["qkv"]["kernel"]
    assert kernel.shape == (64, 3, 4, 16)
    bound = math.sqrt(6 / (64 + 64))
    assert np.abs(kernel).max() == pytest.approx(bound, rel=1e-2)


@pytest.mark.parametrize("options", [{}, dict(causal=True), dict(window=(1, 0))])
def test_extra_keys_stand_in_front_and_are_seen_by_all(options):
    x = normal(63, 2, 5, 6)
    extra = normal(64, 1, 3, 2, 3), normal(65, 2, 3, 2, 3)
    y, params = apply(Attention(2, **options), x, extra_key_values=extra)
    query, key, value = (project(params["qkv"], x, part) for part in range(3))
    key = np.concatenate([np.repeat(extra[0], 2, 0), key], 1)
    value = np.concatenate([extra[1], value], 1)
    distance = np.arange(5) - np.arange(5)[:, None]
    own = {(): distance < 9, ("causal",): distance <= 0, ("window",): (distance <= 0) & (distance >= -1)}
    mask = np.concatenate([np.ones((5, 3), bool), own[tuple(options)]], 1)
    out = definition((query, key, value), dict(mask=mask), 3**-0.5)[0]
    assert difference(y, project_out(params, out)) < 1e-5


def test_hooks_reach_the_attention():
    x = normal(66, 2, 5, 6)
    hooks = dict(
        bias=normal(67, 1, 2, 5, 5),
        mask=hidden(68, 2, 1, 5, 5),
        logit_multiplier=normal(69, 1, 2, 5, 5),
        probability_mask=normal(70, 1, 1, 5, 5),
    )
    y, params = apply(Attention(2, causal=True), x, **hooks)
    query, key, value = (project(params["qkv"], x, part) for part in range(3))
    out = definition((query, key, value), dict(causal=True, **hooks), 3**-0.5)[0]
    assert difference(y, project_out(params, out)) < 1e-5


def test_rope_makes_attention_see_differences_of_positions_only():
    x = normal(71, 2, 5, 8)
    here, there = (rope_tables(grid_positions((5,)) + shift, (4,)) for shift in (0, 17))
    first, params = apply(Attention(2), x, rope=here)
    second, _ = apply(Attention(2), x, rope=there)
    assert difference(second, first) < 1e-5
    query, key, value = (project(params["qkv"], x, part) for part in range(3))
    without = project_out(params, definition((query, key, value), {}, 4**-0.5)[0])
    assert difference(first, without) > 1e-2


@pytest.mark.parametrize(
    "options, extra",
    [({}, False), (dict(window=(2, None)), False), (dict(window=(2, None)), True), (dict(qk_norm=True), True)],
)
def test_decoding_with_a_cache_is_the_causal_forward(options, extra):
    x, prompt, max_length = normal(72, 2, 7, 8), 3, 9
    rope = rope_tables(grid_positions((7,)), (4,))
    module = Attention(2, causal=True, **options)
    extras = dict(extra_key_values=(normal(73, 1, 2, 2, 4), normal(74, 1, 2, 2, 4))) if extra else {}
    want, params = apply(module, x, rope=rope, **extras)

    @jax.jit
    def decode(params, x):
        def step(cache, start, tokens):
            rows = jax.tree.map(lambda table: jax.lax.dynamic_slice_in_dim(table, start, tokens), rope)
            piece = jax.lax.dynamic_slice_in_dim(x, start, tokens, axis=1)
            return module.apply({"params": params}, piece, rope=rows, cache=cache, **extras)

        first, cache = step(empty_cache(2, max_length, 2, 4), 0, prompt)
        cache, rest = jax.lax.scan(lambda cache, n: step(cache, n, 1)[::-1], cache, jnp.arange(prompt, 7))
        return jnp.concatenate([first, rest[:, :, 0].swapaxes(0, 1)], 1), cache.length

    found, length = decode(params, x)
    assert difference(found, want) < 1e-5
    assert length == 7


def test_without_causal_the_tokens_of_one_call_see_each_other_and_the_cache():
    x = normal(75, 2, 6, 8)
    module = Attention(2)
    want, params = apply(module, x)

    @jax.jit
    def in_two_calls(params, x):
        _, cache = module.apply({"params": params}, x[:, :4], cache=empty_cache(2, 8, 2, 4))
        return module.apply({"params": params}, x[:, 4:], cache=cache)[0]

    assert difference(in_two_calls(params, x), want[:, 4:]) < 1e-5


class CachedLayer(nn.Module):
    @nn.compact
    def __call__(self, x, cache, rope):
        return Attention(2, causal=True)(x, rope=rope, cache=cache)


class CachedStack(nn.Module):
    @nn.compact
    def __call__(self, x, caches, rope):
        return scan_blocks(self, CachedLayer(), 3, x, caches, rope)


def test_a_scanned_stack_carries_a_cache_for_every_layer_and_shares_the_rope():
    x, rope = normal(76, 1, 4, 8), rope_tables(grid_positions((4,)), (4,))
    empty = empty_cache(1, 4, 2, 4)
    caches = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), empty)
    (y, caches), params = apply(CachedStack(), x, caches, rope)
    assert np.array_equal(caches.length, [4, 4, 4])
    layers = params["blocks"]["Attention_0"]
    for layer in range(3):
        own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], layers)
        x, cache = jax.jit(Attention(2, causal=True).apply)({"params": own}, x, rope=rope, cache=empty)
        assert difference(caches.key[layer], cache.key) < 1e-5
    assert difference(y, x) < 1e-5


def test_attention_names_what_does_not_fit():
    x = jnp.zeros((1, 5, 8))

    def shapes(module, *inputs, **options):
        return jax.eval_shape(functools.partial(module.init, **options), jax.random.key(0), *inputs)

    with pytest.raises(ValueError, match="qk_norm_kind 'batch' is none of layer, rms"):
        shapes(Attention(2, qk_norm_kind="batch"), x)
    with pytest.raises(ValueError, match="num_heads 3 does not divide the width 8; give head_dim"):
        shapes(Attention(3), x)
    with pytest.raises(ValueError, match="context is given with rope or a cache"):
        shapes(Attention(2), x, x, cache=empty_cache(1, 5, 2, 4))
    with pytest.raises(ValueError, match="5 tokens do not fit into a cache with max_length 4"):
        shapes(Attention(2), x, cache=empty_cache(1, 4, 2, 4))
