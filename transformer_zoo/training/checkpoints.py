"""Checkpoints: asynchronous, atomic, with a checksum of every file, so that damage is found and not restored.

CHECKPOINTS/00000400/ holds what Orbax writes (`state/`, `meta/`) and, written last, `MANIFEST.json` with the SHA-256 of
every file. A folder without a manifest was never finished and does not count.
"""

import errno
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging

from transformer_zoo.training.errors import UserError
from transformer_zoo.training.processes import is_primary
from transformer_zoo.training.sharding import path_of

MANIFEST = "MANIFEST.json"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are.
        keep: how many of the newest to keep.
        best: a metric ('test/accuracy') whose best checkpoint is kept as well; a leading '-' means lower is better.
    """

    def __init__(self, folder: Path, keep: int = 2, best: str = "") -> None:
        self.folder, self.keep, self.best = Path(folder).absolute(), keep, best
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._checkpointer: Any = None

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        return sorted(int(path.parent.name) for path in self.folder.glob(f"[0-9]*/{MANIFEST}"))

    def path(self, step: int) -> Path:
        """Folder of one step."""
        return self.folder / f"{step:08d}"

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Copies the state off the devices and writes it in the background; waits for an earlier save first.

        Raises:
            UserError: the disk is full, now or in the save before.
        """
        import orbax.checkpoint as ocp

        self.wait()
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise _disk_full(self.path(step), f"{size / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free")
        if self._checkpointer is None:
            self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        arguments = ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(dict(meta)))
        try:
            self._checkpointer.save(self.path(step), args=arguments, force=True)
        except OSError as error:
            raise _as_user_error(error, self.path(step)) from error
        self._thread = threading.Thread(target=self._finish, args=(step,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns when nothing is being written any more; raises what went wrong in the background."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Waits and frees Orbax's threads."""
        self.wait()
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None

    def _finish(self, step: int) -> None:
        try:
            self._checkpointer.wait_until_finished()
            if is_primary():
                write_manifest(self.path(step))
                self._prune()
        except BaseException as error:  # handed to the loop by `wait`, whatever it is
            self._error = _as_user_error(error, self.path(step))

    def _prune(self) -> None:
        kept = set(self.steps()[-self.keep :]) | set(self._best_step())
        for step in self.steps():
            if step not in kept:
                (self.path(step) / MANIFEST).unlink()  # first, so that a half-removed folder never counts
                shutil.rmtree(self.path(step))

    def _best_step(self) -> list[int]:
        sign, name = (-1, self.best[1:]) if self.best.startswith("-") else (1, self.best)
        scores = {step: read_meta(self.path(step)).get("metrics", {}).get(name) for step in self.steps() if name}
        found = {step: sign * score for step, score in scores.items() if score is not None}
        return [max(found, key=lambda step: (found[step], step))] if found else []

    def restore_newest(self, abstract: Any) -> tuple[Any, dict[str, Any]] | None:
        """State and meta of the newest intact checkpoint, placed as `abstract` says; None where there is none at all.

        A damaged one is reported and the one before it is taken.

        Raises:
            UserError: there are checkpoints, but none is intact.
        """
        steps = self.steps()
        for step in reversed(steps):
            damage = damage_of(self.path(step))
            if damage is None:
                return restore(self.path(step), abstract), read_meta(self.path(step))
            logging.warning("checkpoint %s is damaged (%s); trying the one before it", self.path(step), damage)
            print(f"checkpoint {self.path(step)} is damaged ({damage}); trying the one before it", flush=True)
        if steps:
            raise UserError(f"none of the {len(steps)} checkpoints in {self.folder} is intact; remove it to start anew")
        return None


def newest_intact(folder: Path, step: int | None = None) -> Path:
    """The folder of the newest intact checkpoint of a run, or of that `step`.

    Raises:
        UserError: there is none, or the step asked for is missing or damaged.
    """
    checkpoints = Checkpoints(folder)
    steps = checkpoints.steps() if step is None else [step]
    if step is not None and step not in checkpoints.steps():
        there = ", ".join(map(str, checkpoints.steps())) or "none"
        raise UserError(f"{folder} holds no checkpoint of step {step}; there are: {there}")
    for number in reversed(steps):
        damage = damage_of(checkpoints.path(number))
        if damage is None:
            return checkpoints.path(number)
        if step is not None:
            raise UserError(f"checkpoint {checkpoints.path(number)} is damaged: {damage}")
        print(f"checkpoint {checkpoints.path(number)} is damaged ({damage}); trying the one before it", flush=True)
    raise UserError(f"{folder} holds no intact checkpoint")


def write_manifest(path: Path) -> None:
    """Writes the checksums of all files below `path`, atomically."""
    files = {str(file.relative_to(path)): _sha256(file) for file in sorted(path.rglob("*")) if file.is_file()}
    temporary = path / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps(files, indent=0))
    temporary.rename(path / MANIFEST)


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        files = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return f"{MANIFEST} is missing or unreadable"
    for name, digest in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if _sha256(file) != digest:
            return f"{name} differs from its checksum"
    return None


def manifest_hash(path: Path) -> str:
    """Twelve hex digits that name the exact contents of a checkpoint."""
    return _sha256(path / MANIFEST)[:12]


def read_meta(path: Path) -> dict[str, Any]:
    """What was stored beside the arrays: step, data position, timer, config, sources of frozen arrays, metrics."""
    return json.loads((path / "meta" / "metadata").read_text())


def restore(path: Path, abstract: Any, partial: bool = False) -> Any:
    """The arrays of one checkpoint, with the shapes, dtypes and shardings of `abstract`.

    Args:
        path: folder of the step.
        abstract: a tree of ShapeDtypeStructs with shardings.
        partial: whether `abstract` is only a part of what is stored.
    """
    import orbax.checkpoint as ocp

    arguments = ocp.args.PyTreeRestore(
        abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=partial
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path, args=ocp.args.Composite(state=arguments))["state"]


def stored_shapes(path: Path) -> dict[str, Any]:
    """Every stored array as 'a/b/c' -> ShapeDtypeStruct."""
    import orbax.checkpoint as ocp
    from etils import epath

    tree = ocp.PyTreeCheckpointHandler().metadata(epath.Path(path / "state")).tree
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "dtype"))
    return {path_of(keys): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for keys, leaf in leaves}


