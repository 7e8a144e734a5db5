"""Trains a config: python train.py --config=configs/quickstart.py [--config.a.b=value ...] [--workdir=DIR]."""

import argparse
from collections.abc import Sequence

from transformer_zoo import zoo
from transformer_zoo.training import command, stages


def train(arguments: Sequence[str]) -> None:
    """Reads the flags, trains, prints the held-out figures and where the results are."""
    flags, overrides = command.parse(argparse.ArgumentParser(description=__doc__), arguments)
    config, workdir = command.read_config(flags, overrides)
    figures = stages.run(config, workdir, zoo.build)
    print()
    for name, value in figures.items():
        print(f"{name:36} {value:.4g}")
    print(f"\n{workdir}/report.html  {workdir}/samples/  {workdir}/checkpoints/")


if __name__ == "__main__":
    command.main(train)
