import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.layers.blocks import Block, drop_path_rates, scan_blocks, summed_once
from transformer_zoo.layers.norms import DropPath
from transformer_zoo.training.flops import count_flops

DEPTH, BATCH, TOKENS, WIDTH = 2, 4, 5, 16


class Stack(nn.Module):
    block: nn.Module
    depth: int = DEPTH
    remat: str = "none"
    unroll: int = 1

    @nn.compact
    def __call__(self, x):
        rates = drop_path_rates(0.4, self.depth)
        return scan_blocks(self, self.block, self.depth, x, rates, remat=self.remat, unroll=self.unroll)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def filled(shapes, scale=0.3):
    """Every parameter at random, those that start at 0 or 1 too."""
    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(structure, [scale * normal(n, *leaf.shape) for n, leaf in enumerate(leaves)])


def difference(ours, expected):
    """Largest over all leaves, relative to the largest entry of each."""
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(expected))
    return max(float(np.abs(np.subtract(a, b)).max() / np.abs(b).max()) for a, b in pairs)


X = normal(100, BATCH, TOKENS, WIDTH)
KEY, OTHER_KEY = (jax.random.key(seed, impl="unsafe_rbg") for seed in (1, 2))  # compiles in a third of threefry's time
KEYS = {"params": KEY, "dropout": KEY}
TRAINED = Block(2, mlp_ratio=2.0, layer_scale=0.5, dropout_rate=0.2, train=True)
PARAMS = filled(jax.eval_shape(Stack(TRAINED).init, KEYS, X)["params"])


def compiled_gradient(stack, params):
    """(params, x, key) to the last output and all levels, and the gradients of a fixed projection of both."""

    def loss(params, x, key):
        outputs = stack.apply({"params": params}, x, rngs={"dropout": key})
        weights = normal(101, *outputs[0].shape), normal(102, *outputs[1].shape)
        return sum((output * weight).sum() for output, weight in zip(outputs, weights)), outputs

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)).lower(params, X, KEY).compile()


@pytest.fixture(scope="module")
def scanned():
    return compiled_gradient(Stack(TRAINED), PARAMS)


@pytest.fixture(scope="module")
def unrolled():
    return compiled_gradient(Stack(TRAINED, unroll=DEPTH), PARAMS)


def test_unrolling_changes_no_number_also_with_dropout_and_drop_path(scanned, unrolled):
    shapes = jax.eval_shape(Stack(TRAINED, unroll=DEPTH).init, KEYS, X)["params"]
    assert jax.tree.map(jnp.shape, PARAMS) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert difference(unrolled(PARAMS, X, KEY), scanned(PARAMS, X, KEY)) < 1e-5


def test_unrolling_leaves_no_loop(scanned, unrolled):
    assert scanned.as_text().count(" while(") == 2  # forward and backward
    assert unrolled.as_text().count(" while(") == 0


def test_in_a_plain_loop_no_block_sums_up_the_gradients_of_all_behind_it():
    def most_read(depth):
        """Arrays that the one that reads most of all fusions of the shape of x reads."""
        stack = Stack(Block(2, mlp_ratio=2.0), depth, unroll=depth)
        params = jax.eval_shape(stack.init, KEYS, X)["params"]
        gradient = jax.grad(lambda params, x: (stack.apply({"params": params}, x)[0] ** 2).sum(), argnums=(0, 1))
        text = jax.jit(gradient).lower(params, X).compile().as_text()
        shape = re.escape(f"f32[{BATCH},{TOKENS},{WIDTH}]")
        return max(read.count("%") for read in re.findall(rf" = {shape}\S* fusion\((.*?)\)", text))

    assert most_read(5) == most_read(3)


def test_what_is_summed_once_keeps_its_gradients_of_every_order_and_the_type_of_its_numbers():
    def cubes(x):
        return (summed_once(x) ** 3).sum()

    x = jnp.asarray([-2.0, 0.5, 3.0])
    assert np.allclose(jax.grad(cubes)(x), 3 * x**2)
    assert np.allclose(jax.hessian(cubes)(x), np.diag(6 * x))
    assert np.array_equal(jax.jvp(summed_once, (x,), (2 * x,))[1], 2 * x)
    for numbers in (x.astype(jnp.bfloat16), jnp.arange(3)):
        assert summed_once(numbers).dtype == numbers.dtype and np.array_equal(summed_once(numbers), numbers)


def test_dropout_follows_its_key(scanned):
    (_, outputs), (_, others) = (scanned(PARAMS, X, key)[0] for key in (KEY, OTHER_KEY))
    assert difference(outputs, others) > 0.1


class Small(nn.Module):
    """A product with and one without batch axes, and dropout."""

    @nn.compact
    def __call__(self, x, rate):
        y = nn.tanh(nn.Dense(WIDTH)(x))
        y = nn.Dropout(0.3, deterministic=False)(y @ y.swapaxes(1, 2) @ y)
        return x + DropPath(train=True)(y, rate), y


def test_rematerialising_changes_no_number_also_with_dropout_and_drop_path():
    params = filled(jax.eval_shape(Stack(Small()).init, KEYS, X)["params"])
    expected = compiled_gradient(Stack(Small()), params)(params, X, KEY)
    for remat, unroll in (("dots_no_batch", 1), ("full", DEPTH)):
        ours = compiled_gradient(Stack(Small(), remat=remat, unroll=unroll), params)(params, X, KEY)
        assert difference(ours, expected) < 1e-5, (remat, unroll)


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, scale, shift):
        x = x + scale * nn.Dense(WIDTH)(x) + shift
        return x, 2 * x


