"""Runs a paper's claims and judges them: python -m benchmarks.claims vit [--seeds 3].

Claims stand in the paper's file of the index (transformer_zoo/zoo/papers/SLUG.toml), written before they are run:

    [runs.NAME]   `config`, `overrides`, and optionally `take`, {run = an earlier one, table = rows of init_from}
    [[claims]]    `claim`, `metric`, `better` ("higher" or "lower"), `method_name`, `baseline_name`, and either
                  `method` and `baseline`, each the name of a run, or {run, metric, parameters, flops} where one of
                  these is not the claim's metric or the run's own count; or `function`, "module:function" of a seed
                  and the `runs` it names, see `Figures`

Every run is trained once a seed, method and baseline with equal seeds, so with equal batches. A finished run is not run
again while code and config stay as they are. Writes results/claims/SLUG.json.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runs import Figures, Run, current_commit, train_runs
from transformer_zoo import naming, zoo
from transformer_zoo.training import command
from transformer_zoo.training.config import config_hash, load_config, to_json
from transformer_zoo.training.errors import UserError

SIDES = ("method", "baseline")


def verdict(method: Sequence[float], baseline: Sequence[float], better: str) -> str:
    """The one rule for all claims, on figures paired by seed.

    'holds': every pair agrees, and the mean difference exceeds twice the standard deviation of the differences. 'does
    not hold': the mean difference is zero or against the claim. Else 'unclear'.
    """
    differences = (np.asarray(method, float) - np.asarray(baseline, float)) * {"higher": 1, "lower": -1}[better]
    mean, deviation = differences.mean(), differences.std(ddof=1)
    if mean <= 0:
        return "does not hold"
    return "holds" if (differences > 0).all() and mean > 2 * deviation else "unclear"


def run_claims(paper: Mapping[str, Any], seeds: int, workdir: Path) -> dict[str, Any]:
    """Trains what a paper's claims compare and judges them; the content of results/claims/SLUG.json.

    Args:
        paper: its entry in the index.
        seeds: how many, from 0.
        workdir: runs are kept below it, in a folder of the paper.

    Raises:
        UserError: a claim that names an unknown run, metric or direction, a paper without claims, fewer than two seeds.
    """
    key = paper["key"]
    if not paper.get("claims"):
        raise UserError(f"{key!r} has no claims: write them into its file of the index before running them")
    if seeds < 2:
        raise UserError(f"--seeds is {seeds}, but the rule needs a standard deviation: at least 2")
    commit = current_commit()
    runs = paper.get("runs", {})
    for claim in paper["claims"]:
        check_claim(claim, runs)
    by_seed = [train_runs(runs, seed, workdir / key, commit) for seed in range(seeds)]
    judged = [judge(claim, by_seed) for claim in paper["claims"]]
    configs = {name: load_config(run["config"], run.get("overrides", {})) for name, run in runs.items()}
    described = {name: to_json(config) | {"take": runs[name].get("take")} for name, config in configs.items()}
    return {"paper": key, "commit": commit, "config_hash": config_hash(described), "claims": judged}


def check_claim(claim: Mapping[str, Any], runs: Mapping[str, Any]) -> None:
    """Raises UserError for a claim that cannot be judged, before anything is trained."""
    if claim["better"] not in ("higher", "lower"):
        raise UserError(f"claim {claim['claim']!r}: better is {claim['better']!r}, but must be 'higher' or 'lower'")
    for name in claim.get("runs", ()) if "function" in claim else [side(claim, which)["run"] for which in SIDES]:
        if name not in runs:
            raise UserError(f"claim {claim['claim']!r}: {naming.unknown('run', name, runs)}")


def side(claim: Mapping[str, Any], which: str) -> dict[str, Any]:
    """{run, metric, ...} of a claim's method or baseline."""
    given = claim[which]
    return {"metric": claim["metric"]} | ({"run": given} if isinstance(given, str) else dict(given))


def judge(claim: Mapping[str, Any], by_seed: Sequence[Mapping[str, Run]]) -> dict[str, Any]:
    """One claim with its figures a seed, what both sides cost, and the verdict."""
    start = time.perf_counter()
    if "function" in claim:
        function: Callable[[int, Mapping[str, Run]], Figures] = naming.load(claim["function"])
        names = list(claim.get("runs", ()))
        figures = [function(seed, {name: runs[name] for name in names}) for seed, runs in enumerate(by_seed)]
    else:
        names = [side(claim, which)["run"] for which in SIDES]
        figures = [figures_of(claim, runs) for runs in by_seed]
    trained = sum(runs[name].seconds for runs in by_seed for name in dict.fromkeys(names))
    method, baseline = ([figure.values[which] for figure in figures] for which in range(2))
    return {
        "claim": claim["claim"],
        "metric": claim["metric"],
        "better": claim["better"],
        "method_name": claim["method_name"],
        "method": method,
        "baseline_name": claim["baseline_name"],
        "baseline": baseline,
        "parameters": list(figures[0].parameters),
        "flops": list(figures[0].flops),
        "verdict": verdict(method, baseline, claim["better"]),
        "seconds": round(trained + time.perf_counter() - start, 1),
    }


def figures_of(claim: Mapping[str, Any], runs: Mapping[str, Run]) -> Figures:
    """Figures that two runs reported themselves."""
    columns = []
    for which in SIDES:
        described = side(claim, which)
        run, metric = runs[described["run"]], described["metric"]
        if metric not in run.figures:
            raise UserError(f"claim {claim['claim']!r}: {naming.unknown('metric', metric, run.figures)}")
        columns.append(
            (run.figures[metric], described.get("parameters", run.parameters), described.get("flops", run.flops))
        )
    values, parameters, flops = zip(*columns)
    return Figures(values, parameters, flops)


def main(arguments: Sequence[str]) -> None:
    """Runs the claims of one paper and writes its file of results."""
    parser = argparse.ArgumentParser("python -m benchmarks.claims", description="Runs and judges a paper's claims.")
    parser.add_argument("paper", help="a key of the index, such as vit")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workdir", type=Path, default=Path("runs/claims"))
    parser.add_argument("--output", type=Path, default=Path("results/claims"))
    flags = parser.parse_args(arguments)
    try:
        paper = zoo.paper(flags.paper)
    except ValueError as error:
        raise UserError(str(error)) from error
    results = run_claims(paper, flags.seeds, flags.workdir)
    flags.output.mkdir(parents=True, exist_ok=True)
    file = flags.output / f"{flags.paper}.json"
    file.write_text(json.dumps(results, indent=1) + "\n")
    print()
    for claim in results["claims"]:
        print(f"{claim['verdict']}: {claim['claim']}")
        for which in SIDES:
            figures = ", ".join(f"{value:.4g}" for value in claim[which])
            print(f"    {claim[which + '_name']:32} {claim['metric']} {figures}")
    print(f"\n{file}")


if __name__ == "__main__":
    command.main(main)
