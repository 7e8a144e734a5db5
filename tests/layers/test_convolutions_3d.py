"""Convolutions over time against explicit sums: on every platform, causal or not; resampling; inflated kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.layers import convolutions_3d
from transformer_zoo.layers.convolutions_3d import (
    Conv3D,
    average_pool,
    conv_3d,
    depth_to_space,
    inflate,
    padding_of,
    upsample_nearest,
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


CASES = [
    ((3, 3, 3), (1, 1, 1), "same", (4, 5, 6)),
    ((3, 3, 3), (2, 2, 2), "same", (5, 4, 6)),
    ((4, 4, 4), (2, 2, 2), "same", (4, 5, 6)),
    ((5, 1, 3), (1, 1, 1), "same", (2, 3, 4)),
    ((3, 3, 3), (1, 1, 1), "causal", (4, 5, 6)),
    ((3, 3, 3), (2, 2, 2), "causal", (5, 4, 6)),
    ((3, 3, 3), (1, 2, 2), "causal", (1, 4, 6)),
]


@pytest.mark.parametrize("kernel_size, strides, padding, size", CASES)
def test_sums_of_frames_equal_the_convolution_of_clips(kernel_size, strides, padding, size, monkeypatch):
    x, kernel = normal(0, 2, *size, 3), normal(1, *kernel_size, 3, 4)

    @jax.jit
    def both(x, kernel):
        y, back = jax.vjp(lambda x, kernel: conv_3d(x, kernel, strides, padding), x, kernel)
        return y, back(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    on_cpu = both(x, kernel)
    monkeypatch.setattr(convolutions_3d.jax, "default_backend", lambda: "gpu")
    jax.clear_caches()
    elsewhere = both(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), on_cpu, elsewhere)
    pads = padding_of(padding, size, kernel_size, strides)
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    last = [frames - 1 for frames in on_cpu[0].shape[1:4]]
    corner = tuple(slice(n * stride, n * stride + side) for n, stride, side in zip(last, strides, kernel_size))
    expected = np.einsum("btrci,trcio->bo", padded[:, *corner], kernel)
    np.testing.assert_allclose(on_cpu[0][:, *last], expected, rtol=1e-4, atol=1e-4)


def test_no_frame_sees_a_later_one():
    x, module = normal(0, 1, 9, 4, 4, 2), Conv3D(3, strides=(2, 1, 1), padding="causal")
    variables = module.init(jax.random.key(0), x)
    before, after = module.apply(variables, x), module.apply(variables, x.at[:, 5:].add(1.0))
    moved = np.abs(before - after).max((0, 2, 3, 4))
    assert before.shape[1] == 5 and (moved[:3] == 0).all() and (moved[3:] > 0.01).all()
    alone = module.apply(variables, x[:, :1])  # one image is the first frame
    np.testing.assert_allclose(alone[:, 0], before[:, 0], rtol=1e-5, atol=1e-6)


def test_an_unknown_padding_is_named():
    with pytest.raises(ValueError, match="padding is 'valid', but must be one of same, causal"):
        conv_3d(normal(0, 1, 2, 3, 3, 1), normal(1, 1, 1, 1, 1, 1), padding="valid")


def test_pooling_means_only_what_is_there():
    x = normal(0, 2, 3, 4, 5, 2)
    found = average_pool(x, (2, 2, 2))
    np.testing.assert_allclose(found[:, 0, 1, 1], x[:, :2, 2:, 2:4].mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found[:, 1, 1, 2], x[:, 2:, 2:, 4:].mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(average_pool(x[:, 0], (2, 2))[:, 0, 2], x[:, 0, :2, 4:].mean((1, 2)), rtol=1e-5)


def test_upsampling_repeats_places():
    x = normal(0, 2, 3, 4, 5, 2)
    found = upsample_nearest(x, (1, 2, 3))
    expected = np.asarray(x)[:, :, np.arange(8) // 2][:, :, :, np.arange(15) // 3]
    np.testing.assert_array_equal(found, expected)


def test_channels_become_places_and_a_causal_clip_loses_its_second_frame():
    x = normal(0, 1, 3, 2, 2, 24)
    whole, causal = depth_to_space(x, (2, 2, 2)), depth_to_space(x, (2, 2, 2), causal=True)
    parts = np.asarray(x)[0, 1, 0, 1].reshape(2, 2, 2, 3)
    np.testing.assert_array_equal(whole[0, 2:4, 0:2, 2:4], parts)
    np.testing.assert_array_equal(causal, np.delete(whole, 1, axis=1))
    assert depth_to_space(x[:, :1], (2, 2, 2), causal=True).shape == (1, 1, 4, 4, 3)
    assert depth_to_space(x, (1, 2, 2), causal=True).shape == (1, 3, 4, 4, 6)


@pytest.mark.parametrize("how, padding", [("central", "same"), ("average", "same"), ("last", "causal")])
def test_an_inflated_kernel_treats_a_clip_at_rest_as_its_image(how, padding):
    image, kernel = normal(0, 1, 5, 6, 2), normal(1, 3, 3, 2, 3)
    clip = jnp.repeat(image[:, None], 5, axis=1)
    flat = conv_3d(image[:, None], kernel[None])[:, 0]
    found = conv_3d(clip, inflate(kernel, 3, how=how), padding=padding)
    inner = found if how != "average" else found[:, 1:-1]
    np.testing.assert_allclose(inner, jnp.repeat(flat[:, None], inner.shape[1], axis=1), rtol=1e-4, atol=1e-5)
    if how == "average":
        np.testing.assert_allclose(found[:, 0], flat * 2 / 3, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="'first', but must be one of central, last, average"):
        inflate(kernel, 3, how="first")
