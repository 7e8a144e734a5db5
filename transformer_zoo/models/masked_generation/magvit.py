"""MAGVIT: Masked Generative Video Transformer (Yu et al., CVPR 2023, arXiv 2212.05199).

One transformer makes clips from a class, from their first frames, from both ends, from a part of every frame. COMMIT
(section 3.2): what is given is encoded as a clip of its own, its gaps filled in, and its tokens stand INSIDE of the
sequence where the mask token would, so that the network refines condition tokens, predicts masked ones and
reconstructs visible ones, in training and in every step of sampling.

Reference: google-research/magvit (Apache-2.0). The network is MaskGIT's behind a token of the task and one of the
class; the tokenizer is `models/tokenizers/magvit.py`. Sizes stand in `zoo/papers/magvit.toml`.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from transformer_zoo import naming
from transformer_zoo.decoding.masked import decode_masked
from transformer_zoo.layers.bert import Bert
from transformer_zoo.masking.regions import REGIONS, condition_clip, region
from transformer_zoo.masking.schedules import hidden_share
from transformer_zoo.masking.tokens import lowest
from transformer_zoo.task import Aux, Batch, Context, Evaluator, Result, Tree, Variables
from transformer_zoo.tasks.masked_tokens import MaskedTokens, token_loss
from transformer_zoo.tasks.networks import apply_frozen

# Special ids count from the end of the vocabulary. Inpainting has outpainting's token, as in the released models.
MASK, FULL_GENERATION, FRAME_PREDICTION, FRAME_INTERPOLATION, OUTPAINTING = -1, -3, -4, -5, -6
TASK_TOKENS = dict.fromkeys(REGIONS, OUTPAINTING) | {
    "full_generation": FULL_GENERATION,
    "frame_prediction": FRAME_PREDICTION,
    "frame_interpolation": FRAME_INTERPOLATION,
}
MODES = ("commit", "fixed", "fixed_condition", "prefix")
LABEL_SMOOTHING = 1e-4


def commit(
    ids: Int[Array, "batch frames rows columns"],
    condition: Int[Array, "batch frames rows columns"],
    given: Bool[Array, "#batch #frames #rows #columns"],
    scores: Float[Array, "batch frames rows columns"],
    ratio: Float[Array, ""] | float,
    mask_id: int,
    mode: str = "commit",
    whole: bool = True,
) -> dict[str, Array]:
    """Inputs, targets and weights of a training step (section 3.2, equations 3 to 5).

    Args:
        ids: tokens of the clip.
        condition: tokens of the clip with its gaps filled in.
        given: tokens that show what is given.
        scores: uniform; the lowest are hidden.
        ratio: share of the tokens to hide, the same for all samples.
        mask_id: the mask token.
        mode: 'commit'; 'fixed', where given tokens are never hidden; 'fixed_condition', where they are the condition's;
            'prefix', where the condition is no part of the sequence (see `MAGVIT.prefix_condition`).
        whole: whether visible tokens are reconstructed too; else only hidden ones count.

    Returns:
        'shown', 'targets' and 'weights' [batch, frames, rows, columns], 'unconditional' (what is shown without
        condition), 'conditions' (where tokens of the condition are shown) and 'hidden'.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in MODES:
        raise naming.unknown("condition_mode", mode, MODES)
    given = jnp.broadcast_to(given, ids.shape)
    axes = tuple(range(1, ids.ndim))
    maskable = ~given if mode.startswith("fixed") else jnp.ones_like(given)
    if mode == "fixed_condition":
        ids = jnp.where(given, condition, ids)
    total = maskable.sum(axis=axes)
    counts = jnp.clip(jnp.floor(total * jnp.clip(jnp.asarray(ratio), 1e-6, 1)).astype(jnp.int32), 1, total)
    hidden = lowest(jnp.where(maskable, scores, jnp.inf), counts)
    replaced = jnp.where(given, condition, mask_id) if mode == "commit" else mask_id
    return {
        "shown": jnp.where(hidden, replaced, ids),
        "unconditional": jnp.where(hidden, mask_id, ids),
        "targets": ids,
        "weights": (maskable if whole else hidden).astype(jnp.float32),
        "conditions": hidden & given & (mode == "commit"),
        "hidden": hidden,
    }


