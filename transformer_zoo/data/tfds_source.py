"""Datasets of TensorFlow Datasets, read without TensorFlow from files in the ArrayRecord format."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from transformer_zoo import naming
from transformer_zoo.data import prepare
from transformer_zoo.data.sources import no_such_split

# Where the split of a name is no good: the test labels of ImageNet are withheld (-1).
KNOWN_SPLITS = {"imagenet2012": {"train": "train", "val": "validation", "test": "validation"}}


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """Fields: those of the dataset, images still encoded (object array of bytes), and `record`.

    Class labels are int32 and checked; texts are object arrays of str. Other fields whose shape differs from record to
    record are read only where `fields` names them.

    Attributes:
        name: 'mnist', or 'name/config'.
        split: 'train', 'val', 'test' or any split of the dataset.
        data_dir: where datasets are prepared; '' means TFDS's own, ~/tensorflow_datasets or $TFDS_DATA_DIR.
        splits: {split: what TFDS reads for it}, as {'train': 'train[:99%]', 'val': 'train[99%:]'}. By default splits
            keep their names ('val' is 'validation'); without a test split 'test' is the validation split, without a
            validation split 'val' is the last tenth of train, and a lone train split is cut 80/10/10.
        fields: {field: the dataset's name of it}, only these; {} means all under their own names.
    """

    about: ClassVar[str] = "Real, or as its dataset says: a dataset of TensorFlow Datasets, under its own licence."

    name: str
    split: str = "train"
    data_dir: str = ""
    splits: naming.Options = dataclasses.field(default_factory=dict, hash=False)
    fields: naming.Options = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _ = self.chosen, self._records  # so that what cannot be read stops the run before anything is compiled

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # no open files

    @functools.cached_property
    def _builder(self) -> Any:
        from tensorflow_datasets.core import read_only_builder

        try:
            builder = read_only_builder.builder_from_files(self.name, data_dir=prepare.folder(self.data_dir))
        except ValueError as error:
            raise ValueError(prepare.how_to(self.name, self.data_dir)) from error
        kept, config = builder.info.file_format.value, getattr(builder.builder_config, "name", "")
        if prepare.is_ours(self.name) and config != self.name.partition("/")[2]:  # TFDS would take any config for none
            raise ValueError(prepare.how_to(self.name, self.data_dir))
        if kept != "array_record":
            raise ValueError(prepare.how_to(self.name, self.data_dir, kept))
        return builder

    @functools.cached_property
    def tfds_split(self) -> str:
        """What TFDS reads for this split, as 'train[:90%]'.

        Raises:
            ValueError: no such split.
        """
        there = list(self._builder.info.splits)
        named = dict(self.splits) or KNOWN_SPLITS.get(self.name.partition("/")[0]) or _default_splits(there)
        splits = {name: name for name in there} | named
        if self.split not in splits:
            raise no_such_split(f"data.source 'tfds:{self.name}'", self.split, list(splits))
        read = splits[self.split]
        if read.partition("[")[0] not in there:
            raise naming.unknown(f"data.options.splits.{self.split}", read, there)
        return read

    @functools.cached_property
    def chosen(self) -> dict[str, Any]:
        """TFDS features by the names that their fields get here.

        Raises:
            ValueError: a name in `fields` that the dataset lacks; those there are are listed.
        """
        from tensorflow_datasets.core import features

        there = dict(self._builder.info.features.items())
        for field, name in dict(self.fields).items():
            if name not in there:
                raise naming.unknown(f"data.options.fields.{field}: tfds:{self.name}'s field", name, there)
        if self.fields:
            return {field: there[name] for field, name in self.fields.items()}
        kinds = (features.Image, features.Text)
        return {name: feature for name, feature in there.items() if isinstance(feature, kinds) or _fixed(feature)}

    @functools.cached_property
    def _records(self) -> Any:
        from tensorflow_datasets.core import decode, features

        info = self._builder.info
        if info.splits[self.tfds_split].num_examples == 0:
            return ()
        images = {name: decode.SkipDecoding() for name, kind in info.features.items() if type(kind) is features.Image}
        return self._builder.as_data_source(self.tfds_split, decoders=images)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        """Records at `indices` [batch]; nothing is random.

        A record whose bytes are damaged on disk comes with empty images, which decoding treats as corrupt.

        Raises:
            ValueError: a label out of range, or a damaged record of a dataset that has no images.
        """
        from tensorflow_datasets.core import features

        rows = self._rows([int(index) for index in indices])
        records = np.array([f"tfds:{self.name} {self.tfds_split}[{index}]" for index in indices], object)
        fields = {"record": records}
        names = dict(self.fields) or {field: field for field in self.chosen}
        for field, feature in self.chosen.items():
            fields[field] = _column([row.get(names[field]) for row in rows], feature)
            if isinstance(feature, features.ClassLabel) and feature.num_classes:
                outside = (fields[field] < 0) | (fields[field] >= feature.num_classes)
                if outside.any():
                    raise ValueError(
                        f"{field!r} of {records[outside][0]} is {fields[field][outside][0]}, but must be 0 to "
                        f"{feature.num_classes - 1}: choose a labelled split in data.options.splits, or leave it out "
                        "of data.options.fields"
                    )
        return fields

    def _rows(self, indices: list[int]) -> list[dict[str, Any]]:
        try:
            return self._records.__getitems__(indices)
        except RuntimeError as error:  # one damaged record fails the whole batch, and ArrayRecord does not say which
            if "orrupted" not in str(error):
                raise ValueError(f"data.source 'tfds:{self.name}' cannot be read: {error}") from error
            if len(indices) > 1:
                return [row for index in indices for row in self._rows([index])]
            if not any(_is_image(feature) for feature in self.chosen.values()):
                raise ValueError(f"tfds:{self.name} {self.tfds_split}[{indices[0]}] is damaged: {error}") from error
            return [{}]


def _default_splits(there: list[str]) -> dict[str, str]:
    val = next((name for name in ("val", "validation") if name in there), "")
    if "train" not in there:
        return {}
    if val:
        return {"val": val, "test": "test" if "test" in there else val}
    if "test" in there:
        return {"train": "train[:90%]", "val": "train[90%:]"}
    return {"train": "train[:80%]", "val": "train[80%:90%]", "test": "train[90%:]"}


def _is_image(feature: Any) -> bool:
    from tensorflow_datasets.core import features

    return type(feature) is features.Image


def _fixed(feature: Any) -> bool:
    """Whether every record's array has the same, known shape."""
    shape = getattr(feature, "shape", None)
    return isinstance(shape, tuple) and None not in shape


def _column(values: list[Any], feature: Any) -> np.ndarray:
    """One field [batch] of its values; None stands for a damaged record."""
    from tensorflow_datasets.core import features

    convert: Callable[[Any], Any]
    empty: Any
    if _is_image(feature):
        convert, empty = bytes, b""
    elif isinstance(feature, features.Text):
        convert, empty = bytes.decode, ""
    elif _fixed(feature):
        dtype = np.dtype(np.int32 if isinstance(feature, features.ClassLabel) else feature.np_dtype)
        return np.stack([np.asarray(np.zeros(feature.shape) if value is None else value, dtype) for value in values])
    else:
        convert, empty = np.asarray, np.zeros(0)
    column = np.empty(len(values), object)
    for place, value in enumerate(values):
        column[place] = empty if value is None else convert(value)
    return column
