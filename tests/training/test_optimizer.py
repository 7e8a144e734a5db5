import collections

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformer_zoo.training import matrices
from transformer_zoo.training.optimizer import OWN_DEFAULTS, make_optimizer, state_shardings
from transformer_zoo.training.tree import combine, match_any, match_table, partition, paths

WIDTH, HEADS, HEAD_DIM, DEPTH = 5, 2, 3, 2
SHAPES = {
    "patch_embed/projection/kernel": (7, WIDTH),
    "patch_embed/projection/bias": (WIDTH,),
    "cls_token": (1, 1, WIDTH),
    "blocks/norm1/scale": (DEPTH, WIDTH),
    "blocks/attention/qkv/kernel": (DEPTH, WIDTH, 3, HEADS, HEAD_DIM),
    "blocks/attention/qkv/bias": (DEPTH, 3, HEADS, HEAD_DIM),
    "blocks/attention/out/kernel": (DEPTH, HEADS, HEAD_DIM, WIDTH),
    "blocks/mlp/up/kernel": (DEPTH, WIDTH, 8),
    "neck/kernel": (WIDTH, 4),
    "head/kernel": (4, 3),
}
MATRICES = ("blocks/attention/qkv/kernel", "blocks/attention/out/kernel", "blocks/mlp/up/kernel", "neck/kernel")


def tree_of(flat):
    """A nested dict from one keyed by path."""
    tree = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def flat_of(tree):
    return dict(zip(jax.tree.leaves(paths(tree)), jax.tree.leaves(tree)))


def random_arrays(seed, shapes=SHAPES, scale=1.0):
    rng = np.random.default_rng(seed)
    return {path: (scale * rng.normal(size=shape)).astype(np.float32) for path, shape in shapes.items()}


def abstract(shapes=SHAPES):
    return tree_of({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()})


def run(optimizer, params, gradients):
    """Parameters after every step, by path, and the last state."""
    kept, rest = partition(tree_of(params), optimizer.trainable)
    update = jax.jit(optimizer.transform.update)
    state = jax.jit(optimizer.transform.init)(kept)
    history = []
    for gradient in gradients:
        updates, state = update(partition(tree_of(gradient), optimizer.trainable)[0], state, kept)
        kept = optax.apply_updates(kept, updates)
        history.append(flat_of(combine(kept, rest)))
    return history, state


def slices_of(flat):
    """Every array as its separate matrices [rows, columns] and vectors, sliced by hand."""
    slices = {}
    for path, x in flat.items():
        for block in range(DEPTH) if path.startswith("blocks") else [None]:
            layer = x if block is None else x[block]
            key = f"{path}/{block}"
            if path.endswith("qkv/kernel"):
                slices |= {f"{key}/{part}": layer[:, part].reshape(len(layer), -1) for part in range(3)}
            elif path.endswith("qkv/bias"):
                slices |= {f"{key}/{part}": layer[part] for part in range(3)}
            elif path.endswith("out/kernel"):
                slices[key] = layer.reshape(-1, layer.shape[-1])
            else:
                slices[key] = layer
    return {key: np.asarray(x) for key, x in slices.items()}


def assert_equal(actual, expected, rtol=2e-5, atol=1e-6):
    assert actual.keys() == expected.keys()
    for path, x in expected.items():
        np.testing.assert_allclose(actual[path], x, rtol, atol, err_msg=path)


def test_tree_paths_partition_and_combine():
    tree = {"a": {"b": 1, "c": [2, 3]}, "d": 4}
    assert paths(tree) == {"a": {"b": "a/b", "c": ["a/c/0", "a/c/1"]}, "d": "d"}
    mask = {"a": {"b": False, "c": [True, False]}, "d": True}
    kept, rest = partition(tree, mask)
    assert kept == {"a": {"b": None, "c": [2, None]}, "d": 4}
    assert rest == {"a": {"b": 1, "c": [None, 3]}, "d": None}
    assert combine(kept, rest) == tree


def test_table_takes_the_first_row_that_matches_the_whole_path():
    names = paths({"a": {"kernel": 0, "bias": 0}, "kernel_norm": 0})
    values = match_table((("a/.*", 1), ("kernel", 2), ("bias", 3), (".*", 4)), names, every_row=False)
    assert values == {"a": {"kernel": 1, "bias": 1}, "kernel_norm": 4}
    assert match_table((("a/.*", 1), ("kernel_norm", 2), (".*", 3)), names)["kernel_norm"] == 2
    assert match_any(("kernel_norm", "a/b.*"), names) == {"a": {"kernel": False, "bias": True}, "kernel_norm": True}
    assert match_any(("a/kernel",), paths({"a": {"kernel": 0, "kernel2": 0}})) == {
        "a": {"kernel": True, "kernel2": False}
    }


