"""Claims: one rule for all, data before figures, a run trained once a seed."""

import json

import pytest

from benchmarks import claims, runs
from tests.training.test_stages import FEWER, TINY
from transformer_zoo import zoo
from transformer_zoo.training.errors import UserError


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


@pytest.mark.parametrize("key", zoo.papers())
def test_every_paper_has_claims_that_can_be_judged_and_committed_verdicts_follow_the_rule(key):
    paper = zoo.paper(key)
    assert paper["claims"]
    for claim in paper["claims"]:
        claims.check_claim(claim, paper["runs"])
    with open(f"results/claims/{key}.json") as stream:
        results = json.load(stream)
    assert [found["claim"] for found in results["claims"]] == [claim["claim"] for claim in paper["claims"]]
    for found in results["claims"]:
        assert len(found["method"]) == len(found["baseline"]) >= 3
        assert found["verdict"] == claims.verdict(found["method"], found["baseline"], found["better"])


CLAIM = {"claim": "it learns", "metric": "test/accuracy", "better": "higher", "method_name": "a", "baseline_name": "b"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "fast", "baseline": "slow", "better": "more"}, "better is 'more', but must be 'higher' or 'lower'"),
        ({"method": "fsat", "baseline": "slow"}, "run 'fsat' is unknown; did you mean 'fast'"),
    ],
)
def test_a_claim_that_cannot_be_judged_stops_before_training(change, message):
    with pytest.raises(UserError, match=message):
        claims.check_claim(CLAIM | change, {"fast": {}, "slow": {}})


def test_claims_train_each_run_once_a_seed_and_record_what_it_cost(tmp_path, monkeypatch):
    paper = {
        "key": "toy",
        "runs": {
            "fast": {"config": "configs/vit.py", "overrides": TINY | FEWER},
            "slow": {"config": "configs/vit.py", "overrides": TINY | FEWER | {"optimizer.learning_rate": 0.0}},
        },
        "claims": [CLAIM | {"method": "fast", "baseline": "slow"}],
    }
    results = claims.run_claims(paper, 2, tmp_path)
    (found,) = results["claims"]
    assert len(found["method"]) == len(found["baseline"]) == 2
    assert found["flops"][0] == found["flops"][1] > 0 and found["parameters"][0] == found["parameters"][1] > 0
    monkeypatch.setattr(runs.stages, "run", lambda *args, **kwargs: pytest.fail("a finished run was trained again"))
    again = claims.run_claims(paper, 2, tmp_path)
    assert again["claims"][0]["method"] == found["method"]
