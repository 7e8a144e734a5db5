"""How a run starts: from its own newest checkpoint, or fresh, with what other runs bring."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from transformer_zoo.task import Task, Tree
from transformer_zoo.training import checkpoints as store
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
        path = store.newest_intact(Path(source["workdir"]) / "checkpoints", source.get("step"))
        state, report = transfer(state, abstract, path, source["table"])
        origins.append({"path": str(path), "hash": store.manifest_hash(path)})
        tell(report)
    if state.ema is not None and sources:
        state = state.replace(ema=jax.tree.map(lambda leaf: leaf.copy(), state.params))
    require_filled(state.frozen)
    meta = {"config": to_json(config), "frozen": origins if jax.tree.leaves(abstract.frozen) else []}
    return state, meta


def transfer(state: TrainState, abstract: TrainState, path: Path, table: Any) -> tuple[TrainState, str]:
    """`state` with the arrays that `table` takes from the checkpoint at `path`, and a report of what was taken."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    names = [path_of(keys) for keys, _ in leaves]
    targets = {name: leaf for name, leaf in zip(names, jax.tree.leaves(abstract)) if not name.startswith("optimizer")}
    plan, report = store.plan_transfer(store.stored_shapes(path), targets, table, str(path))
    wanted: dict[str, Any] = {}
    for target, source in plan.items():
        *parents, last = source.split("/")
        node = wanted
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = targets[target]
    loaded = store.restore(path, wanted, partial=True)
    flat = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(loaded)}
    new = [flat[plan[name]] if name in plan else leaf for name, (_, leaf) in zip(names, leaves)]
    return jax.tree_util.tree_unflatten(structure, new), report


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
        if not (path / store.MANIFEST).exists():
            raise UserError(f"frozen arrays came from {path}, which is gone; bring it back or start a new workdir")
        if store.manifest_hash(path) != origin["hash"] or store.damage_of(path):
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