@pytest.mark.parametrize(
    "path, shape, rows, columns",
    [
        ("head/kernel", (4, 3), (0,), (1,)),
        ("blocks/mlp/up/kernel", (2, 4, 3), (1,), (2,)),
        ("encoder_blocks/mlp/up/kernel", (2, 4, 3), (1,), (2,)),
        ("stages/down_blocks/blocks/mlp/up/kernel", (2, 2, 4, 3), (2,), (3,)),
        ("blocks/blocks/norm/scale", (2, 2, 4), (), (2,)),
        ("myblocks/mlp/kernel", (9, 4, 3), (0, 1), (2,)),
        ("blocks/attention/qkv/kernel", (2, 4, 3, 2, 2), (1,), (3, 4)),
        ("cross_attention/kv/kernel", (4, 2, 2, 2), (0,), (2, 3)),
        ("cross_attention/q/bias", (1, 2, 2), (), (1, 2)),
        ("blocks/cross_attention/out/kernel", (2, 2, 2, 4), (1, 2), (3,)),
        ("blocks/attention/out/bias", (2, 4), (), (1,)),
        ("out/kernel", (3, 4, 5), (0, 1), (2,)),
        ("blocks/moe/experts/up/kernel", (2, 8, 4, 3), (2,), (3,)),
        ("stem/kernel", (3, 3, 4, 5), (0, 1, 2), (3,)),
        ("token_embed/embedding", (10, 4), (0,), (1,)),
        ("temperature", (), (), ()),
    ],
)
def test_matrix_axes_go_by_name(path, shape, rows, columns):
    assert matrices.matrix_axes(path, len(shape)) == matrices.MatrixAxes(rows, columns)


def test_adamw_with_tables_layer_decay_and_freezing_equals_numpy():
    config = {
        "learning_rate": 0.1,
        "schedule": "linear",
        "weight_decay": 0.3,
        "b1": 0.8,
        "b2": 0.9,
        "epsilon": 1e-3,
        "clip_norm": 0.7,
        "layer_decay": 0.5,
        "learning_rate_table": (("head/.*", 3.0), (".*", 1.0)),
        "weight_decay_table": ((".*qkv/kernel", 2.0), (".*kernel", 1.0), (".*", 0.0)),
        "freeze": ("patch_embed/.*", ".*/qkv/bias"),
    }
    depths = {path: np.arange(1, 3) if path.startswith("blocks") else 0 for path in SHAPES}
    depths |= {"head/kernel": 3, "neck/kernel": 3}
    params, gradients = random_arrays(0), [random_arrays(seed, scale=0.2 * seed) for seed in (1, 2, 3)]
    optimizer = make_optimizer(ml_collections.ConfigDict(config), abstract(), total_steps=4, depths=tree_of(depths))
    history, state = run(optimizer, params, gradients)

    rates = {path: 1.0 for path in params} | {"head/kernel": 3.0, "cls_token": 0.125}
    rates |= {
        path: np.reshape([0.25, 0.5], (2,) + (1,) * (x.ndim - 1)) for path, x in params.items() if "block" in path
    }
    decays = {path: 0.3 if path.endswith("kernel") else 0.0 for path in params} | {"blocks/attention/qkv/kernel": 0.6}
    trained = [path for path in params if "patch_embed" not in path and not path.endswith("qkv/bias")]
    mu, nu = ({path: 0.0 for path in trained} for _ in range(2))
    for step, gradient in enumerate(gradients):
        norm = np.sqrt(sum(np.sum(np.float64(gradient[path]) ** 2) for path in trained))
        assert norm > 0.7  # or nothing is clipped
        for path in trained:
            g = gradient[path] * 0.7 / norm
            mu[path] = 0.8 * mu[path] + 0.2 * g
            nu[path] = 0.9 * nu[path] + 0.1 * g**2
            adam = mu[path] / (1 - 0.8 ** (step + 1)) / (np.sqrt(nu[path] / (1 - 0.9 ** (step + 1))) + 1e-3)
            rate = 0.1 * (1 - step / 4) * rates[path]
            params[path] = params[path] - rate * (adam + decays[path] * params[path])
        assert float(optimizer.schedule(step)) == pytest.approx(0.1 * (1 - step / 4))
        assert_equal(history[step], params)
    assert sum(leaf.shape == SHAPES["patch_embed/projection/kernel"] for leaf in jax.tree.leaves(state)) == 0


