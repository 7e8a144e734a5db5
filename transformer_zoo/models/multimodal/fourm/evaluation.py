"""What a model of scenes predicts from any of its modalities, as figures and as a page of pictures.

From pixels in one step: classes, depth, normals, captions, boxes, metadata, beside what guessing without looking
reaches (`marginal`) and what the tokenizers let through (`ceiling`). From captions: pictures, with and without
guidance, in one step, in several and by way of classes, beside what pictures for other captions reach (`shuffled`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from transformer_zoo.models.multimodal.fourm import pages, scores
from transformer_zoo.models.multimodal.fourm.embeddings import Tokens
from transformer_zoo.models.multimodal.fourm.generation import Encoded, encode, generate, predict, read_on
from transformer_zoo.models.multimodal.fourm.masking import absent, whole
from transformer_zoo.models.multimodal.fourm.modalities import Modality, field_of
from transformer_zoo.models.multimodal.fourm.schedules import Target
from transformer_zoo.task import Batch, Context, Evaluator, Result, Tree, Variables

Found = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How pictures are generated from captions.

    Attributes:
        guidance_scale: of the guided ones, beside which stand unguided ones.
        temperature: of the draw of tokens.
        scheme: 'roar' or 'maskgit'.
        steps: of further ones, in several steps; 1 leaves them out.
        by_classes: whether further ones are made by way of classes.
    """

    guidance_scale: float = 3.0
    temperature: float = 0.5
    scheme: str = "roar"
    steps: int = 1
    by_classes: bool = False


