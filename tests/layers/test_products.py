import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.layers.products import multiply
from transformer_zoo.training import sharding

BATCH = (4, 8)
CASES = {  # x behind its batch axes, kernel, axes summed over
    "dense": ((6,), (6, 10), 1),
    "to heads": ((6,), (6, 2, 5), 1),
    "from heads": ((2, 3), (2, 3, 10), 2),
}


def values(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def dimensions(x, count):
    return ((tuple(range(x.ndim - count, x.ndim)), tuple(range(count))), ((), ()))


def arguments(case):
    last, kernel, count = CASES[case]
    x = values(0, *BATCH, *last)
    return x, values(1, *kernel), dimensions(x, count)


def value_and_gradients(product, x, kernel):
    return jax.jit(jax.value_and_grad(lambda x, k: (jnp.sin(product(x, k)) ** 2).sum(), argnums=(0, 1)))(x, kernel)


def check(x, kernel, axes):
    ours = value_and_gradients(lambda x, kernel: multiply(x, kernel, axes), x, kernel)
    expected = value_and_gradients(lambda x, kernel: jnp.tensordot(x, kernel, len(axes[0][0])), x, kernel)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5), ours, expected)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_plain_product(case):
    check(*arguments(case))


@pytest.mark.devices(8)
@pytest.mark.parametrize("case", CASES)
def test_on_a_mesh_too_where_batch_tokens_and_heads_stay_axes_of_their_own(case):
    x, kernel, axes = arguments(case)
    with jax.set_mesh(sharding.make_mesh({"data": 2, "sequence": 4})):
        check(x, kernel, axes)
        assert "reshape" not in str(jax.make_jaxpr(lambda x, kernel: multiply(x, kernel, axes))(x, kernel))


def test_a_dense_layer_of_flax_computes_the_same_with_it_for_one_sample_of_one_axis_too():
    for x in (values(0, 6), values(0, 3, 6)):
        ours, plain = (nn.Dense(4, **options) for options in ({"dot_general": multiply}, {}))
        params = plain.init(jax.random.key(0), x)
        np.testing.assert_allclose(ours.apply(params, x), plain.apply(params, x), rtol=1e-5, atol=1e-6)


def test_the_output_s_gradient_is_not_written_again_with_rows_and_columns_swapped():
    tokens, features = 48, 80
    x, kernel = jnp.ones((4, tokens // 4, 32)), jnp.ones((32, features))

    def written(product):
        def loss(x, kernel):
            return (jnp.sin(product(x, kernel)) ** 2).sum()

        text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, kernel).compile().as_text()
        return text.count(f"= f32[{features},{tokens}]")

    assert written(jnp.matmul) > 0
    assert written(lambda x, kernel: multiply(x, kernel, dimensions(x, 1))) == 0
