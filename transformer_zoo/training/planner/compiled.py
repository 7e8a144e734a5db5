"""The very step that training runs, compiled for a TPU slice with no TPU at hand (needs the extra `plan`)."""

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
import jaxlib.version

from transformer_zoo.training.errors import UserError
from transformer_zoo.training.planner.programs import Traffic, traffic
from transformer_zoo.training.planner.settings import Setting
from transformer_zoo.training.planner.targets import Target
from transformer_zoo.training.sharding import LARGE, path_of


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one device.

    Attributes:
        memory: bytes by purpose.
        traffic: what a step moves.
        replicated: large arrays of the new state that stay whole on every device: path and shape.
    """

    memory: dict[str, int]
    traffic: Traffic
    replicated: tuple[str, ...]


class OutOfMemory(Exception):
    """The compiler found no way to fit the step; `needed` and `limit` are bytes, 0 where it does not say."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
        sizes = [float(size) * units[unit] for size, unit in re.findall(r"\b([\d.]+)([KMGT])\b", text)]
        self.needed, self.limit = sizes[:2] if len(sizes) > 1 else (0.0, 0.0)


def slice_devices(target: Target) -> list[Any]:
    """The devices of a slice that is not here, which programs can be compiled for.

    Raises:
        UserError: libtpu is not installed, or knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("planning for a TPU needs libtpu: pip install -e '.[plan]'")
    # libtpu looks for its machine where there is none and says so at length, and claims it for one process; not here.
    environment = {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=target.topology)
    except Exception as error:  # XLA raises no class of its own here
        raise UserError(f"--plan={target.name}: libtpu knows no such slice ({str(error).splitlines()[0]})") from error
    return list(found.devices)


def lower_step(setting: Setting, *platforms: str) -> Any:
    """A step lowered for the devices of the setting's mesh, as `training/loop.py` compiles it."""
    placed = jax.tree.map(lambda leaf: leaf.sharding, setting.state)
    step, phase = setting.step(), setting.task.phase(0)
    with jax.set_mesh(setting.mesh):
        jitted = jax.jit(step, static_argnums=2, donate_argnums=0, out_shardings=(placed, None))
        return jitted.trace(setting.state, setting.batch, phase).lower(lowering_platforms=platforms or None)


def compile_step(setting: Setting) -> Compiled:
    """Compiles a step for the TPU slice of the setting's mesh.

    Raises:
        OutOfMemory: it does not fit.
        UserError: see `program_text`.
    """
    lowered = lower_step(setting, "tpu")
    with jax.set_mesh(setting.mesh):
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise OutOfMemory(str(error)) from error
            raise
    stats = compiled.memory_analysis()
    memory = {
        "state and batch": stats.argument_size_in_bytes,
        "new arrays": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }
    state, _ = compiled.output_shardings
    leaves = jax.tree_util.tree_leaves_with_path(setting.state.params)
    whole = [
        f"{path_of(path)} {tuple(leaf.shape)}"
        for (path, leaf), sharding in zip(leaves, jax.tree.leaves(state.params))
        if leaf.size > LARGE and sharding.is_fully_replicated
    ]
    return Compiled(memory, traffic(program_text(compiled)), tuple(whole))


def program_text(compiled: Any) -> str:
    """What the compiler made of a step.

    Raises:
        UserError: it wrote instructions that this jaxlib cannot read.
    """
    try:
        text: str = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        said = str(error).splitlines()[0]
        raise UserError(
            f"the step compiles, but jaxlib {jaxlib.version.__version__} cannot read the program that the installed "
            f"libtpu made of it ({said}): plan with a newer jax (0.12 has read such programs), or on another mesh"
        ) from error
    return text
