"""What the configs of many papers share: the data of their `tiny` variants, and how ImageNet-1k is trained on.

Every function changes a config in place; a paper's config says what it does otherwise.
"""

from typing import Any

from transformer_zoo.data.scenes import grammar

# Captions of easy scenes: ids of words, the most words of one, and the word that stands for no caption.
WORDS, CAPTION_LENGTH, NULL_WORD = grammar.VOCABULARY_SIZE, 24, grammar.NULL

IMAGENET = 1_281_167  # training images


def canvas_digits(config: Any, total_steps: int = 400, side: int = 12) -> None:
    """Real digits at random places of a canvas of `side` x `side` pixels, one channel, ten classes."""
    config.data.update({"source": "digits", "options": {"side": side, "labels_per_class": 0}})
    config.data.update({"eval_options": {"placements": 4}})
    few_steps(config, total_steps)


def easy_scenes(config: Any, label: str, total_steps: int = 500) -> None:
    """Generated pictures of one object, 32 x 32 pixels in colour; `label` says what is to be told, see `Still`."""
    options = {"side": 32, "difficulty": "easy", "label": label, "fields": ("image",), "count": 0}
    config.data.update({"source": "scenes:still", "options": options})
    few_steps(config, total_steps, batch_size=64)


def tokenizer_scenes(
    config: Any, frames: int = 0, *, low: float = 0.0, object_weight: float = 4.0, difficulty: str = "easy"
) -> None:
    """Scenes of 32 x 32 pixels for a tokenizer: stills, or clips of so many `frames` (8, 9, 16, 17).

    The checker reads them; pixels lie in [low, 1]. Cameras move where `difficulty` is 'full'.
    """
    field = "video" if frames else "image"
    fields = (field, "program") if difficulty == "easy" else (field, "program", "cam")
    options = {"side": 32, "difficulty": difficulty, "fields": fields}
    config.data.update({"source": f"scenes:{'clip' if frames else 'still'}"})
    config.data.options = options | ({"frames": frames} if frames else {})
    config.data.transforms = (("scale", {"low": low, "high": 1.0}),)
    config.task = {"name": "tokenization", "field": field, "object_weight": object_weight}
    config.evaluators = {"scenes": {"name": "scene_reading"}}


def tokenizer_digits(config: Any, frames: int, *, low: float = 0.0) -> None:
    """`moving_digits` for a tokenizer; a classifier reads them."""
    moving_digits(config, frames, low=low)
    config.task = {"name": "tokenization", "field": "video", "object_weight": 4.0}
    config.evaluators = {"digits": {"name": "digit_reading", "scale": 2}}


def moving_digits(config: Any, frames: int, *, low: float = 0.0) -> None:
    """Clips of one moving digit, 16 x 16 pixels enlarged to 32 x 32 and one channel in [low, 1]."""
    options = {"frames": frames, "side": 32, "scale": 2, "speed": 1}
    config.data.update({"source": "moving_digits", "options": options})
    config.data.transforms = (("scale", {"low": low, "high": 1.0}),)


def imagenet_pixels(config: Any, *, size: int, low: float = 0.0) -> None:
    """ImageNet-1k as tokenizers take it: pixels in [low, 1]; else as `imagenet`."""
    imagenet(config, size=size)
    for chain in ("transforms", "eval_transforms"):
        steps = [step for step in config.data[chain] if step[0] != "normalise"]
        config.data[chain] = (*steps, ("scale", {"low": low, "high": 1.0}))


def clips(config: Any, *, frames: int, size: int, stride: int = 1, low: float = 0.0) -> None:
    """A folder of clips: so many frames of random crops, in evaluation of the middle, pixels in [low, 1]."""
    config.data.source, config.data.options = "folder:clips", {"kind": "clips"}
    sample, scale = {"frames": frames, "stride": stride}, ("scale", {"low": low, "high": 1.0})
    config.data.transforms = (
        ("decode", {}),
        ("sample_frames", sample),
        ("random_resized_crop", {"size": size, "scale": (0.5, 1.0)}),
        scale,
    )
    config.data.eval_transforms = (
        ("decode", {}),
        ("sample_frames", sample | {"random": False}),
        ("centre_crop", {"size": size}),
        scale,
    )


