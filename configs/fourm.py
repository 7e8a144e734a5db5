"""4M."""

from transformer_zoo import zoo
from transformer_zoo.training.config import base_config

FIELDS = ("image", "depth", "semseg", "caption", "det_seq", "boxes", "obj", "program")

# Of the tiny tokenizers: what they read, codes, steps.
TOKENIZERS = {
    "rgb": ({"reads": "pixels", "channels": 3, "num_codes": 384}, "image", 1000),
    "depth": ({"reads": "map", "channels": 1, "num_codes": 64}, "depth", 500),
    "semseg": ({"reads": "classes", "channels": 8, "num_codes": 96}, "semseg", 500),
}
WORDS = {"kind": "sequence", "vocabulary": 256}


def get_config(variant="tiny"):
    config = base_config()
    if variant == "tiny":
        return tiny(config)
    if variant.removeprefix("tokenizer_tiny_") in TOKENIZERS:
        return tokenizer_tiny(config, variant.removeprefix("tokenizer_tiny_"))
    raise ValueError(variant)


def tokenizer_tiny(config, name):
    options, field, steps = TOKENIZERS[name]
    config.model = zoo.model_config(
        "fourm_tokenizer",
        image_size=(32, 32),
        patch_size=(8, 8),
        depth=0,
        width=256,
        decoder_depth=1,
        decoder_width=192,
        decoder_num_heads=4,
        latent_width=16,
        decay=0.95,
        unroll=1,
        **options,
    )
    config.data.update({"source": "scenes:still"})
    fields = (field, "program") if field == "image" else (field,)
    config.data.options = {"side": 32, "difficulty": "easy", "fields": fields}
    config.data.transforms = (("scale", {}),) if field == "image" else ()
    config.task = {"name": "fourm_tokenization", "field": field, "object_weight": 4.0}
    if field == "image":
        config.evaluators = {"scenes": {"name": "scene_reading"}}
    config.total_steps, config.batch_size = steps, 64
    config.optimizer = {"name": "adamw", "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 50, "b2": 0.99}
    config.optimizer.update({"clip_norm": 1.0, "weight_decay": 0.01})
    config.eval.update({"batch_size": 128})
    return config


def tiny(config):
    grid = {"kind": "tokens", "grid": (4, 4)}
    config.model = zoo.model_config(
        "fourm",
        modalities={
            "rgb": {"kind": "pixels", "field": "image", "grid": (4, 4), "patch_size": (8, 8)},
            "tok_rgb": {**grid, "field": "image", "tokenizer": "rgb", "vocabulary": 384},
            "tok_depth": {**grid, "field": "depth", "tokenizer": "depth", "vocabulary": 64},
            "tok_semseg": {**grid, "field": "semseg", "tokenizer": "semseg", "vocabulary": 96},
            "caption": {**WORDS, "length": 24},
        },
        depth=2,
        decoder_depth=2,
        width=96,
        num_heads=3,
        unroll=2,
    )
    config.task = {
        "name": "fourm",
        "mixture": (
            {"inputs": {"rgb": 1000.0}, "targets": 0.5},
            {"inputs": 0.5, "targets": 0.5},
        ),
        "num_inputs": 22,
        "num_targets": 16,
        "evaluate": True,
    }
    config.eval.update({"batch_size": 128})
    config.requires = {name: f"configs/fourm.py:tokenizer_tiny_{name}" for name in TOKENIZERS}
    config.init_from = tuple(
        {"requires": name, "table": (("(params|state)/model/(.*)", rf"frozen/{name}/\1/\2"),)} for name in TOKENIZERS
    )
    config.data.update({"source": "scenes:still"})
    config.data.options = {"side": 32, "difficulty": "easy", "fields": FIELDS}
    config.total_steps, config.batch_size = 1900, 64
    config.optimizer = {"name": "adamw", "learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 100, "b2": 0.95}
    config.optimizer.update({"weight_decay": 0.05, "clip_norm": 1.0})
    return config
