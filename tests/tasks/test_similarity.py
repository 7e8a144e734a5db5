import jax
import numpy as np
import pytest

from transformer_zoo.tasks.similarity import psnr, ssim


def brute_force_ssim(x, y):
    """One window after another, of one channel."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            a, b = (one[row : row + 11, column : column + 11].astype(float) for one in (x, y))
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            cov = (window * (a - ma) * (b - mb)).sum()
            top = (2 * ma * mb + 0.01**2) * (2 * cov + 0.03**2)
            values.append(top / ((ma**2 + mb**2 + 0.01**2) * (va + vb + 0.03**2)))
    return np.mean(values)


@pytest.mark.parametrize("sides", [(13, 15), (2, 12, 13)])
def test_structural_similarity_is_that_of_its_formula(sides):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (2, *sides, 3)).astype(np.float32)
    y = np.clip(x + rng.normal(0, 0.2, x.shape), 0, 1).astype(np.float32)
    frames = [one.reshape(2, -1, *sides[-2:], 3) for one in (x, y)]
    expected = [
        np.mean([brute_force_ssim(a[..., c], b[..., c]) for a, b in zip(*pair) for c in range(3)])
        for pair in zip(*frames)
    ]
    np.testing.assert_allclose(jax.jit(ssim)(x, y), expected, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(ssim)(x, x), 1, rtol=1e-5)


def test_small_pictures_have_small_windows():
    x = np.random.default_rng(0).uniform(0, 1, (1, 4, 8, 1)).astype(np.float32)
    assert 0.9 < float(jax.jit(ssim)(x, x + 0.01)[0]) < 1


def test_psnr_is_ten_times_the_logarithm_and_finite_for_equals():
    np.testing.assert_allclose(jax.jit(psnr)(np.float32([0.01, 1.0, 0.0])), [20, 0, 100], atol=1e-5)