def newton_schulz(x):
    tall = x.shape[0] > x.shape[1]
    x = (x.T if tall else x) / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x.T if tall else x


def test_muon_equals_newton_schulz_on_every_sliced_matrix_and_adam_elsewhere():
    config = {"name": "muon", "learning_rate": 0.1, "schedule": "constant", "weight_decay": 0.2, "momentum": 0.9}
    params, gradients = random_arrays(0), [random_arrays(1), random_arrays(2)]
    with jax.default_matmul_precision("highest"):
        history, _ = run(make_optimizer(config, abstract(), total_steps=4), params, gradients)

    sliced, (first, second) = slices_of(params), map(slices_of, gradients)
    for step in (1, 2):
        for path, x in sliced.items():
            if path.startswith(MATRICES):
                # Nesterov: a look one step ahead, momentum and gradient each without the bias of their zero start.
                mu = 0.1 * first[path] if step == 1 else 0.09 * first[path] + 0.1 * second[path]
                gradient = first[path] if step == 1 else second[path]
                ahead = 0.9 * mu / (1 - 0.9 ** (step + 1)) + 0.1 * gradient / (1 - 0.9**step)
                direction = newton_schulz(np.float64(ahead)) * 0.2 * np.sqrt(max(x.shape))
            elif step == 1:
                direction = np.sign(first[path])
            else:
                mu = (0.09 * first[path] + 0.1 * second[path]) / (1 - 0.9**2)
                nu = (0.000999 * first[path] ** 2 + 0.001 * second[path] ** 2) / (1 - 0.999**2)
                direction = mu / np.sqrt(nu)
            decay = 0.2 if "kernel" in path else 0.0
            sliced[path] = x - 0.1 * (direction + decay * x)
        assert_equal(slices_of(history[step - 1]), sliced, rtol=1e-4, atol=1e-5)


BIG = {
    "blocks/attention/qkv/kernel": (DEPTH, 130, 3, 2, 64),
    "blocks/attention/qkv/bias": (DEPTH, 3, 2, 64),
    "blocks/attention/out/kernel": (DEPTH, 2, 64, 130),
    "blocks/mlp/up/kernel": (DEPTH, 130, 16),
    "blocks/norm/scale": (DEPTH, 130),
    "token_embed/embedding": (140, 130),
}
FACTORED = ("blocks/attention/qkv/kernel", "blocks/attention/out/kernel", "token_embed/embedding")


@pytest.mark.parametrize("name", ["adafactor", "lars"])
def test_stacked_blocks_and_parts_equal_separate_matrices(name):
    shapes = BIG if name == "adafactor" else SHAPES
    params = random_arrays(0, shapes)
    for path in params:
        if path.startswith("blocks"):
            params[path][1] *= 5  # blocks of different size, so that statistics of the stack would show
    gradients = [random_arrays(1, shapes), random_arrays(2, shapes, 3.0)]
    if name == "lars":  # parameters or updates that are 0 have no ratio
        params["neck/kernel"] *= 0
        gradients[0]["cls_token"] *= 0
    config = {"name": name, "learning_rate": 0.1, "schedule": "constant", "weight_decay": 0.2}
    history, state = run(make_optimizer(config, tree_of(params), total_steps=9), params, gradients)

    sliced = slices_of(params)
    decays = {path: 0.2 if "kernel" in path else 0.0 for path in sliced}
    decay = optax.stateless(lambda u, p: jax.tree.map(lambda u, p, rate: u + rate * p, u, p, decays))
    if name == "adafactor":
        rms = optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()
        reference = optax.chain(*rms, decay, optax.scale(-0.1))
        assert sum(leaf.shape == (DEPTH, 1, 3, 2, 64) for leaf in jax.tree.leaves(state)) == 1  # columns of qkv
    else:
        adapted = {path: "bias" not in path and "scale" not in path for path in sliced}
        trust = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=0.001), adapted)
        reference = optax.chain(decay, trust, optax.trace(0.9), optax.scale(-0.1))
    update, reference_state = jax.jit(reference.update), reference.init(sliced)
    for gradient, params_after in zip(gradients, history):
        updates, reference_state = update(slices_of(gradient), reference_state, sliced)
        sliced = optax.apply_updates(sliced, updates)
        assert_equal(slices_of(params_after), sliced)