class MAGVIT(nn.Module):
    """Logits of the codes at every place of a grid of frames, rows and columns.

    The vocabulary is that of the codes, then of the classes and of none, then special tokens, the mask token last.

    Attributes:
        grid: frames, rows and columns of ids.
        num_codes: of the tokenizer.
        num_classes: of the condition; 0 where there is none.
        multi_task: whether a token of the task stands in front; there are then 16 special tokens, else only the mask.
        prefix_condition: whether as many tokens that show the condition stand in front, the baseline of table 5.
        depth, width, num_heads, mlp_ratio, dropout_rate, attention, remat, unroll, dtype: see `Bert`.
    """

    grid: tuple[int, int, int] = (4, 16, 16)
    num_codes: int = 1024
    num_classes: int = 0
    multi_task: bool = True
    prefix_condition: bool = False
    depth: int = 12
    width: int = 768
    num_heads: int = 12
    mlp_ratio: float = 4.0
    dropout_rate: float = 0.1
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding."""
        return self.num_codes + self.num_classes + 1 + (16 if self.multi_task else 1)

    @property
    def mask_id(self) -> int:
        """The id that stands at hidden places."""
        return self.vocabulary_size + MASK

    @property
    def condition_shape(self) -> tuple[int, ...]:
        """Of one sample's condition, a class."""
        return ()

    @property
    def null_condition(self) -> int:
        """The class that stands for none."""
        return self.num_classes

    def setup(self) -> None:
        self.bert = Bert(
            vocabulary_size=self.vocabulary_size,
            length=1 + self.multi_task + math.prod(self.grid) * (1 + self.prefix_condition),
            depth=self.depth,
            width=self.width,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            dropout_rate=self.dropout_rate,
            attention=self.attention,
            remat=self.remat,
            unroll=self.unroll,
            dtype=self.dtype,
        )

    def __call__(
        self,
        ids: Int[Array, "batch frames rows columns"],
        condition: Int[Array, " batch"],
        task: Int[Array, ""] | int = FULL_GENERATION,
        given: Int[Array, "batch frames rows columns"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "batch frames rows columns codes"], dict[str, Array]]:
        """Logits of the codes at every place, and the intermediates of `Bert`.

        `task` is a special id, negative; `given` are ids that stand in front where the network has `prefix_condition`,
        the mask token where nothing is given.
        """
        prefix = [condition[:, None] + self.num_codes]
        if self.multi_task:
            prefix.insert(0, jnp.full((ids.shape[0], 1), self.vocabulary_size + task, ids.dtype))
        if self.prefix_condition:
            given = jnp.full_like(ids, self.mask_id) if given is None else given
            prefix.append(given.reshape(ids.shape[0], -1))
        tokens = jnp.concatenate([*prefix, ids.reshape(ids.shape[0], -1)], axis=1)
        logits, aux = self.bert(tokens, train=train)
        places = logits[:, -math.prod(self.grid) :, : self.num_codes]
        return places.reshape(*ids.shape, self.num_codes), {"logits": logits, **aux}


