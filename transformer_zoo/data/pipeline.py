"""From `config.data` to endless training batches and finite evaluation batches."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from transformer_zoo import naming
from transformer_zoo.data import draws, loader, sources, transforms

Batches = Iterator[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Data:
    """Two functions: `train(start)` from batch number `start` on; `evaluate(split, limit)` each record once."""

    train: Callable[[int], Batches]
    evaluate: Callable[[str, int], Batches]


def open_data(config: naming.Options, *, batch_size: int, eval_batch_size: int, seed: int) -> Data:
    """Data of one source (`source`, `options`, `transforms`), or of a `mixture` {name: {weight, source, ...}}.

    Of a mixture every training batch comes from one member and is {member: fields}; the member of step n is a hash of
    (seed, n), so all processes agree and a run resumes without stored state. Its evaluation names 'member/split'.

    Raises:
        ValueError: an unknown source, option or transform, or a split that holds nothing.
    """
    if "mixture" in config:
        return _open_mixture(config["mixture"], batch_size, eval_batch_size, seed)
    options = dict(config.get("options", {}))
    common = transforms.chain(config.get("transforms", ()))

    def opened(split: str) -> sources.Source:
        extra = dict(config.get("train_options" if split == "train" else "eval_options", {}))
        return sources.open_source(config["source"], split, options | extra)

    def train(start: int) -> Batches:
        return loader.training_batches(opened("train"), common, batch_size, seed=seed, start=start)

    def evaluate(split: str, limit: int) -> Batches:
        return loader.evaluation_batches(opened(split), common, eval_batch_size, split=split, limit=limit)

    opened("train")  # so that a wrong name stops the run before anything is compiled
    return Data(train, evaluate)


def _open_mixture(members: naming.Options, batch_size: int, eval_batch_size: int, seed: int) -> Data:
    names = list(members)
    weights = np.array([members[name].get("weight", 1.0) for name in names], float)
    if not len(names) or (weights < 0).any() or weights.sum() == 0:
        raise ValueError(f"data.mixture needs members with weights of at least 0, not all 0; it has {dict(members)}")
    bounds = np.cumsum(weights / weights.sum())
    parts = {
        name: open_data(
            {key: value for key, value in members[name].items() if key != "weight"},
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed + number,
        )
        for number, name in enumerate(names)
    }

    def chosen(steps: draws.Numbers) -> draws.Numbers:
        draws_of_steps = draws.uniforms(draws.record_seeds(seed, sources.STREAMS["mixture"], steps), 0)
        return np.searchsorted(bounds, draws_of_steps, side="right").clip(max=len(names) - 1)

    def train(start: int) -> Batches:
        before = np.bincount(chosen(np.arange(start)), minlength=len(names))
        iterators = {name: parts[name].train(int(count)) for name, count in zip(names, before)}
        step = start
        while True:
            name = names[int(chosen(np.array(step)))]
            yield {name: next(iterators[name])}
            step += 1

    def evaluate(split: str, limit: int) -> Batches:
        member, _, member_split = split.partition("/")
        if member not in parts:
            raise naming.unknown("split of a mixture, 'member/split':", split, [f"{name}/test" for name in names])
        return parts[member].evaluate(member_split, limit)

    return Data(train, evaluate)
