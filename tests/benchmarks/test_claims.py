"""The rule for verdicts, the runs behind claims, and the results that stand in results/claims."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import claims, runs
from benchmarks.papers import mae, vit
from transformer_zoo import zoo
from transformer_zoo.training import stages
from transformer_zoo.training.config import load_config
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.flops import macs
from transformer_zoo.training.loop import make_optimizers, player_configs
from transformer_zoo.training.state import abstract_variables
from transformer_zoo.zoo.build import build_task

TINY = {"total_steps": 2, "batch_size": 4, "model.depth": 1, "model.width": 12, "model.unroll": 1}
TINY |= {"optimizer.warmup_steps": 0, "eval.batch_size": 64}
NAMES = {"method_name": "ours", "baseline_name": "theirs"}


def toy_paper(**changed):
    """A paper with two runs of one stage each and one that takes from the first."""
    claim = {
        "claim": "it works",
        "metric": "test/accuracy",
        "better": "higher",
        "method": "second",
        "baseline": "third",
    }
    return {
        "key": "toy",
        "runs": {
            "first": {"config": "configs/mae.py", "overrides": TINY | {"model.decoder_depth": 1}},
            "second": {
                "config": "configs/vit.py",
                "overrides": TINY,
                "take": {"run": "first", "table": [["params/model/encoder/(?!norm/)(.*)", r"params/model/\1"]]},
            },
            "third": {"config": "configs/vit.py", "overrides": TINY},
        },
        "claims": [NAMES | claim | changed],
    }


@pytest.fixture
def trained(monkeypatch):
    """Stands for training and counting: calls are noted, a run that takes from another is better by 0.1."""
    calls = []

    def run(config, workdir, build, title=""):
        calls.append((title, config.seed, config.get("init_from", {}).get("workdir")))
        workdir.mkdir(parents=True)
        return {"test/accuracy": 0.5 + 0.01 * config.seed + 0.1 * ("init_from" in config), "test/loss": 2.0}

    monkeypatch.setattr(stages, "run", run)
    monkeypatch.setattr(runs, "abstract_variables", lambda task: None)
    monkeypatch.setattr(runs, "num_parameters", lambda variables: 7)
    monkeypatch.setattr(runs, "training_flops", lambda task, variables, config: 100.0 * config.total_steps)
    monkeypatch.setattr(runs, "current_commit", lambda: "abc")
    monkeypatch.setattr(claims, "current_commit", lambda: "abc")
    return calls


@pytest.mark.parametrize(
    ("method", "baseline", "better", "expected"),
    [
        ([0.9, 0.91, 0.92], [0.8, 0.81, 0.82], "higher", "holds"),
        ([0.9, 0.91, 0.92], [0.8, 0.81, 0.82], "lower", "does not hold"),
        ([0.1, 0.2], [0.3, 0.4], "lower", "holds"),
        ([0.9, 0.7, 0.9], [0.8, 0.8, 0.8], "higher", "unclear"),  # one pair disagrees
        ([0.9, 0.81, 0.95], [0.8, 0.8, 0.8], "higher", "unclear"),  # all agree, but by less than twice the deviation
        ([0.8, 0.8], [0.8, 0.8], "higher", "does not hold"),
    ],
)
def test_one_rule_judges_all(method, baseline, better, expected):
    assert claims.verdict(method, baseline, better) == expected


def test_claims_compare_runs_of_equal_seeds(trained, tmp_path):
    results = claims.run_claims(toy_paper(), 3, tmp_path)
    found = results["claims"][0]
    assert found["method"] == pytest.approx([0.6, 0.61, 0.62]) and found["baseline"] == pytest.approx([0.5, 0.51, 0.52])
    assert found["verdict"] == "holds" and results["paper"] == "toy" and results["commit"] == "abc"
    assert [call[:2] for call in trained] == [
        (name, seed) for seed in range(3) for name in ("first", "second", "third")
    ]
    for seed in range(3):
        taken = Path(trained[3 * seed + 1][2])
        assert taken.name.startswith(f"first-seed{seed}-") and taken.parent == tmp_path / "toy" and taken.is_dir()
    assert found["parameters"] == [7, 7]
    assert found["flops"] == [400, 200]  # what pretraining cost is added to the one that stands on it


def test_finished_runs_are_not_run_again_unless_code_or_config_changed(trained, tmp_path, monkeypatch):
    first = claims.run_claims(toy_paper(), 2, tmp_path)["claims"][0]
    assert len(trained) == 6
    again = claims.run_claims(toy_paper(), 2, tmp_path)["claims"][0]
    assert len(trained) == 6 and first["method"] == again["method"]
    paper = toy_paper()
    paper["runs"]["first"]["overrides"] = paper["runs"]["first"]["overrides"] | {"total_steps": 3}
    claims.run_claims(paper, 2, tmp_path)
    assert [call[0] for call in trained[6:]] == ["first", "second"] * 2  # and what takes from it
    monkeypatch.setattr(claims, "current_commit", lambda: "def")
    claims.run_claims(paper, 2, tmp_path)
    assert len(trained) == 16


def test_a_side_may_name_its_own_metric_and_costs(trained, tmp_path):
    baseline = {"run": "third", "metric": "test/loss", "parameters": 0, "flops": 0}
    found = claims.run_claims(toy_paper(better="lower", baseline=baseline), 2, tmp_path)["claims"][0]
    assert found["baseline"] == [2.0, 2.0] and found["verdict"] == "holds"
    assert found["parameters"] == [7, 0] and found["flops"] == [400, 0]


@pytest.mark.parametrize(
    ("changed", "seeds", "message"),
    [
        ({"method": "secnd"}, 2, "run 'secnd' is unknown; did you mean 'second'"),
        ({"metric": "test/acuracy"}, 2, "metric 'test/acuracy' is unknown; did you mean 'test/accuracy'"),
        ({"better": "more"}, 2, "better is 'more', but must be 'higher' or 'lower'"),
        ({"function": "x:y", "runs": ["fist"]}, 2, "run 'fist' is unknown; did you mean 'first'"),
        ({}, 1, "--seeds is 1, but the rule needs a standard deviation"),
    ],
)
def test_claims_that_cannot_be_judged_are_refused(trained, tmp_path, changed, seeds, message):
    with pytest.raises(UserError, match=message):
        claims.run_claims(toy_paper(**changed), seeds, tmp_path)
    if "metric" not in changed:
        assert not trained


def test_a_run_may_only_take_from_an_earlier_one(trained, tmp_path):
    paper = toy_paper()
    paper["runs"]["third"]["take"] = {"run": "fourth", "table": []}
    with pytest.raises(UserError, match="run 'third' takes from 'fourth', which is not before it"):
        claims.run_claims(paper, 2, tmp_path)


def test_training_flops_are_three_forward_passes_but_for_the_gradient_to_the_image():
    config = load_config("configs/vit.py", TINY)
    task = build_task(config)
    variables, images = abstract_variables(task), task.spec(4)["image"]
    params = variables.params["model"]
    forward = macs(lambda params, images: task.network.apply({"params": params}, images)[0], params, images)
    embedding = 4 * 9 * 16 * 12  # batch, patches, pixels a patch, width
    assert runs.training_flops(task, variables, config) == 2 * 2 * (3 * forward - embedding)


def test_a_trained_run_gives_the_figures_that_it_reported(tmp_path):
    table = {"learned": {"config": "configs/vit.py", "overrides": TINY | {"model.positions": "learned"}}}
    run = runs.train_runs(table, 0, tmp_path, "abc")["learned"]
    params = runs.trained_variables(run).params["model"]
    assert vit.accuracy_at(run, params, (12, 12)) == pytest.approx(run.figures["test/accuracy"], abs=1e-6)
    assert jnp.abs(params["head"]["kernel"]).max() > 0  # which begins as zeros


def test_positions_by_token_number_start_again_where_the_table_ends():
    table = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(vit.repeat_rows(table, 5), table[jnp.array([0, 1, 2, 0, 1])])


def test_the_nearest_visible_patch_is_found():
    hidden = np.ones((2, 12), np.float32)
    visible = ([1, 6, 11], [0])
    for row, columns in enumerate(visible):
        hidden[row, columns] = 0
    found = mae.nearest_visible(jnp.asarray(hidden), (3, 4))
    for row, columns in enumerate(visible):
        for token in range(12):
            places = [(divmod(token, 4), divmod(column, 4)) for column in columns]
            distances = [(a - c) ** 2 + (b - d) ** 2 for (a, b), (c, d) in places]
            assert found[row, token] == columns[int(np.argmin(distances))]


def test_an_encoder_of_visible_tokens_costs_what_the_paper_says():
    (visible, every), parameters, _ = vars(mae.flops_of_encoders(0, {})).values()
    assert parameters == (85_647_360, 85_647_360)
    assert 3.9 < every / visible < 4.1


@pytest.mark.parametrize("file", sorted(Path("results/claims").glob("*.json")), ids=lambda file: file.stem)
def test_results_are_those_of_the_claims_that_the_index_makes(file):
    results = json.loads(file.read_text())
    stated = {claim["claim"]: claim for claim in zoo.paper(file.stem)["claims"]}
    assert set(stated) == {claim["claim"] for claim in results["claims"]} and "dirty" not in results["commit"]
    for found in results["claims"]:
        for name in ("metric", "better", "method_name", "baseline_name"):
            assert found[name] == stated[found["claim"]][name]
        assert len(found["method"]) == len(found["baseline"]) >= 3
        assert found["verdict"] == claims.verdict(found["method"], found["baseline"], found["better"])


@pytest.mark.parametrize("key", [key for key, paper in zoo.papers().items() if paper.get("claims")])
def test_stated_claims_can_be_judged(key):
    paper = zoo.paper(key)
    for claim in paper["claims"]:
        claims.check_claim(claim, paper.get("runs", {}))
        if "function" in claim:
            assert callable(claims.naming.load(claim["function"]))
    for run in paper.get("runs", {}).values():
        config = load_config(run["config"], run.get("overrides", {}))
        task = build_task(config)
        make_optimizers(task, player_configs(config, task), config.total_steps)
