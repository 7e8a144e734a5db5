"""Arrays to pictures that a person can look at."""

from collections.abc import Sequence

import numpy as np


def to_uint8(images: np.ndarray, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """Floats [..., height, width, channels] between `low` and `high` to uint8 [..., height, width, 3].

    Of two channels the first is shown, of more than three the first three.
    """
    images = images[..., : 1 if images.shape[-1] < 3 else 3]
    pixels = np.clip((np.asarray(images, np.float32) - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:-1], 3)).copy() if pixels.shape[-1] == 1 else pixels


def side_by_side(views: Sequence[np.ndarray], border: int = 1) -> np.ndarray:
    """uint8 [count, height, width, 3] each, next to each other with a white border between them."""
    gap = np.full((*views[0].shape[:2], border, 3), 255, np.uint8)
    parts = [part for view in views for part in (view, gap)][:-1]
    return np.concatenate(parts, axis=2)


def boxed(
    images: np.ndarray, boxes: Sequence[np.ndarray], classes: Sequence[np.ndarray], num_classes: int, side: int = 128
) -> np.ndarray:
    """Pictures uint8 [count, height, width, 3], enlarged to about `side` pixels, with boxes in the hue of their class.

    Args:
        images: the pictures.
        boxes: of each picture, [boxes, 4]: y0, x0, y1, x1 in its pixels.
        classes: of each picture's boxes.
        num_classes: how many there are.
        side: see above.
    """
    import colorsys

    from PIL import Image, ImageDraw  # only where there is something to look at

    scale = max(1, side // images.shape[1])
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    for tile, found, numbers in zip(large, boxes, classes):
        picture = Image.fromarray(tile)
        draw = ImageDraw.Draw(picture)
        for (top, left, bottom, right), number in zip(np.asarray(found) * scale, numbers):
            red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(number / num_classes, 1, 1))
            corners = (left, top, max(right - 1, left), max(bottom - 1, top))
            draw.rectangle(corners, outline=(red, green, blue), width=max(1, scale // 2))
            draw.text((left + scale, top), str(number), fill=(red, green, blue))
        tile[:] = np.asarray(picture)
    return large


def captioned(images: np.ndarray, captions: Sequence[str], side: int = 128, lines: int = 4) -> np.ndarray:
    """Pictures uint8 [count, height, width, 3], enlarged to about `side` pixels, each above its caption."""
    import textwrap  # only where there is something to look at, like Pillow

    from PIL import Image, ImageDraw

    scale = max(1, side // images.shape[1])
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = large.shape
    tiles = np.full((count, height + 11 * lines, width, 3), 255, np.uint8)
    tiles[:, :height] = large
    for tile, caption in zip(tiles, captions):
        picture = Image.fromarray(tile)
        text = "\n".join(textwrap.wrap(caption, width // 6)[:lines])
        ImageDraw.Draw(picture).multiline_text((1, height), text, fill=(0, 0, 0), spacing=0)
        tile[:] = np.asarray(picture)
    return tiles
