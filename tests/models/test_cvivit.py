"""C-ViViT: tokens of the first frame and of pairs, causal there and back, any length in one set of parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_conv_tokenizers import filled, normal
from transformer_zoo.models.tokenizers.cvivit import CViViT, from_patches, to_patches
from transformer_zoo.models.tokenizers.tokenizer import Tokenizer

SMALL = dict(image_size=(8, 12), patch_size=(4, 4), width=12, num_heads=2, latent_width=4, num_codes=16)
CLIPS = CViViT(num_frames=5, **SMALL, spatial_depth=1, temporal_depth=1)
VARIABLES = filled(CLIPS, 5, 8, 12, 3)


@jax.jit
def there_and_back(pixels):
    reconstruction, aux = CLIPS.apply(VARIABLES, pixels)
    again = CLIPS.apply(VARIABLES, aux["ids"], method=Tokenizer.detokenize)
    return aux["latents"], aux["ids"], reconstruction, again


def test_patches_hold_a_first_frame_and_then_groups():
    clip = normal(0, 2, 5, 8, 12, 3)
    first, rest = to_patches(clip, (4, 4), 2)
    assert first.shape == (2, 1, 6, 48) and rest.shape == (2, 2, 6, 96)
    patch = clip[1, 3:5, 4:8, 8:12]  # the last group's last patch: pixels in (row, column, frame, channel) order
    np.testing.assert_array_equal(rest[1, 1, 5], patch.transpose(1, 2, 0, 3).ravel())
    np.testing.assert_array_equal(from_patches(first, rest, (2, 3), (4, 4), 2), clip)
    with pytest.raises(ValueError, match="a clip has 4 frames, but must have 1 \\+ 2 n"):
        to_patches(clip[:, :4], (4, 4), 2)


def test_a_later_frame_changes_no_earlier_token_and_no_earlier_pixel():
    clip = 0.5 + normal(5, 1, 5, 8, 12, 3) / 2
    latents, ids, reconstruction, again = there_and_back(clip)
    assert ids.shape == (1, *CLIPS.grid) == (1, 3, 2, 3) and len(np.unique(ids)) > 3
    np.testing.assert_allclose(again, reconstruction, rtol=1e-4, atol=1e-5)
    changed = there_and_back(clip.at[:, 3].add(3.0))  # token frames hold frames 0, 1 to 2, 3 to 4
    np.testing.assert_array_equal(changed[1][:, :2], ids[:, :2])
    np.testing.assert_allclose(changed[2][:, :3], reconstruction[:, :3], rtol=1e-5, atol=1e-5)
    assert jnp.abs(changed[0][:, 2] - latents[:, 2]).max() > 0.1


@pytest.mark.parametrize("frames", [1, 3])
def test_shorter_clips_and_images_are_the_first_frames_of_a_clip(frames):
    clip = 0.5 + normal(5, 1, 5, 8, 12, 3) / 2
    whole, part = there_and_back(clip), there_and_back(clip[:, :frames])
    np.testing.assert_array_equal(part[1], whole[1][:, : 1 + (frames - 1) // 2])
    np.testing.assert_allclose(part[2], whole[2][:, :frames], rtol=1e-4, atol=1e-4)


def test_places_see_each_other_within_a_time_step():
    clip = 0.5 + normal(5, 1, 5, 8, 12, 3) / 2
    before, after = there_and_back(clip)[0], there_and_back(clip.at[:, 0, 0, 0].add(3.0))[0]
    assert jnp.abs(after[:, 0, 1, 2] - before[:, 0, 1, 2]).max() > 1e-3


def test_the_tokens_are_those_of_the_paper():
    assert int(np.prod(CViViT().grid)) == 1536
    frames = functools.partial(CViViT, patch_frames=1)
    assert int(np.prod(frames(num_frames=10).grid)) == 2560


def test_unused_codes_start_anew_where_asked():
    network, clip = CLIPS.clone(dead_share=0.5), 0.5 + normal(3, 2, 5, 8, 12, 3) / 2
    variables = filled(network, 5, 8, 12, 3)
    codes = jnp.eye(16, 4)  # all but four are the zero vector, which no latent is nearest to
    variables = {**variables, "codebook": {"quantizer": {"embedding": codes, "usage": jnp.zeros(16)}}}

    @jax.jit
    def step(variables):
        (_, aux), state = network.apply(
            variables, clip, train=True, mutable=["codebook"], rngs={"dropout": jax.random.key(0)}
        )
        return aux["ids"], {**variables, **state}

    before, variables = step(variables)
    after, _ = step(variables)
    assert len(np.unique(before)) <= 5 and len(np.unique(after)) >= 10
    with pytest.raises(ValueError, match=r"entropy_weight is 0\.1, but codes that start anew \(dead_share 0\.5\)"):
        jax.eval_shape(network.clone(entropy_weight=0.1).init, jax.random.key(0), clip)
