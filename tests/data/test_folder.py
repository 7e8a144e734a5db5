"""A user's folder: labels by name, splits that stay, clips, pairs, and errors that name the file."""

import io
import json
import pickle

import numpy as np
import PIL.Image
import pytest

from transformer_zoo.data.folder import Folder
from transformer_zoo.data.pipeline import open_data
from transformer_zoo.data.sources import open_source
from transformer_zoo.data.vocabulary import Vocabulary


def write(file, grey=0, size=(5, 4)):
    file.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, (grey, grey, grey)).save(file)
    return file


def everything(source):
    return source.read(np.arange(len(source)), np.zeros(len(source), np.uint64))


def grey_of(record):
    return PIL.Image.open(io.BytesIO(record)).getpixel((0, 0))[0]


@pytest.fixture
def animals(tmp_path):
    for label, name in enumerate(("cat", "dog", "emu")):
        for number in range(40):
            write(tmp_path / name / f"{number}.png", 80 * label + number, size=(3 + number, 4))
    write(tmp_path / ".thumbnails" / "0.png")
    write(tmp_path / "cat" / "._0.png")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def test_a_class_a_folder_labelled_by_name(animals):
    found = [everything(Folder(str(animals), split)) for split in ("train", "val", "test")]
    batch = {field: np.concatenate([part[field] for part in found]) for field in found[0]}
    assert sorted(batch["record"]) == sorted(f"{n}/{i}.png" for n in ("cat", "dog", "emu") for i in range(40))
    assert 85 < len(found[0]["label"]) < 107, "four fifths"
    for name, label, image in zip(batch["record"], batch["label"], batch["image"]):
        folder, number = name.removesuffix(".png").split("/")
        assert label == ("cat", "dog", "emu").index(folder)
        assert isinstance(image, bytes) and grey_of(image) == 80 * label + int(number)


def test_a_file_keeps_its_split_when_others_come(animals):
    before = {split: set(Folder(str(animals), split).records) for split in ("train", "val", "test")}
    for number in range(40, 60):
        write(animals / "cat" / f"{number}.png")
    write(animals / "ape" / "0.png")
    for split, records in before.items():
        now = set(Folder(str(animals), split).records)
        assert records <= now and len(now) < 120 + 21


def test_folders_named_as_splits_are_the_splits(tmp_path):
    for split in ("train", "val", "test", "sketches"):
        for name in ("a", "b"):
            for number in range(20):
                write(tmp_path / split / name / f"{number}.jpg")
    for split in ("train", "val", "test", "sketches"):
        batch = everything(Folder(str(tmp_path), split))
        assert set(batch["record"]) == {f"{split}/{name}/{number}.jpg" for name in "ab" for number in range(20)}
        assert batch["label"].sum() == 20
    with pytest.raises(ValueError, match="no split 'sketch'; there are sketches, test, train, val"):
        Folder(str(tmp_path), "sketch")


def test_missing_splits_come_from_those_there_are(tmp_path):
    for split in ("train", "validation"):
        for number in range(60):
            write(tmp_path / "both" / split / "a" / f"{number}.png")
    write(tmp_path / "both" / "validation" / "a" / "more.png")
    assert len(Folder(f"{tmp_path}/both")) == 60
    assert len(Folder(f"{tmp_path}/both", "val")) == len(Folder(f"{tmp_path}/both", "test")) == 61
    for split, number in (("train", 60), ("test", 7)):
        for index in range(number):
            write(tmp_path / "tested" / split / "a" / f"{index}.png")
    parts = {
        split: set(everything(Folder(f"{tmp_path}/tested", split))["record"]) for split in ("train", "val", "test")
    }
    assert len(parts["test"]) == 7 and len(parts["train"] | parts["val"]) == 60
    assert not parts["train"] & parts["val"] and 1 <= len(parts["val"]) <= 14
    for index in range(50):
        write(tmp_path / "alone" / "train" / "a" / f"{index}.png")
    alone = [everything(Folder(f"{tmp_path}/alone", split)) for split in ("train", "val", "test")]
    assert [name for part in alone for name in part["record"] if not name.startswith("train/a/")] == []
    assert sum(len(part["record"]) for part in alone) == 50


