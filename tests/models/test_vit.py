import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.layers.blocks import Block
from transformer_zoo.layers.positions import resize_positions, sincos_2d
from transformer_zoo.models.backbones import vit
from transformer_zoo.models.backbones.vit import ViT
from transformer_zoo.tasks.classification import Classification
from transformer_zoo.training.optimizer import make_optimizer
from transformer_zoo.training.tree import paths

TINY = dict(num_classes=5, patch_size=(4, 4), depth=2, width=16, num_heads=2, mlp_ratio=2.0)
# Between them every field that changes the function.
NETWORKS = {
    "class token": ViT(
        **TINY, image_size=(8, 16), num_registers=2, prefix_positions=True, layer_scale=0.5, positions="learned"
    ),
    "mean": ViT(
        **TINY | dict(num_classes=0, patch_size=(4, 2)),
        image_size=(8, 6),
        pool="mean",
        class_token=False,
        num_registers=1,
        positions="rope_2d",
        final_norm="pooled",
        gated=True,
        activation="silu",
        qk_norm=True,
    ),
    "attention": ViT(
        **TINY, image_size=(8, 12), pool="attention", positions="sincos_2d", representation_size=6, activation="relu"
    ),
    "none": ViT(
        **TINY,
        image_size=(8, 8),
        channels=1,
        pool="none",
        class_token=False,
        positions="sincos_2d_big_vision",
        final_norm="none",
        qkv_bias=False,
        use_bias=False,
        activation="gelu_tanh",
    ),
}
KEY = jax.random.key(1, impl="unsafe_rbg")


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def images_for(network, size=None, batch=2):
    return jnp.asarray(normal(50, batch, *(size or network.image_size), network.channels))


def filled(network, scale=0.3):
    """Every parameter at random, those that start at 0 or 1 too."""
    shapes = jax.eval_shape(network.init, KEY, images_for(network))["params"]
    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(structure, [scale * normal(n, *leaf.shape) for n, leaf in enumerate(leaves)])


PARAMS = {name: filled(network) for name, network in NETWORKS.items()}
APPLY = jax.jit(
    lambda network, params, images, keep=None: network.apply({"params": params}, images, keep), static_argnums=0
)


def difference(ours, expected):
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape
    return np.abs(ours - expected).max() / np.abs(expected).max()


# The same network in plain numpy, from the papers' formulas


def dense(params, x):
    return x @ params["kernel"] + params.get("bias", 0)


def norm(params, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]


def activate(name, x):
    if name == "gelu":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    if name == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x.clip(0) if name == "relu" else x / (1 + np.exp(-x))


def mlp(network, params, x):
    hidden = dense(params["up"], x)
    if network.gated:
        hidden = activate(network.activation, dense(params["gate"], x)) * hidden
    else:
        hidden = activate(network.activation, hidden)
    return dense(params["down"], hidden)


def attention(params, query, key, value):
    """[heads, tokens, dim] each, to [queries, width]."""
    logits = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    y = shares / shares.sum(axis=-1, keepdims=True) @ value
    return np.einsum("hnd,hdw->nw", y, params["kernel"]) + params.get("bias", 0)


def project(params, x):
    """[parts, heads, tokens, dim]."""
    bias = params.get("bias", np.zeros(params["kernel"].shape[1:]))
    return np.einsum("nw,wphd->phnd", x, params["kernel"]) + bias[:, :, None]


