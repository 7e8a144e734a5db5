"""Runs: one config, a list of stages, and the other runs they stand on."""

import fcntl
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformer_zoo.training import loop
from transformer_zoo.training.checkpoints import Checkpoints
from transformer_zoo.training.config import config_hash, load_config, to_json
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.processes import is_primary
from transformer_zoo.training.report_page import write_stages_report
from transformer_zoo.training.start import as_list
from transformer_zoo.training.weights import is_imported, required_config
from transformer_zoo.training.workdir import write_config

Build = Callable[..., Any]  # zoo.build, handed in because only the zoo resolves names


def run(
    config: Any,
    workdir: Path,
    build: Build,
    title: str = "",
    watch: Callable[..., None] | None = None,
    shared: Path | None = None,
) -> dict[str, float]:
    """Trains what a config describes, stage by stage where it has stages, and returns its held-out figures.

    `watch` sees every step of a run without stages, see `loop.train`; `shared` is the folder of the runs that it stands
    on, see `with_requirements`.

    Raises:
        UserError: what the user can mend.
    """
    if "stages" in config:
        return run_stages(config, workdir, build, title)
    config, required = with_requirements(config, workdir, build, shared)
    try:
        built = build(config, {name: other for name, (other, _) in required.items()})
    except ValueError as error:
        raise UserError(f"config: {error}") from error
    return loop.train(config, built.task, built.evaluators, built.data, workdir, title, watch)


def run_stages(config: Any, workdir: Path, build: Build, title: str) -> dict[str, float]:
    """Each stage in its own folder of `workdir`; a finished stage is not run again, a half one resumes.

    A stage is a group with `name`, `config` (path and variant), `overrides` ({'a.b': value}), optionally `take`
    ({'stage': name of an earlier one, 'table': rows of `init_from`}) and `summary` ({figure: figure of that stage}).
    What a stage takes stands in place of what its config takes itself, of which only frozen arrays are left, such as
    tokenizers. Runs that stages require are shared with those of other configs beside `workdir`.
    """
    prepare_folder(workdir, config)
    summary: dict[str, float] = {}
    folders: list[tuple[str, Path]] = []
    for number, stage in enumerate(config.stages):
        name, folder = stage["name"], workdir / stage["name"]
        print(f"\n== stage {number + 1} of {len(config.stages)}: {name}", flush=True)
        stage_config = stage_run_config(stage, workdir, [name for name, _ in folders])
        figures = run(stage_config, folder, build, title=name, shared=workdir.parent / "required")
        folders.append((name, folder))
        for figure, source in stage.get("summary", {}).items():
            if source not in figures:
                raise UserError(f"stage {name!r} reports no {source!r}; it reports {', '.join(figures)}")
            summary[figure] = figures[source]
    if not is_primary():
        return summary
    link_results(workdir, folders)
    with (workdir / "metrics.jsonl").open("w") as stream:
        stream.write(json.dumps({"step": len(folders), "split": "test", **summary}) + "\n")
    write_stages_report(workdir, folders)
    return summary


def stage_run_config(stage: Any, workdir: Path, earlier: list[str]) -> Any:
    """The config of one stage, with `init_from` pointing at the stage it takes arrays from."""
    config = load_config(stage["config"], dict(stage.get("overrides", {})))
    if "take" in stage:
        if stage["take"]["stage"] not in earlier:
            raise UserError(f"stage {stage['name']!r} takes from {stage['take']['stage']!r}, which is not before it")
        with config.unlocked():
            folder = workdir / stage["take"]["stage"]
            taken = {"workdir": str(folder), "table": tuple(map(tuple, stage["take"]["table"]))}
            kept = frozen_sources(config)
            if "init_from" in config:  # one group may become a list of groups, which a ConfigDict does not allow
                del config["init_from"]
            config.init_from = (*kept, taken)
    return config


def frozen_sources(config: Any) -> list[dict[str, Any]]:
    """What `init_from` takes into frozen arrays: its groups with those rows alone, without groups that have none."""
    sources = []
    for source in as_list(config.get("init_from", ())):
        table = tuple(tuple(row) for row in source["table"] if row[1].startswith("frozen/"))
        if table:
            sources.append(dict(source) | {"table": table})
    return sources


def prepare_folder(workdir: Path, config: Any) -> None:
    """The folder of a run of several stages, which must not hold another config's run."""
    workdir.mkdir(parents=True, exist_ok=True)
    if is_primary():
        write_config(workdir, config)


def link_results(workdir: Path, folders: list[tuple[str, Path]]) -> None:
    """`samples/STAGE` and `checkpoints/STAGE` beside the stages, so that results are found in one place."""
    for kind in ("samples", "checkpoints"):
        (workdir / kind).mkdir(exist_ok=True)
        for name, folder in folders:
            link = workdir / kind / name
            if (folder / kind).is_dir() and not link.exists():
                link.symlink_to(Path("..") / name / kind)


def with_requirements(
    config: Any, workdir: Path, build: Build, shared: Path | None = None
) -> tuple[Any, dict[str, tuple[Any, Path]]]:
    """The config with every `init_from.requires` resolved to a workdir, and (config, workdir) of all required runs.

    A folder of imported weights is as good as a finished run.

    A missing run of a `tiny` or `small` variant is trained first, in a folder named by its config's hash in `shared`
    (by default `required` beside `workdir`), under a lock, so that all who need it share it.

    Raises:
        UserError: a missing run of another variant, with the command that trains it.
    """
    required: dict[str, tuple[Any, Path]] = {}
    shared = shared or workdir.parent / "required"
    for name, spec in config.get("requires", {}).items():
        if is_imported(spec):
            required[name] = (required_config(spec), Path(spec).absolute())
            continue
        other = load_config(spec)
        file, _, variant = spec.partition(":")
        folder = shared / f"{Path(file).stem}-{variant or 'tiny'}-{config_hash(other)}"
        if Checkpoints(folder / "checkpoints").steps()[-1:] != [other.get("total_steps", 0)]:
            if not any(size in (variant or "tiny") for size in ("tiny", "small")):
                command = shlex.join(["python", "train.py", f"--config={spec}", f"--workdir={folder}"])
                raise UserError(f"config.requires.{name}: there is no finished run of {spec}. Train it: {command}")
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / ".required").open("w") as lock:
                if is_primary():  # of several processes; the others wait for it in the run's first step
                    fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be training it: wait, then find it finished
                print(f"\n== {name}, required by this config: {spec} in {folder}", file=sys.stderr, flush=True)
                run(other, folder, build, title=name, shared=shared)
        required[name] = (other, folder)
    if "init_from" not in config:
        return config, required
    sources = []
    for source in as_list(config.init_from):
        source = dict(source)
        if "requires" in source:
            source["workdir"] = str(required[source.pop("requires")][1])
        sources.append(source)
    with config.unlocked():
        del config["init_from"]  # one group may become a list of groups, which a ConfigDict does not allow in place
        config.init_from = tuple(to_json(source) for source in sources)
    return config, required
