"""4M. `tiny`: from any to any of pixels, tokens of pixels, depth and classes, and captions, on scenes of one object.

    python train.py --config=configs/fourm.py

Trains its three tokenizers first (`tokenizer_tiny_rgb`, `_depth`, `_semseg`), then the model. samples/ shows the
any-to-any page, a row for each modality as the only input and a column for each that is predicted, and a table of what
is predicted from pixels beside the blind guess and the tokenizers' ceiling. Measured on 1,024 held-out scenes, from
pixels in one step: IoU of sky, ground and objects 0.86 (blind 0.58, ceiling 0.89), depth off by 0.052 (0.095, 0.051),
captions with the right colour in all, row in 0.96, column in 0.98, size in 0.94, shape in 0.47 (0.20). Pictures from
captions have their object in the right cell in 0.75 of the cases (other captions 0.15, ceiling 0.76), in the right
colour in 0.68 (0.10, 0.90), one object in 0.56 (ceiling 0.79); guided and in four steps the colour in 0.74, the cell in
0.70. 12 minutes on one core, tokenizers included. After a third of the steps, of three seeds, the cell is right in 0.64
to 0.76 at guidance 3, in 0.34 to 0.45 without, and colours do not follow yet (0.11).

`Ti`, `S`, `B`, `L`, `XL` (SwiGLU, no biases), `B_gelu`: pretraining on 4M-7's modalities; `B_21`, `L_21`, `XL_21` on
4M-21's, from the runs on seven. `super_resolution_L` and `text_to_image_B` specialise them. Records hold one field a
modality, ids of sequences and of images that were tokenized before. `finetune_B`, `finetune_L`: the encoder as a ViT on
ImageNet-1k.

`small`: all that the world of up to three objects knows, in thirteen modalities on 8 x 8 places: pixels, tokens of
pixels, depth, normals, classes, two kinds of edges, features of a MAE trained here and its global feature, captions,
boxes, metadata, palettes. It trains `features_small` and `tokenizer_small_rgb`, `_depth`, `_normal`, `_semseg`,
`_edges`, `_mae`, `_mae_global` first. 28 minutes on one core for these and 43 on two for the model. From pixels on
1,024 held-out scenes: IoU of classes 0.89 (blind 0.55, ceiling 0.96), depth off by 0.072 (0.119, 0.042), normals by 7.9
degrees (16.0, 4.6), captions with the right colour in 0.95 (0.27), row 0.85, column 0.82 (0.54, 0.57), shape 0.40
(0.20), boxes found in 0.56 (0.12), metadata 0.76 (0.42). Maps of all kinds follow from any other map. Pictures from
captions have the right cell in 0.63 at guidance 3, in 0.45 without (other captions 0.19, ceiling 0.64), the right
colour in 0.27 and in eight steps 0.31 (0.09, 0.50). `text_to_image_small`, the paper's specialisation, goes on with
captions alone as the input of most samples, an hour on one core: the cell in 0.64 without guidance and 0.56 at 3, the
colour in 0.35 and 0.37, and from pixels IoU of classes 0.90, depth off by 0.062 and normals by 7.1 degrees.

`segmentation_tiny`, `depth_tiny`: the encoder that `tiny` leaves, with a dense head, on 600 labelled scenes of up to
three objects: IoU of classes 0.32 (the best guess that does not look 0.20), depth off by 0.087 (0.118) after 200 steps,
a minute on one core. `detection_tiny`: likewise with an FCOS head in place of the paper's Cascade Mask R-CNN; boxes of
objects by colour, COCO's average precision beside a blind guess's, boxes drawn. On 1,024 held-out scenes it is 0.70 at
half overlap (blind 0.005) and 0.33 over all overlaps (0.001); from scratch, without that encoder, 0.61 and 0.25.

`new_modality_tiny`: boxes beside what `tiny` knows; only what is new is trained. `new_modality_stages_tiny`: that,
then everything at a tenth of the rate, 3 minutes on one core behind `tiny`. What is new alone finds no box (a blind
guess 0.06, IoU 0.21); with everything trained 0.31 are found and IoU is 0.36, while that of classes stays at 0.86.
`tokenizer_sam_instance`: the paper's tokenizer of masks, on masks of your own.
"""

from ml_collections import ConfigDict

from transformer_zoo import zoo
from transformer_zoo.training import recipes
from transformer_zoo.training.config import base_config

