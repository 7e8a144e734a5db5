"""Which tokens of which modality are shown and asked for, drawn from a mixture of Dirichlet budgets (section 2.2).

A component of the mixture says how strongly inputs and targets gather on few modalities:

    {"inputs": {"rgb": 1000.0}, "targets": 0.5}             only rgb is shown, anything is asked for
    {"inputs": 0.5, "targets": 0.5}                         anything to anything
    {"inputs": {"caption": 5.0, "*": 0.05}, "targets": 0.5, "keep": {"caption": "all"}, "weight": 2.0}

A number stands for all modalities; of a mapping '*' stands for those it does not name, else they get nothing. `keep` is
'random' (a share of each sequence, uniform), 'all' or 'binary' (all or nothing).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from transformer_zoo import naming
from transformer_zoo.masking.budgets import dirichlet_budgets, disjoint_masks
from transformer_zoo.masking.spans import choose_masked, mask_spans
from transformer_zoo.models.multimodal.fourm.embeddings import Tokens
from transformer_zoo.models.multimodal.fourm.modalities import Modalities, Modality, Values

KEEP = ("random", "all", "binary")
FIELDS = ("inputs", "targets", "keep", "weight")


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture's components as tables.

    Attributes:
        weights: [components], summing to 1.
        inputs: concentrations, [components, modalities].
        targets: likewise; 0 for what cannot be predicted.
        keep: [components, modalities] index into `KEEP`.
    """

    weights: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray
    keep: np.ndarray


def read_mixture(components: Sequence[Mapping[str, Any]], modalities: Modalities) -> Mixture:
    """Tables of a config's components.

    Raises:
        ValueError: no component, a name that is no modality or no scheme, or a component that shows or asks nothing.
    """
    if not components:
        raise ValueError("task.mixture has no component")
    rows: dict[str, list[Any]] = {name: [] for name in FIELDS}
    for index, component in enumerate(components):
        where = f"task.mixture[{index}]"
        for name in component:
            if name not in FIELDS:
                raise naming.unknown(f"{where}:", name, FIELDS)
        shown = _table(component.get("inputs", 0.0), modalities, f"{where}.inputs")
        asked = _table(component.get("targets", 0.0), modalities, f"{where}.targets")
        shown = shown * [modality.input for modality in modalities.values()]
        asked = asked * [modality.predicted for modality in modalities.values()]
        if not shown.any() or not asked.any():
            raise ValueError(f"{where} shows or asks for no modality")
        keep = _named(component.get("keep", "random"), modalities, f"{where}.keep", "random")
        for name in keep:
            if name not in KEEP:
                raise naming.unknown(f"{where}.keep:", name, KEEP)
        rows["inputs"].append(shown)
        rows["targets"].append(asked)
        rows["keep"].append([KEEP.index(name) for name in keep])
        rows["weight"].append(float(component.get("weight", 1.0)))
    weights = np.asarray(rows["weight"])
    tables = (np.asarray(rows[name]) for name in ("inputs", "targets", "keep"))
    return Mixture(weights / weights.sum(), *tables)


def _named(value: Any, modalities: Modalities, where: str, default: Any) -> list[Any]:
    """`value` by modality: one for all, or a mapping."""
    if not hasattr(value, "items"):
        return [value] * len(modalities)
    for name in value:
        if name != "*" and name not in modalities:
            raise naming.unknown(f"{where}:", name, [*modalities, "*"])
    return [value.get(name, value.get("*", default)) for name in modalities]


def _table(value: Any, modalities: Modalities, where: str) -> np.ndarray:
    return np.asarray(_named(value, modalities, where, 0.0), float)


