"""PUT. `tiny`: fills holes in generated pictures of one object, 8 x 8 tokens, the surest first.

    python train.py --config=configs/put.py

Trains `tokenizer_tiny` first where there is none. Shows pictures with holes, two completions and the original in
samples/, and the error inside of the holes beside that of the mean of the known pixels and the tokenizer's own. 400
seconds on one core behind the tokenizer; the error came to 0.17 (mean of the known pixels 0.23, tokenizer 0.03; a hole
may hide the object), and known pixels came back exactly. `quantized_tiny` sees quantized features of all patches
instead.

`FFHQ`, `ImageNet`: the paper's transformers on the tokens of 256 pixels, on a folder of pictures of your own.

`tokenizer_tiny`: P-VQVAE on the same pictures with holes, 32 x 32 pixels to 8 x 8 tokens. Shows originals above their
reconstructions from tokens alone in samples/, what a checker reads from either, and how far known pixels come back
changed with the decoder's branch that sees them and without it. 500 seconds on one core; it came to 21.5 dB on
objects, colours read at 0.97, place at 0.92 and a perplexity of 56 codes, known pixels at 36.0 dB with the branch and
23.1 dB without.

`tokenizer`: the paper's size at 256 pixels, on ImageNet-1k, with the losses that compare images; it compares features
of the network that `configs/vit.py:B16` trains, which therefore has to be trained first, where the paper takes VGG's.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config


def get_config(variant="tiny"):
    config = base_config()
    if variant in ("tiny", "quantized_tiny"):
        return tiny(config, quantized_share=0.3 if variant == "tiny" else 1.0)
    if variant in ("FFHQ", "ImageNet"):
        return transformer(config, variant)
    if variant == "tokenizer_tiny":
        return tokenizer_tiny(config)
    if variant == "tokenizer":
        return tokenizer(config)
    variants = ["tiny", *zoo.sizes("put"), "quantized_tiny", "tokenizer_tiny"]
    raise ValueError(f"no variant {variant!r}; there are: {', '.join(variants)}")


def tiny(config, quantized_share):
    recipes.caption_scenes(config, "configs/put.py:tokenizer_tiny", low=-1.0)
    del config.evaluators
    config.model = zoo.model_config(
        "put", grid=(8, 8), feature_width=32, num_codes=256, depth=4, width=96, num_heads=3, unroll=4
    )
    config.task = {"name": "inpainting_tokens", "quantized_share": quantized_share}
    recipes.few_steps(config, 2000, batch_size=32)
    config.optimizer.update({"learning_rate": 2e-3, "b2": 0.96, "clip_norm": 1.0})
    config.eval.update({"every_steps": 500, "batch_size": 64})
    return config


def transformer(config, size):
    config.model = zoo.model_config("put", size)
    recipes.frozen_tokenizer(config, "configs/put.py:tokenizer")
    recipes.imagenet_pixels(config, size=256, low=-1.0)
    config.data.source = "folder:pictures"
    config.task = {"name": "inpainting_tokens", "tokens_per_step": 1}
    config.sampling = {"top_k": 50}
    config.batch_size, config.total_steps = 64, 400_000
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 3e-4,
        "final_learning_rate_ratio": 1 / 30,
        "schedule": "cosine",
        "warmup_steps": 5000,
        "b2": 0.95,
        "weight_decay": 0.01,
    }
    return config


def tokenizer_tiny(config):
    config.model = zoo.model_config(
        "put_tokenizer",
        image_size=(32, 32),
        patch_size=4,
        width=32,
        num_blocks=2,
        num_codes=256,
        num_hole_codes=256,
        dead_share=0.03,
    )
    recipes.tokenizer_scenes(config, low=-1.0, object_weight=8.0)
    config.task.update({"name": "patch_tokenization"})
    recipes.tokenizer_steps(config, 600, 2e-3)
    return config


def tokenizer(config):
    config.model = zoo.model_config("put", "tokenizer")
    recipes.imagenet_pixels(config, size=256, low=-1.0)
    discriminator = zoo.model_config("patch_discriminator")
    recipes.vqgan(config, total_steps=1_000_000, discriminator=discriminator, batch_size=16)
    config.task.update(
        {
            "name": "patch_tokenization",
            "pixel_loss": "l1",
            "adversarial_start": 30_000,
            "r1_weight": 0.0,
        }
    )
    shared = {"name": "adamw", "schedule": "cosine", "warmup_steps": 5000, "b1": 0.0, "b2": 0.9}
    config.optimizer = {
        "model": shared | {"learning_rate": 2e-4},
        "discriminator": shared | {"learning_rate": 2e-5},
    }
    return config
