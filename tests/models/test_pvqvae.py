"""P-VQVAE: patches on their own, codes in two halves, known pixels from the picture, holes and their figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_conv_tokenizers import normal
from tests.tasks.test_tasks import CTX, judged
from transformer_zoo.models.tokenizers.pvqvae import PVQVAE, PatchTokenization, random_holes, whole_patches

NETWORK = PVQVAE(image_size=(8, 12), patch_size=4, width=6, num_blocks=1, num_codes=5, num_hole_codes=7)
IMAGE = jnp.tanh(normal(5, 1, 8, 12, 3))
KNOWN = jnp.ones((1, 8, 12), bool).at[:, 4:, 6:].set(False)


def filled_variables():
    leaves, structure = jax.tree.flatten(jax.eval_shape(NETWORK.init, jax.random.key(0), IMAGE))
    return jax.tree.unflatten(structure, [0.4 * normal(n, *leaf.shape) for n, leaf in enumerate(leaves)])


VARIABLES = filled_variables()


@jax.jit
def there_and_back(image, known, whole):
    reconstruction, aux = NETWORK.apply(VARIABLES, image, known, whole)
    again = NETWORK.apply(VARIABLES, aux["ids"], image, known, method="detokenize")
    return aux["latents"], aux["ids"], reconstruction, again


def test_a_pixel_changes_the_latent_of_its_own_patch_alone():
    whole = jnp.ones((1, 2, 3), bool)
    before, ids, reconstruction, again = there_and_back(IMAGE, KNOWN, whole)
    after = there_and_back(IMAGE.at[:, 7, 5].add(1.0), KNOWN, whole)[0]
    changed = np.abs(after - before).max(axis=-1)[0] > 0
    assert changed.tolist() == [[False] * 3, [False, True, False]]
    assert ids.shape == (1, *NETWORK.grid)
    np.testing.assert_allclose(again, reconstruction, rtol=1e-4, atol=1e-5)


def test_whole_patches_and_patches_with_holes_have_codes_of_their_own():
    whole = whole_patches(KNOWN, 4)
    assert whole.tolist() == [[[True] * 3, [True, False, False]]]
    ids = there_and_back(IMAGE, KNOWN, whole)[1]
    np.testing.assert_array_equal(ids < 5, whole)


def test_known_pixels_come_from_the_picture_and_hidden_ones_from_the_codes():
    @jax.jit
    def decode(codes, image, known):
        return NETWORK.apply(VARIABLES, codes, image, known, method="decode")[0]

    codes, others = normal(1, 1, 2, 3, 6), normal(2, 1, 2, 3, 6)
    everything = jnp.ones((1, 8, 12), bool)
    np.testing.assert_array_equal(decode(codes, IMAGE, everything), decode(others, IMAGE, everything))
    nothing = jnp.zeros((1, 8, 12), bool)
    np.testing.assert_array_equal(decode(codes, IMAGE, nothing), decode(codes, -IMAGE, nothing))
    part, other = decode(codes, IMAGE, KNOWN), decode(others, IMAGE, KNOWN)
    same = np.abs(part - other).max(axis=(0, 3)) == 0
    assert same[:3, :5].all() and not same[5:, 9:].any()  # within a convolution of the hole both count


def test_holes_are_boxes_and_some_pictures_are_all_hole():
    known = random_holes(jax.random.key(0), 400, (8, 12))
    share = np.asarray(known.mean(axis=(1, 2)))
    assert 0.15 < (share == 0).mean() < 0.35 and 0.4 < share[share > 0].mean() < 0.95


def test_the_loss_weighs_what_is_hidden_and_figures_tell_known_from_hidden():
    task = PatchTokenization(NETWORK, pixel_loss="l1", erase_share=0.5)
    images = jnp.tile(IMAGE, (4, 1, 1, 1))
    variables = jax.jit(task.init)(jax.random.key(0))
    _, aux = jax.jit(task.loss)(variables, {"image": images}, CTX)
    before = variables.state["model"]["codebook"]["quantizer"]["usage"]
    moved = aux.state["model"]["codebook"]["quantizer"]["usage"] - before
    assert float(moved[:5].sum()) > 0 and float(moved[5:].sum()) > 0  # both halves are trained
    hole_key = jax.random.split(CTX.key, 3)[0]
    hidden = 1 - random_holes(hole_key, 4, (8, 12)).mean()
    assert float(aux.metrics["pixel_loss"]) * hidden < 2.5
    result = judged(task, "holes", variables, [{"image": np.asarray(images), "weight": np.ones(4, np.float32)}])
    assert set(result.metrics) == {"known_psnr", "known_psnr_of_tokens", "hidden_psnr"}


def test_patches_are_powers_of_two():
    with pytest.raises(ValueError, match="patch_size is 6, but must be a power of 2"):
        NETWORK.clone(patch_size=6, image_size=(12, 12)).init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))