def test_classes_fix_the_order_of_labels(animals):
    batch = everything(Folder(str(animals), classes=("emu", "gnu", "dog", "cat")))
    assert {(name.split("/")[0], label) for name, label in zip(batch["record"], batch["label"])} == {
        ("emu", 0),
        ("dog", 2),
        ("cat", 3),
    }


def test_images_without_class_folders_have_no_label(tmp_path):
    for number in range(30):
        write(tmp_path / f"{number}.PNG")
    assert everything(Folder(str(tmp_path))).keys() == {"image", "record"}


def test_clips_are_folders_of_frames_in_order_and_gifs(tmp_path):
    for name in ("jump", "run"):
        for clip in range(6):
            for frame in (10, 9, 2, 1):
                write(tmp_path / "train" / name / f"clip{clip}" / f"frame_{frame}.png", frame)
        write(tmp_path / "val" / name / "c" / "1.png")
    frames = [PIL.Image.new("L", (5, 4), grey) for grey in (0, 100, 200)]
    frames[0].save(tmp_path / "train" / "run" / "gif.gif", save_all=True, append_images=frames[1:])
    batch = everything(Folder(str(tmp_path), kind="clips"))
    assert list(batch["record"][-2:]) == ["train/run/clip5", "train/run/gif.gif"] and len(batch["record"]) == 13
    assert batch["label"].tolist() == [0] * 6 + [1] * 7
    for clip in batch["video"][:-1]:
        assert clip.shape == (4, 4, 5, 3) and clip[:, 0, 0, 0].tolist() == [1, 2, 9, 10]
    assert PIL.Image.open(io.BytesIO(batch["video"][-1])).n_frames == 3


