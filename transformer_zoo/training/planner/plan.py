"""Plans a run: memory against its limit, the roofline of a step, and the days to the config's budget.

    python train.py --config=configs/vit.py:L16 --plan=v5e:16x16          compiled ahead of time for that slice
    python train.py --config=configs/vit.py:L16 --plan=gpu:h100x8         by shapes alone
    python train.py --config=configs/vit.py:L16 --plan=search:v5e:16x16   tries meshes, remat and accumulation

The predicted step time is the largest of three times, as if computing, memory and links worked at their peaks and side
by side; no step is faster, and a good one takes about twice as long. The bound of MFU is the share of the peak that
useful FLOPs can reach at that time.
"""

from collections.abc import Callable
from typing import Any

from transformer_zoo.training.errors import UserError
from transformer_zoo.training.planner import compiled as compiler
from transformer_zoo.training.planner.estimates import costs_of
from transformer_zoo.training.planner.plans import Plan, advice, assembled, estimated, remedy
from transformer_zoo.training.planner.search import search
from transformer_zoo.training.planner.settings import BuildTask, Setting, make_setting
from transformer_zoo.training.planner.targets import Target, parse_target

COMPILED_AT_MOST = 4  # of a search's candidates

Load = Callable[[dict[str, Any]], Any]  # the config with further fields set, {path: value}


def plan(load: Load, text: str, build_task: BuildTask) -> tuple[Plan, list[Plan]]:
    """The plan for a machine, and for a search all settings that were looked at, the best first.

    Args:
        load: the config with further fields set.
        text: the machine, see `targets.parse_target`; 'search:' in front tries settings.
        build_task: of the zoo.

    Raises:
        UserError: what does not fit, with the axis or field to change.
    """
    target = parse_target(text.removeprefix("search:"))
    if not text.startswith("search:"):
        made = plan_setting(make_setting(load({}), build_task, devices_of(target)), target, {})
        if not made.fits:
            raise UserError(advice(made))
        return made, []
    found = search(load, target, build_task)
    if not found[0].fits:
        smallest = min(found, key=lambda made: sum(made.memory.values()))
        raise UserError(f"no setting fits; the smallest: {smallest.fields}. {advice(smallest)}")
    if not target.topology:
        return found[0], found
    for best in [made for made in found if made.fits][:COMPILED_AT_MOST]:
        try:
            made = plan_setting(make_setting(load(best.fields), build_task, devices_of(target)), target, best.fields)
        except UserError:  # the compiler needs more than shapes tell: the next one
            continue
        if made.fits:
            return made, found
    raise UserError(
        f"--plan={text}: the compiler fits none of the {COMPILED_AT_MOST} settings that look best by shapes"
    )


def devices_of(target: Target) -> list[Any] | int:
    """Devices to compile for, or their number where nothing is compiled."""
    return compiler.slice_devices(target) if target.topology else target.devices


def plan_setting(setting: Setting, target: Target, fields: dict[str, Any]) -> Plan:
    """Compiled where the target is a TPU, else estimated.

    Raises:
        UserError: the compiler finds no way to fit it, with the axis or field to change.
    """
    if not target.topology:
        return estimated(setting, target, fields)
    try:
        found = compiler.compile_step(setting)
    except compiler.OutOfMemory as error:
        needed = (
            f"{error.needed / 2**30:,.1f} of {error.limit / 2**30:,.1f} GiB" if error.needed else "more than it has"
        )
        hint = remedy(estimated(setting, target, fields))
        raise UserError(f"{target.name}: the compiled step needs {needed} a device. {hint}") from error
    moved = found.traffic
    return assembled(
        setting,
        target,
        fields,
        "compiled",
        found.memory,
        moved.memory,
        moved.collectives,
        found.replicated,
        costs_of(setting),
    )
