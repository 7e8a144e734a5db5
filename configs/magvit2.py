"""MAGVIT-v2. `tiny`: its causal tokenizer on generated clips of one moving object, 9 x 32 x 32 pixels to 5 x 8 x 8.

    python train.py --config=configs/magvit2.py

Shows originals above their reconstructions in samples/, what a checker reads from either, and how the 1024 codes are
used. 700 steps of 0.4 seconds on one core; it came to 21.1 dB on objects, colours and the way they go read at 0.99, a
perplexity of 237 and 0.91 of the codes in use, shapes still blunt (0.24). Entropy weighs a fifth of the paper's, with
whose weight all codes are in use (perplexity 683) but objects come to 19.5 dB and the way to 0.87.
`tiny_digits` does the same on real handwritten digits that move, which a classifier reads: at 0.84 (the originals at
0.91), 23.4 dB, in 6 minutes on one core. `tiny_images` takes pictures, without time and with the paper's weight, a
minute and a half: 16.8 dB, colours at 0.63, 0.99 of the codes in use.

`small` is `tiny` on full scenes with 4,096 codes: up to three objects and a player, cameras that move, ground, sky and
snow that change. 36 minutes on a shared core; it came to 20.7 dB on objects, colours read at 0.96 (the originals at
0.98), the way objects go at 0.77 (0.85), sizes at 0.77 (0.91), shapes at 0.39 (0.95), events at 0.65, and a perplexity
of 958 with 0.92 of the codes in use. Objects, player and cameras are seen to move; flakes of snow are lost and plain
ground is mottled.

`video`: 17 frames of 128 pixels on a folder of clips of your own (--config.data.source=folder:/path/to/clips). `image`:
ImageNet-1k at 256 pixels. Losses and weights are Open-MAGVIT2's but for the perceptual one, which compares features of
the network that `configs/vit.py:B16` trains, so that this has to be trained first.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config


def get_config(variant="tiny"):
    config = base_config()
    if variant == "tiny":
        recipes.tokenizer_scenes(config, 9, low=-1.0, object_weight=8.0)
        return tiny(config, channels=3)
    if variant == "small":
        return small(config)
    if variant == "tiny_digits":
        recipes.tokenizer_digits(config, 9, low=-1.0)
        return tiny(config, channels=1)
    if variant == "tiny_images":
        recipes.tokenizer_scenes(config, low=-1.0)
        tiny(config, channels=3)
        config.model.update({"num_frames": 0, "temporal_downsample": (), "norm": "group", "entropy_weight": 0.1})
        config.total_steps = 400
        return config
    if variant == "video":
        recipes.clips(config, frames=17, size=128, stride=4, low=-1.0)
        return tokenizer(config, variant, field="video", batch_size=32, adversarial_weight=0.3)
    if variant == "image":
        recipes.imagenet_pixels(config, size=256, low=-1.0)
        return tokenizer(config, variant, field="image", batch_size=128, adversarial_weight=0.1)
    variants = ["tiny", *zoo.sizes("magvit2"), "small", "tiny_digits", "tiny_images"]
    raise ValueError(f"no variant {variant!r}; there are: {', '.join(variants)}")


def tiny(config, channels):
    config.model = zoo.model_config(
        "magvit2",
        num_frames=9,
        image_size=(32, 32),
        channels=channels,
        patch=2,
        width=24,
        multipliers=(1, 2),
        temporal_downsample=(True,),
        num_blocks=1,
        bits=10,
        entropy_weight=0.02,
        norm="frame_group",
    )
    recipes.tokenizer_steps(config, 700, 3e-3)
    return config


def small(config):
    recipes.tokenizer_scenes(config, 9, low=-1.0, object_weight=8.0, difficulty="full")
    tiny(config, channels=3)
    config.model.update({"width": 32, "bits": 12})
    config.total_steps, config.eval.every_steps = 3000, 1000
    return config


def tokenizer(config, size, *, field, batch_size, adversarial_weight):
    config.model = zoo.model_config("magvit2", size)
    recipes.vqgan(
        config,
        total_steps=1_000_000,
        discriminator=zoo.model_config("patch_discriminator"),
        batch_size=batch_size,
        field=field,
    )
    config.task.update(
        {
            "pixel_loss": "l1",
            "perceptual_weight": 1.0,
            "adversarial_loss": "hinge",
            "adversarial_weight": adversarial_weight,
            "r1_weight": 0.0,
            "lecam_weight": 0.05,
        }
    )
    config.optimizer.update({"b1": 0.5, "b2": 0.9})
    return config
