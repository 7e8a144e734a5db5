"""Captions of a folder through an encoder by path, once; and the source that reads what is left."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import tokenizers

from tests.convert.samples import filled
from transformer_zoo.convert import __main__ as convert
from transformer_zoo.convert.files import write_arrays
from transformer_zoo.convert.layout import layout
from transformer_zoo.convert.table import export_arrays, unflatten
from transformer_zoo.data import caption_features, sources
from transformer_zoo.models.features.clip_text import CLIPText
from transformer_zoo.models.features.t5 import T5Encoder
from transformer_zoo.training.errors import UserError
from transformer_zoo.zoo import text_features

WORDS = {"<end>": 1, "a": 2, "red": 3, "ball": 4, "flies": 5, "<pad>": 0}
T5 = T5Encoder(vocabulary_size=6, depth=1, width=6, num_heads=1, head_dim=4, hidden=5, num_distances=8)
CLIP = CLIPText(vocabulary_size=7, length=5, depth=2, width=64, num_heads=1, mlp_ratio=0.5, projection_width=3)


def tokenizer(file, end):
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({**WORDS, "<end>": end}, unk_token="<pad>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", end)])
    made.save(str(file))
    return file


def encoder(file, key, network):
    ours = filled(key, network)
    write_arrays(file, export_arrays(layout(key, "transformers").table(network), ours), {"format": "pt"})
    return jax.tree.map(jnp.asarray, unflatten(ours))


@pytest.fixture
def pictures(tmp_path):
    """Ten pictures, each with a caption beside it."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(10):
        PIL.Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red ball flies a a a" if number % 2 else "a ball")
    return folder


def test_a_folder_of_pictures_brings_what_clip_reads_in_its_captions(tmp_path, pictures, capsys):
    variables = encoder(tmp_path / "clip.safetensors", "clip_text", CLIP)
    target = tmp_path / "features"
    network = tmp_path / "network"
    file = f"--from={tmp_path / 'clip.safetensors'}"
    convert.main(["import", "clip_text", file, "--set=activation=quick_gelu", f"--to={network}"])
    flags = [f"--weights={network}", f"--tokenizer={tokenizer(tmp_path / 'tokenizer.json', 6)}", "--dtype=float32"]
    arguments = [str(pictures), "--encoder=clip_text", *flags, f"--to={target}", "--batch_size=4"]
    text_features.main(arguments)
    assert "10 captions" in capsys.readouterr().out
    ids = np.array([[2, 4, 6, 6, 6], [2, 3, 4, 5, 6]], np.int32)
    expected = jax.jit(lambda ids: CLIP.apply(variables, ids, method="text_features"))(ids)
    for kind in ("images", "pairs"):
        options = {"kind": kind, "features": str(target)} | ({"tokenizer": "bytes"} if kind == "pairs" else {})
        source = sources.open_source(f"folder:{pictures}", "train", options)
        fields = source.read(np.arange(len(source)), np.zeros(len(source), np.uint64))
        assert fields["text"].shape == (len(source), 5, 64) and fields["pooled"].shape == (len(source), 3)
        for record, text, pooled in zip(fields["record"], fields["text"], fields["pooled"]):
            odd = int(record.split(".")[0]) % 2
            np.testing.assert_allclose(text, expected["words"][odd], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(pooled, expected["pooled"][odd], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"--to=.* is there already"):
        text_features.main(arguments)
    (target / "about.json").write_text((target / "about.json").read_text().replace(".png", ".jpg"))
    caption_features.opened.cache_clear()
    with pytest.raises(ValueError, match=r"holds no features of the caption of '\d\.png'"):
        source = sources.open_source(f"folder:{pictures}", "train", {"features": str(target)})
        source.read(np.arange(1), np.zeros(1, np.uint64))


def test_clips_bring_what_t5_reads(tmp_path):
    variables = encoder(tmp_path / "t5.safetensors", "t5", T5)
    for split in ("train", "test"):
        folder = tmp_path / "clips" / split
        (folder / "one.2").mkdir(parents=True)
        PIL.Image.new("RGB", (4, 4)).save(folder / "one.2" / "0.png")
        (folder / "one.2.txt").write_text("red ball")
    target = tmp_path / "features"
    flags = [f"--weights={tmp_path / 't5.safetensors'}", f"--tokenizer={tokenizer(tmp_path / 'tokenizer.json', 1)}"]
    arguments = [str(tmp_path / "clips"), "--kind=clips", "--encoder=t5", *flags, f"--to={target}", "--length=4"]
    text_features.main([*arguments, "--batch_size=2"])
    assert json.loads((target / "about.json").read_text())["encoder"] == "t5"
    source = sources.open_source(f"folder:{tmp_path / 'clips'}", "test", {"kind": "clips", "features": str(target)})
    caption = source.read(np.arange(1), np.zeros(1, np.uint64))["caption"]
    ids = np.array([[3, 4, 1, 0]], np.int32)
    expected = jax.jit(lambda ids: T5.apply(variables, ids, method="text_features"))(ids)["words"]
    np.testing.assert_allclose(caption, expected, rtol=2e-3, atol=2e-3)
    assert caption.dtype == np.float32 and not caption[0, 3].any()


def test_what_does_not_belong_together_is_refused(tmp_path, pictures):
    encoder(tmp_path / "t5.safetensors", "t5", T5)
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="<pad>"))
    plain.save(str(tmp_path / "plain.json"))
    base = [str(pictures), "--encoder=t5", f"--weights={tmp_path / 't5.safetensors'}", f"--to={tmp_path / 'to'}"]
    for file, message in (
        (tmp_path / "plain.json", r"puts no end token behind a text"),
        (tokenizer(tmp_path / "other.json", 9), r"gives the id 9, but the encoder knows 6"),
        (tmp_path / "plan.json", r"no tokenizer '.*plan\.json'; the nearest is 'plain\.json'"),
    ):
        with pytest.raises(UserError, match=message):
            text_features.main([*base, f"--tokenizer={file}"])
    with pytest.raises(ValueError, match=r"holds no features of captions \(about\.json is missing"):
        sources.open_source(f"folder:{pictures}", "train", {"features": str(tmp_path)})
    assert not (tmp_path / "to").exists()
