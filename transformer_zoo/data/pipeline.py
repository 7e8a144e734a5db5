"""From `config.data` to endless training batches and finite evaluation batches."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from transformer_zoo import naming
from transformer_zoo.data import draws, loader, sources, transforms
from transformer_zoo.data.checks import CorruptRecords, DataError, check_fields
from transformer_zoo.data.timing import Timing

Batches = Iterator[dict[str, Any]]
_EXAMPLES = 4  # records that stand for all when fields are compared with what a task takes
_BLOCK = 2**10  # steps of a mixture whose draws are counted together


@dataclasses.dataclass(frozen=True)
class Data:
    """Two functions: `train(start)` from batch number `start` on; `evaluate(split, limit)` each record once.

    Attributes:
        train: a batch number to the endless training batches from it on.
        evaluate: (split, limit) to at most `limit` batches of a split, 0 for all.
        example: a split to a few of its records as evaluation sees them, or as training does where it is ''; None
            where there is nothing to look at before training.
        verify: looks at a few records and raises ValueError where they do not fit the task; before training.
        timing: told by training batches what they cost.
    """

    train: Callable[[int], Batches]
    evaluate: Callable[[str, int], Batches]
    example: Callable[[str], dict[str, Any]] | None = None
    verify: Callable[[], None] = lambda: None
    timing: Timing = dataclasses.field(default_factory=Timing)


@dataclasses.dataclass(frozen=True)
class _Member:
    """One source with its transforms: all of the data, or a member of a mixture."""

    config: naming.Options
    where: str
    max_corrupt_share: float

    def source(self, split: str) -> sources.Source:
        options = dict(self.config.get("options") or {})
        extra = dict(self.config.get("train_options" if split == "train" else "eval_options") or {})
        return sources.open_source(self.config["source"], split, options | extra)

    @functools.cached_property
    def training_steps(self) -> list[transforms.Step]:
        return transforms.chain(self.config.get("transforms", ()), f"{self.where}.transforms")

    @functools.cached_property
    def evaluation_steps(self) -> list[transforms.Step]:
        own = self.config.get("eval_transforms")
        return self.training_steps if own is None else transforms.chain(own, f"{self.where}.eval_transforms")

    def training(self, batch_size: int, seed: int, part: slice) -> tuple[loader.Read, CorruptRecords]:
        source = self.source("train")
        read = functools.partial(loader.read_training, source, self.training_steps, batch_size, seed, part)
        return read, CorruptRecords(len(source), self.max_corrupt_share)

    def evaluation(self, split: str, batch_size: int, part: slice) -> tuple[loader.Read, CorruptRecords, int]:
        source = self.source(split)
        read = functools.partial(loader.read_evaluation, source, self.evaluation_steps, batch_size, split, part)
        return read, CorruptRecords(len(source), self.max_corrupt_share), -(-len(source) // batch_size)


def open_data(config: naming.Options, *, batch_size: int, eval_batch_size: int, seed: int) -> Data:
    """Data of one source, or of a `mixture` {name: {weight, source, options, ...}} of several.

    Fields of a source: `source`, `options` (for every split; `train_options` and `eval_options` add to them),
    `transforms`, and `eval_transforms` where evaluation differs. Of the whole: `workers`, processes that make training
    batches (0: a thread of this process), and `max_corrupt_share`, of a source's records.

    Of a mixture every training batch comes from one member and is {member: fields}; the member of step n is a hash of
    (seed, n), so all processes agree and a run resumes without stored state. Its evaluation names 'member/split'.

    Raises:
        ValueError: an unknown source, option or transform, or a split that holds nothing.
    """
    workers, share = config.get("workers", 0), config.get("max_corrupt_share", 0.01)
    if not isinstance(workers, int) or workers < 0:
        raise ValueError(f"data.workers is {workers!r}, but must be a whole number of at least 0")
    if not 0 <= share <= 1:
        raise ValueError(f"data.max_corrupt_share is {share!r}, but must lie between 0 and 1")
    mixture = config.get("mixture")
    members = {"": config} if mixture is None else dict(mixture)
    prefix = "data" if mixture is None else "data.mixture."
    parts = {name: _Member(options, f"{prefix}{name}", share) for name, options in members.items()}
    weights = np.array([1.0 if mixture is None else options.get("weight", 1.0) for options in members.values()], float)
    if not len(parts) or (weights < 0).any() or weights.sum() == 0:
        raise ValueError(f"data.mixture needs members with weights of at least 0, not all 0; it has {members}")
    for part in parts.values():
        part.source("train")  # so that a wrong name stops the run before anything is compiled
        assert part.training_steps is not None and part.evaluation_steps is not None
    timing = Timing()

    def reader(size: int, rows: slice) -> tuple[loader.Read, dict[str, CorruptRecords]]:
        opened = {name: part.training(size, seed + number, rows) for number, (name, part) in enumerate(parts.items())}
        reads = {name: read for name, (read, _) in opened.items()}
        corrupt = {name: records for name, (_, records) in opened.items()}
        if mixture is None:
            return reads[""], corrupt
        return functools.partial(_read_mixture, Mixing(tuple(weights / weights.sum()), seed), reads), corrupt

    def train(start: int) -> Batches:
        read, corrupt = reader(batch_size, loader.process_part(batch_size))
        return loader.training_batches(read, corrupt, start=start, workers=workers, timing=timing)

    def member_of(split: str) -> tuple[_Member, str]:
        name, _, rest = ("", "", split) if mixture is None else split.partition("/")
        if name not in parts:
            raise naming.unknown("split of a mixture, 'member/split':", split, [f"{name}/test" for name in parts])
        return parts[name], rest

    def evaluate(split: str, limit: int) -> Batches:
        part, own = member_of(split)
        read, corrupt, count = part.evaluation(own, eval_batch_size, loader.process_part(eval_batch_size))
        return loader.evaluation_batches(read, corrupt, min(count, limit) if limit else count, workers=workers)

    def example(split: str) -> dict[str, Any]:
        rows = slice(0, _EXAMPLES)
        if split:
            part, own = member_of(split)
            return part.evaluation(own, _EXAMPLES, rows)[0](0).fields
        found = {name: part.training(_EXAMPLES, seed, rows)[0](0).fields for name, part in parts.items()}
        return found[""] if mixture is None else found

    return Data(train, evaluate, example, timing=timing)


def checked(data: Data, spec: Any, check: Callable[[Mapping[str, Any]], None], splits: Iterable[str] = ()) -> Data:
    """The data with a `verify` that compares fields with the task's; every batch goes through `check` before its use.

    Args:
        data: what `open_data` gives.
        spec: `Task.spec()`.
        check: `Task.check`, which raises ValueError.
        splits: that evaluators read.
    """

    def verify() -> None:
        assert data.example is not None
        check_fields(data.example(""), spec, "a training batch")
        for split in splits:
            wanted = spec.get(split.partition("/")[0], spec) if "/" in split else spec
            check_fields(data.example(split), wanted, f"a batch of {split!r}", all_wanted=False)

    def each(batches: Batches) -> Batches:
        for batch in batches:
            try:
                check(batch)
            except ValueError as error:
                raise DataError(str(error)) from error
            yield batch

    return dataclasses.replace(
        data,
        verify=verify,
        train=lambda start: each(data.train(start)),
        evaluate=lambda split, limit: each(data.evaluate(split, limit)),
    )


class Mixing:
    """Which member each step of a mixture belongs to, and how many batches of that member came before.

    Args:
        shares: of the members, summing to 1.
        seed: of the run.
    """

    def __init__(self, shares: tuple[float, ...], seed: int) -> None:
        self._bounds, self._seed = np.cumsum(shares), seed
        self._before = [np.zeros(len(shares), np.int64)]  # batches of each member before each block of steps

    def place(self, step: int) -> tuple[int, int]:
        """The member of a step, and the number of its batch among that member's."""
        block, offset = divmod(step, _BLOCK)
        while len(self._before) <= block:
            drawn = self._members(len(self._before) - 1)
            self._before.append(self._before[-1] + np.bincount(drawn, minlength=len(self._bounds)))
        drawn = self._members(block)
        member = int(drawn[offset])
        return member, int(self._before[block][member] + (drawn[:offset] == member).sum())

    def _members(self, block: int) -> np.ndarray:
        steps = np.arange(block * _BLOCK, (block + 1) * _BLOCK)
        uniforms = draws.uniforms(draws.record_seeds(self._seed, sources.STREAMS["mixture"], steps), 0)
        return np.searchsorted(self._bounds, uniforms, side="right").clip(max=len(self._bounds) - 1)


def _read_mixture(mixing: Mixing, reads: Mapping[str, loader.Read], step: int) -> loader.Delivery:
    member, number = mixing.place(step)
    name = list(reads)[member]
    found = reads[name](number)
    seconds = {f"{name}/{stage}": value for stage, value in found.seconds.items()}
    return loader.Delivery({name: found.fields}, seconds, found.corrupt, name)