def turn(x, rows, columns):
    """Rotates the pairs (i, i + dim / 2) of [heads, tokens, dim]; the first half of the pairs by rows."""
    half, quarter = x.shape[-1] // 2, x.shape[-1] // 4
    frequencies = 10000.0 ** (-np.arange(quarter) / quarter)
    angles = np.concatenate([rows[:, None] * frequencies, columns[:, None] * frequencies], axis=1)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def reference(network, params, image, keep=None):
    """Output, levels and patch tokens of one image [height, width, channels]."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    (p, q), (height, width, _) = network.patch_size, image.shape
    grid = (height // p, width // q)
    places = np.array([(row, column) for row in range(grid[0]) for column in range(grid[1])])
    patches = np.stack([image[r * p : r * p + p, c * q : c * q + q].ravel() for r, c in places]).astype(np.float64)
    x = dense(params["patch_embed"]["projection"], patches)
    prefix = np.concatenate([params[name] for name in ("class_token", "registers") if name in params] or [x[:0]])
    if network.positions == "learned":
        ahead = len(prefix) if network.prefix_positions else 0
        table = resize_positions(jnp.asarray(params["positions"]["table"]), network.grid, grid, prefix=ahead)
        x = x + table[ahead:]
        prefix = prefix + table[:ahead] if ahead else prefix
    elif network.positions.startswith("sincos_2d"):
        x = x + sincos_2d(grid, network.width, "big_vision" if network.positions.endswith("big_vision") else "mae")
    keep = np.arange(len(x)) if keep is None else keep
    x = np.concatenate([prefix, x[keep]])
    rows, columns = np.concatenate([np.zeros((len(prefix), 2)), places[keep]]).T
    levels = []
    for index in range(network.depth):
        block = jax.tree.map(lambda leaf, index=index: leaf[index], params["blocks"])
        query, key, value = project(block["attention"]["qkv"], norm(block["norm1"], x))
        if network.qk_norm:
            query, key = norm(block["attention"]["q_norm"], query), norm(block["attention"]["k_norm"], key)
        if network.positions == "rope_2d":
            query, key = turn(query, rows, columns), turn(key, rows, columns)
        y = attention(block["attention"]["out"], query, key, value)
        x = x + y * (block["attention_scale"]["scale"] if network.layer_scale else 1)
        y = mlp(network, block["mlp"], norm(block["norm2"], x))
        x = x + y * (block["mlp_scale"]["scale"] if network.layer_scale else 1)
        levels.append(x)
    if network.final_norm == "tokens":
        x = norm(params["norm"], x)
    if network.pool == "class_token":
        output = x[0]
    elif network.pool == "mean":
        output = x[len(prefix) :].mean(axis=0)
    elif network.pool == "attention":
        pool = params["attention_pool"]
        (query,), (key, value) = project(pool["attention"]["q"], pool["probe"]), project(pool["attention"]["kv"], x)
        y = attention(pool["attention"]["out"], query, key, value)
        output = (y + mlp(network, pool["mlp"], norm(pool["norm"], y)))[0]
    else:
        return x, np.stack(levels), x[len(prefix) :]
    if network.final_norm == "pooled":
        output = norm(params["norm"], output)
    if network.representation_size:
        output = np.tanh(dense(params["representation"], output))
    return dense(params["head"], output) if network.num_classes else output, np.stack(levels), x[len(prefix) :]


def check(name, images, keep=None):
    network, params = NETWORKS[name], PARAMS[name]
    output, aux = APPLY(network, params, images, keep)
    for sample in range(len(images)):
        own = None if keep is None else keep[sample]
        expected = reference(network, params, np.asarray(images[sample]), own)
        ours = output[sample], aux["levels"][:, sample], aux["tokens"][sample]
        assert max(map(difference, ours, expected)) < 1e-4
    return output, aux


@pytest.fixture(scope="module")
def encoded():
    return {name: check(name, images_for(network)) for name, network in NETWORKS.items() if network.pool != "none"}


def test_the_network_is_its_formulas(encoded):
    assert len(encoded) == 3
    check("none", images_for(NETWORKS["none"]))


def test_another_image_size_resizes_the_learned_positions():
    check("class token", images_for(NETWORKS["class token"], size=(12, 8)))


# Visible patches only


@pytest.mark.parametrize("name", ["class token", "mean"])
def test_keeping_all_patches_is_the_whole_image_and_their_order_orders_the_tokens(encoded, name):
    network, params = NETWORKS[name], PARAMS[name]
    output, aux = encoded[name]
    images, count = images_for(network), aux["tokens"].shape[1]
    in_order = jnp.broadcast_to(jnp.arange(count), (2, count))
    kept = APPLY(network, params, images, in_order)
    assert difference(kept[0], output) < 1e-5 and difference(kept[1]["levels"], aux["levels"]) < 1e-5
    order = np.stack([np.random.default_rng(seed).permutation(count) for seed in range(2)])
    moved = APPLY(network, params, images, jnp.asarray(order))
    assert difference(moved[0], output) < 1e-5
    assert difference(moved[1]["tokens"], np.take_along_axis(np.asarray(aux["tokens"]), order[..., None], 1)) < 1e-5
    assert difference(moved[1]["tokens"], aux["tokens"]) > 0.1


def test_patches_that_are_not_kept_might_as_well_not_exist():
    check("mean", images_for(NETWORKS["mean"]), jnp.array([[4, 1, 3], [0, 5, 2]]))


@pytest.mark.parametrize(
    "size, rate, kept", [((12, 12), 0.65, 3), ((20, 20), 0.9, 2), ((16, 16), 0.5, 8), ((16, 16), 0.99, 1)]
)
def test_patch_dropout_keeps_a_share_rounded_down_and_at_least_one(size, rate, kept):
    network = ViT(**TINY, image_size=size, patch_dropout=rate)
    images = images_for(network)
    params = jax.eval_shape(network.init, KEY, images)

    def count(train):
        _, aux = jax.eval_shape(lambda p: network.apply(p, images, train=train, rngs={"dropout": KEY}), params)
        return aux["tokens"].shape[1]

    assert count(train=True) == kept
    assert count(train=False) == size[0] * size[1] // 16


def test_patch_dropout_keeps_other_random_patches_of_every_sample_at_every_key():
    network = ViT(**TINY | dict(depth=1), image_size=(16, 16), positions="none", final_norm="none", patch_dropout=0.5)
    params = filled(network)
    for name, layer in (("attention", "out"), ("mlp", "down")):  # so that the block adds nothing
        params["blocks"][name][layer] = jax.tree.map(np.zeros_like, params["blocks"][name][layer])

    @jax.jit
    def kept_and_all(key):
        _, aux = network.apply({"params": params}, images_for(network, batch=3), train=True, rngs={"dropout": key})
        return aux["tokens"], aux["patches"]

    chosen = set()
    for seed in range(2):
        tokens, patches = kept_and_all(jax.random.key(seed, impl="unsafe_rbg"))
        distance = np.abs(np.asarray(tokens)[:, :, None] - np.asarray(patches)[:, None]).max(axis=-1)
        assert distance.min(axis=2).max() < 1e-5
        numbers = distance.argmin(axis=2)
        assert all(len(set(row)) == 8 for row in numbers)
        chosen |= {frozenset(row) for row in numbers}
    assert len(chosen) == 6


# Parameters


def test_parameters_have_the_names_and_shapes_that_tables_and_converters_rely_on():
    expected = {
        "class_token": (1, 16),
        "registers": (2, 16),
        "patch_embed/projection/kernel": (4 * 4 * 3, 16),
        "patch_embed/projection/bias": (16,),
        "positions/table": (3 + 8, 16),
        "blocks/norm1/scale": (2, 16),
        "blocks/norm1/bias": (2, 16),
        "blocks/attention/qkv/kernel": (2, 16, 3, 2, 8),
        "blocks/attention/qkv/bias": (2, 3, 2, 8),
        "blocks/attention/out/kernel": (2, 2, 8, 16),
        "blocks/attention/out/bias": (2, 16),
        "blocks/attention_scale/scale": (2, 16),
        "blocks/norm2/scale": (2, 16),
        "blocks/norm2/bias": (2, 16),
        "blocks/mlp/up/kernel": (2, 16, 32),
        "blocks/mlp/up/bias": (2, 32),
        "blocks/mlp/down/kernel": (2, 32, 16),
        "blocks/mlp/down/bias": (2, 16),
        "blocks/mlp_scale/scale": (2, 16),
        "norm/scale": (16,),
        "norm/bias": (16,),
        "head/kernel": (16, 5),
        "head/bias": (5,),
    }
    params = PARAMS["class token"]
    assert dict(zip(jax.tree.leaves(paths(params)), map(np.shape, jax.tree.leaves(params)))) == expected
    others = {path for name in ("mean", "attention") for path in jax.tree.leaves(paths(PARAMS[name]))}
    assert others - set(expected) == {
        "blocks/attention/q_norm/scale",
        "blocks/attention/q_norm/bias",
        "blocks/attention/k_norm/scale",
        "blocks/attention/k_norm/bias",
        "blocks/mlp/gate/kernel",
        "blocks/mlp/gate/bias",
        "attention_pool/probe",
        "attention_pool/attention/q/kernel",
        "attention_pool/attention/q/bias",
        "attention_pool/attention/kv/kernel",
        "attention_pool/attention/kv/bias",
        "attention_pool/attention/out/kernel",
        "attention_pool/attention/out/bias",
        "attention_pool/norm/scale",
        "attention_pool/norm/bias",
        "attention_pool/mlp/up/kernel",
        "attention_pool/mlp/up/bias",
        "attention_pool/mlp/down/kernel",
        "attention_pool/mlp/down/bias",
        "representation/kernel",
        "representation/bias",
    }


def expected_depth(path):
    if path.startswith("blocks/"):
        return [1, 2]
    return 0 if path.split("/")[0] in ("class_token", "registers", "patch_embed", "positions") else 3


@pytest.mark.parametrize("name", NETWORKS)
def test_depth_is_0_for_the_stem_and_largest_for_what_follows_the_blocks(name):
    params = PARAMS[name]
    depths = Classification(NETWORKS[name]).depths(params)
    assert jax.tree.structure(depths) == jax.tree.structure(params)
    for path, depth in zip(jax.tree.leaves(paths(params)), jax.tree.leaves(depths)):
        assert np.array_equal(depth, expected_depth(path)), path


def test_the_optimizer_decays_kernels_only_and_rates_by_the_rule_of_mae():
    params = jax.tree.map(jnp.ones_like, PARAMS["class token"])
    config = dict(name="sgd", learning_rate=1.0, schedule="constant", momentum=0.0, weight_decay=0.1, layer_decay=0.5)
    depths = Classification(NETWORKS["class token"]).depths(params)
    transform = make_optimizer(config, params, total_steps=10, depths=depths).transform

    @jax.jit
    def updates(gradient):
        gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, gradient), params)
        return transform.update(gradients, transform.init(params), params)[0]

    rates, decays = (jax.tree.leaves(updates(gradient)) for gradient in (1.0, 0.0))
    for path, rate, decay in zip(jax.tree.leaves(paths(params)), rates, decays):
        multiplier = 0.5 ** (2 + 1 - np.array(expected_depth(path), float))
        multiplier = np.broadcast_to(multiplier.reshape(-1, *(1,) * (rate.ndim - 1)), rate.shape)
        decayed = 0.1 if path.endswith("kernel") else 0.0
        assert np.allclose(decay, -decayed * multiplier), path
        assert np.allclose(rate, -(1 + decayed) * multiplier), path


def test_every_parameter_of_every_block_gets_a_gradient():
    network = ViT(
        **TINY,
        image_size=(8, 8),
        pool="attention",
        num_registers=2,
        positions="rope_2d",  # without rotation the softmax is blind to the keys' biases
        representation_size=6,
        gated=True,
        qk_norm=True,
        layer_scale=0.5,
    )
    params = filled(network)
    weights = normal(60, 2, 5)

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: (network.apply({"params": p}, images_for(network))[0] * weights).sum())(params)

    for path, leaf in zip(jax.tree.leaves(paths(params)), jax.tree.leaves(gradient(params))):
        for part in leaf if path.startswith("blocks/") else [leaf]:
            assert np.abs(part).max() > 1e-4, path


def test_bfloat16_computes_in_bfloat16_from_float32_parameters_to_float32_logits(encoded):
    network = NETWORKS["class token"].clone(dtype="bfloat16")
    images = images_for(network)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(network.init, KEY, images))}
    assert dtypes == {jnp.dtype("float32")}
    logits, aux = APPLY(network, PARAMS["class token"], images)
    assert logits.dtype == jnp.float32
    assert aux["levels"].dtype == aux["pooled"].dtype == aux["tokens"].dtype == jnp.bfloat16
    assert 1e-4 < difference(logits, encoded["class token"][0]) < 5e-2


# What nobody reads


class Silent(Block):
    """The same block without its second output."""

    def __call__(self, *inputs):
        return super().__call__(*inputs)[0], ()


@pytest.mark.parametrize("unroll", [1, 2])
def test_levels_that_nobody_reads_take_neither_memory_nor_time(monkeypatch, unroll):
    network, params = NETWORKS["class token"].clone(unroll=unroll), PARAMS["class token"]
    images = images_for(network, batch=3)

    def compiled(read):
        apply = jax.jit(lambda params, images: read(*network.apply({"params": params}, images)))
        return apply.lower(params, images).compile()

    unread = compiled(lambda logits, aux: logits)
    with monkeypatch.context() as patch:
        patch.setattr(vit, "Block", Silent)
        silent = compiled(lambda logits, aux: logits)
    assert unread.memory_analysis().temp_size_in_bytes == silent.memory_analysis().temp_size_in_bytes
    assert unread.memory_analysis().output_size_in_bytes == silent.memory_analysis().output_size_in_bytes
    assert unread.cost_analysis()["flops"] == silent.cost_analysis()["flops"]
    assert np.array_equal(unread(params, images), silent(params, images))
    levels = "f32[2,3,11,16]"  # [depth, batch, tokens, width]
    assert levels not in unread.as_text()
    if unroll == 1:
        assert levels in compiled(lambda logits, aux: (logits, aux["levels"])).as_text()


# Errors


@pytest.mark.parametrize(
    "options, size, message",
    [
        ({"pool": "max"}, (8, 8), "pool 'max' is none of class_token, mean, attention, none"),
        ({"positions": "rope"}, (8, 8), "positions 'rope' is none of learned, sincos_2d, .*rope_2d, none"),
        ({"final_norm": "both"}, (8, 8), "final_norm 'both' is none of tokens, pooled, none"),
        ({"class_token": False}, (8, 8), "pool 'class_token' needs class_token=True"),
        ({}, (8, 10), r"image_size \(8, 10\) is not a multiple of patch_size \(4, 4\)"),
    ],
)
def test_what_does_not_fit_is_named(options, size, message):
    network = ViT(**TINY, image_size=(8, 8), **options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.init, KEY, images_for(network, size=size))
