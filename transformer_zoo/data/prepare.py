"""Writes a source as a dataset of TensorFlow Datasets, in the ArrayRecord format and without TensorFlow.

    python -m transformer_zoo.data.prepare digits
    python -m transformer_zoo.data.prepare digits --side=12 --data_dir=/data --splits=train,test

Features of captions by T5 or CLIP are computed by `python -m transformer_zoo.zoo.text_features`.

Every other flag is an option of the source. The dataset is then `tfds:digits`, or `tfds:digits/side-12`, and any
program that reads TFDS can read it. It appears as a whole or not at all; what is there already is left as it is.
"""

import argparse
import ast
import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformer_zoo import naming
from transformer_zoo.data import draws, sources

OWN_DATA = ("folder", "text", "tfds")  # sources of what a user has, not of this package
VERSION = "1.0.0"
BATCH = 256  # records read at once


def folder(data_dir: str) -> Path:
    """Where datasets are prepared: `data_dir`, or where TFDS keeps them if that is ''."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def dataset_name(source: str, options: naming.Options) -> str:
    """What a source with options is called as a dataset: 'digits', 'digits/side-12', 'scenes/still-side-64'.

    Raises:
        ValueError: an option that such a name cannot hold.
    """
    kind, _, rest = source.partition(":")
    parts = [*filter(None, [rest]), *(f"{name}-{value}" for name, value in sorted(options.items()))]
    for part in parts:
        if not re.fullmatch(r"\w+(-\w+)?", part):
            raise ValueError(f"{part!r} cannot be part of a dataset's name; prepare takes whole numbers and words")
    return "/".join(filter(None, [kind, "-".join(parts)]))


def is_ours(name: str) -> bool:
    """Whether a dataset of that name is written by this module from a source."""
    kind = name.partition("/")[0]
    return kind in {known.partition(":")[0] for known in sources.SOURCES} and kind not in OWN_DATA


def how_to(name: str, data_dir: str, kept: str = "") -> str:
    """The error for a dataset that cannot be read, with the command that prepares it.

    Args:
        name: of the dataset, as in 'tfds:name'.
        data_dir: as a config gives it.
        kept: the format of the files that are there, which is not ArrayRecord; '' if there are none.
    """
    where = folder(data_dir)
    flag = f" --data_dir={data_dir}" if data_dir else ""
    kind, _, config = name.partition("/")
    if is_ours(name):
        words = config.split("-") if config else []
        rest = words.pop(0) if len(words) % 2 else ""
        options = "".join(f" --{option}={value}" for option, value in zip(words[::2], words[1::2]))
        command = f"python -m transformer_zoo.data.prepare {':'.join(filter(None, [kind, rest]))}{options}{flag}"
    else:
        again = " --overwrite" if kept else ""
        command = f"pip install tensorflow && tfds build {name} --file_format=array_record{flag}{again}"
    there = [path.parent.relative_to(where) for path in where.glob("**/dataset_info.json")] if where.is_dir() else []
    names = sorted({str(path.parent) for path in there} - {name})
    near = f" (there is {naming.nearest(name, names)!r})" if names else ""
    state = f"kept as {kept}, not as array_record," if kept else "not prepared"
    return f"data.source 'tfds:{name}' is {state} in {where}{near}; prepare it with: {command}"


def prepare(source: str, options: naming.Options, data_dir: str = "", splits: Sequence[str] = ()) -> str:
    """Writes the splits of a source as a TFDS dataset and returns the dataset's name.

    Args:
        source: 'name' or 'name:rest', of records with plain arrays or texts.
        options: of the source.
        data_dir: where to; '' means where TFDS keeps its datasets.
        splits: () means train, val and test.

    Raises:
        ValueError: no such source, option or split, or a field that cannot be written.
    """
    name = dataset_name(source, options)
    opened = {split: sources.open_source(source, split, options) for split in splits or ("train", "val", "test")}
    first = next(iter(opened.values()))
    builder = _builder(name, first, opened, folder(data_dir))
    with contextlib.redirect_stdout(io.StringIO()):  # which would speak of a download
        builder.download_and_prepare()
    return name


def _builder(name: str, first: sources.Source, opened: dict[str, sources.Source], where: Path) -> Any:
    import tensorflow_datasets as tfds

    columns = first.read(np.arange(1), np.zeros(1, np.uint64))
    features = {field: _feature(field, values) for field, values in columns.items()}
    dataset, _, config = name.partition("/")

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg,misc]
        name = dataset
        pkg_dir_path = None  # the package has no folder of its own for this dataset
        VERSION = tfds.core.Version(VERSION)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=getattr(first, "about", ""),
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,  # the order of the source
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            return {split: _examples(split, source) for split, source in opened.items()}

        def _generate_examples(self, **kwargs: Any) -> Any:
            return kwargs

    return Builder(config=config or None, data_dir=where, file_format="array_record")


def _examples(split: str, source: sources.Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records by number, with the random choices that evaluation makes in that split."""
    for start in range(0, len(source), BATCH):
        numbers = np.arange(start, min(start + BATCH, len(source)))
        columns = source.read(numbers, draws.record_seeds(0, sources.stream(split), numbers))
        for row, number in enumerate(numbers):
            yield int(number), {field: _example(values[row]) for field, values in columns.items()}


def _is_picture(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    return dtype == np.uint8 and len(shape) == 3 and shape[-1] in (1, 3, 4)


def _feature(field: str, values: np.ndarray) -> Any:
    """The TFDS feature of a field [1, ...]: pictures as PNG, clips as sequences of PNG, the rest as numbers or text."""
    import tensorflow_datasets as tfds

    shape = values.shape[1:]
    if values.dtype == object and isinstance(values[0], str):
        return tfds.features.Text()
    if values.dtype == object:
        raise ValueError(f"the field {field!r} is encoded or of no fixed size; prepare writes plain arrays and texts")
    if _is_picture(shape, values.dtype):
        return tfds.features.Image(shape=shape, encoding_format="png")
    if _is_picture(shape[1:], values.dtype):
        return tfds.features.Sequence(tfds.features.Image(shape=shape[1:], encoding_format="png"), length=shape[0])
    return tfds.features.Tensor(shape=shape, dtype=values.dtype)


def _example(value: Any) -> Any:
    if isinstance(value, np.ndarray) and _is_picture(value.shape, value.dtype):
        return _png(value)
    if isinstance(value, np.ndarray) and value.ndim == 4 and _is_picture(value.shape[1:], value.dtype):
        return [_png(frame) for frame in value]
    return value


def _png(picture: np.ndarray) -> io.BytesIO:
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(file, "png")
    file.seek(0)
    return file


def main(arguments: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source", help="such as digits; all: " + ", ".join(name for name in sources.SOURCES if name not in OWN_DATA)
    )
    parser.add_argument("--data_dir", default="", help="default: $TFDS_DATA_DIR or ~/tensorflow_datasets")
    parser.add_argument("--splits", default="", help="default: train,val,test")
    flags, rest = parser.parse_known_args(arguments)
    options = {}
    for argument in rest:
        name, _, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not value:
            parser.error(f"{argument!r} is no option: write --NAME=VALUE")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    try:
        name = prepare(flags.source, options, flags.data_dir, tuple(filter(None, flags.splits.split(","))))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    place = f" --config.data.options.data_dir={flags.data_dir}" if flags.data_dir else ""
    print(f"prepared {folder(flags.data_dir) / name}; train on it with --config.data.source=tfds:{name}{place}")


if __name__ == "__main__":
    main(sys.argv[1:])