# Of the tiny tokenizers: what they read, the field, steps.
TOKENIZERS = {
    "rgb": ({"reads": "pixels", "channels": 3, "num_codes": 384}, "image", 800),
    "depth": ({"reads": "map", "offset": 0.75, "scale": 0.15, "channels": 1, "num_codes": 64}, "depth", 400),
    "semseg": ({"reads": "classes", "channels": 8, "num_codes": 96}, "semseg", 400),
}
WORDS = {"kind": "sequence", "vocabulary": 256}
# Of the small tokenizers, whose patches are 4 x 4 pixels: likewise. `edges` serves both kinds of edges, `mae` and
# `mae_global` read the features of `features_small`.
SMALL_TOKENIZERS = {
    "rgb": ({"reads": "pixels", "channels": 3, "num_codes": 512}, "image", 1500),
    "depth": ({"reads": "map", "offset": 0.75, "scale": 0.15, "channels": 1, "num_codes": 128}, "depth", 600),
    "normal": ({"reads": "bytes", "channels": 3, "num_codes": 256}, "normal", 600),
    "semseg": ({"reads": "classes", "channels": 8, "num_codes": 256}, "semseg", 600),
    "edges": ({"reads": "classes", "channels": 2, "num_codes": 256}, "canny_edge", 600),
    "mae": ({"reads": "features", "channels": 128, "num_codes": 256}, "image", 600),
    "mae_global": ({"channels": 128, "num_codes": 64}, "image", 600),
}
# Of the encoder with a dense head: the field, what it is, channels of the head.
DENSE = {"segmentation_tiny": ("semseg", "classes", 8), "depth_tiny": ("depth", "values", 1)}
RGB_TO_ALL = {"inputs": {"rgb@224": 1000.0}, "targets": 0.5}
CAPTION_TO_ALL = {"inputs": {"caption": 5.0, "*": 0.05}, "targets": 0.5, "keep": {"caption": "all"}}
T5_TO_ALL = {"inputs": {"t5_caption": 5.0, "*": 0.05}, "targets": 0.5, "keep": {"t5_caption": "all"}}
ALL_TO_ALL = tuple({"inputs": alpha, "targets": alpha} for alpha in (0.01, 0.1, 1.0, 10.0))
FINETUNE = {"B": (100, 0.75, 0.1), "L": (50, 0.75, 0.2)}  # epochs, layer decay, drop path rate


def get_config(variant="tiny"):
    config = base_config()
    name = variant.removeprefix("tokenizer_tiny_")
    if variant == "tiny":
        return tiny(config)
    if name in TOKENIZERS and name != variant:
        return tokenizer_tiny(config, name)
    if variant == "small":
        return small(config)
    if variant == "text_to_image_small":
        return text_to_image_small(config)
    if variant == "features_small":
        return features_small(config)
    name = variant.removeprefix("tokenizer_small_")
    if name in SMALL_TOKENIZERS and name != variant:
        return tokenizer_small(config, name)
    if variant == "tokenizer_sam_instance":
        return tokenizer_sam_instance(config)
    if variant in zoo.sizes("fourm"):
        return pretrain(config, variant)
    if variant == "finetune_tiny":
        return finetune_tiny(config)
    if variant in DENSE:
        return dense_tiny(config, variant)
    if variant == "detection_tiny":
        return detection_tiny(config)
    if variant == "new_modality_tiny":
        return new_modality_tiny(config)
    if variant == "new_modality_stages_tiny":
        return new_modality_stages()
    if variant == "super_resolution_L":
        return super_resolution(config)
    if variant == "text_to_image_B":
        return text_to_image(config)
    if variant.removeprefix("finetune_") in FINETUNE:
        return finetune(config, variant.removeprefix("finetune_"))
    variants = ["tiny", *zoo.sizes("fourm"), "super_resolution_L", "text_to_image_B", "finetune_tiny"]
    variants += [f"finetune_{size}" for size in FINETUNE] + [f"tokenizer_tiny_{name}" for name in TOKENIZERS]
    variants += [*DENSE, "detection_tiny", "new_modality_tiny", "new_modality_stages_tiny", "small"]
    variants += ["text_to_image_small", "features_small", *(f"tokenizer_small_{name}" for name in SMALL_TOKENIZERS)]
    raise ValueError(f"no variant {variant!r}; there are: {', '.join(variants)}")


def scenes(config, fields):
    config.data.update({"source": "scenes:still"})
    config.data.options = {"side": 32, "difficulty": "easy", "fields": fields}
    config.data.transforms = (("scale", {}),) if "image" in fields else ()
    config.eval.update({"batch_size": 128})