@pytest.mark.parametrize("unroll", [1, 2, 3])
def test_blocks_are_applied_one_after_the_other_each_with_its_own_parameters_and_inputs(unroll):
    class Steps(nn.Module):
        @nn.compact
        def __call__(self, x, scales, shift):
            return scan_blocks(self, Step(), 3, x, scales, shift, name="steps", unroll=unroll)

    kernel, bias, scales, shift = normal(1, 3, WIDTH, WIDTH), normal(2, 3, WIDTH), normal(3, 3), normal(4, WIDTH)
    params = {"steps": {"Dense_0": {"kernel": kernel, "bias": bias}}}
    y, doubled = jax.jit(Steps().apply)({"params": params}, X, scales, shift)
    x, expected = X, []
    for index in range(3):
        x = x + scales[index] * (x @ kernel[index] + bias[index]) + shift
        expected.append(2 * x)
    assert difference((y, doubled), (x, np.stack(expected))) < 1e-5


def test_every_block_is_initialised_as_if_it_stood_alone():
    params = jax.jit(Stack(Block(2)).init)(jax.random.key(1), X)["params"]["blocks"]
    kernel = np.asarray(params["mlp"]["up"]["kernel"])
    limit = np.sqrt(6 / (WIDTH + 4 * WIDTH))  # Glorot's, of [WIDTH, 4 WIDTH] and not of the stack
    for index in range(DEPTH):
        assert 0.95 * limit < np.abs(kernel[index]).max() <= limit
        assert np.abs(kernel[index] - kernel[index - 1]).max() > limit
    assert np.array_equal(params["norm1"]["scale"], np.ones((DEPTH, WIDTH)))


def test_rematerialisation_recomputes_what_its_policy_says():
    def flops(remat, unroll=1):
        stack = Stack(Block(2, mlp_ratio=2.0, layer_scale=0.5), remat=remat, unroll=unroll)
        gradient = jax.value_and_grad(lambda params, x: stack.apply({"params": params}, x)[0].sum())
        return count_flops(gradient, PARAMS, X).total

    tokens = BATCH * TOKENS
    projections = 2 * tokens * WIDTH * (3 + 1 + 2 + 2) * WIDTH  # qkv, out, up and down
    logits_and_values = 2 * 2 * BATCH * TOKENS**2 * WIDTH
    for unroll in (1, DEPTH):
        plain = flops("none", unroll)
        assert flops("dots", unroll) == plain
        assert flops("dots_no_batch", unroll) == plain + DEPTH * logits_and_values
        assert flops("full", unroll) == plain + DEPTH * (projections + logits_and_values)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="remat 'dot' is none of none, full, dots, dots_no_batch"):
        jax.eval_shape(Stack(Block(2), remat="dot").init, KEY, X)


# Drop path


def test_rates_grow_linearly_with_depth():
    assert np.allclose(drop_path_rates(0.3, 4), [0.0, 0.1, 0.2, 0.3])
    assert np.array_equal(drop_path_rates(0.3, 1), [0.0])


def test_drop_path_drops_whole_samples_keeps_the_mean_and_rests_in_evaluation():
    count, rate = 4000, 0.3
    x = jnp.broadcast_to(normal(103, 1, 2, 3), (count, 2, 3))
    y = np.asarray(DropPath(train=True).apply({}, x, rate, rngs={"dropout": KEY}))
    kept = (y != 0).any(axis=(1, 2))
    assert np.allclose(y, np.where(kept[:, None, None], x / (1 - rate), 0))
    assert abs(kept.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / count)
    mean = y.mean(axis=0)
    assert np.abs(mean - x[0]).max() < 4 * np.abs(x[0]).max() * np.sqrt(rate / (1 - rate) / count)
    assert np.array_equal(DropPath(train=False).apply({}, x, rate), x)


class AddOne(nn.Module):
    @nn.compact
    def __call__(self, x, rate):
        x = x + DropPath(train=True)(self.param("one", nn.initializers.ones, (1,)) * jnp.ones_like(x), rate)
        return x, x


@pytest.mark.parametrize("unroll", [1, 3])
def test_every_block_of_a_stack_drops_by_its_own_rate_and_key(unroll):
    count = 4000
    apply = jax.jit(Stack(AddOne(), 3, unroll=unroll).apply)
    _, levels = apply(
        {"params": {"blocks": {"one": jnp.ones((3, 1))}}}, jnp.zeros((count, 1, 1)), rngs={"dropout": KEY}
    )
    added = np.diff(np.asarray(levels)[..., 0, 0], axis=0, prepend=0)
    dropped = np.isclose(added, 0)
    for rate, drops, values in zip((0.0, 0.2, 0.4), dropped, added):
        assert abs(drops.mean() - rate) <= 4 * np.sqrt(rate * (1 - rate) / count)
        assert np.allclose(values[~drops], 1 / (1 - rate))
    both = (dropped[1] & dropped[2]).mean()
    assert abs(both - 0.08) < 4 * np.sqrt(0.08 * 0.92 / count)  # independent of each other


def test_evaluation_neither_drops_paths_nor_needs_a_key():
    params = jax.tree.map(lambda leaf: leaf[0], PARAMS["blocks"])
    evaluate = Block(2, mlp_ratio=2.0, layer_scale=0.5, dropout_rate=0.5)
    apply = jax.jit(evaluate.apply)
    assert np.array_equal(*(apply({"params": params}, X, rate)[0] for rate in (0.0, 0.9)))
