"""A plan: what a run needs of a machine, set against what the machine offers."""

import dataclasses
import math
from typing import Any

from transformer_zoo.layers.constraints import BATCH_AXES
from transformer_zoo.training.planner.estimates import Costs, costs_of, estimate
from transformer_zoo.training.planner.programs import Collective
from transformer_zoo.training.planner.settings import Setting
from transformer_zoo.training.planner.targets import Target

USABLE = 0.94  # of a device's nominal memory: what a TPU's compiler or a GPU's driver leaves to a program
DAY = 86400.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run needs of a machine.

    Attributes:
        target: the machine.
        method: 'compiled' for it, or 'estimated' from shapes.
        fields: of the config, that a search chose: path to value.
        devices: how many.
        mesh: axis to devices.
        batch_size: examples a step, on all devices.
        memory: bytes a device, by purpose.
        memory_limit: bytes a device offers.
        model_flops: useful FLOPs of a step, all devices.
        executed_flops: with what is computed twice.
        memory_traffic: bytes a device reads and writes in a step.
        collectives: communication in a step.
        times: seconds of a step at the peak rate, by what limits it: 'compute', 'memory', 'network'.
        mfu_bound: model FLOPs over the peak, at the predicted step time.
        total_steps: of the config.
        replicated: large parameters that stay whole on every device.
    """

    target: Target
    method: str
    fields: dict[str, Any]
    devices: int
    mesh: dict[str, int]
    batch_size: int
    memory: dict[str, int]
    memory_limit: int
    model_flops: float
    executed_flops: float
    memory_traffic: float
    collectives: tuple[Collective, ...]
    times: dict[str, float]
    mfu_bound: float
    total_steps: int
    replicated: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether a device has the memory."""
        return sum(self.memory.values()) <= self.memory_limit

    @property
    def step_seconds(self) -> float:
        """Predicted time of a step: the largest of `times`."""
        return max(self.times.values())

    @property
    def bound_by(self) -> str:
        """The name of the largest of `times`."""
        return max(self.times, key=self.times.__getitem__)

    @property
    def days(self) -> float:
        """To `total_steps` at the predicted step time."""
        return self.total_steps * self.step_seconds / DAY

    def record(self) -> dict[str, Any]:
        """What plan.json holds."""
        return {
            "target": self.target.name,
            "device": self.target.chip.kind,
            **{name: getattr(self, name) for name in ("method", "fields", "devices", "mesh", "batch_size")},
            "memory": {**self.memory, "total": sum(self.memory.values()), "limit": self.memory_limit},
            "fits": self.fits,
            "model_flops": self.model_flops,
            "executed_flops": self.executed_flops,
            "memory_traffic": self.memory_traffic,
            "collectives": [
                {**dataclasses.asdict(found), "sent": found.sent}
                for found in sorted(self.collectives, key=lambda found: -found.sent)
            ],
            "seconds": self.times,
            "step_seconds": self.step_seconds,
            "bound_by": self.bound_by,
            "mfu_bound": self.mfu_bound,
            "examples_per_second": self.batch_size / self.step_seconds,
            "total_steps": self.total_steps,
            "days": self.days,
            "replicated": list(self.replicated),
        }


def estimated(
    setting: Setting, target: Target, fields: dict[str, Any], costs: Costs | None = None, accumulate_steps: int = 0
) -> Plan:
    """The plan by shapes alone; `costs` where they are known already, `accumulate_steps` other than the config's."""
    costs = costs or costs_of(setting)
    needs = estimate(setting, costs, accumulate_steps or setting.config.accumulate_steps)
    return assembled(setting, target, fields, "estimated", needs.memory, needs.traffic, needs.collectives, (), costs)


def assembled(
    setting: Setting,
    target: Target,
    fields: dict[str, Any],
    method: str,
    memory: dict[str, int],
    traffic: float,
    collectives: tuple[Collective, ...],
    replicated: tuple[str, ...],
    costs: Costs,
) -> Plan:
    """A plan from what is known of one device."""
    peak = target.peak_flops * target.devices
    times = {
        "compute": costs.executed_flops / peak,
        "memory": traffic / target.chip.memory_bandwidth,
        "network": sum(found.sent for found in collectives) / target.link_bandwidth,
    }
    return Plan(
        target=target,
        method=method,
        fields=fields,
        devices=target.devices,
        mesh={axis: size for axis, size in setting.mesh.shape.items() if size > 1} or {"data": 1},
        batch_size=setting.config.batch_size,
        memory=memory,
        memory_limit=int(USABLE * target.memory),
        model_flops=costs.model_flops,
        executed_flops=costs.executed_flops,
        memory_traffic=traffic,
        collectives=collectives,
        times=times,
        mfu_bound=costs.model_flops / (peak * max(times.values())),
        total_steps=setting.config.total_steps,
        replicated=replicated,
    )


def advice(made: Plan) -> str:
    """Why a plan does not fit, and what to change."""
    total, limit = sum(made.memory.values()), made.memory_limit
    return f"{made.target.name}: a device needs {total / 2**30:,.1f} of {limit / 2**30:,.1f} GiB. {remedy(made)}"


def remedy(made: Plan) -> str:
    """The axis or field that helps most, by what takes the memory."""
    kept = made.memory.get("kept activations", made.memory.get("temporaries", 0))
    batch, total = made.memory.get("batch", 0), sum(made.memory.values())
    if kept + batch > total / 2:
        spread = math.prod(made.mesh.get(axis, 1) for axis in BATCH_AXES)
        split = made.mesh.get("sequence", 1)
        free = spread * split < made.devices
        more = f"raise mesh.data or mesh.fsdp (the batch is in {spread} parts), " if free else ""
        if spread == made.batch_size and kept > batch:
            more = f"every device has one sample, so for long streams of tokens raise mesh.sequence (now {split}), "
        if batch > kept:
            return f"Most is the batch itself: {more}lower batch_size"
        return f"Most is kept activations: {more}set model.remat='full', raise accumulate_steps or lower batch_size"
    if made.mesh.get("fsdp", 1) < made.devices:
        return f"Most is parameters and optimizer state: raise mesh.fsdp (now {made.mesh.get('fsdp', 1)})"
    return "Most is parameters and optimizer state, split over all devices already: take a larger machine or model size"
