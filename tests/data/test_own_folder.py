"""docs/train_on_my_own_folder.md, followed to the letter on a folder of small images."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.conftest import COMMAND_ENVIRONMENT

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "train_on_my_own_folder.md").read_text()
SMALL = (
    "total_steps=30",
    "batch_size=32",
    "model.depth=1",
    "model.unroll=1",
    "model.width=48",
    "optimizer.warmup_steps=5",
)


@pytest.fixture
def home(tmp_path):
    """Where a user stands: the commands, the page's config, and photos whose classes differ in colour."""
    for name in ("train.py", "eval.py"):
        shutil.copy(ROOT / name, tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / re.search(r"Save this as `(\S+)`", PAGE)[1]).write_text(code)
    rng = np.random.default_rng(0)
    for channel, name in enumerate(re.findall(r"^  (\w+)/", PAGE, re.MULTILINE)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(50):
            height, width = rng.integers(33, 60, 2)
            pixels = rng.integers(0, 160, (height, width, 3))
            pixels[..., channel] += 60
            PIL.Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name / f"{number:04}.jpg")
    return tmp_path


def follow(home, command, *flags):
    words = shlex.split(command)
    return subprocess.run(
        [sys.executable, *words[1:], *(f"--config.{flag}" for flag in flags)],
        cwd=home,
        env=COMMAND_ENVIRONMENT | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


def test_the_page_trains_on_a_folder_and_leaves_out_a_broken_image(home):
    train = re.findall(r"^python train.py.*", PAGE, re.MULTILINE)[0]
    broken = next(iter(sorted((home / "photos" / "dog").iterdir())))
    broken.write_bytes(broken.read_bytes()[:100])
    flag = re.search(r"`--config\.(data\.max_corrupt_share=\S+)`", PAGE)[1]
    ran = follow(home, train, *SMALL, flag)
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in (home / "runs" / "my_images" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["test/accuracy"] > 0.8, "chance is 1/3"
    assert f"dog/{broken.name}" in ran.stderr


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("data.source=folder:fotos", "there is no 'fotos'; did you mean 'photos'?"),
        ("model.num_classes=2", "has label 2, but model.num_classes is 2"),
    ],
)
def test_the_page_s_mistakes_get_the_page_s_messages(home, flag, message):
    ran = follow(home, re.findall(r"^python train.py.*", PAGE, re.MULTILINE)[0], *SMALL, flag)
    assert ran.returncode == 2 and message in ran.stderr and "Traceback" not in ran.stderr
