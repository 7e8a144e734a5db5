"""Several processes that train one run together: one a host on a TPU pod or a cluster, or some on one machine.

Each runs the same command. On TPU pods, under SLURM, Open MPI and Kubernetes they find each other by the environment;
elsewhere each is told where the first one listens:

    python train.py --config=... --coordinator=10.0.0.1:8476 --processes=4 --process=0     # to 3, on each host

Process 0 alone writes metrics and samples; all write their part of a checkpoint, so the workdir lies on storage that
they share.
"""

import argparse
import os
from collections.abc import Mapping

import jax

from transformer_zoo.training.errors import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a process that the environment does not place."""
    parser.add_argument("--coordinator", default="", help="host:port where process 0 listens")
    parser.add_argument("--processes", type=int, default=0, help="how many there are in all")
    parser.add_argument("--process", type=int, default=-1, help="the number of this one, from 0")


def connect(flags: argparse.Namespace) -> None:
    """Joins the other processes, where flags or the environment tell of any. Comes before anything asks for devices.

    Raises:
        UserError: flags that do not fit together, or processes that do not find each other.
    """
    given = (bool(flags.coordinator), flags.processes > 0, flags.process >= 0)
    if any(given) and not all(given):
        raise UserError("--coordinator=HOST:PORT, --processes=N and --process=I go together")
    if all(given) and flags.process >= flags.processes:
        raise UserError(f"--process={flags.process} is not below --processes={flags.processes}: they count from 0")
    if not any(given) and not expected(os.environ):
        return
    arguments = (flags.coordinator, flags.processes, flags.process) if all(given) else ()
    try:
        jax.distributed.initialize(*arguments)
    except RuntimeError as error:
        raise UserError(f"the processes did not find each other: {str(error).splitlines()[0]}") from error


def expected(environment: Mapping[str, str]) -> bool:
    """Whether a scheduler started this process as one of several."""
    several = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    if any(environment.get(name, "1") not in ("", "1") for name in several):
        return "SLURM_NTASKS" not in environment or "SLURM_STEP_ID" in environment  # a batch script is no task
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
    return "," in hosts or "MEGASCALE_COORDINATOR_ADDRESS" in environment or "JAX_COORDINATOR_ADDRESS" in environment


def is_primary() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def tell(text: str) -> None:
    """Prints a line, once for all processes."""
    if is_primary():
        print(text, flush=True)


def check_groups(groups: int, described: str) -> None:
    """Raises UserError where processes would share rows of a batch, which each reads a part of."""
    if groups % jax.process_count():
        raise UserError(
            f"config.mesh ({described}) splits the batch into {groups} parts, which {jax.process_count()} processes "
            "cannot share evenly: mesh.data x mesh.fsdp x mesh.expert must be a multiple of their number"
        )


def stop_agreed(step: int) -> bool:
    """Whether all processes stop at this step because one of them got SIGTERM; asked at every step, by all."""
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)