def test_lion_and_sgd_equal_numpy():
    shapes = {"a/kernel": (2, 3), "a/bias": (3,)}
    params, gradients = random_arrays(0, shapes), [random_arrays(1, shapes), random_arrays(2, shapes)]
    shared = {"learning_rate": 0.1, "schedule": "constant", "weight_decay": 0.5}
    lion, _ = run(make_optimizer({"name": "lion", **shared}, tree_of(params), total_steps=3), params, gradients)
    sgd, _ = run(make_optimizer({"name": "sgd", **shared}, tree_of(params), total_steps=3), params, gradients)
    for path in shapes:
        decay = 0.5 if path == "a/kernel" else 0.0
        first, second = (gradient[path] for gradient in gradients)
        x = params[path] - 0.1 * (np.sign(first) + decay * params[path])
        x -= 0.1 * (np.sign(0.9 * 0.01 * first + 0.1 * second) + decay * x)
        np.testing.assert_allclose(lion[1][path], x, 1e-5, 1e-6)
        x = params[path] - 0.1 * (first + decay * params[path])
        x -= 0.1 * (0.9 * first + second + decay * x)
        np.testing.assert_allclose(sgd[1][path], x, 1e-5, 1e-6)


def test_schedule_free_evaluates_the_average():
    shapes = {"a/kernel": (2, 3), "frozen": (2,)}
    params, gradients = random_arrays(0, shapes), [random_arrays(seed, shapes) for seed in (1, 2, 3)]
    config = {"name": "schedule_free_adamw", "learning_rate": 0.1, "weight_decay": 0.5, "b2": 0.99}
    optimizer = make_optimizer(config | {"freeze": ("frozen",)}, tree_of(params), total_steps=3)
    history, state = run(optimizer, params, gradients)
    averaged = optimizer.evaluation_params(state, partition(tree_of(history[-1]), optimizer.trainable)[0])

    x = y = z = params["a/kernel"]  # average, where gradients are taken, and the sequence that is averaged
    nu = 0.0
    for step, gradient in enumerate(gradients, 1):
        nu = 0.99 * nu + 0.01 * gradient["a/kernel"] ** 2
        direction = gradient["a/kernel"] / (np.sqrt(nu / (1 - 0.99**step)) + 1e-8)
        z = z - 0.1 * (direction + 0.5 * y)
        x = x + (z - x) / step
        y = 0.1 * z + 0.9 * x
        np.testing.assert_allclose(history[step - 1]["a/kernel"], y, 1e-5, 1e-6)
    np.testing.assert_allclose(averaged["a"]["kernel"], x, 1e-5, 1e-6)
    assert averaged["frozen"] is None
    adamw = make_optimizer({"learning_rate": 0.1}, tree_of(params), total_steps=3)
    assert adamw.evaluation_params(None, params) is params


MIRRORS = {"adamw": 2, "adafactor": 1, "lion": 1, "muon": 2, "lars": 1, "sgd": 1, "schedule_free_adamw": 2}


@pytest.mark.parametrize("name", OWN_DEFAULTS)
def test_state_is_sharded_like_the_parameters_it_mirrors(name):
    # One mesh axis a parameter: its name in the state tells whose sharding a leaf has.
    shapes = SHAPES | BIG
    mesh = Mesh(np.array(jax.devices()[:1]).reshape((1,) * len(shapes)), tuple(f"axis{i}" for i in range(len(shapes))))
    specs = {path: PartitionSpec(None, f"axis{i}") for i, path in enumerate(shapes)}
    specs |= {path: PartitionSpec(*specs[path][1:]) for path, shape in shapes.items() if len(shape) == 1}
    shardings = tree_of({path: NamedSharding(mesh, spec) for path, spec in specs.items()})
    optimizer = make_optimizer(
        {"name": name, "learning_rate": 0.1, "freeze": ("head/.*",)}, abstract(shapes), total_steps=3
    )
    kept, _ = partition(abstract(shapes), optimizer.trainable)
    placed = state_shardings(optimizer.transform, kept, shardings)

    leaves = zip(jax.tree.leaves(placed), jax.tree.leaves(jax.eval_shape(optimizer.transform.init, kept)), strict=True)
    found = collections.Counter((sharding.spec, leaf.shape) for sharding, leaf in leaves if sharding.spec)
    expected = {(specs[path], shape): MIRRORS[name] for path, shape in shapes.items() if path != "head/kernel"}
    for path, shape in shapes.items():
        if name == "muon" and path.startswith(MATRICES):
            expected[specs[path], shape] = 1
        if name == "adafactor" and path in FACTORED:
            del expected[specs[path], shape]
    assert found == expected


