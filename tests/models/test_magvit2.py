"""MAGVIT-v2's tokenizer: no token sees a later frame, an image is a first frame, ids in parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_conv_tokenizers import filled, normal
from transformer_zoo.models.tokenizers.magvit2 import MAGVIT2Tokenizer, join_ids, split_ids
from transformer_zoo.models.tokenizers.tokenizer import Tokenizer

CLIPS = MAGVIT2Tokenizer(
    num_frames=9,
    image_size=(8, 12),
    width=4,
    multipliers=(1, 2, 2),
    temporal_downsample=(True, True),
    num_blocks=1,
    bits=5,
    norm="frame_group",
)
VARIABLES = filled(CLIPS, 9, 8, 12, 3)


@functools.partial(jax.jit, static_argnums=0)
def there_and_back(network, pixels):
    reconstruction, aux = network.apply(VARIABLES, pixels)
    again = network.apply(VARIABLES, aux["ids"], method=Tokenizer.detokenize)
    return aux["latents"], aux["ids"], reconstruction, again


def test_a_later_frame_changes_no_earlier_token_and_no_earlier_pixel():
    clip = normal(5, 1, 9, 8, 12, 3)
    latents, ids, reconstruction, again = there_and_back(CLIPS, clip)
    assert ids.shape == (1, *CLIPS.grid) == (1, 3, 2, 3)
    np.testing.assert_allclose(again, reconstruction, rtol=1e-4, atol=1e-5)
    changed = there_and_back(CLIPS, clip.at[:, 5].add(3.0))  # token frames hold frames 0, 1 to 4, 5 to 8
    np.testing.assert_array_equal(changed[0][:, :2], latents[:, :2])
    np.testing.assert_array_equal(changed[2][:, :5], reconstruction[:, :5])
    assert jnp.abs(changed[0][:, 2] - latents[:, 2]).max() > 0.1
    assert jnp.abs(changed[2][:, 5:] - reconstruction[:, 5:]).max() > 0.1


@pytest.mark.parametrize("frames", [1, 5])
def test_shorter_clips_and_images_are_the_first_frames_of_a_clip(frames):
    clip = normal(5, 1, 9, 8, 12, 3)
    whole, part = there_and_back(CLIPS, clip), there_and_back(CLIPS, clip[:, :frames])
    tokens = 1 + (frames - 1) // 4
    np.testing.assert_allclose(part[0], whole[0][:, :tokens], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(part[2], whole[2][:, :frames], rtol=1e-4, atol=1e-4)


def test_group_norms_of_whole_clips_are_not_causal_as_in_the_reference():
    clip, network = normal(5, 1, 9, 8, 12, 3), CLIPS.clone(norm="group")
    before, after = there_and_back(network, clip), there_and_back(network, clip.at[:, 5].add(3.0))
    assert jnp.abs(after[0][:, :2] - before[0][:, :2]).max() > 1e-3


def test_ids_in_parts_are_the_same_ids():
    ids = np.random.default_rng(0).integers(0, 2**18, (2, 3, 4)).astype(np.int32)
    parts = split_ids(jnp.asarray(ids), (6, 12))
    assert parts.shape == (2, 3, 4, 2) and int(parts[..., 0].max()) < 2**6 and int(parts[..., 1].max()) < 2**12
    np.testing.assert_array_equal(join_ids(parts, (6, 12)), ids)


def test_frames_must_be_one_and_a_multiple():
    with pytest.raises(ValueError, match="num_frames is 8, but must be 1 \\+ 4 n"):
        CLIPS.clone(num_frames=8).init(jax.random.key(0), jnp.zeros((1, 8, 8, 12, 3)))
