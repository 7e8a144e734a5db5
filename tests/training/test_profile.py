import dataclasses
import time

import jax
import jax.numpy as jnp
import pytest

from tests.training import toys
from transformer_zoo.data import sources
from transformer_zoo.data.pipeline import open_data
from transformer_zoo.training import loop, profile
from transformer_zoo.training.errors import UserError

PROGRAM = """HloModule jit_step

ENTRY %main (a: f32[2]) -> f32[2] {
  %a = f32[2]{0} parameter(0)
  %up = f32[2]{0} dot(%a, %a), metadata={op_name="jit(step)/jvp(ViT)/while/body/Block_0/mlp/up/dot_general" id=1}
  ROOT %copy.1 = f32[2]{0} copy(%up)
}
"""


def test_time_inside_of_an_operation_is_not_its_own():
    events = [(0.0, 10.0, "while"), (1.0, 3.0, "dot"), (2.0, 1.0, "add"), (5.0, 4.0, "dot"), (12.0, 2.0, "copy")]
    own = {}
    for name, seconds in profile.without_inner(events):
        own[name] = own.get(name, 0.0) + seconds
    assert own == {"while": 3.0, "dot": 6.0, "add": 1.0, "copy": 2.0}
    assert sum(own.values()) == 12.0, "the time of all threads, once"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("jit(step)/jvp(ViT)/while/body/closed_call/Block_0/mlp/up/dot_general", ("forward", "Block_0/mlp/up")),
        ("jit(step)/transpose(jvp(ViT))/while/body/Block_0/norm1/mul", ("backward", "ViT/Block_0/norm1")),
        ("jit(step)/mul", ("update and metrics", "mul")),
    ],
)
def test_operations_are_told_by_pass_and_part(name, expected):
    assert profile.place(name) == expected


def test_the_program_says_where_operations_belong():
    found = profile.places(PROGRAM)
    assert found["up"] == ("forward", "Block_0/mlp/up") and found["copy.1"] == ("not noted", "copy")


def test_moments_count_once_however_many_threads_share_them():
    computing, preparing = [(0.0, 40.0), (30.0, 60.0), (80.0, 90.0)], [(50.0, 70.0), (55.0, 65.0), (85.0, 100.0)]
    both = profile.overlap_of(computing, preparing)
    expected = (70e-9, 35e-9, 15e-9)
    assert (both.computing, both.preparing, both.hidden) == pytest.approx([x / profile.MEASURED for x in expected])


@dataclasses.dataclass(frozen=True)
class Slow(toys.Regression):
    """Steps that take some dozens of milliseconds, so that batches can be made meanwhile."""

    def loss(self, variables, batch, ctx):
        value, aux = super().loss(variables, batch, ctx)
        busy = jax.lax.fori_loop(0, 10, lambda _, x: jnp.tanh(x @ x), jnp.full((256, 256), value * 1e-9))
        return value + 0 * busy.sum(), aux


class Records:
    """Rows of random numbers, for which one waits longer than it takes to start a step."""

    def __len__(self):
        return 64

    def read(self, indices, seeds):
        time.sleep(0.01)
        return toys.toy_batch(0, len(indices))


def test_batches_are_prepared_while_the_devices_compute(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "open_source", lambda name, split, options: Records())
    data = open_data({"source": "records"}, batch_size=8, eval_batch_size=8, seed=0)

    def train(profiler):
        loop.train(toys.toy_config(total_steps=30), Slow(), {}, data, tmp_path / "run", watch=profiler.at)

    page = profile.profile(train, lambda: PROGRAM, tmp_path, "toy").read_text()
    (trace,) = (tmp_path / "trace").rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(trace))
    names = {event.name for plane in data.planes for line in plane.lines for event in line.events}
    assert {"batch: read", "batch: transfer"} <= names
    both = profile.overlap(data)
    assert both.computing > 0 and both.hidden > 0.5 * both.preparing > 0
    assert f"{100 * both.hidden / both.preparing:.3g} %" in page


def run(workdir, steps):
    def train(profiler):
        config = toys.toy_config(total_steps=steps)
        return loop.train(config, toys.Regression(), {}, toys.toy_data(), workdir / "run", watch=profiler.at)

    return profile.profile(train, lambda: PROGRAM, workdir, "toy")


def test_a_run_is_traced_and_summed_up(tmp_path):
    page = run(tmp_path, 30).read_text()
    assert "By part of the network" in page and "perfetto_trace.json.gz" in page
    (trace,) = (tmp_path / "trace").rglob("*.xplane.pb")
    own = profile.own_times(profile.jax.profiler.ProfileData.from_file(str(trace)))
    assert own and all(name in page for name in sorted(own, key=own.get)[-3:]), "what took longest is shown"
    assert not (tmp_path / "run/checkpoints").exists(), "nothing is trained to its end"


def test_a_run_too_short_to_trace_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"takes 20 steps, but the run has fewer"):
        run(tmp_path, 8)
