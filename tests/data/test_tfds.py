"""True TFDS datasets, written and read without TensorFlow."""

import io
import json
import pickle
import re
import shlex
import sys

import numpy as np
import PIL.Image
import pytest

from transformer_zoo.data import draws, prepare, sources
from transformer_zoo.data.digits import Digits
from transformer_zoo.data.moving_digits import MovingDigits
from transformer_zoo.data.pipeline import open_data
from transformer_zoo.data.sources import open_source


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Canvas digits, and clips of moving digits, as TFDS datasets."""
    folder = tmp_path_factory.mktemp("tfds")
    prepare.main(["digits", "--side=10", "--placements=1", f"--data_dir={folder}"])
    prepare.prepare("moving_digits", {"frames": 3, "side": 16}, str(folder), ["test"])
    return folder


def opened(folder, split="train", name="digits/placements-1-side-10", **options):
    return open_source(f"tfds:{name}", split, {"data_dir": str(folder)} | options)


def read(source, indices):
    return source.read(np.asarray(indices), np.zeros(len(indices), np.uint64))


def pixels(record):
    return np.asarray(PIL.Image.open(io.BytesIO(record)))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_what_was_written_reads_back_as_the_source_gives_it(folder, split):
    source, written = Digits(split, 10), opened(folder, split)
    assert len(written) == len(source)
    indices = np.array([len(source) - 1, 0, 77, 77])
    expected = source.read(indices, draws.record_seeds(0, sources.STREAMS[split], indices))
    batch = read(pickle.loads(pickle.dumps(written)), indices)
    np.testing.assert_array_equal(np.stack([pixels(record) for record in batch["image"]]), expected["image"][..., 0])
    np.testing.assert_array_equal(batch["label"], expected["label"])
    assert batch["record"][2] == f"tfds:digits/placements-1-side-10 {split}[77]"
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_through_the_loader_is_the_source(folder, workers):
    config = {
        "source": "tfds:digits/placements-1-side-10",
        "options": {"data_dir": str(folder)},
        "transforms": (("decode", {"channels": 1}),),
        "workers": workers,
    }
    data = open_data(config, batch_size=34, eval_batch_size=34, seed=0)
    batches = data.train(0)
    seen = [next(batches) for _ in range(37)]  # 37 times 34 is 1258, the train split
    batches.close()
    numbers = np.arange(1258)
    expected = Digits("train", 10).read(numbers, draws.record_seeds(0, sources.STREAMS["train"], numbers))
    rows = sorted(
        (image.tobytes(), int(label)) for batch in seen for image, label in zip(batch["image"], batch["label"])
    )
    assert rows == sorted((image.tobytes(), int(label)) for image, label in zip(expected["image"], expected["label"]))
    held_out = Digits("val", 10).read(np.arange(34), draws.record_seeds(0, sources.STREAMS["val"], np.arange(34)))
    np.testing.assert_array_equal(next(iter(data.evaluate("val", 1)))["image"], held_out["image"])


def test_clips_numbers_and_texts_read_back_too(folder):
    source = MovingDigits("test", frames=3, side=16)
    indices = np.arange(20)
    expected = source.read(indices, draws.record_seeds(0, sources.STREAMS["test"], indices))
    batch = read(opened(folder, "test", "moving_digits/frames-3-side-16"), indices)
    for field, values in expected.items():
        np.testing.assert_array_equal(batch[field], values)
        assert batch[field].dtype == values.dtype


class EveryField:
    """A source with all kinds of numbers that a scene has."""

    about = "Generated: all of it."

    def __len__(self):
        return 7

    def read(self, indices, seeds):
        rng = np.random.default_rng(int(indices[0]))
        shapes = {"depth": (4, 4), "flow": (2, 4, 4, 2), "rgb": (4, 5, 3), "semseg": (4, 4), "alpha": (4, 4, 4)}
        kinds = {"depth": np.float32, "flow": np.int8, "rgb": np.uint8, "semseg": np.uint8, "alpha": np.uint8}
        fields = {
            name: rng.integers(0, 120, (len(indices), *shape)).astype(kinds[name]) for name, shape in shapes.items()
        }
        boxes = rng.integers(-1, 300, (len(indices), 2, 4)).astype(np.int16)
        valid, length = rng.random((len(indices), 3)) > 0.5, rng.integers(0, 9, len(indices)).astype(np.int32)
        return fields | {"boxes": boxes, "valid": valid, "length": length}


def test_every_kind_of_number_reads_back_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare.sources, "open_source", lambda name, split, options: EveryField())
    assert prepare.prepare("scenes:still", {"side": 4}, str(tmp_path), ["comp"]) == "scenes/still-side-4"
    monkeypatch.undo()
    expected = EveryField().read(np.arange(7), None)
    batch = read(opened(tmp_path, "comp", "scenes/still-side-4"), np.arange(7))
    for field in ("rgb", "alpha"):
        decoded = np.stack([pixels(record) for record in batch.pop(field)])
        np.testing.assert_array_equal(decoded, expected.pop(field))
    assert batch.keys() - {"record"} == expected.keys()
    for field, values in expected.items():
        np.testing.assert_array_equal(batch[field], values)
        assert batch[field].dtype == values.dtype


def test_fields_and_splits_are_chosen_by_the_config(folder):
    source = opened(folder, "val", fields={"picture": "image"}, splits={"val": "train[99%:]"})
    batch = read(source, [0, 1])
    assert batch.keys() == {"picture", "record"} and batch["record"][0].endswith("train[99%:][0]")
    last = Digits("train", 10).read(np.array([1257]), draws.record_seeds(0, 1, np.array([1257])))["image"]
    np.testing.assert_array_equal(pixels(read(source, [len(source) - 1])["picture"][0]), last[0, ..., 0])
    with pytest.raises(ValueError, match=r"fields.image: .* 'img' is unknown; did you mean 'image'\? There are: "):
        opened(folder, fields={"image": "img"})
    with pytest.raises(ValueError, match=r"splits.train 'trian\[:5%\]' is unknown; did you mean 'train'"):
        opened(folder, splits={"train": "trian[:5%]"})
    with pytest.raises(ValueError, match="no split 'comp'; there are train, val, test"):
        opened(folder, "comp")
    with pytest.raises(ValueError, match=r"the 'test' split of .* is empty"):
        opened(folder, "test", splits={"test": "test[:0]"})


def test_a_dataset_that_is_not_there_is_an_error_whose_command_prepares_it(folder, tmp_path):
    with pytest.raises(ValueError, match="is not prepared in") as error:
        opened(tmp_path, name="digits/placements-2-side-9")
    command = shlex.split(re.search("prepare it with: (.*)", str(error.value))[1])
    assert command[:3] == ["python", "-m", "transformer_zoo.data.prepare"]
    prepare.main(command[3:])
    assert len(opened(tmp_path, name="digits/placements-2-side-9")) == 2 * 1258
    with pytest.raises(ValueError, match=r"there is 'digits/placements-2-side-9'\); .*prepare digits --data_dir"):
        opened(tmp_path, name="digits")
    with pytest.raises(ValueError, match="tensorflow && tfds build mnist --file_format=array_record --data_dir"):
        opened(folder, name="mnist")


def test_files_of_another_format_are_an_error_that_says_how_to_convert_them(tmp_path):
    prepare.prepare("digits", {}, str(tmp_path))
    info = tmp_path / "digits" / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="is kept as tfrecord, not as array_record"):
        opened(tmp_path, name="digits")


def test_a_damaged_record_comes_without_bytes_and_the_others_whole(folder, tmp_path):
    prepare.prepare("digits", {}, str(tmp_path))
    (file,) = tmp_path.glob("digits/1.0.0/*val.array_record*")
    content = bytearray(file.read_bytes())
    content[content.index(b"IHDR", content.index(b"IHDR") + 4)] ^= 255  # within the second record
    file.write_bytes(content)
    batch = read(opened(tmp_path, "val", "digits"), np.arange(5))
    assert [len(image) > 0 for image in batch["image"]] == [True, False, True, True, True]
    np.testing.assert_array_equal(batch["label"][[0, 2, 3, 4]], Digits("val").records[1][[0, 2, 3, 4]])
    with pytest.raises(ValueError, match=r"tfds:digits val\[1\] is damaged"):
        read(opened(tmp_path, "val", "digits", fields={"label": "label"}), np.arange(5))
    file.unlink()
    with pytest.raises(ValueError, match=r"'tfds:digits' cannot be read: .*No such file"):
        read(opened(tmp_path, "val", "digits"), np.arange(5))


def labelled(folder, name, splits, num_classes=3):
    """A dataset of single numbers, as TFDS's own builders write it: splits are {name: labels}."""
    import tensorflow_datasets as tfds

    dataset = name

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset
        pkg_dir_path = None
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            kinds = {
                "label": tfds.features.ClassLabel(num_classes=num_classes),
                "boxes": tfds.features.Sequence(np.float32),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(kinds), disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {
                split: ((i, {"label": label, "boxes": [0.5] * i}) for i, label in enumerate(labels))
                for split, labels in splits.items()
            }

        def _generate_examples(self):
            return None

    Builder(data_dir=folder, file_format="array_record").download_and_prepare()


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"train": 20, "validation": 5, "test": 4}, {"train": 20, "val": 5, "test": 4}),
        ({"train": 20, "validation": 5}, {"train": 20, "val": 5, "test": 5}),
        ({"train": 20, "test": 4}, {"train": 18, "val": 2, "test": 4}),
        ({"train": 20}, {"train": 16, "val": 2, "test": 2}),
    ],
)
def test_splits_that_a_dataset_lacks_come_from_those_it_has(tmp_path, splits, expected):
    labelled(tmp_path, "numbers", {split: [0, 1] * (count // 2) + [0] * (count % 2) for split, count in splits.items()})
    assert {split: len(opened(tmp_path, split, "numbers")) for split in expected} == expected


def test_withheld_labels_are_refused_and_lists_of_any_length_only_read_on_demand(tmp_path):
    splits = {"train": [0, 1, 2], "validation": [1, 2], "test": [-1, -1]}
    labelled(tmp_path, "contest", splits)
    labelled(tmp_path, "imagenet2012", splits)
    with pytest.raises(ValueError, match=r"'label' of tfds:contest test\[0\] is -1, but must be 0 to 2"):
        read(opened(tmp_path, "test", "contest"), [0])
    assert read(opened(tmp_path, "test", "imagenet2012"), [0, 1])["label"].tolist() == [1, 2]
    assert read(opened(tmp_path, "train", "contest"), [1]).keys() == {"label", "record"}
    boxes = read(opened(tmp_path, "test", "contest", fields={"box": "boxes"}), [0, 1])["box"]
    assert [list(box) for box in boxes] == [[], [0.5]]


def test_a_preparation_that_fails_leaves_nothing_and_one_that_is_done_is_not_repeated(tmp_path, monkeypatch, capsys):
    real = Digits.read
    monkeypatch.setattr(
        Digits, "read", lambda self, indices, seeds: 1 / 0 if indices[0] else real(self, indices, seeds)
    )
    with pytest.raises(ZeroDivisionError):
        prepare.prepare("digits", {}, str(tmp_path))
    with pytest.raises(ValueError, match="is not prepared"):
        opened(tmp_path, name="digits")
    monkeypatch.setattr(Digits, "read", real)
    prepare.main(["digits", f"--data_dir={tmp_path}"])
    assert "train on it with --config.data.source=tfds:digits" in capsys.readouterr().out
    monkeypatch.setattr(prepare, "_examples", lambda *args: pytest.fail("written again"))
    assert prepare.prepare("digits", {}, str(tmp_path)) == "digits"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digit"], "did you mean 'digits'"),
        (["digits", "--sides=8"], "did you mean 'side'"),
        (["digits", "--side=a b"], "prepare takes whole numbers and words"),
        (["digits", "--splits=train,comp"], "no split 'comp'"),
        (["digits", "extra"], "'extra' is no option: write --NAME=VALUE"),
    ],
)
def test_the_command_names_what_is_wrong(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as exit:
        prepare.main([*arguments, f"--data_dir={tmp_path}"])
    assert exit.value.code == 2 and message in capsys.readouterr().err
