"""How a run starts: from its own newest checkpoint, or fresh, with what other runs bring."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from transformer_zoo.task import Task, Tree
from transformer_zoo.training import checkpoints as store
from transformer_zoo.training import weights
from transformer_zoo.training.config import to_json
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.optimizer import Optimizer
from transformer_zoo.training.processes import tell
from transformer_zoo.training.sharding import path_of
from transformer_zoo.training.state import TrainState, create_state


def start_state(
    config: Any, task: Task, optimizers: Mapping[str, Optimizer], abstract: TrainState, checkpoints: store.Checkpoints
) -> tuple[TrainState, dict[str, Any]]:
    """The newest intact checkpoint of this run, or a fresh state with what `init_from` brings."""
    sources = [dict(source) for source in as_list(config.get("init_from", ()))]
    restored = checkpoints.restore_newest(abstract.replace(frozen={}))
    if restored is not None:
        state, meta = restored
        frozen = restore_frozen(abstract.frozen, sources, meta["frozen"])
        tell(f"resumed from step {int(state.step)} in {checkpoints.folder}")
        return state.replace(frozen=frozen), meta
    state = create_state(task, optimizers, abstract, config.seed)
    origins: list[dict[str, Any]] = []
    for source in sources:
        path = origin_of(source)
        state, report = transfer(state, abstract, path, source["table"])
        origins.append({"path": str(path), "hash": hash_of(path)})
        tell(report)
    warn_of_other_grounds(sources, origins)
    if state.ema is not None and sources:
        state = state.replace(ema=jax.tree.map(lambda leaf: leaf.copy(), state.params))
    require_filled(state.frozen)
    meta = {"config": to_json(config), "frozen": origins if jax.tree.leaves(abstract.frozen) else []}
    return state, meta


def warn_of_other_grounds(sources: list[dict[str, Any]], origins: list[dict[str, Any]]) -> None:
    """Tells where a run that gave arrays had learned on other frozen arrays of a name than this run has.

    Ids of a tokenizer that was trained again mean something else, and a network that read the old ones is lost.
    """
    mine = grounds(sources, origins)
    for origin in origins:
        if weights.is_imported(Path(origin["path"])):
            continue
        meta = store.read_meta(Path(origin["path"]))
        theirs = grounds([dict(one) for one in as_list(meta["config"].get("init_from", ()))], meta["frozen"])
        for name in mine.keys() & theirs.keys():
            if mine[name]["hash"] != theirs[name]["hash"]:
                tell(
                    f"warning: {origin['path']} learned on {theirs[name]['path']} as frozen/{name}, but this run has "
                    f"{mine[name]['path']}, which is not the same: what it learned may not hold. Move its folder away "
                    "to train it again"
                )


def grounds(sources: list[dict[str, Any]], origins: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The origin of every frozen tree, by its name."""
    pairs = zip(sources, origins)
    rows = ((row[1], origin) for source, origin in pairs for row in source["table"] if row[1].startswith("frozen/"))
    return {target.split("/")[1]: origin for target, origin in rows}


def origin_of(source: Mapping[str, Any]) -> Path:
    """Where a source's arrays lie: a folder of imported weights, or the newest intact checkpoint of a run."""
    folder = Path(source["workdir"])
    return folder if weights.is_imported(folder) else store.newest_intact(folder / "checkpoints", source.get("step"))


def hash_of(path: Path) -> str:
    """Names the exact contents of an origin."""
    return weights.imported_hash(path) if weights.is_imported(path) else store.manifest_hash(path)


def transfer(state: TrainState, abstract: TrainState, path: Path, table: Any) -> tuple[TrainState, str]:
    """`state` with the arrays that `table` takes from the origin at `path`, and a report of what was taken."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    names = [path_of(keys) for keys, _ in leaves]
    targets = {name: leaf for name, leaf in zip(names, jax.tree.leaves(abstract)) if not name.startswith("optimizer")}
    imported = weights.read_imported(path) if weights.is_imported(path) else None
    stored = store.stored_shapes(path) if imported is None else imported
    plan, report = store.plan_transfer(stored, targets, table, str(path))
    if imported is None:
        flat = restored(path, {source: targets[target] for target, source in plan.items()})
    else:
        flat = {
            source: jax.device_put(imported[source].astype(targets[target].dtype), targets[target].sharding)
            for target, source in plan.items()
        }
    new = [flat[plan[name]] if name in plan else leaf for name, (_, leaf) in zip(names, leaves)]
    return jax.tree_util.tree_unflatten(structure, new), report


def restored(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays of the checkpoint at `path` by their paths there, placed as `wanted` says."""
    tree: dict[str, Any] = {}
    for source, target in wanted.items():
        *parents, last = source.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = target
    loaded = store.restore(path, tree, partial=True)
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(loaded)}


def restore_frozen(abstract: Tree, sources: list[dict[str, Any]], origins: list[dict[str, str]]) -> Tree:
    """Frozen arrays again from the runs they came from, which must not have changed.

    Raises:
        UserError: a source that is gone or whose checkpoint is another one now.
    """
    if not jax.tree.leaves(abstract):
        return abstract
    frozen: Any = TrainState(step=(), params={}, state={}, optimizer={}, ema=None, frozen=abstract)
    placed = frozen
    for source, origin in zip(sources, origins):
        path = Path(origin["path"])
        imported = weights.is_imported(path)
        if not imported and not (path / store.MANIFEST).exists():
            raise UserError(f"frozen arrays came from {path}, which is gone; bring it back or start a new workdir")
        if hash_of(path) != origin["hash"] or (not imported and store.damage_of(path)):
            raise UserError(f"frozen arrays came from {path}, which has changed since; start a new workdir")
        table = [row for row in source["table"] if row[1].startswith("frozen/")]
        if table:
            frozen, _ = transfer(frozen, placed, path, table)
    require_filled(frozen.frozen)
    return frozen.frozen


def require_filled(frozen: Tree) -> None:
    """Raises UserError naming frozen arrays that nothing has filled."""
    empty = [
        "frozen/" + path_of(keys)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(frozen)
        if isinstance(leaf, jax.ShapeDtypeStruct)
    ]
    if empty:
        raise UserError(f"config.init_from fills none of these frozen arrays: {', '.join(empty[:8])}")


def as_list(value: Any) -> list[Any]:
    """A list of groups, where a config may give one group or several."""
    return [value] if hasattr(value, "items") else list(value)
