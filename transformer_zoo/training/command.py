"""What the two commands share: flags, clean errors, the compilation cache."""

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from transformer_zoo.data.checks import DataError
from transformer_zoo.naming import nearest
from transformer_zoo.training import processes
from transformer_zoo.training.config import load_config
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.host_memory import keep_freed_memory
from transformer_zoo.training.reporting import write_file


def default_workdir(spec: str) -> Path:
    """runs/quickstart for configs/quickstart.py, runs/vit-S16 for configs/vit.py:S16."""
    file, _, variant = spec.partition(":")
    return Path("runs") / (Path(file).stem + (f"-{variant}" if variant else ""))


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Flags, and the 'a.b=value' overrides given as --config.a.b=value.

    Raises:
        UserError: a flag that does not exist, with the nearest one that does.
    """
    parser.add_argument("--config", required=True, help="path/to/config.py or path/to/config.py:variant")
    parser.add_argument("--workdir", default="", help="folder of the run (default: runs/NAME-VARIANT)")
    processes.add_flags(parser)
    overrides: list[str] = []
    rest: list[str] = []
    for argument in arguments:
        (overrides if argument.startswith("--config.") else rest).append(argument)
    for override in overrides:
        if "=" not in override:
            raise UserError(f"write {override}=VALUE: an override needs a value")
    known, others = parser.parse_known_args(rest)
    if others:
        flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        name = others[0].partition("=")[0]
        raise UserError(f"no flag {others[0]!r}; did you mean {nearest(name, flags)!r}? Fields are --config.NAME=VALUE")
    return known, [override.removeprefix("--config.") for override in overrides]


def read_config(flags: argparse.Namespace, overrides: list[str]) -> tuple[Any, Path]:
    """The config that the flags ask for, and the folder of its run; joins the other processes, if there are any."""
    processes.connect(flags)
    return load_config(flags.config, overrides), Path(flags.workdir or default_workdir(flags.config))


def plan(flags: argparse.Namespace, overrides: list[str], workdir: Path, build_task: Callable[..., Any]) -> None:
    """Says what the run needs of the machine that --plan names, and writes plan.json and plan.html."""
    from transformer_zoo.training.planner import page
    from transformer_zoo.training.planner.plan import plan as make_plan

    jax.config.update("jax_platforms", "cpu")  # the machine that is planned for is not this one

    def load(fields: dict[str, Any]) -> Any:
        return load_config(flags.config, [*overrides, *(f"{name}={value}" for name, value in fields.items())])

    made, others = make_plan(load, flags.plan, build_task)
    workdir.mkdir(parents=True, exist_ok=True)
    write_file(workdir / "plan.json", (json.dumps(made.record(), indent=1) + "\n").encode())
    print(page.describe(made))
    print(f"\n{workdir}/plan.json  {page.write(made, others, flags.config, workdir)}")


def profile(
    flags: argparse.Namespace, overrides: list[str], workdir: Path, build: Callable, build_task: Callable
) -> None:
    """Trains for some steps beside the run, writes their trace and a page that says where the time went."""
    from transformer_zoo.training import profile, stages
    from transformer_zoo.training.planner.compiled import lower_step
    from transformer_zoo.training.planner.settings import make_setting

    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    steps = profile.WARM + profile.MEASURED + 1
    config = load_config(flags.config, overrides)
    with config.unlocked():
        config.dtype = dtype if config.dtype == "auto" else config.dtype
        config.total_steps = max(steps, config.get("total_steps", 0))
    folder = workdir / "profile"
    shutil.rmtree(folder / "run", ignore_errors=True)
    page = profile.profile(
        lambda profiler: stages.run(config, folder / "run", build, watch=profiler.at),
        lambda: lower_step(make_setting(config, build_task, jax.devices())).compile().as_text(),
        folder,
        flags.config,
    )
    print(f"\n{page}  {folder}/trace/")


def keep_compiled() -> None:
    """Stores what XLA compiles, so that the same step starts at once the next time.

    Below $XDG_CACHE_HOME or ~/.cache; JAX_COMPILATION_CACHE_DIR names another place, or none if it is empty.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "transformer_zoo" / "compiled"))


def main(command: Callable[[Sequence[str]], None]) -> None:
    """Runs a command; what a user can mend becomes one line on stderr and exit status 2, Ctrl-C a quiet 130."""
    keep_freed_memory()
    keep_compiled()
    try:
        command(sys.argv[1:])
    except (UserError, DataError) as error:
        where = "data: " if isinstance(error, DataError) else ""
        print(f"error: {where}{error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the newest checkpoint is kept. Run the same command to resume", file=sys.stderr)
        sys.stdout.flush()
        os._exit(128 + signal.SIGINT)  # a loader's threads must not hold the terminal
