"""The any-to-any page: for each scene a table of pictures, a row for every modality as the only input."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from transformer_zoo.data.pictures import to_uint8
from transformer_zoo.data.scenes import grammar
from transformer_zoo.models.multimodal.fourm.modalities import Modality, field_of
from transformer_zoo.models.multimodal.fourm.model import FourM
from transformer_zoo.models.multimodal.fourm.scores import spoken_ids

SHOWN = (
    "image",
    "depth",
    "semseg",
    "normal",
    "canny_edge",
    "sam_edge",
    "caption",
    "det_seq",
    "meta_seq",
    "palette_seq",
)
SIDE, BORDER, LINE = 96, 2, 11  # pixels: of a tile, between tiles, of a line of text
CLASSES = np.array(
    [(150, 190, 230), (120, 150, 100), *((200, 60, 60), (60, 60, 200), (230, 170, 40), (160, 60, 180))]
    + [(40, 170, 160), (240, 120, 180)],
    np.uint8,
)

Tile = UInt8[np.ndarray, "height width 3"]


def any_to_any(network: FourM, predicted: Mapping[str, np.ndarray], shown: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pages uint8 [scenes, height, width, 3]: on the left the input, then every output predicted from it.

    Args:
        network: for its modalities.
        predicted: fields by output, for the scenes with the first input, then for those with the second, ...
        shown: the true fields, and by modality what its tokenizer makes of true features.
    """
    bases = {name: main_directions(shown[name]) for name, one in network.all_modalities.items() if one.features}
    inputs, outputs = list(network.inputs), list(network.outputs)
    scenes = len(next(iter(shown.values())))
    pages = []
    for scene in range(scenes):
        rows = [[text(name, LINE + 4) for name in ("input", *outputs)]]
        for number, name in enumerate(inputs):
            modality, field = network.all_modalities[name], field_of(name, network.all_modalities[name])
            true = shown[name if modality.features else field][scene]
            tiles = [tile(modality, field, true, spoken=False, basis=bases.get(name))]
            for other in outputs:
                found, one = predicted[other][number * scenes + scene], network.all_modalities[other]
                tiles.append(tile(one, field_of(other, one), found, spoken=True, basis=bases.get(other)))
            rows.append(tiles)
        pages.append(_stack([_stack(row, axis=1) for row in rows], axis=0))
    return np.stack(pages)


def main_directions(features: Float[np.ndarray, "scenes *grid width"]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of features, and three directions in which they differ most, [width, 3], so long that most fit in 1."""
    flat = features.reshape(-1, features.shape[-1]).astype(float)
    mean = flat.mean(axis=0)
    axes = np.linalg.svd(flat - mean, full_matrices=False)[2][:3].T
    return mean, axes / (2 * ((flat - mean) @ axes).std(axis=0) + 1e-9)


def tile(modality: Modality, field: str, value: np.ndarray, spoken: bool, basis: Any = None) -> Tile:
    """One field as a square picture: pixels, grey depth and edges, coloured classes and features, text for words.

    Args:
        modality: whose.
        field: that it is read from.
        value: of the field, or features.
        spoken: whether a sequence stands between sentinels.
        basis: of features, see `main_directions`.
    """
    if modality.kind == "sequence":
        ids = spoken_ids(value, modality) if spoken else value
        return text(grammar.decode(ids), SIDE)
    if basis is not None:
        mean, axes = basis
        picture = to_uint8((np.asarray(value) - mean) @ axes)
        picture = picture if picture.ndim == 3 else picture[None, None]
    elif field == "normal":
        picture = to_uint8(np.asarray(value, np.float32), 0.0, 255.0)
    elif field in ("canny_edge", "sam_edge"):
        picture = to_uint8(np.asarray(value, np.float32)[..., None], 0.0, 1.0)
    elif field == "depth":
        picture = to_uint8(np.asarray(value)[..., None], 0.0, 1.0)
    elif field == "semseg":
        picture = CLASSES[np.minimum(np.asarray(value).astype(int), len(CLASSES) - 1)]
    else:
        picture = to_uint8(np.asarray(value))
    scale = max(SIDE // picture.shape[0], 1)
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def text(words: str, height: int) -> Tile:
    """A tile of text."""
    import textwrap  # only where there is something to look at, like Pillow

    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (SIDE, height), (255, 255, 255))
    lines = "\n".join(textwrap.wrap(words, SIDE // 6))
    ImageDraw.Draw(picture).multiline_text((1, 1), lines, fill=(0, 0, 0), spacing=0)
    return np.asarray(picture)


def _stack(tiles: list[np.ndarray], axis: int) -> np.ndarray:
    """Tiles beside each other or one below the other, with white between them."""
    shape = list(tiles[0].shape)
    shape[axis] = BORDER
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([part for one in tiles for part in (one, gap)][:-1], axis=axis)
