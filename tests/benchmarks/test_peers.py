"""What benchmarks.peers, .plans and .growth make of what was measured; nothing is timed here."""

import json
import subprocess
import types

import pytest

from benchmarks import growth, peers, plans
from transformer_zoo.training.errors import UserError

ROW = {
    "name": "vit_s16 train step",
    "ours": 3.0,
    "peer": 2.0,
    "peer_name": "timm",
    "unit": "images/s",
    "ratio": 1.5,
    "device": "cpu",
    "dtype": "float32",
    "batch": 8,
    "threads": 2,
    "share_of_matmul_rate": 0.5,
    "mfu": None,
    "memory": 1234.5,
    "peer_memory": None,
}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs benchmarks.peers with processes that print `rows[module]`, or fail where it is an int."""
    rows = {"step": [ROW], "decoding": 1}

    def ended(line, **options):
        module = line[2].removeprefix("benchmarks.")
        failed = isinstance(rows[module], int)
        text = "" if failed else json.dumps(rows[module])
        return types.SimpleNamespace(returncode=int(failed), stdout=text, stderr="what\nOut of memory\n")

    monkeypatch.setattr(subprocess, "run", ended)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{peers.BEGIN}\nold\n{peers.END}\nafter\n")
    flags = ["--output", str(tmp_path / "speed"), "--readme", str(readme)]
    return rows, readme, lambda *more: peers.main([*flags, *more])


def test_one_that_fails_is_named_and_costs_no_other(run, capsys):
    _, readme, main = run
    with pytest.raises(UserError, match=r"1 of 2 comparisons failed: decoding: .* said: Out of memory"):
        main("--only", "decoding,vit_s16")
    (file,) = (readme.parent / "speed").iterdir()
    assert json.loads(file.read_text()) == [ROW]
    text = readme.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert "| vit_s16 train step | 8 | 3 images/s | 50 % |  | 1,234 | 2 timm | 1.50 |" in text


def test_a_row_measured_again_replaces_the_old_one_and_no_other(run, capsys):
    rows, readme, main = run
    main("--only", "vit_s16")
    rows["step"] = [ROW | {"ours": 4.0}, ROW | {"name": "mae_b16 train step"}]
    main("--only", "mae_b16")
    (file,) = (readme.parent / "speed").iterdir()
    assert [(row["name"], row["ours"]) for row in json.loads(file.read_text())] == [
        ("vit_s16 train step", 4.0),
        ("mae_b16 train step", 3.0),
    ]


def test_wrong_names_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="comparison 'vit_s61' is unknown; did you mean 'vit_s16'"):
        peers.main(["--only", "vit_s61"])
    with pytest.raises(UserError, match="run 'vit_l16' is unknown; did you mean 'vit_L16'"):
        plans.main(["--only", "vit_l16"])
    with pytest.raises(UserError, match="quantity 'token' is unknown; did you mean 'tokens'"):
        growth.main(["--by", "token"])


def test_growth_measures_what_the_compiled_step_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(growth.step, "measure", lambda calls: [0.25])
    small = {"model.image_size": (16, 16), "model.width": 24, "model.unroll": 1, "batch_size": 2}
    monkeypatch.setattr(growth, "BASE", growth.BASE | small)
    monkeypatch.setattr(growth, "VARIED", {"depth": {depth: {"model.depth": depth} for depth in (1, 2)}})
    growth.main(["--by", "depth", "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "depth.json").read_text())["rows"]
    assert rows["1"]["milliseconds"] == 250.0
    block = 12 * 24**2 * 4 / 2**20  # parameters of a block in MiB; with moments and gradient four times that
    assert rows["2"]["mebibytes"] - rows["1"]["mebibytes"] > 3 * block
    assert (tmp_path / "depth.png").stat().st_size > 5000


def test_the_table_of_plans_says_what_was_planned():
    record = {
        "command": "python train.py --plan=v5e:16x16",
        "devices": 256,
        "device": "TPU v5 lite",
        "batch_size": 4096,
        "memory": {"total": 2 * 2**30, "limit": 15 * 2**30},
        "seconds": {"compute": 0.03, "memory": 0.02, "network": 0.01},
        "mfu_bound": 0.9,
        "total_steps": 1000,
        "days": 0.5,
    }
    page = plans.table({"vit_L16@v5e:16x16": record})
    row = "| vit_L16 | 256 TPU v5 lite | 4096 | 2.0 of 15.0 | 30.0 | 20.0 | 10.0 | 90 % | 1,000 | 0.50 |"
    assert row in page and "`python train.py --plan=v5e:16x16`" in page
