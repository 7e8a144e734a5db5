"""Phenaki. `tiny`: clips of one moving object from captions, and stories in which it turns about.

    python train.py --config=configs/phenaki.py

Trains `tokenizer_tiny` first where there is none. Shows clips with their captions in samples/, and what a checker reads
from them beside what it reads from the tokenizer's reconstructions and what other captions would be given; a story goes
on from its last five frames with the caption of the opposite way. 27 minutes on one core behind the tokenizer; 128
samples came to the right colour in all (other captions 0.16), the way in 0.82 (reconstructions 0.98, by chance 0.16),
the size in 0.49 (0.68, 0.29), one coherent object in all frames in 0.59 (0.67); where a story turns, the new way was
seen in 0.59, the old one never. At a guidance of 1.3 the way was right in 0.80, there with a choice temperature of 2 in
0.70, and so after half of the steps in 0.55.

`small`: the same for 80,000 clips in place of 48,000, 57 minutes on one core. At a guidance of 1.3 and a choice
temperature of 2 it came to the right colour in 0.94 (other captions 0.17), the way in 0.88 (0.17), the right size in
0.76 (0.37), one coherent object in 0.58 (reconstructions 0.70), shapes still blunt (0.23); where a story turns, the new
way was seen in 0.63, the old one never, the colour kept in 0.71. One step instead of twelve showed one coherent object
in 0.02 of 128 samples, eight in 0.53.

`T2V`, `NUWA`: the paper's text-to-video models, on a folder of clips of your own with features of T5-XXL's encoder
(field `caption` [128, 4096]), which `python -m transformer_zoo.zoo.text_features` computes once from captions beside
the clips (--config.data.options.features=DIR). `BAIR`: the one without text for 64 pixels.

`tokenizer_tiny`: C-ViViT on the same clips, 9 x 32 x 32 pixels to 5 x 8 x 8 tokens. Shows originals above their
reconstructions in samples/, what a checker reads from either, and how the codes are used. 240 seconds on one core; it
came to 21.6 dB on objects, colours read at 1.0, the way they go at 0.99 and a perplexity of 20 of its 64 codes, with
shapes still blunt (0.26). With 256 codes it comes to 22.9 dB and a perplexity of 120, but a generator of this size did
not learn to put one object together from so many. `tokenizer_tiny_digits` does the same on real handwritten digits that
move, which a classifier reads, with 256 codes: at 0.74 (the originals at 0.91), 20.1 dB.
`tokenizer_tiny_frames` makes tokens of every frame alone, with as many blocks: what C-ViViT is compared with.

`tokenizer_small` is C-ViViT on full scenes with 1,024 codes: up to three objects and a player, cameras that move,
ground, sky and snow that change. 4,000 steps of 0.26 seconds on one core; it came to 21.6 dB on objects, colours read
at 0.97 (the originals at 0.98), the way objects go at 0.81 (0.85), sizes at 0.79 (0.91), shapes at 0.41 (0.95), events
at 0.68, and a perplexity of 424. Objects, player and cameras are seen to move; snow is lost and edges are frayed.

`tokenizer`, `tokenizer_BAIR`, `tokenizer_K600`: the paper's sizes, on a folder of clips of your own
(--config.data.source=folder:/path/to/clips). They compare features of the network that `configs/vit.py:B16` trains,
frame by frame, which therefore has to be trained first. `tokenizer_i3d` adds the paper's loss on features of whole
clips, with I3D's weights in weights/i3d (see docs/published_weights.md).
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config

TRANSFORMERS = {"T2V": "tokenizer", "NUWA": "tokenizer", "BAIR": "tokenizer_BAIR"}  # and the tokenizer of each
STEPS = {"tiny": 3000, "small": 5000}


def get_config(variant="tiny"):
    config = base_config()
    if variant in STEPS:
        return easy_clips(config, STEPS[variant])
    if variant in TRANSFORMERS:
        return generator(config, variant)
    if variant in ("tokenizer_tiny", "tokenizer_tiny_frames"):
        recipes.tokenizer_scenes(config, 9, object_weight=8.0)
        tokenizer_tiny(config, channels=3)
        if variant == "tokenizer_tiny_frames":
            config.model.update({"patch_frames": 1, "spatial_depth": 4, "temporal_depth": 0})
        return config
    if variant == "tokenizer_tiny_digits":
        recipes.tokenizer_digits(config, 9)
        tokenizer_tiny(config, channels=1)
        config.model.num_codes = 256
        return config
    if variant == "tokenizer_small":
        return tokenizer_small(config)
    if variant in zoo.sizes("phenaki"):
        return tokenizer(config, variant)
    if variant == "tokenizer_i3d":
        return tokenizer(config, "tokenizer", video_perceptual="weights/i3d")
    more = ["small", "tokenizer_i3d", "tokenizer_small"]
    more += ["tokenizer_tiny", "tokenizer_tiny_digits", "tokenizer_tiny_frames"]
    raise ValueError(f"no variant {variant!r}; there are: {', '.join(['tiny', *zoo.sizes('phenaki'), *more])}")


def easy_clips(config, total_steps):
    recipes.caption_scenes(config, "configs/phenaki.py:tokenizer_tiny", 9)
    config.model = zoo.model_config(
        "phenaki",
        grid=(5, 8, 8),
        num_codes=64,
        depth=4,
        width=96,
        num_heads=3,
        text_length=recipes.CAPTION_LENGTH,
        text_width=96,
        num_words=recipes.WORDS,
        text_depth=1,
        text_heads=3,
        null_word=recipes.NULL_WORD,
        unroll=4,
    )
    config.task = {"name": "phenaki_tokens", "still_share": 0.2}
    config.sampling = {"steps": 12, "guidance_scale": 2.0, "choice_temperature": 4.0}
    config.evaluators.stories = {"name": "scene_stories"}
    recipes.few_steps(config, total_steps, batch_size=16)
    config.optimizer.update({"learning_rate": 2e-3, "b2": 0.96, "clip_norm": 1.0, "warmup_steps": 150})
    config.eval.update({"every_steps": total_steps // 3, "batch_size": 32})
    return config


def generator(config, size):
    config.model = zoo.model_config("phenaki", size)
    spec = TRANSFORMERS[size]
    recipes.frozen_tokenizer(config, f"configs/phenaki.py:{spec}")
    arguments = zoo.sizes("phenaki")[spec]["arguments"]
    recipes.clips(config, frames=arguments["num_frames"], size=arguments["image_size"][0])
    with_text = size != "BAIR"
    config.task = {
        "name": "phenaki_tokens",
        "still_share": 0.2 if with_text else 0.0,
        "condition_drop_rate": 0.1 if with_text else 0.0,
    }
    config.sampling = {"steps": 48, "guidance_scale": 12.0 if with_text else 1.0, "choice_temperature": 8.0}
    config.batch_size, config.total_steps = 512, 4_000_000
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 1e-4,
        "schedule": "cosine",
        "warmup_steps": 10_000,
        "b2": 0.99,
        "weight_decay": 1e-4,
        "clip_norm": 10.0,
    }
    return config


def tokenizer_tiny(config, channels):
    config.model = zoo.model_config(
        "phenaki_tokenizer",
        num_frames=9,
        image_size=(32, 32),
        channels=channels,
        patch_size=(4, 4),
        width=96,
        num_heads=3,
        spatial_depth=2,
        temporal_depth=2,
        latent_width=8,
        num_codes=64,
        dead_share=0.03,
        unroll=4,
    )
    recipes.tokenizer_steps(config, 400, 2e-3, warmup_steps=50)
    return config


def tokenizer_small(config):
    recipes.tokenizer_scenes(config, 9, object_weight=8.0, difficulty="full")
    tokenizer_tiny(config, channels=3)
    config.model.update({"latent_width": 16, "num_codes": 1024})
    config.total_steps, config.eval.every_steps = 4000, 1000
    return config


def tokenizer(config, size, video_perceptual=""):
    config.model = zoo.model_config("phenaki", size)
    frames, side = config.model.num_frames, config.model.image_size[0]
    recipes.clips(config, frames=frames, size=side)
    discriminator = zoo.model_config("stylegan_discriminator", multipliers=(1, 1, 1, 1, 1))
    shared = {"batch_size": 128, "field": "video", "video_perceptual": video_perceptual}
    recipes.vqgan(config, total_steps=1_000_000, discriminator=discriminator, **shared)
    config.task.r1_weight = 0.0
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 1e-4,
        "schedule": "cosine",
        "warmup_steps": 100_000,
        "b1": 0.9,
        "b2": 0.99,
        "weight_decay": 1e-4,
        "clip_norm": 10.0,
    }
    return config
