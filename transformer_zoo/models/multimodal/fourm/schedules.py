"""What happens at each step of a chain of generated modalities: how many tokens, at what temperature, how guided."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from transformer_zoo import naming

SCHEMES = ("maskgit", "roar", "autoregressive")
COUNTS = ("cosine", "linear")
TEMPERATURES = ("constant", "linear", "falling", "onex")
COLDEST = 1e-9
Counts = Int[np.ndarray, "steps"]
Scale = float | Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Target:
    """One modality of a chain and how it is generated.

    Attributes:
        modality: its name.
        scheme: 'maskgit' keeps the surest tokens of each step, 'roar' asks for random ones, 'autoregressive' reads on.
        steps: calls of the network; of 'autoregressive' the sequence's length decides.
        counts: how many tokens each step keeps, 'cosine' or 'linear'.
        temperature: at the first step.
        temperature_schedule: 'constant', 'linear' (falls with the share of tokens still missing), 'falling:MIN', or
            'onex:MIN:POWER'.
        guidance_scale: 1 is no guidance; or a weight for each condition by name, negative to lead away from it.
        top_k, top_p: see `decoding.sampling`.
    """

    modality: str
    scheme: str = "roar"
    steps: int = 1
    counts: str = "linear"
    temperature: float = 1.0
    temperature_schedule: str = "constant"
    guidance_scale: Any = 1.0
    top_k: float = 0.0
    top_p: float = 0.0

    def __post_init__(self) -> None:
        kind = self.temperature_schedule.partition(":")[0]
        for name, value, known in (
            ("scheme", self.scheme, SCHEMES),
            ("counts", self.counts, COUNTS),
            ("temperature_schedule", kind, TEMPERATURES),
        ):
            if value not in known:
                raise naming.unknown(f"{name} of {self.modality!r}:", value, known)
        if self.steps < 1:
            raise ValueError(f"steps of {self.modality!r} is {self.steps}, but must be at least 1")


def token_counts(kind: str, steps: int, total: int) -> Counts:
    """Tokens that each step keeps: by differences of (1 + cos(pi i / steps)) / 2, rounded half to even, or evenly.

    An even schedule of more steps than tokens is shorter than asked.
    """
    if kind == "cosine":
        shares = [0.5 * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]
        counts = [round(total * (before - after)) for before, after in itertools.pairwise(shares)]
        return np.array([*counts, total - sum(counts)])
    even = np.sort(np.diff(np.linspace(0, total, steps + 1, dtype=int)))[::-1]
    return even[even > 0]


def continued(counts: Counts, known: int) -> Int[np.ndarray, "left"]:
    """What is left of a schedule where `known` tokens are there already."""
    after = np.cumsum(counts)
    left = counts[after > known].copy()
    left[0] = after[after > known][0] - known
    return left


def temperatures(kind: str, first: float, counts: Counts) -> Float[np.ndarray, "steps"]:
    """A temperature for each step of `counts`, see `Target`.

    'onex' looks up 1 / x^POWER, x from 1 to 100 in one row a token and scaled to [0, 1], by the number of the STEP.
    """
    name, *numbers = kind.split(":")
    total, done = counts.sum(), np.cumsum(counts)
    share = done / total
    if name == "constant":
        return np.full(len(counts), first)
    if name == "linear":
        return np.clip(np.append(first, first * (total - done[:-1]) / total), COLDEST, None)
    least = float(numbers[0])
    if name == "falling":
        return least + (first - least) * (1 - share)
    table = 1 / np.linspace(1, 100, total) ** float(numbers[1])
    table = table - table.min()
    shape = (table / table.max())[: len(counts)] if table.max() > 0 else table[: len(counts)]
    return np.clip(least + (first - least) * ((1 - share) * shape), COLDEST, None)


def chain_steps(
    targets: Sequence[Target], places: Mapping[str, int], conditions: Sequence[str], grow: bool = False
) -> list[dict[str, Any]]:
    """Every step of a chain, in order.

    Args:
        targets: modalities in the order of their generation.
        places: tokens of each.
        conditions: what guidance takes away.
        grow: whether it also takes away the modalities that are generated.

    Returns:
        For each step 'modality', 'scheme', 'tokens' (None where a sequence is read on), 'temperature',
        'guidance_scale' and 'conditions'.
    """
    found, conditions = [], list(conditions)
    for target in targets:
        shared = {"modality": target.modality, "scheme": target.scheme, "conditions": list(conditions)}
        shared["guidance_scale"] = target.guidance_scale
        if target.scheme == "autoregressive":
            found.append(shared | {"tokens": None, "temperature": target.temperature})
            continue  # the reference lets a sequence never become a condition
        counts = token_counts(
            target.counts if target.scheme == "maskgit" else "linear", target.steps, places[target.modality]
        )
        heat = temperatures(target.temperature_schedule, target.temperature, counts)
        found += [shared | {"tokens": int(n), "temperature": float(t)} for n, t in zip(counts, heat)]
        if grow:
            conditions.append(target.modality)
    return found
