"""FLOPs against counts done by hand, and the table of devices."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from transformer_zoo.layers.attention import attend
from transformer_zoo.layers.loops import about
from transformer_zoo.training import devices
from transformer_zoo.training.flops import count_flops, macs


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def convolution(x, kernel, **options):
    return lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def test_dense_counts_two_flops_a_multiply_accumulate():
    x, kernel = spec(5, 7, 16), spec(16, 24)
    flops = count_flops(lambda x, kernel: jnp.tanh(x @ kernel) + 1, x, kernel)
    assert flops.total == flops.matmul == 2 * 5 * 7 * 16 * 24
    assert flops.by_primitive == {"dot_general": flops.total} and flops.unknown_loops == 0 and flops.opaque == ()
    assert macs(lambda x, kernel: x @ kernel, x, kernel) == 5 * 7 * 16 * 24


def test_gradient_of_two_dense_layers():
    def loss(params, x):
        return (jnp.tanh(x @ params[0]) @ params[1]).sum()

    first, second = 10 * 16 * 32, 10 * 32 * 8
    params, x = (spec(16, 32), spec(32, 8)), spec(10, 16)
    # Both kernels' gradients, and of the inputs' gradients only the hidden one's: nobody asks for that of x.
    assert macs(jax.value_and_grad(loss), params, x) == (first + second) + (first + second) + second
    # The second product is needed for the value alone.
    assert macs(jax.grad(loss), params, x) == first + (first + second) + second


@pytest.mark.parametrize(
    ("options", "kernel", "expected"),
    [
        (dict(window_strides=(1, 1), padding="SAME"), (3, 3, 8, 6), 2 * 12 * 9 * 6 * (3 * 3 * 8)),
        (dict(window_strides=(2, 3), padding="VALID"), (3, 3, 8, 6), 2 * 5 * 3 * 6 * (3 * 3 * 8)),
        (dict(window_strides=(4, 3), padding="VALID"), (4, 3, 8, 6), 2 * 3 * 3 * 6 * (4 * 3 * 8)),
        (dict(window_strides=(1, 1), padding="VALID", rhs_dilation=(3, 2)), (3, 3, 8, 6), 2 * 6 * 5 * 6 * 72),
        (dict(window_strides=(1, 1), padding="SAME", feature_group_count=4), (3, 3, 2, 12), 2 * 12 * 9 * 12 * 18),
        (dict(window_strides=(1, 1), padding="SAME", feature_group_count=8), (5, 5, 1, 8), 2 * 12 * 9 * 8 * 25),
        (dict(window_strides=(1, 1), padding=((2, 2), (1, 1)), lhs_dilation=(2, 1)), (4, 3, 8, 6), 2 * 12 * 9 * 6 * 96),
        (dict(window_strides=(1, 1), padding=((3, 3), (1, 1)), lhs_dilation=(2, 1)), (4, 3, 8, 6), 2 * 12 * 9 * 6 * 96),
    ],
    ids=["same", "stride", "patches", "dilation", "groups", "depthwise", "transposed", "transposed uncropped"],
)
def test_convolutions_and_their_gradients(options, kernel, expected):
    x, kernel = spec(2, 12, 9, 8), spec(*kernel)
    flops = count_flops(lambda x, kernel: convolution(x, kernel, **options), x, kernel)
    assert flops.convolution == flops.total == 2 * expected

    def loss(x, kernel):
        return (convolution(x, kernel, **options) ** 2).sum()

    # Forward, gradient to the input, gradient to the kernel: the same products three times, whatever zeros they insert.
    assert macs(jax.grad(loss, argnums=(0, 1)), x, kernel) == 3 * expected


def test_transposed_convolution_counts_every_input_with_every_tap():
    counted = macs(lambda x, kernel: lax.conv_transpose(x, kernel, (4, 4), "VALID"), spec(2, 3, 5, 8), spec(4, 4, 8, 6))
    assert counted == 2 * 3 * 5 * 4 * 4 * 8 * 6


def test_scan_multiplies_and_remat_recomputes():
    def model(x, kernels, remat):
        def layer(x, kernel):
            return jnp.tanh(x @ kernel), None

        def group(x, kernels):
            return lax.scan(jax.checkpoint(layer) if remat else layer, x, kernels)

        return lax.scan(group, x, kernels)[0].sum()

    once = 4 * 6 * 6
    x, kernels = spec(4, 6), spec(3, 5, 6, 6)
    assert macs(lambda x, kernels: model(x, kernels, False), x, kernels) == 15 * once
    assert macs(jax.grad(lambda x, kernels: model(x, kernels, False), 1), x, kernels) == 45 * once
    assert macs(jax.grad(lambda x, kernels: model(x, kernels, True), 1), x, kernels) == 60 * once


def test_loops_of_unknown_length_are_counted_once_and_reported():
    def power(x, turns):
        return lax.fori_loop(0, turns, lambda _, y: y @ x, x)

    flops = count_flops(power, spec(6, 6), jax.ShapeDtypeStruct((), jnp.int32))
    assert flops.total == 2 * 6**3 and flops.unknown_loops == 1
    assert count_flops(lambda x: power(x, 7), spec(6, 6)).total == 7 * 2 * 6**3
    harmless = count_flops(lambda x: lax.while_loop(lambda y: y.sum() < 9, lambda y: y + 1, x) @ x, spec(6, 6))
    assert harmless.total == 2 * 6**3 and harmless.unknown_loops == 0


def test_loops_of_unknown_length_are_counted_as_often_as_their_writer_expects():
    @jax.custom_vjp
    def power(x, turns):
        with about(5):
            return lax.fori_loop(0, turns, lambda _, y: y @ x, x)

    def backward(kept, gradient):
        x, turns = kept
        with about(3):
            return lax.fori_loop(0, turns, lambda _, y: y @ gradient, x), None

    power.defvjp(lambda x, turns: (power(x, turns), (x, turns)), backward)
    both = jax.value_and_grad(lambda x, turns: power(x, turns).sum())
    flops = count_flops(both, spec(6, 6), jax.ShapeDtypeStruct((), jnp.int32))
    assert flops.total == (5 + 3) * 2 * 6**3 and flops.unknown_loops == 0


def test_conditional_counts_its_most_expensive_branch():
    branches = [lambda x: x, lambda x: x @ x @ x, lambda x: x @ x]
    index = jax.ShapeDtypeStruct((), jnp.int32)
    assert macs(lambda index, x: lax.switch(index, branches, x), index, spec(6, 6)) == 2 * 6**3


def test_custom_gradients_and_jit_are_looked_into_and_unread_results_are_not_counted():
    @jax.custom_vjp
    def double(x, kernel):
        return x @ kernel

    double.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), lambda saved, ct: (ct @ saved[1].T, saved[0].T @ ct))

    @jax.jit
    def two_heads(x, kernel):
        return jax.nn.gelu(double(x, kernel)), {"unread": x @ kernel @ kernel.T}

    x, kernel = spec(4, 6), spec(6, 8)
    assert macs(lambda x, kernel: two_heads(x, kernel)[0], x, kernel) == 4 * 6 * 8
    assert macs(two_heads, x, kernel) == 4 * 6 * 8 * 3
    gradient = jax.value_and_grad(lambda x, kernel: two_heads(x, kernel)[0].sum(), argnums=(0, 1))
    assert macs(gradient, x, kernel) == 3 * 4 * 6 * 8


def test_attention():
    query, key, value = spec(2, 10, 4, 16), spec(2, 12, 4, 16), spec(2, 12, 4, 8)
    assert macs(attend, query, key, value) == 2 * 4 * 10 * 12 * (16 + 8)


def test_ragged_dot_gives_every_row_one_group():
    sizes = jax.ShapeDtypeStruct((5,), jnp.int32)
    assert macs(lax.ragged_dot, spec(20, 6), spec(5, 6, 7), sizes) == 20 * 6 * 7


def test_shard_map_counts_all_devices():
    mesh = jax.sharding.AbstractMesh((4, 2), ("data", "tensor"))
    parts = jax.sharding.PartitionSpec
    matmul = jax.shard_map(
        lambda x, kernel: lax.psum(x @ kernel, "tensor"),
        mesh=mesh,
        in_specs=(parts("data", "tensor"), parts("tensor", None)),
        out_specs=parts("data", None),
    )
    assert macs(matmul, spec(8, 6), spec(6, 10)) == 8 * 6 * 10


def test_fused_kernels_are_named_and_not_counted():
    from jax.experimental import pallas as pl

    def kernel(x, y, out):
        out[...] = x[...] @ y[...]

    fused = pl.pallas_call(kernel, out_shape=spec(8, 8), interpret=True)
    flops = count_flops(lambda x: fused(x, x) @ x, spec(8, 8))
    assert flops.opaque == ("pallas_call",) and flops.total == 2 * 8**3


@pytest.mark.parametrize(
    ("kind", "tera", "gibibytes"),
    [
        ("NVIDIA A100-SXM4-40GB", 312, 40),
        ("NVIDIA A100 80GB PCIe", 312, 80),
        ("NVIDIA H100 80GB HBM3", 989, 80),
        ("NVIDIA H100 PCIe", 756, 80),
        ("NVIDIA H200", 989, 141),
        ("NVIDIA L4", 121, 24),
        ("NVIDIA L40S", 362, 48),
        ("NVIDIA A10G", 70, 24),
        ("TPU v3", 61.5, 16),
        ("TPU v5 lite", 197, 16),
        ("TPU v5", 459, 95),
        ("TPU v6 lite", 918, 32),
    ],
)
def test_known_devices(kind, tera, gibibytes):
    assert devices.peak_flops(kind) == pytest.approx(tera * 1e12)
    assert devices.memory_bytes(kind) == gibibytes * 2**30


@pytest.mark.parametrize(
    "kind",
    ["cpu", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3090 Ti"],
)
def test_unknown_devices_have_no_invented_rate(kind):
    assert devices.peak_flops(kind) is None and devices.memory_bytes(kind) is None


def test_the_peak_of_several_devices_needs_all_of_them():
    assert devices.total_peak_flops(["TPU v4"] * 4) == pytest.approx(4 * 275e12)
    assert devices.total_peak_flops(["TPU v4", "cpu"]) is None
    assert devices.total_peak_flops([]) is None
