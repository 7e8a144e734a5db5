"""What steps may not cost: compilations, waits of the host, memory for parts of a batch."""

import dataclasses
import logging
import threading

import jax
import jax.numpy as jnp
import pytest
from jax._src.array import ArrayImpl

from tests.training import toys
from transformer_zoo.data import sources
from transformer_zoo.data.pipeline import open_data
from transformer_zoo.task import Aux, Variables
from transformer_zoo.training import loop, step


class Records:
    """20 records: batches of 8 leave 4 over."""

    def __len__(self):
        return 20

    def read(self, indices, seeds):
        rows = toys.toy_batch(0, len(self))
        return {name: values[indices] for name, values in rows.items()}


@pytest.fixture
def data(monkeypatch):
    monkeypatch.setattr(sources, "open_source", lambda name, split, options: Records())
    return open_data({"source": "records"}, batch_size=8, eval_batch_size=8, seed=0)


def test_epochs_with_a_rest_compile_one_step_and_one_evaluation(data, tmp_path, caplog):
    weights = []

    class Counted(toys.Error):
        def update(self, state, arrays, batch):
            weights.append(batch["weight"].sum())
            return super().update(state, arrays, batch)

    @dataclasses.dataclass(frozen=True)
    class Judged(toys.Regression):
        def evaluators(self):
            return {"": Counted(task=self)}

    jax.clear_caches()  # other tests may have compiled what this one has to count
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        config = toys.toy_config(total_steps=8, eval={"every_steps": 4}, log={"every_steps": 1})
        loop.train(config, Judged(), {}, data, tmp_path)
    assert weights == [8, 8, 4] * 2, "two evaluations, each with an uneven last batch"
    compiled = [r.getMessage().split()[1] for r in caplog.records if r.getMessage().startswith("Compiling ")]
    assert compiled.count("jit(step)") == compiled.count("jit(compute)") == 1, compiled


def test_the_host_waits_for_nothing_inside_of_a_step(data, tmp_path, monkeypatch):
    """Between two log steps no array is read, none is waited for, and nothing moves that was not meant to."""
    seen, main = [], threading.main_thread()

    def noted(what, original):
        def call(*args):
            if threading.current_thread() is main:  # another thread may wait: it times the steps
                seen.append(what)
            return original(*args)

        return call

    monkeypatch.setattr(ArrayImpl, "_value", property(noted("read", ArrayImpl._value.fget)))
    monkeypatch.setattr(jax, "block_until_ready", noted("waited", jax.block_until_ready))
    monkeypatch.setattr(jax, "device_get", noted("fetched", jax.device_get))
    found = {}

    def watch(number, state):
        jax.config.update("jax_transfer_guard", "disallow" if 2 <= number < 7 else "allow")
        found[number] = len(seen)

    try:
        config = toys.toy_config(total_steps=12, log={"every_steps": 8})
        loop.train(config, toys.Regression(), {}, data, tmp_path, watch=watch)
    finally:
        jax.config.update("jax_transfer_guard", "allow")
    assert len({found[number] for number in range(1, 9)}) == 1, "the host read something in steps 2 to 8"
    assert found[9] > found[8], "the log step after 8 reads, or this test sees no reading at all"


@dataclasses.dataclass(frozen=True)
class Deep(toys.Regression):
    """Four layers whose activations weigh as much as their parameters."""

    def spec(self, batch_size=1):
        return {"x": jax.ShapeDtypeStruct((batch_size, 256), jnp.float32)}

    def init(self, key):
        return Variables({"model": {"w": jax.random.normal(key, (4, 256, 256))}})

    def loss(self, variables, batch, ctx):
        y = batch["x"]
        for weights in variables.params["model"]["w"]:
            y = jnp.tanh(y @ weights)
        return (y**2).mean(), Aux()


def temporary_bytes(batch_size, accumulate_steps):
    task = Deep()
    optimizers = loop.make_optimizers(task, {"model": toys.toy_config().optimizer}, 10)
    abstract = loop.abstract_state(task, optimizers, False, loop.sharding.make_mesh({}, jax.devices()))
    one = step.make_step(task, optimizers, seed=0, every={"model": 1}, accumulate_steps=accumulate_steps)
    lowered = jax.jit(one, static_argnums=2, donate_argnums=0).lower(abstract, task.spec(batch_size), None)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_accumulation_takes_the_memory_of_a_part_and_one_gradient():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        part, whole, accumulated = temporary_bytes(512, 1), temporary_bytes(2048, 1), temporary_bytes(2048, 4)
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
    gradient = 4 * 256 * 256 * 4
    assert whole > 2 * part, "the activations do not weigh enough to tell"
    assert accumulated <= part + gradient + 4096, (accumulated, part, gradient)
