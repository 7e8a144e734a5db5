import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from transformer_zoo.training import sharding
from transformer_zoo.training.config import load_config
from transformer_zoo.training.errors import UserError
from transformer_zoo.training.planner.compiled import program_text
from transformer_zoo.training.planner.estimates import costs_of, estimate
from transformer_zoo.training.planner.plan import plan
from transformer_zoo.training.planner.programs import array_bytes, group_size, traffic
from transformer_zoo.training.planner.search import meshes
from transformer_zoo.training.planner.settings import make_setting
from transformer_zoo.training.planner.targets import parse_target
from transformer_zoo.zoo import build_task

# As a TPU's compiler writes it: a loop of 12 turns that gathers in two fusions of one channel, reads one row of a stack
# and writes another in place, and a sum of which each device keeps its part.
PROGRAM = """HloModule step, num_partitions=8

%fused_gather (p0: bf16[2,8]) -> bf16[16,8] {
  %p0 = bf16[2,8]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[16,8]{1,0:T(8,128)S(1)} all-gather(%p0), channel_id=7, replica_groups=[1,8]<=[8]
}

%fused_gather_done (q0: bf16[2,8]) -> bf16[16,8] {
  %q0 = bf16[2,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[16,8]{1,0:T(8,128)S(1)} all-gather(%q0), channel_id=7, replica_groups=[1,8]<=[8]
}

%fused_row (s0: f32[12,100], s1: s32[]) -> f32[1,100] {
  %s0 = f32[12,100]{1,0} parameter(0)
  %s1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %row = f32[1,100]{1,0} dynamic-slice(%s0, %s1, %zero), dynamic_slice_sizes={1,100}
}

%fused_store (u0: f32[12,100], u1: f32[1,100], u2: s32[]) -> f32[12,100] {
  %u0 = f32[12,100]{1,0} parameter(0)
  %u1 = f32[1,100]{1,0} parameter(1)
  %u2 = s32[] parameter(2)
  %none = s32[] constant(0)
  ROOT %stored = f32[12,100]{1,0} dynamic-update-slice(%u0, %u1, %u2, %none)
}

%all-reduce-scatter.1 (r0: f32[64]) -> f32[8] {
  %r0 = f32[64]{0} parameter(0)
  %sum = f32[64]{0} all-reduce(%r0), channel_id=9, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %part = f32[8]{0} slice(%sum), slice={[0:8]}
}

%body (loop: (s32[], f32[12,100], bf16[2,8])) -> (s32[], f32[12,100], bf16[2,8]) {
  %loop = (s32[], f32[12,100]{1,0}, bf16[2,8]{1,0}) parameter(0)
  %index = s32[] get-tuple-element(%loop), index=0
  %stack = f32[12,100]{1,0} get-tuple-element(%loop), index=1
  %shard = bf16[2,8]{1,0} get-tuple-element(%loop), index=2
  %start = bf16[16,8]{1,0:S(1)} fusion(%shard), kind=kCustom, calls=%fused_gather
  %done = bf16[16,8]{1,0:S(1)} fusion(%shard), kind=kCustom, calls=%fused_gather_done
  %read = f32[1,100]{1,0:S(1)} fusion(%stack, %index), kind=kLoop, calls=%fused_row
  %new = f32[12,100]{1,0} fusion(%stack, %read, %index), kind=kLoop, calls=%fused_store
  ROOT %next = (s32[], f32[12,100]{1,0}, bf16[2,8]{1,0}) tuple(%index, %new, %shard)
}

%condition (state: (s32[], f32[12,100], bf16[2,8])) -> pred[] {
  %state = (s32[], f32[12,100]{1,0}, bf16[2,8]{1,0}) parameter(0)
  %turns = s32[]{:T(128)} constant(12)
  %turn = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%turn, %turns), direction=LT
}

ENTRY %main (a: f32[12,100], b: bf16[2,8], c: f32[64]) -> f32[8] {
  %a = f32[12,100]{1,0} parameter(0)
  %b = bf16[2,8]{1,0} parameter(1)
  %c = f32[64]{0} parameter(2)
  %i = s32[] constant(0)
  %given = (s32[], f32[12,100]{1,0}, bf16[2,8]{1,0}) tuple(%i, %a, %b)
  %loops = (s32[], f32[12,100]{1,0}, bf16[2,8]{1,0}) while(%given), condition=%condition, body=%body
  ROOT %scattered = f32[8]{0} fusion(%c), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_program_of_a_tpu_is_read_with_its_loops():
    found = traffic(PROGRAM)
    gather, scatter = sorted(found.collectives, key=lambda one: one.kind)
    assert (gather.kind, gather.devices, gather.size, gather.times) == ("all-gather", 8, 256, 12)
    assert gather.sent == 12 * 256 * 7 / 8
    assert (scatter.kind, scatter.devices, scatter.size, scatter.times) == ("reduce-scatter", 8, 256, 1)
    assert found.unknown_loops == 0
    # A turn compares two numbers, reads two shards of 32 bytes and one row of 400 by its number, and writes one row.
    assert found.memory == 12 * (9 + 2 * 32 + 404 + 404) + 256 + 32


def test_loops_that_end_by_a_value_turn_as_often_as_their_writer_noted():
    dynamic = PROGRAM.replace("constant(12)", "parameter(1)")
    assert traffic(dynamic).unknown_loops == 1
    noted = dynamic.replace("body=%body", 'body=%body, metadata={op_name="jit(step)/about_7_turns/while"}')
    found = traffic(noted)
    assert found.unknown_loops == 0 and {one.times for one in found.collectives} == {7, 1}


@pytest.mark.devices(8)
def test_a_program_compiled_here_sends_what_its_sums_say():
    mesh = sharding.make_mesh({"data": -1})
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

    def sums(x, weights):
        def body(carry, weight):
            return carry + jax.lax.with_sharding_constraint((x * weight).sum(axis=0), whole), None

        return jax.lax.scan(body, jnp.zeros(32), weights)[0]

    arguments = (
        jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=split),
        jax.ShapeDtypeStruct((5, 16, 1), jnp.float32, sharding=whole),
    )
    with jax.set_mesh(mesh):
        compiled = jax.jit(sums, out_shardings=whole).lower(*arguments).compile()
    found = traffic(compiled.as_text())
    assert [(one.kind, one.devices, one.size, one.times) for one in found.collectives] == [("all-reduce", 8, 128, 5)]


def test_groups_are_read_in_every_way_they_are_written():
    assert group_size("replica_groups=[4,2]<=[8]") == 2
    assert group_size("replica_groups={{0,1,2},{3,4,5}}, more") == 3
    assert group_size("replica_groups=mesh['axis_0'=2,'axis_1'=4,'axis_2'=2] {'axis_0','axis_1'}") == 8
    assert group_size("replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_0'}, more") == 2
    assert group_size("channel_id=1") == 1


def test_bytes_of_types():
    assert array_bytes("(f32[2,3]{1,0}, bf16[4]{0:T(8)S(1)}, pred[], s4[6])") == 24 + 8 + 1 + 3
    assert array_bytes("(f32[2,3]{1,0}, bf16[4]{0:T(8)S(1)})", main_memory=True) == 24


@pytest.mark.parametrize(
    ("text", "devices", "memory"),
    [
        ("v5e:16x16", 256, 16),
        ("v5p:8x8x8", 512, 95),
        ("gpu:h100x64", 64, 80),
        ("gpu:rtx4090", 1, 24),
        ("gpu:rtx4090x2", 2, 24),
    ],
)
def test_machines_by_name(text, devices, memory):
    target = parse_target(text)
    assert (target.devices, target.memory) == (devices, memory * 2**30)


def test_more_gpus_than_a_node_are_joined_by_its_network():
    assert parse_target("gpu:h100x8").link_bandwidth == 450e9 and parse_target("gpu:h100x16").link_bandwidth == 50e9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5x:4x4", "did you mean 'v5p'"),
        ("v5e:4", "a slice of v5e has 2 sides, as in v5e:4x4"),
        ("v5e:64x64", "4096 devices, but a slice of v5e has between 1 and 256"),
        ("gpu:h10x8", "did you mean 'h100'"),
        ("gpu:h100xmany", "'many' is no number of devices"),
        ("gpu:v5e", "'v5e' is unknown"),
    ],
)
def test_machines_that_are_none_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_target(text)


SMALL = {"model.depth": 2}  # traced in little time


def setting(devices, **overrides):
    return make_setting(load_config("configs/vit.py:Ti16", SMALL | {"batch_size": 8} | overrides), build_task, devices)


def test_memory_is_the_state_on_a_device_and_what_the_backward_pass_needs():
    one, four = setting(1), setting(4, **{"mesh.data": 1, "mesh.fsdp": 4})
    costs = costs_of(one)
    alone, split = estimate(one, costs, 1).memory, estimate(four, costs, 1).memory
    parameters = sum(leaf.size for leaf in jax.tree.leaves(one.state.params))
    assert alone["parameters"] == alone["gradients"] == 4 * parameters
    assert alone["optimizer and averages"] == pytest.approx(2 * alone["parameters"], rel=1e-4)
    assert split["parameters"] < 0.26 * alone["parameters"]
    assert split["kept activations"] == alone["kept activations"] // 4
    assert estimate(one, costs, 2).memory["kept activations"] == alone["kept activations"] // 2


def test_split_tokens_divide_what_the_backward_pass_needs():
    one, split = setting(1), setting(4, **{"mesh.data": 2, "mesh.sequence": 2})
    costs = costs_of(one)
    alone, needs = estimate(one, costs, 1), estimate(split, costs, 1)
    assert needs.memory["kept activations"] == alone.memory["kept activations"] // 4
    assert needs.memory["parameters"] == alone.memory["parameters"]
    assert [(found.kind, found.devices) for found in needs.collectives] == [("all-reduce", 4)]


def test_full_rematerialisation_keeps_the_inputs_of_blocks():
    plain, full = (
        [costs_of(setting(1, **{"model.remat": remat, "model.depth": depth})) for depth in (2, 4)]
        for remat in ("none", "full")
    )
    inputs = 2 * 8 * 197 * 192 * 2  # of two blocks, in bfloat16
    assert inputs <= full[1].kept - full[0].kept < 1.1 * inputs
    assert plain[1].kept - plain[0].kept > 10 * inputs
    assert full[0].model_flops == plain[0].model_flops == plain[0].executed_flops
    assert 1.2 < full[0].executed_flops / full[0].model_flops < 4 / 3, "a forward pass more, but for what nobody reads"


def loader(**fixed):
    return lambda fields: load_config("configs/vit.py:Ti16", SMALL | fixed | fields)


def test_a_plan_sets_needs_against_a_machine():
    made, others = plan(loader(batch_size=64), "gpu:rtx4090", build_task)
    record = json.loads(json.dumps(made.record()))
    blocks, patches, head = 197 * 2 * (12 * 192**2 + 2 * 197 * 192), 196 * 768 * 192, 192 * 1000
    flops = 6 * (blocks + head) + 4 * patches  # pixels get no gradient
    assert record["model_flops"] == 64 * flops
    assert record["seconds"]["compute"] == pytest.approx(record["executed_flops"] / 165.2e12)
    assert record["seconds"]["memory"] == pytest.approx(record["memory_traffic"] / 1008e9)
    assert record["step_seconds"] == max(record["seconds"].values()) and record["fits"] and not others
    assert record["days"] == pytest.approx(record["total_steps"] * record["step_seconds"] / 86400)
    assert record["memory"]["total"] == sum(v for k, v in record["memory"].items() if k not in ("total", "limit"))


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"batch_size": 65536, "model.remat": "full", "accumulate_steps": 8}, "the batch itself: lower batch_size"),
        ({"batch_size": 8192}, "kept activations: set model.remat='full', raise accumulate_steps or lower batch_size"),
        ({"batch_size": 8, "model.width": 24576, "model.num_heads": 3}, "take a larger machine"),
    ],
)
def test_what_does_not_fit_says_what_to_change(fixed, message):
    with pytest.raises(UserError, match=message):
        plan(loader(**fixed), "gpu:t4", build_task)


def test_parameters_that_do_not_fit_ask_for_fsdp():
    fixed = {"batch_size": 8, "model.width": 24576, "model.num_heads": 3}
    with pytest.raises(UserError, match=r"raise mesh.fsdp \(now 1\)"):
        plan(loader(**fixed), "gpu:t4x8", build_task)


def test_one_sample_a_device_asks_for_the_sequence_axis():
    fixed = {"batch_size": 2, "model.image_size": (4096, 4096), "model.depth": 96, "mesh.data": 2}
    with pytest.raises(UserError, match=r"every device has one sample, so .* raise mesh\.sequence \(now 1\)"):
        plan(loader(**fixed), "gpu:t4x2", build_task)
    made, _ = plan(loader(batch_size=4, **{"mesh.data": 2, "mesh.sequence": 2}), "gpu:t4x4", build_task)
    assert made.mesh == {"data": 2, "sequence": 2}


def test_a_search_finds_what_fits_and_keeps_the_batch():
    made, others = plan(loader(batch_size=8192), "search:gpu:t4x2", build_task)
    assert made.fits and made is others[0] and made.batch_size == 8192
    assert made.step_seconds == min(other.step_seconds for other in others if other.fits)
    assert not all(other.fits for other in others), "nothing had to be looked for"
    assert {other.fields["model.remat"] for other in others} == {"none", "full", "dots", "dots_no_batch"}
    for other in others:
        assert np.prod(list(other.mesh.values())) == 2


def test_meshes_cover_the_devices():
    assert list(meshes(12, 3)) == [
        {"mesh.data": 4, "mesh.fsdp": 1, "mesh.tensor": 3},
        {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 3},
        {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 3},
    ]


def test_a_program_that_this_version_cannot_read_says_so():
    class Unread:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: async-update instruction should have 1 operands\nfurther lines")

    with pytest.raises(UserError, match=r"cannot read the program .* should have 1 operands\): plan with a newer jax"):
        program_text(Unread())


def test_a_config_of_stages_names_the_runs_to_plan():
    with pytest.raises(UserError, match=r"plan one of them: --config=configs/mae.py"):
        make_setting(load_config("configs/quickstart.py"), build_task, 1)
