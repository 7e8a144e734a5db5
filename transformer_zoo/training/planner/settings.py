"""What a plan is made for: a config's task, optimizers and step, on a mesh of devices that need not be here."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh

from transformer_zoo.task import Task
from transformer_zoo.training import loop, sharding
from transformer_zoo.training.config import load_config
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.flops import count_flops
from transformer_zoo.training.optimizer import Optimizer
from transformer_zoo.training.state import TrainState, abstract_state
from transformer_zoo.training.step import Step, make_step

BuildTask = Callable[..., Task]  # zoo.build_task, handed in because only the zoo resolves names


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to run a config.

    Attributes:
        config: checked, its dtype settled.
        task: what it trains.
        optimizers: by player.
        mesh: of the machine, or an abstract one of as many devices.
        state: abstract, with shardings.
        batch: abstract, with shardings.
    """

    config: Any
    task: Task
    optimizers: Mapping[str, Optimizer]
    mesh: Any
    state: TrainState
    batch: Any

    @property
    def groups(self) -> int:
        """Parts that the batch is split into."""
        return sharding.batch_parts(self.mesh)

    def step(self, task: Task | None = None) -> Step:
        """The function that training compiles, of this task or of a changed one."""
        players = loop.player_configs(self.config, self.task)
        return make_step(
            task or self.task,
            self.optimizers,
            seed=self.config.seed,
            every={name: players[name].get("every", 1) for name in self.task.players},
            accumulate_steps=self.config.accumulate_steps,
            ema_decay=self.config.ema.decay if "ema" in self.config else 0.0,
        )

    def flops(self, *, recomputed: bool) -> float:
        """Matrix and convolution FLOPs of a step on all devices, with or without what the backward pass recomputes."""
        step = self.step(self.task if recomputed else loop.without_remat(self.task))
        return float(count_flops(lambda state, batch: step(state, batch, self.task.phase(0)), *self.abstract()).total)

    def abstract(self) -> tuple[Any, Any]:
        """State and batch without shardings."""
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (self.state, self.batch))


def make_setting(config: Any, build_task: BuildTask, devices: list[Any] | int) -> Setting:
    """The setting of a config on these devices, or on so many that need not exist.

    Raises:
        UserError: a config that does not fit the devices, names no model, or consists of stages.
    """
    if "stages" in config:
        configs = ", ".join(f"--config={stage['config']}" for stage in config.stages)
        raise UserError(f"--plan takes one run, but this config has stages; plan one of them: {configs}")
    with config.unlocked():
        config.dtype = "bfloat16" if config.dtype == "auto" else config.dtype
    required = {name: load_config(spec) for name, spec in config.get("requires", {}).items()}
    try:
        task = build_task(config, required)
    except ValueError as error:
        raise UserError(f"config: {error}") from error
    optimizers = loop.make_optimizers(task, loop.player_configs(config, task), config.total_steps)
    mesh = abstract_mesh(config.mesh, devices) if isinstance(devices, int) else sharding.make_mesh(config.mesh, devices)
    sharding.check_batch_size(mesh, config.batch_size, config.accumulate_steps)
    state = abstract_state(task, optimizers, "ema" in config and config.ema.decay > 0, mesh)
    placed = sharding.batch_sharding(mesh)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed), task.spec(config.batch_size)
    )
    return Setting(config, task, optimizers, mesh, state, batch)


def abstract_mesh(sizes: Any, devices: int) -> Any:
    """A mesh of devices that do not exist."""
    shape = sharding.mesh_shape(sizes, devices)
    return AbstractMesh(shape, sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(shape))


def shard_bytes(tree: Any) -> int:
    """Bytes of a tree of sharded abstract arrays on one device."""

    def size(leaf: Any) -> int:
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * item_bytes(leaf.dtype)

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


def item_bytes(dtype: Any) -> int:
    """Bytes of one number; a random key is 8."""
    return getattr(dtype, "itemsize", 8)
