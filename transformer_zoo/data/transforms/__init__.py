"""Transforms of whole batches on the host, named in `config.data.transforms` and `config.data.eval_transforms`.

A transform is a pure function of (batch, seeds, **options): `batch` maps field names to arrays [batch, ...] (pictures
in `image`, clips in `video`), every random choice is a hash of `seeds` uint64 [batch]. A field whose records are still
encoded or differ in size is an object array [batch]; `decode` and the transforms that make sizes equal turn it dense.
A chain for training, and the one that judges what it trained:

    (("decode", {}), ("random_resized_crop", {"size": 224}), ("flip", {}), ("normalise", {}))
    (("decode", {}), ("centre_crop", {"size": 224, "crop": 0.875}), ("normalise", {}))
"""

import functools
import inspect
import typing
import zlib
from collections.abc import Callable, Iterable

import numpy as np

from transformer_zoo import naming
from transformer_zoo.data import draws

Fields = dict[str, np.ndarray]
Step = tuple[str, Callable[[Fields, np.ndarray], Fields]]  # a transform's name, and what it does to (batch, seeds)

# By name, so that nothing is imported that no config asks for.
TRANSFORMS = {
    "decode": "transformer_zoo.data.transforms.decode:decode",
    "resize": "transformer_zoo.data.transforms.images:resize",
    "resize_short_side": "transformer_zoo.data.transforms.images:resize_short_side",
    "centre_crop": "transformer_zoo.data.transforms.images:centre_crop",
    "random_resized_crop": "transformer_zoo.data.transforms.images:random_resized_crop",
    "flip": "transformer_zoo.data.transforms.images:flip",
    "rand_augment": "transformer_zoo.data.transforms.rand_augment:rand_augment",
    "colour_jitter": "transformer_zoo.data.transforms.colour:colour_jitter",
    "scale": "transformer_zoo.data.transforms.colour:scale",
    "normalise": "transformer_zoo.data.transforms.colour:normalise",
    "random_erasing": "transformer_zoo.data.transforms.colour:random_erasing",
    "sample_frames": "transformer_zoo.data.transforms.video:sample_frames",
    "shorten": "transformer_zoo.data.transforms.captions:shorten",
    "degrade": "transformer_zoo.data.scenes.degrade:add_degraded",
    "scene_objects": "transformer_zoo.data.scenes.objects:add_objects",
}
RESIZERS = ("resize", "random_resized_crop", "centre_crop")  # after any of these all pictures have one size


def chain(steps: Iterable[tuple[str, naming.Options]], where: str = "data.transforms") -> list[Step]:
    """The named transforms in order, each as a function of (batch, seeds).

    A transform draws from seeds of its own, given by its name and how often the name came before; so two transforms
    never share a draw, and one more in the chain leaves the draws of the others as they were.

    Raises:
        ValueError: a name that is no transform, or an option that the transform has not (the nearest one is named), an
            option of another type, or one that is missing.
    """
    found: list[Step] = []
    for name, options in steps:
        if name not in TRANSFORMS:
            raise naming.unknown(f"{where}:", name, TRANSFORMS)
        function = naming.load(TRANSFORMS[name])
        repeats = sum(name == other for other, _ in found)
        slot = zlib.crc32(f"{name} {repeats}".encode())
        found.append((name, functools.partial(_apply, function, _options(function, options, f"{where}.{name}"), slot)))
    return found


def _apply(function: Callable[..., Fields], options: dict, slot: int, batch: Fields, seeds: np.ndarray) -> Fields:
    return function(batch, draws.draw(seeds, slot), **options)


def _options(function: Callable[..., Fields], options: naming.Options, where: str) -> dict:
    known = list(inspect.signature(function).parameters.values())[2:]
    hints = typing.get_type_hints(function)
    names = [parameter.name for parameter in known]
    for name in options:
        if name not in names:
            raise naming.unknown(f"{where}.{name}:", name, names)
    missing = [entry.name for entry in known if entry.default is entry.empty and entry.name not in options]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return {name: naming.checked(value, hints[name], f"{where}.{name}") for name, value in options.items()}