@dataclasses.dataclass(frozen=True)
class CommitTokens(MaskedTokens):
    """Masked tokens of clips, one of several tasks a batch.

    Attributes:
        tasks: names of `masking.regions.REGIONS`, drawn evenly.
        given_frames: of pixels that prediction and interpolation are given at an end.
        given_token_frames: frames of tokens that show them.
        condition_mode: 'commit' or what it is compared with, see `commit`.
        label_smoothing: share of the target spread evenly over all codes.
    """

    tasks: tuple[str, ...] = ("full_generation",)
    given_frames: int = 1
    given_token_frames: int = 1
    condition_mode: str = "commit"
    label_smoothing: float = LABEL_SMOOTHING

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.tasks:
            region(name, self.network.grid, self.given_token_frames)
            region(name, self.tokenizer.input_shape[:3], self.given_frames)
        if self.condition_mode not in MODES:
            raise naming.unknown("task.condition_mode:", self.condition_mode, MODES)
        if (self.condition_mode == "prefix") != self.network.prefix_condition:
            raise ValueError(
                f"task.condition_mode is {self.condition_mode!r}, but model.prefix_condition is "
                f"{self.network.prefix_condition}: 'prefix' needs it, no other mode does"
            )
        if len(self.tasks) > 1 and not self.network.multi_task:
            raise ValueError(
                f"task.tasks are {len(self.tasks)}, but model.multi_task is off: set it, or train one task"
            )

    def given(self, name: str) -> Bool[np.ndarray, "frames rows columns"]:
        """The tokens that show what a task is given."""
        return region(name, self.network.grid, self.given_token_frames)

    def tokenize_condition(self, variables: Variables, clips: Array, name: str) -> Int[Array, "batch *grid"]:
        """Tokens of clips of which a task is given a part."""
        filled = condition_clip(clips, name, self.given_frames)
        return apply_frozen(self.tokenizer, variables.frozen["tokenizer"], filled, method="tokenize")

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], Aux]:
        task_key, ratio_key, score_key, drop_key, key = jax.random.split(ctx.key, 5)
        clips = batch[self.pixels]
        which = jax.random.randint(task_key, (), 0, len(self.tasks))
        fills = [functools.partial(condition_clip, name=name, frames=self.given_frames) for name in self.tasks]
        filled = jax.lax.switch(which, fills, clips)
        both = self.tokenize(variables, {self.pixels: jnp.concatenate([clips, filled])})
        ids, condition = jnp.split(both, 2)
        given = jnp.asarray(np.stack([self.given(name) for name in self.tasks]))[which][None]
        ratio = hidden_share(jax.random.uniform(ratio_key), self.schedule, math.prod(self.network.grid))
        scores = jax.random.uniform(score_key, ids.shape)
        parts = commit(ids, condition, given, scores, ratio, self.network.mask_id, self.condition_mode)
        classes = self.drop(drop_key, batch[self.condition]) if ctx.train else batch[self.condition]
        token = jnp.asarray([TASK_TOKENS[name] for name in self.tasks])[which]
        logits, _ = self.network.apply(
            {"params": variables.params["model"]},
            parts["shown"],
            classes,
            token,
            self.in_front(condition, given),
            train=ctx.train,
            rngs={"dropout": key},
        )
        loss = token_loss(logits, parts["targets"], parts["weights"], self.label_smoothing)
        right = ((logits.argmax(axis=-1) == ids) & parts["hidden"]).sum() / parts["hidden"].sum()
        return loss, Aux(metrics={"accuracy": right})

    def in_front(self, condition: Int[Array, "batch *grid"], given: Bool[Array, "#batch *grid"]) -> Array | None:
        """Tokens of the condition where it is given and the mask token elsewhere, if they stand in front."""
        return jnp.where(given, condition, self.network.mask_id) if self.network.prefix_condition else None

    def make(
        self, variables: Variables, clips: Array, classes: Int[Array, " batch"], name: str, key: Key[Array, ""]
    ) -> Int[Array, "batch *grid"]:
        """Tokens of clips for a task, from the part of `clips` that it is given and from classes."""
        params, mask_id = variables.params["model"], self.network.mask_id
        condition = self.tokenize_condition(variables, clips, name)
        given = jnp.broadcast_to(self.given(name), condition.shape)
        fixed, prefix = self.condition_mode.startswith("fixed"), self.in_front(condition, given)

        def predict(shown: Array, classes: Array, unknown: Array) -> Array:
            in_front = None if prefix is None else jnp.resize(prefix, shown.shape)  # guidance asks twice
            return self.network.apply({"params": params}, shown, classes, TASK_TOKENS[name], in_front)[0]

        return decode_masked(
            self.guided_logits(predict, classes),
            condition,
            ~given if fixed else jnp.ones_like(given),
            key,
            hidden=mask_id if prefix is not None else jnp.where(given, condition, mask_id),
            **self.decoding_options,
        ).ids

    def generate(self, variables: Variables, batch: Batch, key: Key[Array, ""]) -> Array:
        """Clips for the first of the tasks."""
        ids = self.make(variables, batch[self.pixels], batch[self.condition], self.tasks[0], key)
        return self.detokenize(variables, ids)

    def evaluators(self) -> dict[str, Evaluator]:
        return {"": MadeClips(task=self)}


@dataclasses.dataclass(frozen=True)
class MadeClips(Evaluator):
    """Of every task the mean squared error of the pixels that it was not given.

    Beside it stand the error of the tokenizer's own reconstruction, and that of the filled-in clip that it was given.
    """

    batches: int = 2
    task: CommitTokens | None = None
    num_clips: int = 4

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        assert self.task is not None
        task, clips = self.task, batch[self.task.pixels]
        best = task.reconstruct(variables, batch)
        found: dict[str, Array] = {"original": clips[: self.num_clips]}
        for number, name in enumerate(task.tasks):
            key = jax.random.fold_in(ctx.key, number)
            made = task.detokenize(variables, task.make(variables, clips, batch[task.condition], name, key))
            filled = condition_clip(clips, name, task.given_frames)
            unknown = ~region(name, clips.shape[1:4], task.given_frames)[None, ..., None]
            for kind, one in (("", made), ("_ceiling", best), ("_given", filled)):
                errors = jnp.square(one - clips) * unknown
                found[f"{name}_error{kind}"] = errors.sum(axis=(1, 2, 3, 4)) / (unknown.sum() * clips.shape[-1])
            found[name] = made[: self.num_clips]
        return found

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        weight = batch["weight"]
        sums = {name: (value * weight).sum() for name, value in arrays.items() if "_error" in name}
        sums["weight"] = weight.sum()
        if state is None:
            return {"sums": sums, "clips": {name: value for name, value in arrays.items() if "_error" not in name}}
        return self.merge(state, {"sums": sums})

    def merge(self, first: dict, second: dict) -> dict:
        return first | {"sums": {name: first["sums"][name] + second["sums"][name] for name in first["sums"]}}

    def result(self, state: dict) -> Result:
        assert self.task is not None
        sums = dict(state["sums"])
        weight = sums.pop("weight")
        low, high = self.task.pixel_range
        clips = {
            name: np.clip(np.round((np.asarray(clip, np.float32) - low) / (high - low) * 255), 0, 255).astype(np.uint8)
            for name, clip in state["clips"].items()
        }
        shown = {name: np.broadcast_to(clip, (*clip.shape[:-1], 3)) for name, clip in clips.items()}
        return Result({name: float(value / weight) for name, value in sums.items()}, clips=shown)
