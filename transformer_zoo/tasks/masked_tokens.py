"""Masked tokens: predict the ids of hidden tokens, and fill a whole grid with the same network.

Pictures or clips become ids by a tokenizer of another run, which stays as it is (`requires`), in the training step
itself, so that every epoch may crop and flip as it likes (Chang et al. 2022, arXiv 2202.04200, section 3.2).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from transformer_zoo.decoding.masked import Step, decode_masked
from transformer_zoo.decoding.sampling import guide
from transformer_zoo.decoding.schedules import ramp
from transformer_zoo.masking.tokens import hide_random
from transformer_zoo.task import Aux, Batch, Context, Evaluator, Result, Task, Tree, Variables
from transformer_zoo.tasks.networks import apply_frozen, apply_network, frozen_network, init_network

Grid = Int[Array, "batch *grid"]
Hidden = Bool[Array, "batch *grid"]


def token_loss(
    logits: Float[Array, "batch *grid codes"],
    targets: Grid,
    weights: Hidden | Float[Array, "batch *grid"],
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Cross-entropy of the weighted tokens of every sample, then the mean over samples (MaskGIT's code)."""
    axes = tuple(range(1, targets.ndim))
    smooth = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), label_smoothing)
    weights = weights.astype(jnp.float32)
    losses = optax.softmax_cross_entropy(logits.astype(jnp.float32), smooth) * weights
    return (losses.sum(axis=axes) / jnp.maximum(weights.sum(axis=axes), 1e-8)).mean()


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a grid is filled; `config.sampling`, which may differ between training and evaluation.

    Attributes:
        steps: calls of the network.
        schedule, order, choice_temperature, temperature, top_k, top_p: see `decode_masked`.
        temperature_ramp: how the temperature changes, see `ramp`.
        guidance_scale: 1 is none, see `guide`.
        guidance_ramp: how what it exceeds 1 by changes.
    """

    steps: int = 8
    schedule: str = "cosine"
    order: str = "confidence"
    choice_temperature: float = 4.5
    temperature: float = 1.0
    temperature_ramp: str = "constant"
    top_k: int = 0
    top_p: float = 0.0
    guidance_scale: float = 1.0
    guidance_ramp: str = "constant"


@dataclasses.dataclass(frozen=True)
class MaskedTokens(Task):
    """Cross-entropy of the hidden tokens of pictures or clips.

    Attributes:
        network: gives (logits [batch, *grid, codes], aux) of (ids, condition); has grid, mask_id, condition_shape and
            null_condition.
        tokenizer: of the run that `requires.tokenizer` names; has grid, codebook_size, input_shape, pixel_range,
            `tokenize` and `detokenize`.
        sampling: see `Sampling`.
        condition: the field of the batch that says what is shown, int [batch, *condition_shape]: 'label', 'caption'.
        schedule: of the share of hidden tokens, see `hide_random`.
        label_smoothing: share of the target spread evenly over all codes.
        condition_drop_rate: share of the samples whose condition is hidden, for guidance.
    """

    network: nn.Module
    tokenizer: nn.Module
    sampling: Sampling = Sampling()
    condition: str = "label"
    schedule: str = "cosine"
    label_smoothing: float = 0.1
    condition_drop_rate: float = 0.0

    def __post_init__(self) -> None:
        if tuple(self.network.grid) != tuple(self.tokenizer.grid):
            raise ValueError(f"model.grid is {self.network.grid}, but the tokenizer's is {self.tokenizer.grid}")
        if self.network.num_codes != self.tokenizer.codebook_size:
            raise ValueError(
                f"model.num_codes is {self.network.num_codes}, but the tokenizer has {self.tokenizer.codebook_size}"
            )
        if not 0 <= self.condition_drop_rate < 1:
            raise ValueError(f"task.condition_drop_rate is {self.condition_drop_rate}, but must lie in [0, 1)")
        if self.network.null_condition < 0 and (self.condition_drop_rate or self.guided):
            raise ValueError("condition_drop_rate and guidance need model.null_condition, what stands for no condition")

    @property
    def guided(self) -> bool:
        """Whether sampling asks for guidance."""
        return self.sampling.guidance_scale != 1

    @property
    def pixels(self) -> str:
        """The field of the batch that the tokenizer takes."""
        return "image" if len(self.tokenizer.input_shape) == 3 else "video"

    def spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            self.pixels: jax.ShapeDtypeStruct((batch_size, *self.tokenizer.input_shape), jnp.float32),
            self.condition: jax.ShapeDtypeStruct((batch_size, *self.network.condition_shape), jnp.int32),
        }

    def init(self, key: Key[Array, ""]) -> Variables:
        spec = self.spec()
        ids = jnp.zeros((1, *self.network.grid), jnp.int32)
        condition = self.condition_of({name: jnp.zeros(field.shape, field.dtype) for name, field in spec.items()})
        params, _ = init_network(self.network, key, *self.inputs(ids, condition, ids == 0))
        frozen = {"tokenizer": frozen_network(self.tokenizer, jnp.zeros(spec[self.pixels].shape))}
        return Variables(params={"model": params}, frozen=frozen)

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], Aux]:
        mask_key, drop_key, key = jax.random.split(ctx.key, 3)
        ids = self.tokenize(variables, batch)
        hidden = self.hide(mask_key, ids.shape)
        condition = self.condition_of(batch)
        condition = self.drop(drop_key, condition) if ctx.train else condition
        shown = jnp.where(hidden, self.network.mask_id, ids)
        logits = self.predict(variables, shown, condition, hidden, key=key, train=ctx.train)
        right = ((logits.argmax(axis=-1) == ids) & hidden).sum() / hidden.sum()
        return self.token_loss(logits, ids, hidden), Aux(metrics={"accuracy": right})

    def hide(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Hidden:
        """Which tokens a training step hides."""
        return hide_random(key, shape, self.schedule)

    def token_loss(self, logits: Float[Array, "batch *grid codes"], ids: Grid, hidden: Hidden) -> Float[Array, ""]:
        """What is minimised."""
        return token_loss(logits, ids, hidden, self.label_smoothing)

    def inputs(self, shown: Grid, condition: Any, hidden: Hidden) -> tuple[Any, ...]:
        """What the network is given."""
        return shown, condition

    def predict(
        self,
        variables: Variables,
        shown: Grid,
        condition: Any,
        hidden: Hidden,
        *,
        key: Key[Array, ""] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch *grid codes"]:
        """Logits at every place."""
        inputs = self.inputs(shown, condition, hidden)
        return apply_network(self.network, variables, *inputs, key=key, train=train)[0]

    def tokenize(self, variables: Variables, batch: Batch) -> Grid:
        """Ids of the batch's pictures or clips."""
        frozen = variables.frozen["tokenizer"]
        return apply_frozen(self.tokenizer, frozen, batch[self.pixels], method="tokenize")

    def detokenize(self, variables: Variables, ids: Grid) -> Float[Array, "batch *sides channels"]:
        """Pictures or clips of ids, in the tokenizer's range of pixels."""
        return apply_frozen(self.tokenizer, variables.frozen["tokenizer"], ids, method="detokenize")

    def condition_of(self, batch: Batch) -> Any:
        """What the batch's samples show, a tree of arrays [batch, ...]."""
        return batch[self.condition]

    def without(self, condition: Any) -> Any:
        """The condition that says nothing, for as many samples."""
        return jax.tree.map(lambda one: jnp.full_like(one, self.network.null_condition), condition)

    def drop(self, key: Key[Array, ""], condition: Any) -> Any:
        """Conditions, some of them hidden."""
        if not self.condition_drop_rate:
            return condition
        dropped = jax.random.bernoulli(key, self.condition_drop_rate, (len(jax.tree.leaves(condition)[0]),))

        def hide(nothing: Array, one: Array) -> Array:
            return jnp.where(dropped.reshape((-1,) + (1,) * (one.ndim - 1)), nothing, one)

        return jax.tree.map(hide, self.without(condition), condition)

    def sample(
        self,
        variables: Variables,
        condition: Any,
        key: Key[Array, ""],
        ids: Grid | None = None,
        unknown: Hidden | None = None,
    ) -> Grid:
        """Grids of ids for conditions [batch, ...]; where `ids` are given, only the `unknown` ones are filled."""
        shape = (len(jax.tree.leaves(condition)[0]), *self.network.grid)
        ids = jnp.zeros(shape, jnp.int32) if ids is None else ids
        unknown = jnp.ones(shape, bool) if unknown is None else unknown
        return decode_masked(
            self.guided_logits(functools.partial(self.predict, variables), condition),
            ids,
            unknown,
            key,
            hidden=self.network.mask_id,
            **self.decoding_options,
        ).ids

    def guided_logits(
        self, predict: Callable[[Array, Any, Array], Array], condition: Any
    ) -> Callable[[Array, Step], Array]:
        """`predict(shown, condition, unknown)` as `decode_masked` calls it, guided where sampling asks for that."""
        scales = self.guidance_scales
        both = jax.tree.map(lambda *pair: jnp.concatenate(pair), condition, self.without(condition))

        def logits(shown: Array, step: Step) -> Array:
            if not self.guided:
                return predict(shown, condition, step.unknown)
            twice = [jnp.concatenate([one, one]) for one in (shown, step.unknown)]
            with_it, without_it = jnp.split(predict(twice[0], both, twice[1]), 2)
            return guide(with_it, without_it, scales[step.index])

        return logits

    @property
    def guidance_scales(self) -> Float[Array, " steps"]:
        """The weight of the condition in every step."""
        kind, scale = self.sampling.guidance_ramp, self.sampling.guidance_scale
        return jnp.asarray(1 + ramp(kind, scale - 1, self.sampling.steps))

    @property
    def decoding_options(self) -> dict[str, Any]:
        """What `sampling` says to `decode_masked`."""
        chosen = self.sampling
        names = ("steps", "schedule", "order", "choice_temperature", "top_k", "top_p")
        temperatures = ramp(chosen.temperature_ramp, chosen.temperature, chosen.steps)
        return {name: getattr(chosen, name) for name in names} | {"temperature": temperatures.tolist()}

    @property
    def pixel_range(self) -> tuple[float, float]:
        """Of what `generate` and `reconstruct` give."""
        return self.tokenizer.pixel_range

    @property
    def calls(self) -> int:
        """Passes of the network that one sample takes."""
        return self.sampling.steps * (2 if self.guided else 1)

    def generate(self, variables: Variables, batch: Batch, key: Key[Array, ""]) -> Array:
        """Pictures or clips for the conditions of a batch, see `detokenize`."""
        return self.detokenize(variables, self.sample(variables, self.condition_of(batch), key))

    def reconstruct(self, variables: Variables, batch: Batch) -> Array:
        """The batch's own pictures or clips after the tokenizer: the best that any generator can reach."""
        return self.detokenize(variables, self.tokenize(variables, batch))

    def evaluators(self) -> dict[str, Evaluator]:
        return {"": HiddenTokens(task=self)}


