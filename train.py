"""Trains a config: python train.py --config=configs/quickstart.py [--config.a.b=value ...] [--workdir=DIR].

With --plan=v5e:16x16, gpu:h100x64, gpu:rtx4090 or search:v5e:16x16 it trains nothing and says what the run needs there;
with --profile it trains a few steps and says where their time went.
"""

import argparse
from collections.abc import Sequence

from transformer_zoo import zoo
from transformer_zoo.training import command, stages, xla_flags


def train(arguments: Sequence[str]) -> None:
    """Reads the flags, trains, prints the held-out figures and where the results are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", default="", help="a machine: plan the run for it instead of training")
    parser.add_argument("--profile", action="store_true", help="say where the time of a step goes, and train no more")
    parser.add_argument("--xla_flags", default="", help="gpu or tpu: set the compiler flags of training/xla_flags.py")
    flags, overrides = command.parse(parser, arguments)
    for flag in xla_flags.set_flags(flags.xla_flags):
        print(f"{flag.text}  {flag.why} ({flag.source})")
    config, workdir = command.read_config(flags, overrides)
    if flags.plan:
        command.plan(flags, overrides, workdir, zoo.build_task)
        return
    if flags.profile:
        command.profile(flags, overrides, workdir, zoo.build, zoo.build_task)
        return
    figures = stages.run(config, workdir, zoo.build)
    print()
    for name, value in figures.items():
        print(f"{name:36} {value:.4g}")
    print(f"\n{workdir}/report.html  {workdir}/samples/  {workdir}/checkpoints/")


if __name__ == "__main__":
    command.main(train)
