"""The README's first command, as a newcomer runs it: the default suite's one real training."""

import json
import subprocess
import sys

from tests.conftest import COMMAND_ENVIRONMENT

FIGURES = ("pixel_baseline", "probe", "probe_random", "finetune", "fewlabel_finetune", "fewlabel_scratch")


def test_the_quickstart_learns_what_it_says(tmp_path):
    command = [sys.executable, "train.py", "--config=configs/quickstart.py", f"--workdir={tmp_path}/run"]
    done = subprocess.run(command, capture_output=True, text=True, env=COMMAND_ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    pixels, probe, random, finetuned, few, scratch = (last[f"test/{name}_accuracy"] for name in FIGURES)
    assert pixels < 0.5, "raw pixels must fail, or the representation proves nothing"
    assert probe > random + 0.05 and probe > pixels + 0.1
    assert finetuned > 0.93
    assert few > scratch + 0.02
    assert finetuned < 1.0 and few < finetuned
    for figure in FIGURES:
        assert f"test/{figure}_accuracy" in done.stdout
    for left in ("report.html", "samples", "checkpoints"):
        assert left in done.stdout and (tmp_path / "run" / left).exists()
    assert list((tmp_path / "run/samples/pretrain").glob("*masked_reconstructed_original.png"))