@dataclasses.dataclass(frozen=True)
class HiddenTokens(Evaluator):
    """Loss and accuracy of the hidden tokens of held-out data, and the accuracy of always guessing the commonest id."""

    batches: int = 8
    task: MaskedTokens | None = None

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        assert self.task is not None
        ids = self.task.tokenize(variables, batch)
        hidden = self.task.hide(ctx.key, ids.shape)
        shown = jnp.where(hidden, self.task.network.mask_id, ids)
        logits = self.task.predict(variables, shown, self.task.condition_of(batch), hidden)
        axes = tuple(range(1, ids.ndim))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
        counts = jax.nn.one_hot(ids, logits.shape[-1]).sum(axis=axes)
        return {
            "loss": (losses * hidden).sum(axis=axes) / hidden.sum(axis=axes),
            "accuracy": ((logits.argmax(axis=-1) == ids) & hidden).sum(axis=axes) / hidden.sum(axis=axes),
            "counts": counts,
        }

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        weight = batch["weight"]
        sums = {name: (arrays[name] * weight).sum() for name in ("loss", "accuracy")}
        sums |= {"counts": (arrays["counts"] * weight[:, None]).sum(axis=0), "weight": weight.sum()}
        return sums if state is None else self.merge(state, sums)

    def result(self, state: dict) -> Result:
        figures = {name: float(state[name] / state["weight"]) for name in ("loss", "accuracy")}
        return Result(figures | {"commonest_accuracy": float(np.max(state["counts"]) / np.sum(state["counts"]))})