def plan_transfer(
    stored: Mapping[str, Any], targets: Mapping[str, Any], table: Any, source: str
) -> tuple[dict[str, str], str]:
    """Which stored array fills which target, by the first row (regex, replacement) that matches its whole path.

    Returns:
        Target path to stored path, and a sentence that says what was taken, left and not matched.

    Raises:
        UserError: a row that matches nothing, a target that does not exist, or another shape.
    """
    plan: dict[str, str] = {}
    left, unused = [], [pattern for pattern, _ in table]
    for path, leaf in stored.items():
        row = next(((pattern, new) for pattern, new in table if re.fullmatch(pattern, path)), None)
        if row is None:
            left.append(path)
            continue
        target = re.sub(row[0] + r"\Z", row[1], path)
        if row[0] in unused:
            unused.remove(row[0])
        if target not in targets:
            raise UserError(f"init_from: {path} of {source} would go to {target}, which this run does not have")
        if targets[target].shape != leaf.shape:
            raise UserError(
                f"init_from: {path} of {source} has shape {tuple(leaf.shape)}, "
                f"but {target} has shape {tuple(targets[target].shape)}"
            )
        plan[target] = path
    if unused:
        raise UserError(
            f"init_from: {unused[0]!r} matches nothing in {source}; it holds e.g. {', '.join([*stored][:5])}"
        )
    missing = [path for path in targets if path.startswith(("params/", "frozen/")) and path not in plan]
    report = f"from {source}: took {len(plan)} arrays, left {len(left)} there"
    if missing:
        shown = ", ".join(missing[:6]) + (", ..." if len(missing) > 6 else "")
        report += f"; {len(missing)} of this run's are not filled by it ({shown})"
    return plan, report


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _disk_full(path: Path, detail: str) -> UserError:
    return UserError(f"disk full: cannot write {path} ({detail}). Free space and run the same command to resume")


def _as_user_error(error: BaseException, path: Path) -> BaseException:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    return _disk_full(path, "no space left") if full else error