def mask_batch(
    key: Key[Array, ""],
    values: Mapping[str, Values],
    modalities: Modalities,
    mixture: Mixture,
    num_inputs: tuple[int, int],
    num_targets: tuple[int, int],
) -> dict[str, Tokens]:
    """A random mask of every sample.

    Args:
        key: for all draws.
        values: of every modality, unmasked.
        modalities: those of the network.
        mixture: of budgets.
        num_inputs: the fewest and the most tokens that are shown.
        num_targets: likewise asked for.
    """
    batch = next(iter(values.values())).shape[0]
    keys = iter(jax.random.split(key, 5 + len(modalities)))
    component = jax.random.categorical(next(keys), jnp.log(jnp.asarray(mixture.weights)), shape=(batch,))
    shown = jax.random.randint(next(keys), (batch,), num_inputs[0], num_inputs[1] + 1)
    asked = jax.random.randint(next(keys), (batch,), num_targets[0], num_targets[1] + 1)
    most = np.array([modality.most_tokens for modality in modalities.values()])
    on_grid = np.array([modality.kind in ("pixels", "tokens") for modality in modalities.values()])
    inputs, targets = (jnp.asarray(table, jnp.float32)[component] for table in (mixture.inputs, mixture.targets))
    shown_most = jnp.where(inputs > 0, most, 0)
    input_budget = dirichlet_budgets(next(keys), inputs, shown, shown_most)
    left = jnp.where(on_grid, most - input_budget, most)
    target_budget = dirichlet_budgets(next(keys), targets, asked, jnp.where(targets > 0, left, 0))
    keep = jnp.asarray(mixture.keep)[component]
    found = {}
    for index, (name, modality) in enumerate(modalities.items()):
        budgets = input_budget[:, index], target_budget[:, index]
        found[name] = mask_modality(next(keys), modality, values[name], *budgets, keep[:, index])
    return found


def mask_modality(
    key: Key[Array, ""],
    modality: Modality,
    values: Values,
    input_budget: Int[Array, "batch"],
    target_budget: Int[Array, "batch"],
    keep: Int[Array, "batch"],
) -> Tokens:
    """One modality's values with a random mask; `keep` are indices into `KEEP`."""
    if modality.kind in ("pixels", "tokens"):
        return Tokens(values, *disjoint_masks(key, modality.places, input_budget, target_budget))
    share_key, mask_key, cut_key = jax.random.split(key, 3)
    uniform = jax.random.uniform(share_key, keep.shape)
    chance = jnp.stack([uniform, jnp.ones_like(uniform), jnp.round(uniform)])[keep, jnp.arange(len(keep))]
    there = (values != 0) if modality.kind == "sequence" else (values != 0).any(axis=-1)
    lengths = there.sum(axis=1)
    masked = choose_masked(mask_key, modality.length, lengths, input_budget, chance, modality.chunk)
    ids = values if modality.kind == "sequence" else jnp.zeros(there.shape, jnp.int32)
    spans = mask_spans(cut_key, ids, lengths, masked, input_budget, target_budget, modality.first_sentinel)
    if modality.kind == "sequence":
        return Tokens(spans.values, spans.inputs, spans.targets)
    return _masked_vectors(values, spans.source[:, : modality.length], spans.inputs[:, : modality.length])


def _masked_vectors(
    values: Float[Array, "batch length width"], source: Int[Array, "batch length"], shown: Bool[Array, "batch length"]
) -> Tokens:
    """The vectors that are shown, in a row; a masked span is one vector of zeros."""
    taken = jnp.take_along_axis(values, jnp.maximum(source, 0)[..., None], axis=1)
    return Tokens(jnp.where((source >= 0)[..., None], taken, 0.0), shown, jnp.zeros_like(shown))


def whole(modality: Modality, values: Values, *, shown: bool) -> Tokens:
    """Unmasked values as input, or as what is asked for all at once or from the start.

    A sequence that is asked for is [S1], its ids and the closing sentinel, behind an empty input.
    """
    batch = values.shape[0]
    if modality.kind in ("pixels", "tokens"):
        places = jnp.ones((batch, modality.places), bool)
        return Tokens(values, places & shown, places & (not shown))
    there = (values != 0) if modality.kind == "sequence" else (values != 0).any(axis=-1)
    if modality.kind == "embeddings":
        return Tokens(values, there & shown, jnp.zeros_like(there))
    lengths, key = there.sum(axis=1), jax.random.key(0)  # nothing is cut, so nothing is drawn
    budget = jnp.full((batch,), modality.length if shown else 0)
    masked = there & (not shown)
    spans = mask_spans(
        key, values, lengths, masked, budget, jnp.full((batch,), 2 * modality.length), modality.first_sentinel
    )
    return Tokens(spans.values, spans.inputs, spans.targets & (not shown))


def absent(modality: Modality, batch: int) -> Tokens:
    """A modality of which nothing is known or asked."""
    nothing = jnp.zeros((batch, modality.places), bool)
    shape = (batch, modality.places) if modality.kind == "sequence" else modality.shape(batch)
    return Tokens(jnp.zeros(shape, modality.dtype), nothing, nothing)
