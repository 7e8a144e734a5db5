"""One page with pictures and clips of every source: python -m transformer_zoo.data.gallery [--out=gallery.html].

    --source=folder:/path/to/images   a page of one's own data instead, through the same door as training

For each source it shows what its records look like, what is real in them and what is generated. The page holds
everything itself and opens without a network.
"""

import argparse
import base64
import html
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer_zoo.data import draws, sources, transforms
from transformer_zoo.data.pictures import to_uint8

COUNT = 8  # records a row
PIXELS = 128  # a picture's side on the page, at least
FRAME_MILLISECONDS = 120

STILL_FIELDS = ("image", "depth", "normal", "semseg", "inst", "canny_edge", "sam_edge", "lq_up", "text")
CLIP_FIELDS = ("video", "depth", "semseg", "inst", "text")
AUGMENTED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("random_resized_crop", {"size": 64}),
    ("flip", {}),
    ("rand_augment", {}),
)
PALETTE = np.array(  # of classes and instances
    [
        *((24, 26, 30), (120, 160, 96), (214, 40, 40), (240, 180, 40), (60, 170, 90), (60, 110, 220)),
        *((150, 70, 190), (240, 120, 170), (80, 200, 210), (150, 150, 150)),
    ],
    np.uint8,
)
STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --ink: #1c2024; --quiet: #687076; --line: #e4e6e8 }
@media (prefers-color-scheme: dark) { :root { --page: #121416; --ink: #e8eaec; --quiet: #9aa3ab; --line: #2c3135 } }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1240px; margin: 0 auto; padding: 40px 24px 64px }
h1 { font-size: 28px; margin: 0 } h2 { font-size: 19px; margin: 44px 0 2px } p { margin: 0 0 10px; color: var(--quiet) }
section { border-top: 1px solid var(--line); margin-top: 28px }
.row { display: flex; flex-wrap: wrap; gap: 8px; margin: 10px 0 2px }
figure { margin: 0; width: 128px } figure.wide { width: 256px }
img { width: 100%; image-rendering: pixelated; border-radius: 4px; display: block }
figcaption { font-size: 11.5px; color: var(--quiet); line-height: 1.3; overflow-wrap: anywhere }
.field { font-size: 12.5px; color: var(--quiet) } code { font-size: 13px }
pre { white-space: pre-wrap; font-size: 12.5px; border-left: 3px solid var(--line); padding-left: 12px }
"""


class Shown(NamedTuple):
    """A source on the page: its title, name, split, options and transforms."""

    title: str
    name: str
    options: Mapping[str, Any]
    split: str = "train"
    transforms: Sequence[Any] = ()


SHOWN = (
    Shown("Digits", "digits", {}),
    Shown("Digits on a canvas", "digits", {"side": 12}),
    Shown("Photographs, in patches", "photographs", {"side": 64, "stride": 32}),
    Shown("Photographs, augmented", "photographs", {"side": 64, "stride": 32}, "train", AUGMENTED),
    Shown("Moving digits", "moving_digits", {"frames": 16}),
    Shown("Scenes: stills", "scenes:still", {"side": 64, "fields": STILL_FIELDS}),
    Shown("Scenes: stills of one object", "scenes:still", {"difficulty": "easy", "fields": ("image", "text")}),
    Shown("Scenes: pairs held out of training", "scenes:still", {"side": 64, "fields": ("image", "text")}, "comp"),
    Shown("Scenes: clips", "scenes:clip", {"side": 64, "frames": 16, "fields": CLIP_FIELDS}),
    Shown("Scenes: clips of one object", "scenes:clip", {"difficulty": "easy", "fields": ("video", "text")}),
)


def records(shown: Shown, count: int = COUNT) -> tuple[str, int, dict[str, np.ndarray]]:
    """What a source says about itself, how many records it has, and `count` of them, spread over the split."""
    source = sources.open_source(shown.name, shown.split, shown.options)
    indices = np.linspace(0, len(source) - 1, min(count, len(source))).astype(np.int64)
    seeds = draws.record_seeds(0, sources.stream(shown.split), indices)
    batch = source.read(indices, seeds)
    for _, step in transforms.chain(shown.transforms):
        batch = step(batch, seeds)
    return getattr(source, "about", ""), len(source), batch


def pictures_of(field: str, values: np.ndarray) -> np.ndarray | None:
    """A field as uint8 [batch, (frames,) height, width, 3]; None for what is no picture.

    Classes and instances get colours, depth is brighter where it is nearer.
    """
    if values.dtype == object:
        decoded = [array for value in values if (array := _decoded(value)) is not None]
        return np.array([_thumbnail(array) for array in decoded]) if len(decoded) == len(values) else None
    if field in ("semseg", "inst"):
        return PALETTE[values % len(PALETTE)]
    if field == "depth":
        return to_uint8(1 - values[..., None], 0.0, 1.0)
    if field.endswith("edge"):
        return to_uint8(values[..., None], 0.0, 1.0)
    if values.ndim in (4, 5) and values.shape[-1] in (1, 3):
        return to_uint8(values, 0.0, 255.0) if values.dtype == np.uint8 else to_uint8(values)
    return None


def _decoded(value: Any) -> np.ndarray | None:
    from PIL import Image

    if isinstance(value, bytes):
        return np.asarray(Image.open(io.BytesIO(value)).convert("RGB"))
    return value if isinstance(value, np.ndarray) and value.ndim in (3, 4) else None


def _thumbnail(image: np.ndarray) -> np.ndarray:
    from PIL import Image

    frame = image if image.ndim == 3 else image[0]
    frame = np.repeat(frame, 3, -1) if frame.shape[-1] == 1 else frame
    return np.asarray(Image.fromarray(frame).resize((PIXELS, PIXELS)))


def embedded(picture: np.ndarray) -> str:
    """An <img> of uint8 [height, width, 3], or of [frames, height, width, 3] as a GIF; enlarged by whole factors."""
    from PIL import Image

    frames = [picture] if picture.ndim == 3 else list(picture)
    factor = max(1, -(-PIXELS // frames[0].shape[1]))
    images = [Image.fromarray(frame.repeat(factor, 0).repeat(factor, 1)) for frame in frames]
    stream = io.BytesIO()
    if len(images) == 1:
        images[0].save(stream, "PNG", optimize=True)
    else:
        images[0].save(
            stream, "GIF", save_all=True, append_images=images[1:], duration=FRAME_MILLISECONDS, loop=0, disposal=2
        )
    kind = "png" if len(images) == 1 else "gif"
    return f'<img alt="" src="data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}">'


def section(shown: Shown) -> str:
    """The part of the page that shows one source."""
    about, count, batch = records(shown)
    options = " ".join(f"{name}={value}" for name, value in shown.options.items() if name != "fields")
    line = f"<code>{html.escape(shown.name)}</code> {html.escape(options)} &middot; {shown.split}, {count:,} records"
    parts = [f"<section><h2>{html.escape(shown.title)}</h2><p>{line}<br>{html.escape(about)}</p>"]
    named = {name: values for name, values in batch.items() if pictures_of(name, values) is not None}
    texts = batch.get("text")
    for name, values in named.items():
        views = pictures_of(name, values)
        assert views is not None
        figures = []
        for number, view in enumerate(views):
            notes = [str(texts[number])] if texts is not None and name in ("image", "video") else []
            notes += [f"label {batch['label'][number]}"] if "label" in batch and name in ("image", "video") else []
            figures.append(f"<figure>{embedded(view)}<figcaption>{html.escape(', '.join(notes))}</figcaption></figure>")
        parts.append(f'<div class="field">{html.escape(name)}</div><div class="row">{"".join(figures)}</div>')
    if not named and texts is not None:
        parts.append("".join(f"<pre>{html.escape(str(text))}</pre>" for text in texts))
    return "".join([*parts, "</section>"])


def page(shown: Sequence[Shown]) -> str:
    """The whole page; a progress bar on the terminal."""
    from tqdm import tqdm

    bar = tqdm(shown, desc="gallery", disable=not sys.stderr.isatty())
    body = "".join(section(one) for one in bar)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>transformer_zoo: data</title>'
        f"<style>{STYLE}</style><main><h1>Data</h1><p>{len(shown)} views of the sources that need no download.</p>"
        f"{body}</main></html>"
    )


def main(arguments: Sequence[str]) -> None:
    """Writes the page and prints where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="gallery.html", help="the page")
    parser.add_argument("--source", default="", help="show this source alone")
    parser.add_argument("--split", default="train")
    flags = parser.parse_args(arguments)
    shown = [Shown(flags.source, flags.source, {}, flags.split)] if flags.source else SHOWN
    try:
        Path(flags.out).write_text(page(shown))
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(flags.out)


if __name__ == "__main__":
    main(sys.argv[1:])