def tokenizer_tiny(config, name):
    options, field, steps = TOKENIZERS[name]
    config.model = zoo.model_config(
        "fourm_tokenizer",
        image_size=(32, 32),
        patch_size=(8, 8),
        depth=0,
        width=128,
        decoder_depth=1,
        decoder_width=128,
        decoder_num_heads=4,
        latent_width=16,
        decay=0.9,
        unroll=1,
        **options,
    )
    scenes(config, (field, "program") if field == "image" else (field,))
    config.task = {"name": "fourm_tokenization", "field": field, "object_weight": 4.0}
    if field == "image":
        config.task.pixel_loss = "l1"  # blends of colours would be no colour to the checker
        config.evaluators = {"scenes": {"name": "scene_reading"}}
    config.total_steps, config.batch_size = steps, 64
    config.optimizer = {"name": "adamw", "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 50, "b2": 0.99}
    config.optimizer.update({"clip_norm": 1.0, "weight_decay": 0.01})
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
            "caption": {**WORDS, "length": 24, "field_length": 40},
        },
        depth=2,
        decoder_depth=2,
        width=96,
        num_heads=3,
        embedding_deviation=1.0,
        unroll=2,
    )
    config.task = {
        "name": "fourm",
        "mixture": (
            {"inputs": {"rgb": 1000.0}, "targets": 0.5},
            {"inputs": 0.5, "targets": 0.5},
            {"inputs": {"caption": 1000.0}, "targets": 0.5, "keep": {"caption": "binary"}, "weight": 0.75},
        ),
        "num_inputs": 22,
        "num_targets": 16,
        "evaluate": True,
    }
    config.sampling = {"guidance_scale": 2.0, "temperature": 0.5, "scheme": "roar", "steps": 4, "by_classes": False}
    stands_on(config, {name: f"configs/fourm.py:tokenizer_tiny_{name}" for name in TOKENIZERS})
    scenes(config, ("image", "depth", "semseg", "caption", "boxes", "obj"))
    config.total_steps, config.batch_size = 4000, 64
    config.optimizer = {"name": "adamw", "learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 100, "b2": 0.95}
    config.optimizer.update({"weight_decay": 0.05, "clip_norm": 1.0})
    return config


def small(config):
    grid = {"kind": "tokens", "grid": (8, 8)}
    features = {"kind": "tokens", "field": "image", "features": "mae_features"}
    edges = {**grid, "tokenizer": "edges", "vocabulary": 256}
    config.model = zoo.model_config(
        "fourm",
        modalities={
            "rgb": {"kind": "pixels", "field": "image", "grid": (8, 8), "patch_size": (4, 4)},
            "tok_rgb": {**grid, "field": "image", "tokenizer": "rgb", "vocabulary": 512},
            "tok_depth": {**grid, "field": "depth", "tokenizer": "depth", "vocabulary": 128},
            "tok_normal": {**grid, "field": "normal", "tokenizer": "normal", "vocabulary": 256},
            "tok_semseg": {**grid, "field": "semseg", "tokenizer": "semseg", "vocabulary": 256},
            "tok_canny_edge": {**edges, "field": "canny_edge"},
            "tok_sam_edge": {**edges, "field": "sam_edge"},
            "tok_mae": {**features, "grid": (8, 8), "tokenizer": "mae", "vocabulary": 256},
            "tok_mae_global": {**features, "grid": (1, 8), "tokenizer": "mae_global", "vocabulary": 64}
            | {"positions": "learned"},
            # The world has 16 sentinels, too few for its longest captions; behind its words there is room for more.
            "caption": {"kind": "sequence", "length": 40, "vocabulary": 288}
            | {"first_sentinel": 256, "num_sentinels": 32},
            "det": {**WORDS, "field": "det_seq", "length": 25},
            "metadata": {**WORDS, "field": "meta_seq", "length": 17, "chunk": 2},
            "color_palette": {**WORDS, "field": "palette_seq", "length": 23},
        },
        depth=4,
        decoder_depth=4,
        width=192,
        num_heads=3,
        embedding_deviation=1.0,
        unroll=4,
    )
    rgb_to_all = {"inputs": {"rgb": 1000.0}, "targets": 0.5}
    config.task = {
        "name": "fourm",
        "mixture": (rgb_to_all, CAPTION_TO_ALL, *({"inputs": alpha, "targets": alpha} for alpha in (0.1, 0.5, 2.0))),
        "num_inputs": 96,
        "num_targets": 96,
        "evaluate": True,
    }
    config.sampling = {"guidance_scale": 3.0, "temperature": 0.5, "scheme": "roar", "steps": 8, "by_classes": True}
    stands_on(config, {name: f"configs/fourm.py:tokenizer_small_{name}" for name in SMALL_TOKENIZERS})
    stands_on_features(config, "mae_features")
    fields = ("image", "depth", "normal", "semseg", "canny_edge", "sam_edge", "caption", "det_seq")
    scenes(config, (*fields, "meta_seq", "palette_seq", "boxes", "obj"))
    config.data.options.difficulty = "full"
    config.total_steps, config.batch_size = 3000, 32
    config.eval.batch_size = 32  # thirteen modalities, pictures in several steps: of 128 it would take half an hour
    config.optimizer = {"name": "adamw", "learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 300, "b2": 0.95}
    config.optimizer.update({"weight_decay": 0.05, "clip_norm": 1.0})
    return config


def text_to_image_small(config):
    small(config)
    pictures, words = {"tok_rgb": 1.0, "tok_semseg": 1.0}, {"caption": 1000.0}
    config.task.mixture = (
        {"inputs": words, "targets": pictures, "keep": {"caption": "all"}, "weight": 2.0},
        {"inputs": {"caption": 5.0, "tok_semseg": 5.0}, "targets": {"tok_rgb": 1.0}, "keep": {"caption": "all"}},
        {"inputs": {"rgb": 1000.0}, "targets": 0.5, "weight": 0.5},
    )
    config.task.update({"num_inputs": 64, "num_targets": 64})
    config.total_steps, config.batch_size = 1500, 64
    starts_from(config, "small")
    return config


def tokenizer_small(config, name):
    options, field, steps = SMALL_TOKENIZERS[name]
    if name == "mae_global":
        network, sizes = "fourm_vector_tokenizer", dict(depth=2, width=256, latent_width=128, num_heads=8)
    else:
        network, sizes = "fourm_tokenizer", dict(depth=0, width=128, num_heads=4, latent_width=16, decay=0.95)
        sizes |= dict(decoder_depth=1, decoder_width=128, decoder_num_heads=4, unroll=1)
        sizes |= dict(image_size=(8, 8) if name == "mae" else (32, 32), patch_size=(1, 1) if name == "mae" else (4, 4))
    config.model = zoo.model_config(network, **sizes, **options)
    scenes(config, (field, "program") if name == "rgb" else (field,))
    config.data.options.difficulty = "full"
    config.task = {"name": "fourm_tokenization", "field": field}
    if name == "rgb":
        config.task.update({"object_weight": 4.0, "pixel_loss": "l1"})
        config.evaluators = {"scenes": {"name": "scene_reading"}}
    if name.startswith("mae"):
        config.task.feature_loss = "cosine" if name == "mae_global" else "smooth_l1"
        stands_on_features(config, "feature_network")
    config.total_steps, config.batch_size = steps, 64
    config.optimizer = {"name": "adamw", "learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 100, "b2": 0.99}
    config.optimizer.update({"clip_norm": 1.0, "weight_decay": 0.01})
    return config


def features_small(config):
    config.model = zoo.model_config(
        "mae",
        image_size=(32, 32),
        patch_size=(4, 4),
        depth=4,
        width=128,
        num_heads=4,
        decoder_depth=2,
        decoder_width=96,
        decoder_num_heads=3,
        unroll=4,
    )
    config.task = {"name": "masked_pixels", "mask_ratio": 0.75, "normalise_targets": True}
    scenes(config, ("image",))
    config.data.options.difficulty = "full"
    config.total_steps, config.batch_size = 1500, 128
    config.optimizer = {"name": "adamw", "learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 100, "b2": 0.95}
    config.optimizer.weight_decay = 0.05
    return config


def tokenizer_sam_instance(config):
    config.model = zoo.model_config("fourm", "tokenizer_sam_instance")
    config.task = {"name": "fourm_tokenization", "field": "mask"}
    config.data.source = "tfds:sam_masks"
    config.data.transforms = ()
    # The reference does not say how many masks an epoch has: here as many as ImageNet-1k has images.
    config.batch_size, epoch = 3072, recipes.IMAGENET // 3072
    config.total_steps = 24 * epoch
    config.optimizer = {"name": "adamw", "learning_rate": 1e-4 * config.batch_size / 256, "schedule": "cosine"}
    config.optimizer.update({"warmup_steps": 5 * epoch, "b2": 0.99, "clip_norm": 1.0, "weight_decay": 0.05})
    return config


def stands_on_features(config, name):
    config.requires = {**config.get("requires", {}), name: "configs/fourm.py:features_small"}
    encoder = {"requires": name, "table": (("params/model/(encoder/.*)", rf"frozen/{name}/params/\1"),)}
    config.init_from = (*config.get("init_from", ()), encoder)


def stands_on(config, tokenizers):
    config.requires = tokenizers
    config.init_from = tuple(
        {"requires": name, "table": (("(params|state)/model/(.*)", rf"frozen/{name}/\1/\2"),)} for name in tokenizers
    )


def pretrain(config, size, tokens=500e9, warmup=10e9):
    config.model = zoo.model_config("fourm", size)
    wide, all_modalities = size.startswith("XL"), size.endswith("_21")
    number, config.batch_size = (256, 4096) if all_modalities else (128, 8192)
    mixture = (*ALL_TO_ALL, RGB_TO_ALL, {**CAPTION_TO_ALL, "weight": 0.5}, {**T5_TO_ALL, "weight": 0.5})
    config.task = {
        "name": "fourm",
        "mixture": mixture if all_modalities else (RGB_TO_ALL, {"inputs": 0.5, "targets": 0.5}),
        "num_inputs": number,
        "num_targets": number,
    }
    config.data.source = "tfds:fourm_tokens"
    config.data.transforms = (("normalise", {}),)
    by_tokens(config, tokens, warmup, 2e-5 if wide else 1e-4)
    if wide:
        config.optimizer.clip_norm, config.model.remat, config.nan = 3.0, "full", "skip"
    if all_modalities:
        starts_from(config, size.removesuffix("_21"))
    return config


def by_tokens(config, tokens, warmup, base_rate):
    a_step = config.batch_size * (config.task.num_inputs + config.task.num_targets)
    config.total_steps = round(tokens / a_step)
    config.optimizer = {
        "name": "adamw",
        "learning_rate": base_rate * config.batch_size / 256,
        "schedule": "cosine",
        "warmup_steps": round(warmup / a_step),
        "b2": 0.95,
        "weight_decay": 0.05,
        # The reference spares biases and what is one-dimensional in torch: LayerNorms.
        "weight_decay_table": ((r".*(norm\d?|_norm)/(scale|bias)", 0.0), (r".*/bias", 0.0), (".*", 1.0)),
    }
    config.checkpoint.every_steps = config.eval.every_steps = 5000


def starts_from(config, variant):
    config.requires = {**config.get("requires", {}), "pretrained": f"configs/fourm.py:{variant}"}
    everything = {"requires": "pretrained", "table": (("params/model/(.*)", r"params/model/\1"),)}
    config.init_from = (*config.get("init_from", ()), everything)


def super_resolution(config):
    pretrain(config, "L", tokens=100e9, warmup=5e9)
    config.model.modalities = "super_resolution"
    low, targets = {"inputs": {"tok_rgb@224": 5.0, "*": 0.05}, "targets": 0.5}, {"targets": 0.5}
    caption = {"inputs": {"caption": 5.0, "*": 0.05}, "keep": {"caption": "all"}}
    config.task.mixture = (low, caption | targets, {"inputs": 0.2, "targets": 0.2}, {"inputs": 1.0, "targets": 1.0})
    config.batch_size = 2048
    config.task.update({"num_inputs": 1024, "fewest_inputs": 64, "num_targets": 1024})
    by_tokens(config, 100e9, 5e9, 1e-4)
    starts_from(config, "L")
    return config


def text_to_image(config):
    pretrain(config, "B")
    config.task.mixture = ({**CAPTION_TO_ALL, "weight": 1.0}, {**RGB_TO_ALL, "weight": 1.0}, ALL_TO_ALL[2])
    config.task.update({"num_inputs": 256, "fewest_inputs": 64, "num_targets": 256})
    by_tokens(config, 100e9, 5e9, 1e-4)
    starts_from(config, "B")
    return config


def finetune_tiny(config):
    config.model = zoo.model_config(
        "fourm_vit", image_size=(32, 32), patch_size=(8, 8), depth=2, width=96, num_heads=3, num_classes=3, unroll=2
    )
    config.task = {"name": "classification"}
    scenes(config, ("image",))
    config.data.options.update({"difficulty": "full", "label": "count"})
    config.data.train_options = {"count": 600}
    config.requires = {"pretrained": "configs/fourm.py:tiny"}
    config.init_from = {"requires": "pretrained", "table": encoder_of("rgb")}
    config.total_steps, config.batch_size = 200, 64
    config.optimizer = {"name": "adamw", "learning_rate": 5e-4, "schedule": "cosine", "warmup_steps": 20}
    config.optimizer.update({"weight_decay": 0.05, "layer_decay": 0.75})
    return config


def dense_tiny(config, variant):
    field, kind, channels = DENSE[variant]
    with_head(config, ("image", field), head="dense", num_classes=channels)
    config.task = {"name": "dense_prediction", "field": field, "kind": kind}
    return config


def detection_tiny(config):
    with_head(config, ("image", "boxes", "obj"), head="detection", num_classes=8, tower_depth=1)
    config.task = {"name": "detection", "max_boxes": 4, "most": 20, "candidates": 100}
    config.data.transforms = (("scale", {}), ("scene_objects", {"label": "colour"}))
    return config


def with_head(config, fields, **head):
    finetune_tiny(config)
    config.model.update({"dense_width": 32, "dense_blocks": 2, **head})
    scenes(config, fields)
    config.data.options.difficulty = "full"
    config.optimizer.update({"learning_rate": 2e-3, "clip_norm": 1.0})  # the head is new and large


def new_modality_tiny(config):
    """Boxes beside what `tiny` knows: only what is new is trained, the transformer and all other embeddings stay."""
    tiny(config)
    config.model.modalities.det = {**WORDS, "field": "det_seq", "length": 25}
    config.data.options.fields = (*config.data.options.fields, "det_seq")
    starts_from(config, "tiny")
    config.optimizer.freeze = (r"(?!(input|output|modality)_embedding_det(/|$)).*",)
    config.optimizer.warmup_steps, config.total_steps = 50, 400
    return config


def new_modality_stages():
    """First the boxes alone as in `new_modality_tiny`, then everything, at a tenth of the rate."""
    variant = "configs/fourm.py:new_modality_tiny"
    unfrozen = {"optimizer.freeze": (), "optimizer.learning_rate": 3e-4, "optimizer.warmup_steps": 50}
    boxes = ("rgb_to_box_iou", "rgb_to_box_recall", "rgb_to_box_iou_marginal")
    others = ("rgb_to_semseg_miou", "rgb_to_caption_colour")

    def figures(stage, names):
        return {f"test/{stage}_{name}": f"test/{name}" for name in names}

    return ConfigDict(
        {
            "stages": (
                {"name": "embeddings", "config": variant, "summary": figures("embeddings", (*boxes, *others))},
                {
                    "name": "everything",
                    "config": variant,
                    "overrides": unfrozen,
                    "take": {"stage": "embeddings", "table": (("params/model/(.*)", r"params/model/\1"),)},
                    "summary": figures("everything", (*boxes, *others)),
                },
            )
        }
    )


def encoder_of(pixels):
    return (
        (f"params/model/input_embedding_{pixels}/patches/(.*)", r"params/model/patches/\1"),
        (f"params/model/modality_embedding_{pixels}", "params/model/modality_embedding"),
        ("params/model/encoder/(.*)", r"params/model/encoder/\1"),
    )


def finetune(config, size):
    epochs, layer_decay, drop_path_rate = FINETUNE[size]
    arguments = {
        name: value for name, value in zoo.sizes("fourm")[size]["arguments"].items() if name != "decoder_depth"
    }
    config.model = zoo.model_config("fourm_vit", **arguments, drop_path_rate=drop_path_rate)
    config.task = {"name": "classification", "label_smoothing": 0.1, "mixup_alpha": 0.8, "cutmix_alpha": 1.0}
    recipes.imagenet(config, magnitude=9.0, erasing=0.25)
    config.requires = {"pretrained": f"configs/fourm.py:{size}"}
    config.init_from = {"requires": "pretrained", "table": encoder_of("rgb@224")}
    config.batch_size = 1024
    epoch = recipes.IMAGENET // config.batch_size
    config.total_steps = epochs * epoch
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 1e-4 * config.batch_size / 256,
        "schedule": "cosine",
        "warmup_steps": 5 * epoch,
        "weight_decay": 0.05,
        "layer_decay": layer_decay,
    }
    return config
