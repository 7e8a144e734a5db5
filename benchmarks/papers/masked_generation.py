"""Claims of generators by masked tokens: fewer calls, fewer FLOPs, and what settings of sampling do to one network."""

import copy
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.runs import Figures, Run, task_of
from transformer_zoo import zoo
from transformer_zoo.training.config import override
from transformer_zoo.training.evaluate import evaluate
from transformer_zoo.training.flops import count_flops
from transformer_zoo.training.state import abstract_variables


def sampled(run: Run, **sampling: Any) -> dict[str, float]:
    """Figures of a run whose samples are drawn otherwise."""
    config = copy.deepcopy(run.config)
    with config.unlocked():
        override(config, {f"sampling.{name}": value for name, value in sampling.items()})
    return evaluate(config, run.folder, zoo.build)


def same_costs(run: Run) -> tuple[tuple[float, float], tuple[float, float]]:
    """Parameters and FLOPs of two figures of one run."""
    return (run.parameters, run.parameters), (run.flops, run.flops)


def many_steps_or_one(seed: int, runs: Mapping[str, Run]) -> Figures:
    """Adherence of samples in the config's number of steps, and in one."""
    (run,) = runs.values()
    metric = "test/samples_adherence"
    return Figures((run.figures[metric], sampled(run, steps=1)[metric]), *same_costs(run))


def guided_or_not(seed: int, runs: Mapping[str, Run]) -> Figures:
    """Adherence of samples with the config's guidance, and without."""
    (run,) = runs.values()
    metric = "test/samples_adherence"
    return Figures((run.figures[metric], sampled(run, guidance_scale=1.0)[metric]), *same_costs(run))


def sampling_flops(run: Run) -> float:
    """FLOPs of one sample: all calls of the network, without the tokenizer."""
    task: Any = task_of(run.config, run.folder)
    variables = abstract_variables(task)
    condition = jax.ShapeDtypeStruct((1, *task.network.condition_shape), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return float(count_flops(task.sample, variables, condition, key).total)


def flops_of_samples(seed: int, runs: Mapping[str, Run]) -> Figures:
    """FLOPs of a sample of the first run and of the second."""
    first, second = runs.values()
    costs = sampling_flops(first), sampling_flops(second)
    return Figures(costs, (first.parameters, second.parameters), costs)


def calls_of_samples(seed: int, runs: Mapping[str, Run]) -> Figures:
    """Calls of the network for one sample of the first run, and an eighth of the second's."""
    first, second = runs.values()
    calls = first.figures["test/samples_calls"], second.figures["test/samples_calls"] / 8
    return Figures(calls, (first.parameters, second.parameters), (first.flops, second.flops))