def vqgan(
    config: Any,
    *,
    total_steps: int,
    discriminator: Any,
    batch_size: int = 256,
    field: str = "image",
    perceptual: str = "configs/vit.py:B16",
    video_perceptual: str = "",
) -> None:
    """How Google's VQGANs train: L2, features, a non-saturating discriminator with R1, and moving averages.

    The reference compares the logits of a ResNet; here those of the network that the config `perceptual` trains.

    Args:
        config: whose `model` is the tokenizer alone; becomes two networks.
        total_steps: of both players.
        discriminator: its group in `config.model`.
        batch_size: samples a step.
        field: of the batch.
        perceptual: config of a classifier of images of the same size, or a folder of weights that `convert import`
            wrote; those of lpips go with `config.task.perceptual_features = "distance"`.
        video_perceptual: folder of imported weights of a network of clips, I3D's, whose features are compared too.
    """
    tokenizer = config.model
    config.model = type(tokenizer)({"network": tokenizer, "discriminator": discriminator})
    config.task = {
        "name": "tokenization",
        "field": field,
        "perceptual_weight": 0.1,
        "perceptual_mean": (0.485, 0.456, 0.406),
        "perceptual_std": (0.229, 0.224, 0.225),
        "adversarial_loss": "non_saturating",
        "adversarial_weight": 0.1,
        "r1_weight": 10.0,
    }
    judges = {"perceptual": perceptual} | ({"video_perceptual": video_perceptual} if video_perceptual else {})
    config.requires = judges
    config.init_from = tuple(
        {"requires": name, "table": (("(params|state)/model/(.*)", rf"frozen/{name}/\1/\2"),)} for name in judges
    )
    config.total_steps, config.batch_size = total_steps, batch_size
    config.optimizer = {"name": "adamw", "learning_rate": 1e-4, "schedule": "constant", "b1": 0.0, "b2": 0.99}
    config.ema = {"decay": 0.999}
    config.checkpoint.every_steps = config.eval.every_steps = 5000
    config.evaluators = {}  # a place for those that need weights by path, such as FID


def caption_scenes(config: Any, tokenizer: str, frames: int = 0, *, label: str = "", low: float = 0.0) -> None:
    """Easy scenes of 32 x 32 pixels with captions, or clips of so many `frames`, for a generator on a tokenizer's ids.

    The checker reads its samples; pixels lie in [low, 1].
    """
    options: dict[str, Any] = {"side": 32, "difficulty": "easy", "fields": ("video" if frames else "image", "caption")}
    options |= {"frames": frames} if frames else {}
    config.data.update({"source": f"scenes:{'clip' if frames else 'still'}"})
    config.data.options = options | ({"label": label} if label else {})
    config.data.transforms = (("scale", {"low": low, "high": 1.0}), ("shorten", {"length": CAPTION_LENGTH}))
    config.evaluators = {"samples": {"name": "scene_samples"}}
    frozen_tokenizer(config, tokenizer)


def frozen_tokenizer(config: Any, spec: str, *, averaged: bool = False) -> None:
    """Stands a run on the tokenizer that the config `spec` trains.

    Its task gets the network as its field `tokenizer`, and the arrays as `variables.frozen["tokenizer"]` (see
    `tasks.networks`). `averaged` takes the moving averages of the parameters, of a run that keeps them.
    """
    config.requires = {"tokenizer": spec}
    row = ("(params|state)/model/(.*)", r"frozen/tokenizer/\1/\2")
    if averaged:
        row = ("ema/model/(.*)", r"frozen/tokenizer/params/\1")
    config.init_from = {"requires": "tokenizer", "table": (row,)}


def few_steps(config: Any, total_steps: int, batch_size: int = 128) -> None:
    """AdamW at 1e-3, as suits networks of about a million parameters."""
    config.total_steps, config.batch_size = total_steps, batch_size
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup_steps": total_steps // 10,
        "weight_decay": 0.05,
    }