def test_moments_are_float32_for_bfloat16_parameters():
    params = {"a": {"kernel": jnp.ones((2, 3), jnp.bfloat16)}}
    for name in OWN_DEFAULTS:
        transform = make_optimizer({"name": name, "learning_rate": 0.1}, params, total_steps=3).transform
        state = jax.eval_shape(transform.init, params)
        _, after = jax.eval_shape(transform.update, params, state, params)
        assert {leaf.dtype for leaf in jax.tree.leaves(after)} <= {jnp.dtype("float32"), jnp.dtype("int32")}
        assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, state)


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"wieght_decay": 0.1}, "optimizer.wieght_decay .* optimizer.weight_decay"),
        ({"name": "adamv"}, "optimizer.name is 'adamv'.* 'adamw'"),
        ({"schedule": "cosin"}, "optimizer.schedule is 'cosin'.* 'cosine'"),
        (
            {"learning_rate": -0.1},
            r"optimizer.learning_rate is -0.1, not in \[0.0, inf\]; the nearest valid value is 0",
        ),
        ({"learning_rate": "0.1"}, "optimizer.learning_rate is '0.1'.* number"),
        ({"learning_rate": float("nan")}, "optimizer.learning_rate is nan"),
        ({"b2": 1.0}, "optimizer.b2 is 1.0.* 0.999999"),
        ({"weight_decay": -1}, "optimizer.weight_decay is -1"),
        ({"warmup_steps": 1.5}, "optimizer.warmup_steps is 1.5; it must be a whole number"),
        ({"warmup_steps": 11}, "optimizer.warmup_steps is 11.* at most 10"),
        ({"every": 0}, "optimizer.every is 0.* 1 or more"),
        (
            {"learning_rate_table": (("(", 1.0), (".*", 1.0))},
            r"optimizer.learning_rate_table .* '\(', which is no regex",
        ),
        ({"learning_rate_table": (("head/.*", 1.0),)}, "no row for 9 of 10 parameters: blocks/attention/out/kernel, "),
        ({"learning_rate_table": ((".*", -1.0),)}, r"optimizer.learning_rate_table row '\.\*' is -1.0"),
        ({"learning_rate_table": (".*", 1.0)}, "optimizer.learning_rate_table has the row '.*'"),
        ({"weight_decay_table": (("heads/kernel", 1.0), (".*", 0.0))}, "'heads/kernel', .* nearest is 'head/kernel'"),
        ({"weight_decay_table": ((".*", 0.0), ("head/.*", 1.0))}, "'head/.*', but rows above it"),
        ({"freeze": ("patch_embed",)}, "optimizer.freeze .* 'patch_embed', which matches no whole parameter path"),
        ({"freeze": "head/.*"}, "optimizer.freeze is 'head/.*'; it must be a tuple"),
        ({"freeze": (".*",)}, "leaves no parameter to train"),
        ({"layer_decay": 0.5}, "optimizer.layer_decay is 0.5, but the task gives no depths"),
        ({"layer_decay": 1.5}, r"optimizer.layer_decay is 1.5, not in \[0.0, 1.0\]"),
        ({"name": "schedule_free_adamw", "schedule": "cosine"}, "optimizer.schedule is 'cosine'.* 'constant'"),
        ({"name": "schedule_free_adamw", "b1": 0.0}, "optimizer.b1 is 0.0"),
    ],
)
def test_errors_name_field_value_and_what_would_be_valid(changes, error):
    with pytest.raises(ValueError, match=error):
        make_optimizer({"learning_rate": 0.1} | changes, abstract(), total_steps=10)


def test_missing_learning_rate_and_depths_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="learning_rate is missing"):
        make_optimizer({"name": "adamw"}, abstract(), total_steps=10)
    depths = tree_of({path: 0 for path in SHAPES} | {"blocks/mlp/up/kernel": np.arange(3)})
    with pytest.raises(ValueError, match="depth of blocks/mlp/up/kernel has shape"):
        make_optimizer({"learning_rate": 0.1, "layer_decay": 0.5}, abstract(), total_steps=10, depths=depths)
    with pytest.raises(ValueError, match=r"no row for 20 of 20 parameters: (p../kernel, ){10}\.\.\."):
        params = abstract({f"p{i}/kernel": (2, 3) for i in range(10, 30)})
        make_optimizer({"learning_rate": 0.1, "learning_rate_table": ()}, params, total_steps=10)
