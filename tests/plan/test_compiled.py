"""Steps compiled for a small TPU slice with no TPU; they need libtpu (the extra `plan`)."""

import jax
import pytest

from transformer_zoo.training.config import load_config
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.planner import compiled
from transformer_zoo.training.planner.plan import plan, plan_setting
from transformer_zoo.training.planner.settings import make_setting
from transformer_zoo.training.planner.targets import parse_target
from transformer_zoo.zoo import build_task

SMALL = {"model.depth": 3, "mesh.data": 1, "mesh.fsdp": 4, "batch_size": 32}


def load(fields):
    return load_config("configs/vit.py:Ti16", SMALL | fields)


def test_a_step_is_compiled_for_a_slice():
    target = parse_target("v5e:2x2")
    setting = make_setting(load({}), build_task, compiled.slice_devices(target))
    made = plan_setting(setting, target, {})
    state = sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((setting.state.params, setting.state.optimizer))
    )
    batch = 32 * 224 * 224 * 3 * 4
    assert (state + batch) / 4 < made.memory["state and batch"] < 1.3 * (state + batch) / 4, (
        "split over four devices, padded"
    )
    assert made.fits and not made.replicated and made.method == "compiled"
    gathers = [found for found in made.collectives if found.kind == "all-gather" and found.devices == 4]
    assert any(found.times % 3 == 0 for found in gathers), "a block's parameters are gathered in every turn"
    qkv = 3 * 192 * 192 * 2  # bytes of one block's kernel in bfloat16
    assert sum(found.size * found.times for found in gathers) > 3 * 2 * 4 * qkv, "forward and backward"
    assert made.memory_traffic > 3 * (state / 4), "the optimizer reads and writes its state"


def test_a_step_that_does_not_fit_says_what_to_change():
    with pytest.raises(UserError, match=r"compiled step needs [\d.,]+ of 15.8 GiB a device. Most is kept activations"):
        plan(lambda fields: load({"batch_size": 32768} | fields), "v5e:2x2", build_task)


def test_a_slice_that_libtpu_does_not_know_is_refused():
    with pytest.raises(UserError, match="libtpu knows no such slice"):
        compiled.slice_devices(parse_target("v5e:3x5"))
