"""SPAE. `tiny`: generated pictures of one object, 32 x 32 pixels, to a pyramid of 149 words of captions and back.

    python train.py --config=configs/spae.py

Shows originals above their reconstructions in samples/, the top five words beside the caption, what a checker reads
from either, and how many of the top words the caption holds. About a minute on 2 cores; it came to 0.51 of the top five
words (other captions 0.24), colours read at 0.80 and 16.5 dB on objects, by 27 of 45 words and hardly any shapes.
`tiny_residual` looks up what is left over in place of means.

`SPAE6`, `SPAE8`: the paper's pyramids at 128 pixels. Give them a language model's embeddings as a .npy file:
--config.model.vocabulary=/path/to/embeddings.npy --config.model.num_words=65000 --config.model.latent_width=512. They
are trained for appearance; the semantic loss wants captions whose words are the table's.
"""

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config


def get_config(variant="tiny"):
    config = base_config()
    if variant in ("tiny", "tiny_residual"):
        return tiny(config, residual=variant == "tiny_residual")
    if variant not in zoo.sizes("spae"):
        variants = ["tiny", *zoo.sizes("spae"), "tiny_residual"]
        raise ValueError(f"no variant {variant!r}; there are: {', '.join(variants)}")
    config.model = zoo.model_config("spae", variant)
    recipes.imagenet_pixels(config, size=128)
    discriminator = zoo.model_config("stylegan_discriminator")
    recipes.vqgan(config, total_steps=450_000, discriminator=discriminator)
    config.task.lecam_weight = 1e-4
    return config


def tiny(config, residual):
    config.model = zoo.model_config(
        "spae",
        image_size=(32, 32),
        width=32,
        multipliers=(1, 2),
        num_blocks=1,
        patch=2,
        layers=(1, 2, 4, 8, 8),
        latent_width=32,
        residual=residual,
    )
    recipes.tokenizer_scenes(config)
    config.data.options.fields = ("image", "caption", "program")
    config.task.update({"name": "semantic_tokenization"})
    recipes.tokenizer_steps(config, 600, 2e-3)
    return config