def test_clips_of_any_length_and_size_become_batches(tmp_path):
    for clip in range(20):
        for frame in range(3 + clip % 3):
            write(tmp_path / f"clip{clip}" / f"{frame}.png", 10 * clip + frame, size=(8 + clip % 4, 9))
    transforms = (("decode", {}), ("sample_frames", {"frames": 3}), ("resize", {"size": 8}))
    config = {"source": f"folder:{tmp_path}", "options": {"kind": "clips"}, "transforms": transforms}
    batch = next(open_data(config, batch_size=5, eval_batch_size=5, seed=0).train(0))
    assert batch["video"].shape == (5, 3, 8, 8, 3)
    greys = batch["video"][:, :, 0, 0, 0].astype(int)
    assert (np.diff(greys, axis=1) == 1).all() and len(set(greys[:, 0] // 10)) == 5


def test_pairs_become_batches_of_pixels_and_tokens(tmp_path):
    config = {
        "source": f"folder:{pairs(tmp_path / 'data')}",
        "options": {"kind": "pairs", "tokenizer": "bytes", "caption_length": 30},
        "transforms": (("decode", {}),),
    }
    batch = next(open_data(config, batch_size=4, eval_batch_size=4, seed=0).train(0))
    assert batch["image"].shape == (4, 4, 5, 3)
    assert all(Vocabulary().decode(caption).startswith("a photo of thing ") for caption in batch["caption"])


def test_a_record_that_cannot_be_read_has_no_bytes(animals):
    source = Folder(str(animals))
    (animals / source.records[3]).unlink()
    images = source.read(np.array([2, 3, 4]), np.zeros(3, np.uint64))["image"]
    assert [len(image) > 0 for image in images] == [True, False, True]
    write(animals / "clips" / "a" / "0.png", size=(5, 5))
    write(animals / "clips" / "a" / "1.png", size=(6, 5))
    write(animals / "clips" / "b" / "0.png").write_bytes(b"no image")
    clips = Folder(f"{animals}/clips", kind="clips", split="train")
    assert list(everything(clips)["video"]) == [b""] * len(clips) and len(clips) > 0


def pairs(folder, number=30):
    for index in range(number):
        write(folder / f"{index}.jpg").with_suffix(".txt").write_text(f"a photo of thing {index % 3}\n")
    return folder


def test_pairs_of_an_image_and_the_text_beside_it(tmp_path):
    options = {"kind": "pairs", "caption_length": 8, "cache_dir": str(tmp_path / "cache")}
    source = open_source(f"folder:{pairs(tmp_path / 'data')}", "train", options)
    batch = everything(pickle.loads(pickle.dumps(source)))
    assert batch.keys() == {"image", "record", "text", "caption"} and 18 <= len(batch["text"]) <= 29
    for name, text, caption in zip(batch["record"], batch["text"], batch["caption"]):
        assert text == f"a photo of thing {int(name.removesuffix('.jpg')) % 3}"
        assert source.vocabulary.decode(caption) == text
    held_out = open_source(f"folder:{tmp_path / 'data'}", "val", options)
    np.testing.assert_array_equal(held_out.vocabulary.encode("a photo"), source.vocabulary.encode("a photo"))
    assert len(list((tmp_path / "cache").iterdir())) == 1, "val uses the vocabulary of train"


def test_pairs_listed_in_a_file_may_share_an_image(tmp_path):
    write(tmp_path / "train" / "sub" / "a.png")
    write(tmp_path / "val" / "b.png")
    lines = [{"image": "sub/a.png", "caption": text} for text in ("one", "two")]
    (tmp_path / "train" / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "val" / "captions.jsonl").write_text(json.dumps({"image": "b.png", "caption": "one"}))
    batch = everything(Folder(str(tmp_path), kind="pairs", tokenizer="bytes"))
    assert list(batch["record"]) == ["train/sub/a.png"] * 2 and list(batch["text"]) == ["one", "two"]
    assert list(everything(Folder(str(tmp_path), "val", kind="pairs", tokenizer="bytes"))["text"]) == ["one"]


def test_bad_pairs_are_named(tmp_path):
    pairs(tmp_path)
    (tmp_path / "7.txt").unlink()
    with pytest.raises(ValueError, match=r"7\.jpg has no caption: write 7\.txt beside it, or list it in .*captions"):
        Folder(str(tmp_path), kind="pairs")
    (tmp_path / "7.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"7\.txt is not UTF-8: byte 0"):
        Folder(str(tmp_path), kind="pairs")
    listed = tmp_path / "captions.jsonl"
    listed.write_text('{"image": "1.jpg", "caption": "a"}\n{"image": "1.jpg"}')
    with pytest.raises(ValueError, match=r"captions\.jsonl:2 is '.*', but must be \{\"image\": path"):
        Folder(str(tmp_path), kind="pairs")
    listed.write_text('{"image": "no.jpg", "caption": "a"}')
    with pytest.raises(ValueError, match=r"captions\.jsonl:1 names 'no\.jpg', but there is no such file"):
        Folder(str(tmp_path), kind="pairs")


def test_bad_folders_are_named(animals, tmp_path):
    with pytest.raises(ValueError, match=f"did you mean '{tmp_path}/cat'"):
        Folder(f"{tmp_path}/cats")
    with pytest.raises(ValueError, match=f"is a file; name its folder: folder:{tmp_path}/cat"):
        Folder(f"{tmp_path}/cat/notes.txt")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "a.pdf").touch()
    with pytest.raises(ValueError, match=r"papers' has no images: looked for .bmp .* .webp, found 1 .pdf$"):
        Folder(f"{tmp_path}/papers")
    with pytest.raises(ValueError, match=r"'emu' is none of the 2 classes of data\.options\.classes; the nearest is"):
        Folder(str(animals), classes=("cat", "dog"))
    with pytest.raises(ValueError, match="did you mean 'clips'"):
        Folder(str(animals), kind="clip")
    with pytest.raises(ValueError, match=r"both in class folders and beside them, as 'stray\.png'"):
        Folder(str(write(animals / "stray.png").parent))


def test_a_held_out_class_that_train_lacks_is_named(tmp_path):
    for file in ("train/cat/0.png", "train/dog/0.png", "val/cat/0.png", "val/dogs/0.png", "test/0.png"):
        write(tmp_path / file)
    with pytest.raises(ValueError, match="val': 'dogs' is none of the 2 classes of train; the nearest is 'dog'"):
        Folder(str(tmp_path), "val")
    with pytest.raises(ValueError, match=r"test': '0\.png' is none of the 2 classes of train"):
        Folder(str(tmp_path), "test")
    assert len(Folder(str(tmp_path), "train")) == 2