@dataclasses.dataclass(frozen=True)
class AnyToAny(Evaluator):
    """Figures of scenes and the page of every modality predicted from every other.

    Attributes:
        task: a `FourMTask` of scenes.
        num_pictures: scenes on the page.
    """

    batches: int = 8
    task: Any = None
    num_pictures: int = 4

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Any]:
        task = self.task
        values = task.values(variables, batch)
        count, shown = len(next(iter(values.values()))), self.num_pictures
        pixels = next(name for name, one in task.modalities.items() if one.kind == "pixels")
        first = {name: value[:shown] for name, value in values.items()}
        parts = [self.only(pixels, values), *(self.only(name, first) for name in task.network.inputs)]
        known = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)  # one pass for figures and page
        ids = self.predict_all(variables, known)
        drawn = self.from_captions(variables, values, ctx) if self.picture else {}
        found: dict[str, dict[str, Array]] = {"predicted": {}, "page": {}, "ceiling": {}, "drawn": {}}
        for name, modality in task.network.outputs.items():
            mine = list(drawn.values()) if name == self.picture else []
            fields = self.fields(
                variables, modality, jnp.concatenate([ids[name], *_same(values[name], ids[name]), *mine])
            )
            found["predicted"][name], fields = fields[:count], fields[count:]
            found["page"][name], fields = jnp.split(fields, [shown * len(task.network.inputs)])
            found["ceiling"][name], fields = jnp.split(fields, [len(fields) - len(mine) * count])
            for number, one in enumerate(drawn if mine else ()):
                found["drawn"][one] = fields[number * count : (number + 1) * count]
        return found

    @property
    def picture(self) -> str:
        """The modality whose tokens are pictures, where there are captions to make them from; else ''."""
        outputs = self.task.network.outputs
        named = [name for name, one in outputs.items() if one.field == "image" and not one.features]
        return named[0] if named and "caption" in self.task.modalities else ""

    def from_captions(self, variables: Variables, values: Found, ctx: Context) -> Found:
        """Ids of pictures generated from captions, by the way that they were."""
        task, how = self.task, self.task.sampling
        caption = {"caption": whole(task.modalities["caption"], values["caption"], shown=True)}
        classes = next((name for name, one in task.network.outputs.items() if one.field == "semseg"), "")
        one = Target(self.picture, scheme=how.scheme, temperature=how.temperature)
        chains = {"": [one]}
        if how.steps > 1:
            chains["_in_steps"] = [dataclasses.replace(one, steps=how.steps)]
        if how.by_classes and classes:
            chains["_by_classes"] = [dataclasses.replace(one, modality=classes), one]
        found: Found = {}
        for number, (name, chain) in enumerate(chains.items()):
            key = jax.random.fold_in(ctx.key, number)

            def draw(scale: Array, chain: list[Target] = chain, key: Any = key) -> Array:
                guided = [dataclasses.replace(target, guidance_scale=scale) for target in chain]
                return generate(task.network, task.parameters(variables), caption, guided, key)[self.picture].values

            both = jax.lax.map(draw, jnp.asarray([how.guidance_scale, 1.0]))  # compiled once
            found |= {f"caption{name}": both[0], f"caption{name}_unguided": both[1]}
        return found

    def predict_all(self, variables: Variables, known: Mapping[str, Tokens]) -> Found:
        """Every output's likeliest ids in one step, sequences read on; what is known is encoded once for all."""
        network, params = self.task.network, self.task.parameters(variables)
        context = encode(network, params, known)
        return {name: self.likeliest(params, context, known, name, one) for name, one in network.outputs.items()}

    def likeliest(
        self, params: Tree, context: Encoded, known: Mapping[str, Tokens], name: str, modality: Modality
    ) -> Array:
        """One modality's ids from what is encoded."""
        if modality.kind == "sequence":
            target = Target(name, scheme="autoregressive", temperature=0.0)
            rest = {one: tokens for one, tokens in known.items() if one != name}
            return read_on(self.task.network, params, rest, target, jax.random.key(0), (), [context])
        nothing = absent(modality, context.encoded.shape[0])
        asked = nothing.replace(targets=jnp.ones_like(nothing.targets))
        return jnp.argmax(predict(self.task.network, params, context, name, asked)[0], axis=-1)

    def only(self, shown: str, values: Found) -> dict[str, Tokens]:
        """All modalities, of which one is shown."""
        known = {}
        for name, modality in self.task.network.inputs.items():
            one = whole(modality, values[name], shown=True)
            known[name] = one.replace(inputs=one.inputs & (name == shown))
        return known

    def fields(self, variables: Variables, modality: Modality, ids: Array) -> Array:
        """What ids mean: tokens as the fields that they were made from."""
        return self.task.detokenize(variables, modality, ids) if modality.tokenizer else ids

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        rows = np.flatnonzero(batch["weight"])
        task = self.task
        sums: dict[str, np.ndarray] = {}
        for name, modality in task.network.outputs.items():
            field = field_of(name, modality)
            if field in scores.FIGURES:
                ceiling = arrays["ceiling"][name]
                views = arrays["predicted"][name][rows], ceiling[rows] if len(ceiling) else ceiling
                truth = {key: np.asarray(value)[rows] for key, value in batch.items() if isinstance(value, np.ndarray)}
                sums |= scores.FIGURES[field](*views, truth, modality)
        programs = np.stack([scores.program_of(ids) for ids in np.asarray(batch["caption"])[rows]])
        for name, drawn in arrays["drawn"].items():
            sums |= scores.pictures(name, drawn[rows], programs)
        if self.picture:
            sums |= scores.pictures("tokenizer", arrays["ceiling"][self.picture][rows], programs)
        if state is not None:
            return self.merge(state, {"sums": sums})
        shown = {field: np.asarray(batch[field])[: self.num_pictures] for field in pages.SHOWN if field in batch}
        for name in (name for name, one in task.network.outputs.items() if one.features):
            shown[name] = arrays["ceiling"][name][: self.num_pictures]
        return {"sums": sums, "page": arrays["page"], "shown": shown}

    def merge(self, first: dict, second: dict) -> dict:
        return first | {"sums": {name: first["sums"][name] + second["sums"][name] for name in first["sums"]}}

    def result(self, state: dict) -> Result:
        metrics = scores.figures(state["sums"])
        page = pages.any_to_any(self.task.network, state["page"], state["shown"])
        return Result(metrics, images={"any_to_any": page}, texts={"figures": scores.table(metrics)})


def _same(values: Array, ids: Array) -> list[Array]:
    """True ids beside predicted ones: of a sequence, which nobody decodes, nothing."""
    return [values] if values.shape[1] == ids.shape[1] else []
