"""The index as JSON, as text and in the README; and figures written into its files."""

import json
import tomllib
from pathlib import Path

import pytest

from transformer_zoo import zoo
from transformer_zoo.training.errors import UserError
from transformer_zoo.zoo import __main__ as zoo_command
from transformer_zoo.zoo import counts, table

PAPER = """\
key = "toy"  # a comment

[sizes.S]  # small
arguments = { width = 8, lists = [1,
  2] }
published_parameters = 90
macs = 5
note = "kept"

[sizes.S-long]
arguments = { width = 9 }
parameters = 1_000

# What follows has a comment.
[[claims]]
macs = 5
"""


def test_json_has_a_record_a_paper(capsys):
    zoo_command.main(["--json"])
    records = {record["key"]: record for record in json.loads(capsys.readouterr().out)}
    assert set(records) == set(zoo.papers())
    fields = "key title arxiv family module config sizes reference licence peer claims status"
    assert all(set(fields.split()) <= set(record) for record in records.values())
    assert records["vit"]["sizes"]["M16"] == {
        "parameters": 38_837_736,
        "published_parameters": None,
        "macs": 7_990_968_320,
        "published_macs": None,
        "note": None,
    }
    assert "arguments" not in records["vit"]["sizes"]["B16"]


def test_further_figures_of_a_size_pass_through(monkeypatch):
    entry = zoo.paper("mae") | {"sizes": {"B16": {"arguments": {}, "parameters": 3, "core_parameters": 2}}}
    monkeypatch.setattr(table, "papers", lambda: {"mae": entry})
    assert table.records()[0]["sizes"]["B16"]["core_parameters"] == 2


def test_text_has_a_line_a_size(capsys):
    zoo_command.main([])
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["B16", "111,655,680", "111,655,680", "9.78", "G", "9.78", "G"] in lines
    assert ["M16", "38,837,736", "-", "7.99", "G", "-"] in lines


def test_written_counts_keep_comments_and_order(tmp_path):
    file = tmp_path / "toy.toml"
    file.write_text(PAPER)
    changes = counts.write_counts(
        "toy", {"S": {"parameters": 70, "macs": 1234}, "S-long": {"parameters": 1000, "macs": 6}}, tmp_path
    )
    assert changes == [
        "toy S.parameters: (absent) -> 70",
        "toy S.macs: 5 -> 1_234",
        "toy S-long.macs: (absent) -> 6",
    ]
    written = file.read_text()
    expected = PAPER.replace("macs = 5\nnote", "macs = 1_234\nnote").replace("1_000\n", "1_000\nmacs = 6\n")
    assert written == expected.replace("  2] }\n", "  2] }\nparameters = 70\n")
    assert tomllib.loads(written)["sizes"]["S"] == {
        "arguments": {"width": 8, "lists": [1, 2]},
        "parameters": 70,
        "published_parameters": 90,
        "macs": 1234,
        "note": "kept",
    }


def test_a_recount_that_changes_nothing_leaves_the_file_alone(tmp_path):
    file = tmp_path / "toy.toml"
    file.write_text(PAPER)
    assert counts.write_counts("toy", {"S": {"macs": 5}, "S-long": {"parameters": 1000}}, tmp_path) == []
    assert file.read_text() == PAPER
    with pytest.raises(ValueError, match=r"has no table \[sizes.M\]"):
        counts.write_counts("toy", {"M": {"macs": 5}}, tmp_path)


@pytest.mark.parametrize("changes", [[], ["toy S.macs: 5 -> 6"]])
def test_recount_exits_with_1_where_a_figure_changed(monkeypatch, capsys, changes):
    monkeypatch.setattr(counts, "recount", lambda key: {})
    monkeypatch.setattr(counts, "write_counts", lambda key, found: changes if key == "vit" else [])
    if changes:
        with pytest.raises(SystemExit, match="1"):
            zoo_command.main(["--recount"])
    else:
        zoo_command.main(["--recount"])
    assert (changes or ["all figures are up to date"])[0] in capsys.readouterr().err


def test_the_readme_has_the_table_of_the_index():
    text = Path("README.md").read_text()
    assert f"{table.BEGIN}\n{table.markdown_table()}\n{table.END}" in text, (
        "run: python -m transformer_zoo.zoo --readme README.md"
    )


def test_writing_the_readme_leaves_the_rest_of_it(tmp_path):
    readme = tmp_path / "README.md"
    with pytest.raises(UserError, match=r"there is no .*README\.md"):
        table.write_readme(readme)
    readme.write_text("before\n")
    with pytest.raises(UserError, match="lacks the lines <!-- papers --> and <!-- /papers -->"):
        table.write_readme(readme)
    readme.write_text("before\n<!-- papers -->\nold\n<!-- /papers -->\nafter\n")
    results = tmp_path / "claims"
    results.mkdir()
    claims = [claim["claim"] for claim in zoo.paper("vit")["claims"]]
    verdicts = ["holds", "does not hold", "holds"]
    judged = [{"claim": claim, "verdict": verdict} for claim, verdict in zip(claims, verdicts)]
    (results / "vit.json").write_text(json.dumps({"claims": judged}))
    for _ in range(2):  # the second time over the first one's table
        table.write_readme(readme, results)
        before, _, rest = readme.read_text().partition("<!-- papers -->\n")
        rows, _, after = rest.partition("\n<!-- /papers -->")
        assert (before, after) == ("before\n", "\nafter\n")
        assert len(rows.splitlines()) == 2 + len(zoo.papers())
        assert "| verified | 2 hold, 1 do not hold, 1 not run |" in rows and "Ti16 5.72M, S16 22.1M" in rows
        assert f"{len(zoo.paper('mae')['claims'])} not run |" in rows
