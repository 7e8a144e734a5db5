"""The train state: all that a run knows at a step, created where it will live."""

import hashlib
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from transformer_zoo.task import Task, Tree, Variables
from transformer_zoo.training.optimizer import Optimizer, state_shardings
from transformer_zoo.training.sharding import shardings
from transformer_zoo.training.tree import partition


class TrainState(flax.struct.PyTreeNode):
    """All arrays of a run; `frozen` alone is not stored in checkpoints.

    Attributes:
        step: number of completed steps, int32.
        params, state, frozen: see `Variables`.
        optimizer: optimizer state by player.
        ema: averaged parameters by player, or None.
    """

    step: Tree
    params: Tree
    state: Tree
    optimizer: Tree
    ema: Tree
    frozen: Tree

    @property
    def variables(self) -> Variables:
        """What tasks compute with."""
        return Variables(self.params, self.state, self.frozen)


def abstract_variables(task: Task) -> Variables:
    """Shapes and dtypes of a task's variables; nothing is computed."""
    frozen: list[Tree] = []

    def init(key: Array) -> Variables:
        variables = task.init(key)
        frozen.append(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables.frozen))
        return variables.replace(frozen={})

    variables = jax.eval_shape(init, jax.random.key(0))
    return variables.replace(frozen=frozen[0])


def abstract_state(task: Task, optimizers: Mapping[str, Optimizer], ema: bool, mesh: Mesh | AbstractMesh) -> TrainState:
    """The train state as ShapeDtypeStructs with their shardings."""
    variables = abstract_variables(task)
    trainable = {player: partition(variables.params[player], optimizers[player].trainable)[0] for player in optimizers}
    optimizer = {p: jax.eval_shape(optimizers[p].transform.init, trainable[p]) for p in optimizers}
    whole = NamedSharding(mesh, PartitionSpec())
    params = shardings(variables.params, mesh)
    placed = TrainState(
        step=whole,
        params=params,
        state=shardings(variables.state, mesh),
        optimizer={
            p: state_shardings(optimizers[p].transform, trainable[p], partition(params[p], optimizers[p].trainable)[0])
            for p in optimizers
        },
        ema=params if ema else None,
        frozen=shardings(variables.frozen, mesh),
    )
    shapes = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=variables.params,
        state=variables.state,
        optimizer=optimizer,
        ema=variables.params if ema else None,
        frozen=variables.frozen,
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, placed
    )


def create_state(task: Task, optimizers: Mapping[str, Optimizer], abstract: TrainState, seed: int) -> TrainState:
    """A fresh state, every array created already sharded; `frozen` stays abstract."""

    def init(key: Array) -> TrainState:
        variables = task.init(key)
        return TrainState(
            step=jnp.int32(0),
            params=variables.params,
            state=variables.state,
            optimizer={
                p: optimizers[p].transform.init(partition(variables.params[p], optimizers[p].trainable)[0])
                for p in optimizers
            },
            ema=None if abstract.ema is None else variables.params,
            frozen={},
        )

    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract.replace(frozen={}))
    state = jax.jit(init, out_shardings=placed)(jax.random.key(seed))
    return state.replace(frozen=abstract.frozen)


def tree_hash(tree: Tree) -> str:
    """Twelve hex digits that name the structure, shapes and dtypes of a tree."""
    text = str(jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
