"""Evaluates a run: python eval.py --config=configs/mae.py [--workdir=DIR] [--step=N] [--sweep='a.b=1,2;c=3,4']."""

import argparse
from collections.abc import Sequence
from typing import Any

from transformer_zoo import zoo
from transformer_zoo.evaluation.sweeps import parse_sweep
from transformer_zoo.training import command, evaluate
from transformer_zoo.training.errors import UserError


def main(arguments: Sequence[str]) -> None:
    """Evaluates one checkpoint, a grid of settings (--sweep), or every run in a folder of runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=int, default=None, help="which checkpoint (default: the newest intact one)")
    parser.add_argument("--sweep", default="", help="a grid: 'sampling.steps=4,8,16;sampling.guidance_scale=1,3'")
    flags, overrides = command.parse(parser, arguments)
    config, workdir = command.read_config(flags, overrides)
    if flags.sweep or evaluate.runs_below(workdir) != [workdir]:
        evaluate.sweep(config, workdir, zoo.build, grid(flags.sweep), flags.step, overrides)
        print(f"\n{workdir}/sweep.csv  {workdir}/sweep.json  {workdir}/sweep.png")
        return
    for name, value in evaluate.evaluate(config, workdir, zoo.build, flags.step).items():
        print(f"{name:36} {value:.4g}")
    print(f"\n{workdir}/samples/")


def grid(text: str) -> list[dict[str, Any]]:
    """The points of a sweep, one without changes where none is asked for."""
    try:
        return parse_sweep(text) if text else [{}]
    except ValueError as error:
        raise UserError(f"--sweep: {error}") from error


if __name__ == "__main__":
    command.main(main)
