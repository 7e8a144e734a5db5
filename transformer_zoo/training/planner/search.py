"""Tries settings that change how a step is computed, never what is learned: mesh, rematerialisation, accumulation.

The axes `tensor`, `sequence` and `expert` stay as the config has them: shapes do not tell what they cost (see
`estimates`).
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from transformer_zoo.layers.blocks import REMAT_POLICIES
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.planner.estimates import Costs, costs_of
from transformer_zoo.training.planner.plans import Plan, estimated
from transformer_zoo.training.planner.settings import BuildTask, make_setting
from transformer_zoo.training.planner.targets import Target

ACCUMULATE = (1, 2, 4, 8)


def search(load: Callable[[dict[str, Any]], Any], target: Target, build_task: BuildTask) -> list[Plan]:
    """Estimated plans of all settings, those that fit first, the fastest of them in front.

    Raises:
        UserError: no mesh divides the batch.
    """
    config = load({})
    costs: dict[str, Costs] = {}
    remat: dict[str, tuple[str, ...]] = {}
    found = []
    sequence, expert = (config.mesh.get(axis, 1) for axis in ("sequence", "expert"))
    for mesh in meshes(target.devices // (sequence * expert), config.mesh.get("tensor", 1)):
        groups = mesh["mesh.data"] * mesh["mesh.fsdp"] * expert
        accumulations = [n for n in ACCUMULATE if config.batch_size % (n * groups) == 0]
        if not accumulations:
            continue
        try:
            setting = make_setting(load(mesh | {"accumulate_steps": 1}), build_task, target.devices)
        except UserError:  # parameters that this mesh cannot split
            continue
        for policy in REMAT_POLICIES:
            if policy not in costs:
                remat[policy] = tuple(remat_fields(config, setting.task))
                if policy != "none" and not remat[policy]:
                    continue
                other = load(mesh | {"accumulate_steps": 1} | dict.fromkeys(remat[policy], policy))
                costs[policy] = costs_of(make_setting(other, build_task, target.devices))
            for accumulate in accumulations:
                fields = mesh | {"accumulate_steps": accumulate} | dict.fromkeys(remat[policy], policy)
                found.append(estimated(setting, target, fields, costs[policy], accumulate))
    if not found:
        raise UserError(f"batch_size {config.batch_size} fits no mesh of {target.devices} devices")
    # Of settings that are as fast by shapes, the one with the fewest parts moves least behind the figures' back.
    return sorted(found, key=lambda made: (not made.fits, made.step_seconds, sum(made.memory.values())))


def meshes(devices: int, tensor: int) -> Iterator[dict[str, int]]:
    """Every way to lay a power of two of `fsdp` over the devices that `tensor` leaves."""
    for power in range(devices.bit_length()):
        data, rest = divmod(devices, tensor * 2**power)
        if not rest and data:
            yield {"mesh.data": data, "mesh.fsdp": 2**power, "mesh.tensor": tensor}


def remat_fields(config: Any, task: Any) -> Iterator[str]:
    """Paths of the config's fields that set the remat policy of the task's networks."""
    for field in dataclasses.fields(task):
        if hasattr(getattr(task, field.name), "remat"):
            if "name" in config.model and field.name == "network":
                yield "model.remat"
            elif field.name in config.model:
                yield f"model.{field.name}.remat"
