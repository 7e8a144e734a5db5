"""MaskGIT's and MAGVIT's tokenizers: published sizes, ids there and back, and images' weights inflated for clips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.layers.autoencoders import ConvolutionalDecoder, ConvolutionalEncoder
from transformer_zoo.layers.discriminators import StyleGANDiscriminator
from transformer_zoo.layers.quantizers.vector import CosineQuantizer
from transformer_zoo.models.tokenizers.magvit import MAGVITTokenizer, inflate_images
from transformer_zoo.models.tokenizers.maskgit_vqgan import MaskGITVQGAN
from transformer_zoo.models.tokenizers.tokenizer import Tokenizer
from transformer_zoo.task import Variables
from transformer_zoo.tasks.networks import apply_network, init_network

SMALL = dict(width=4, multipliers=(1, 2), latent_width=3, num_codes=6)
IMAGES = MaskGITVQGAN(**SMALL, num_blocks=1)
CLIPS = MAGVITTokenizer(**SMALL, encoder_blocks=1, decoder_blocks=1, temporal_downsample=(True,))
HUGE = dict(width=128, encoder_blocks=4, decoder_blocks=4, num_codes=4096, latent_width=512)
CLIP = (16, 128, 128, 3)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def shapes_of(network, *shape):
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)))["params"]


def filled(network, *shape):
    leaves, structure = jax.tree.flatten(shapes_of(network, *shape))
    return {"params": jax.tree.unflatten(structure, [0.4 * normal(n, *leaf.shape) for n, leaf in enumerate(leaves)])}


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "network, shape, encoder, decoder, whole",
    [
        (MaskGITVQGAN(), (256, 256, 3), 23_775_104, 30_478_339, 54_515_587),
        (MAGVITTokenizer(), CLIP, 17_149_888, 23_167_811, 40_579_843),
        (MAGVITTokenizer(width=128), CLIP, 68_443_776, 89_106_051, 157_811_971),
        (MAGVITTokenizer(**HUGE), CLIP, None, None, 308_440_579),
    ],
    ids=["maskgit", "magvit_B", "magvit_L", "magvit_H"],
)
def test_parameters_are_the_published_ones(network, shape, encoder, decoder, whole):
    params = shapes_of(network, *shape)
    assert count(params) == whole
    assert encoder is None or (count(params["encoder"]), count(params["decoder"])) == (encoder, decoder)


@pytest.mark.parametrize("width, published", [(64, 15_339_457), (128, 61_341_569)])
def test_the_discriminators_parameters_are_the_published_ones(width, published):
    assert count(shapes_of(StyleGANDiscriminator(width), *CLIP)) == published


@pytest.mark.parametrize("network, shape, grid", [(IMAGES, (8, 12, 3), (4, 6)), (CLIPS, (4, 8, 4, 3), (2, 4, 2))])
def test_ids_are_all_that_a_decoder_needs(network, shape, grid):
    variables, pixels = filled(network, *shape), normal(5, 2, *shape)

    @jax.jit
    def there_and_back(variables, pixels):
        ids = network.apply(variables, pixels, method=Tokenizer.tokenize)
        again = network.apply(variables, ids, method=Tokenizer.detokenize)
        return ids, again, network.apply(variables, pixels)

    ids, again, (reconstruction, aux) = there_and_back(variables, pixels)
    assert ids.shape == (2, *grid) and len(np.unique(ids)) > 2
    np.testing.assert_array_equal(ids, aux["ids"])
    np.testing.assert_allclose(again, reconstruction, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network, shape", [(IMAGES, (8, 8, 3)), (CLIPS, (4, 4, 4, 3))])
def test_the_reconstruction_trains_the_encoder_through_the_codes(network, shape):
    variables, pixels = filled(network, *shape), normal(5, 1, *shape)
    gradient = jax.jit(jax.grad(lambda v: jnp.square(network.apply(v, pixels, train=True)[0]).sum()))(variables)
    sizes = jax.tree.map(lambda leaf: float(jnp.abs(leaf).max()), gradient["params"])
    assert min(jax.tree.leaves((sizes["encoder"], sizes["decoder"]))) > 0
    assert sizes["quantizer"]["embedding"] == 0  # codes learn from the codebook loss alone


@functools.partial(jax.jit, static_argnums=0)
def encoded(network, variables, pixels):
    return network.apply(variables, pixels, method=lambda network, x: network.encoder(x)[0])


@pytest.mark.parametrize("how", ["central", "average"])
def test_inflated_weights_treat_a_clip_at_rest_as_its_image(how):
    images = MaskGITVQGAN(**SMALL, num_blocks=1, shortcut_from_output=False)
    variables = filled(images, 8, 8, 3)
    params = inflate_images(variables["params"], shapes_of(CLIPS, 16, 8, 8, 3), how=how)
    image = normal(5, 1, 8, 8, 3)
    clip = jnp.repeat(image[:, None], 16, axis=1)
    expected, found = encoded(images, variables, image), encoded(CLIPS, {"params": params}, clip)
    if how == "central":  # equal shares are short of some at the ends, and norms spread that over all frames
        np.testing.assert_allclose(found, jnp.repeat(expected[:, None], 8, axis=1), rtol=1e-3, atol=1e-3)
    else:
        apart = float(jnp.abs(found[:, 4] - expected).mean() / jnp.abs(expected).mean())
        assert 1e-3 < apart < 0.5


def test_inflation_names_what_does_not_fit():
    wider = MaskGITVQGAN(**SMALL | dict(width=8), num_blocks=1)
    clips = shapes_of(CLIPS, 4, 8, 8, 3)
    with pytest.raises(ValueError, match=r"has shape .* which cannot become"):
        inflate_images(filled(wider, 8, 8, 3)["params"], clips)
    with pytest.raises(ValueError, match=r"only one of the tokenizers has .*block1"):
        inflate_images(filled(MaskGITVQGAN(**SMALL), 8, 8, 3)["params"], clips)


class Averaged(Tokenizer):
    """One whose codes are kept by averages."""

    def setup(self):
        shared = dict(width=4, multipliers=(1, 2), num_blocks=1)
        self.encoder = ConvolutionalEncoder(latent_width=3, **shared)
        self.quantizer = CosineQuantizer(6, 3)
        self.decoder = ConvolutionalDecoder(channels=3, **shared)


def test_tasks_carry_the_codebook_and_training_alone_moves_it():
    pixels = normal(5, 2, 8, 8, 3)
    params, collections = jax.jit(lambda key: init_network(Averaged(), key, pixels))(jax.random.key(0))
    assert set(params) == {"encoder", "decoder"} and set(collections) == {"codebook"}
    variables = Variables({"model": params}, {"model": collections})

    @functools.partial(jax.jit, static_argnums=0)
    def state(train):
        return apply_network(Averaged(), variables, pixels, key=jax.random.key(1), train=train)[2]["model"]

    moved, kept = state(True), state(False)
    before = collections["codebook"]["quantizer"]["embedding"]
    np.testing.assert_array_equal(kept["codebook"]["quantizer"]["embedding"], before)
    assert jnp.abs(moved["codebook"]["quantizer"]["embedding"] - before).max() > 0.1


def test_flags_are_one_a_step_between_levels():
    with pytest.raises(ValueError, match="temporal_downsample has 3 flags, but 2 levels have 1 steps"):
        MAGVITTokenizer(multipliers=(1, 2)).init(jax.random.key(0), jnp.zeros((1, 4, 8, 8, 3)))