def tokenizer_steps(config: Any, total_steps: int, learning_rate: float, warmup_steps: int = 20) -> None:
    """`few_steps` for a small tokenizer, of 16 pictures or 8 clips each; after `tokenizer_scenes` or `_digits`."""
    clips = config.task.field == "video"
    few_steps(config, total_steps, batch_size=8 if clips else 16)
    options = {"learning_rate": learning_rate, "warmup_steps": warmup_steps, "weight_decay": 1e-4, "clip_norm": 1.0}
    config.optimizer.update(options)
    config.eval.update({"every_steps": 200, "batch_size": 32 if clips else 128})


def deit(
    config: Any,
    *,
    epochs: int = 300,
    batch_size: int = 1024,
    learning_rate: float = 1e-3,
    warmup_epochs: int = 5,
    weight_decay: float = 0.05,
    size: int = 224,
    crop: float = 0.875,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    images: int = IMAGENET,
) -> None:
    """DeiT's recipe (Touvron et al. 2021, arXiv 2012.12877, table 9), on which most backbones of its time are trained.

    RandAugment (2 operations of magnitude 9), random erasing, mixup or cutmix, label smoothing 0.1, AdamW with a cosine
    to 1e-5. Its repeated augmentation and the colour jitter that RandAugment replaces are left out.

    Args:
        config: whose task is a classification.
        epochs: passes over the training images.
        batch_size: images a step.
        learning_rate: the peak.
        warmup_epochs: passes until the peak.
        weight_decay: of kernels.
        size: pixels a side in training and evaluation.
        crop: `size` as a share of the resized image in evaluation.
        mixup: alpha of mixup; 0 leaves it out.
        cutmix: alpha of cutmix; 0 leaves it out.
        images: in an epoch.
    """
    steps = images // batch_size
    config.batch_size, config.total_steps = batch_size, epochs * steps
    imagenet(config, size=size, crop=crop, magnitude=9.0, erasing=0.25)
    config.task.update({"label_smoothing": 0.1, "mixup_alpha": mixup, "cutmix_alpha": cutmix})
    config.optimizer = {
        "name": "adamw",
        "learning_rate": learning_rate,
        "schedule": "cosine",
        "warmup_steps": warmup_epochs * steps,
        "final_learning_rate_ratio": 1e-5 / learning_rate,
        "weight_decay": weight_decay,
    }


def imagenet(
    config: Any,
    *,
    size: int = 224,
    crop: float = 0.875,
    scale: tuple[float, float] = (0.08, 1.0),
    magnitude: float = 0.0,
    magnitude_std: float = 0.5,
    erasing: float = 0.0,
) -> None:
    """ImageNet-1k: random crops and flips in training, a centre crop in evaluation, its own mean and deviation.

    Any other source of pictures with labels serves as well: --config.data.source=folder:/path/to/images.

    Args:
        config: to change.
        size: pixels a side.
        crop: `size` as a share of the resized image in evaluation.
        scale: share of an image that a random crop takes.
        magnitude: of RandAugment's two operations; 0 leaves it out.
        magnitude_std: how much that varies.
        erasing: probability of random erasing.
    """
    steps: list[tuple[str, dict]] = [
        ("decode", {}),
        ("random_resized_crop", {"size": size, "scale": scale}),
        ("flip", {}),
    ]
    if magnitude:
        steps.append(("rand_augment", {"magnitude": magnitude, "magnitude_std": magnitude_std}))
    steps.append(("normalise", {}))
    if erasing:
        steps.append(("random_erasing", {"probability": erasing}))
    config.data.source = "tfds:imagenet2012"
    config.data.transforms = tuple(steps)
    config.data.eval_transforms = (
        ("decode", {}),
        ("centre_crop", {"size": size, "crop": crop}),
        ("normalise", {}),
    )
    config.checkpoint.every_steps = config.eval.every_steps = 5000
