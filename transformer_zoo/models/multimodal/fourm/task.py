"""The objective of 4M: predict a random small part of all tokens from another (section 2.2)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from transformer_zoo import naming
from transformer_zoo.layers.lora import fuse, lora_parameters
from transformer_zoo.models.multimodal.fourm.embeddings import Tokens
from transformer_zoo.models.multimodal.fourm.evaluation import AnyToAny, Sampling
from transformer_zoo.models.multimodal.fourm.features import abstract_features, features_of, image_shape
from transformer_zoo.models.multimodal.fourm.generation import encode
from transformer_zoo.models.multimodal.fourm.masking import Mixture, mask_batch, read_mixture, whole
from transformer_zoo.models.multimodal.fourm.modalities import (
    Modality,
    Values,
    abstract_values,
    field_of,
    read_values,
)
from transformer_zoo.models.multimodal.fourm.model import FourM
from transformer_zoo.models.multimodal.fourm.objective import WEIGHTS, modality_losses, total_loss
from transformer_zoo.task import Aux, Batch, Context, Evaluator, Task, Tree, Variables
from transformer_zoo.tasks.networks import apply_frozen, frozen_network

ALL_TO_ALL = ({"inputs": 0.5, "targets": 0.5},)


@dataclasses.dataclass(frozen=True)
class FourMTask(Task):
    """Cross-entropy of the targets, modality by modality.

    Attributes:
        network: the transformer.
        tokenizers: by the names that modalities give them, and the networks whose features they read; their runs are
            required by the config. Others are left out.
        mixture: components of the Dirichlet budgets, see `masking`.
        num_inputs, num_targets: tokens shown and asked for, and slots of encoder and decoder.
        fewest_inputs, fewest_targets: where above 0, their numbers are drawn for each sample from there to the above.
        loss_kind: 'modality' (the paper's), 'token' or 'logit', see `objective`.
        lora_rank: above 0 only LoRA's matrices are trained, on top of `frozen/base`, another run's network.
        lora_targets, lora_scale: see `layers.lora`.
        evaluate: whether scenes are evaluated from any to any, see `AnyToAny`.
        sampling: how that generates.
    """

    network: FourM
    tokenizers: Mapping[str, nn.Module] = dataclasses.field(default_factory=flax.core.FrozenDict)
    mixture: tuple = ALL_TO_ALL
    num_inputs: int = 128
    num_targets: int = 128
    fewest_inputs: int = 0
    fewest_targets: int = 0
    loss_kind: str = "modality"
    lora_rank: int = 0
    lora_targets: str = "attention"
    lora_scale: float = 1.0
    evaluate: bool = False
    sampling: Sampling = dataclasses.field(default_factory=Sampling)

    def __post_init__(self) -> None:
        frozen = tuple(flax.core.freeze(_plain(component)) for component in self.mixture)
        object.__setattr__(self, "mixture", frozen)
        named = {name for modality in self.modalities.values() for name in (modality.tokenizer, modality.features)}
        mine = {name: network for name, network in self.tokenizers.items() if name in named}
        object.__setattr__(self, "tokenizers", flax.core.freeze(mine))
        if self.loss_kind not in WEIGHTS:
            raise naming.unknown("task.loss_kind", self.loss_kind, WEIGHTS)
        for name, modality in self.modalities.items():
            for kind in ("tokenizer", "features"):
                other = getattr(modality, kind)
                if other and other not in self.tokenizers:
                    raise ValueError(f"model.modalities.{name} has {kind} {other!r}, which config.requires does not")
            if modality.tokenizer and self.tokenizers[modality.tokenizer].codebook_size > modality.vocabulary:
                raise ValueError(
                    f"model.modalities.{name}.vocabulary is {modality.vocabulary}, but {modality.tokenizer} has "
                    f"{self.tokenizers[modality.tokenizer].codebook_size} codes"
                )
        for name in ("inputs", "targets"):
            if not 0 <= getattr(self, f"fewest_{name}") <= getattr(self, f"num_{name}"):
                raise ValueError(f"task.fewest_{name} must lie between 0 (always num_{name}) and num_{name}")
        read_mixture(self.mixture, self.modalities)

    @property
    def modalities(self) -> dict[str, Modality]:
        """Of the network, by name."""
        return self.network.all_modalities

    @property
    def budgets(self) -> Mixture:
        """The mixture as tables."""
        return read_mixture(self.mixture, self.modalities)

    def spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        fields = {}
        for name, modality in self.modalities.items():
            one = abstract_values(modality, batch_size)
            if modality.features:
                one = jax.ShapeDtypeStruct((1, *image_shape(self.tokenizers[modality.features])), jnp.float32)
            elif modality.tokenizer:
                one = self.tokenizers[modality.tokenizer].field
            fields[field_of(name, modality)] = jax.ShapeDtypeStruct((batch_size, *one.shape[1:]), one.dtype)
        return fields

    def check(self, batch: Batch) -> None:
        for name, modality in self.modalities.items():
            if not modality.is_ids or modality.tokenizer:
                continue
            ids = np.asarray(batch[field_of(name, modality)])
            if ids.min() < 0 or ids.max() >= modality.vocabulary:
                raise ValueError(
                    f"the field {field_of(name, modality)!r} has ids from {ids.min()} to {ids.max()}, but "
                    f"model.modalities.{name}.vocabulary is {modality.vocabulary}"
                )

    def init(self, key: Key[Array, ""]) -> Variables:
        def network(key: Key[Array, ""]) -> Tree:
            return self.network.init(key, self._example())["params"]

        read = {modality.features for modality in self.modalities.values()}
        frozen = {
            name: abstract_features(network)
            if name in read
            else frozen_network(network, jnp.zeros((1, *network.input_shape)))
            for name, network in self.tokenizers.items()
        }
        if not self.lora_rank:
            return Variables(params={"model": network(key)}, frozen=frozen)
        base = jax.eval_shape(network, key)
        adapted = lora_parameters(key, base, self.lora_rank, self.lora_targets)
        return Variables(params={"model": adapted}, frozen={**frozen, "base": base})

    def parameters(self, variables: Variables) -> Tree:
        """The network's parameters, with LoRA's fused into them where those are what is trained."""
        trained = variables.params["model"]
        return fuse(variables.frozen["base"], trained, self.lora_scale) if self.lora_rank else trained

    def _example(self) -> dict[str, Tokens]:
        values = {name: jnp.zeros(modality.shape(1), modality.dtype) for name, modality in self.modalities.items()}
        return self.mask(jax.random.key(0), values)

    def values(self, variables: Variables, batch: Batch) -> dict[str, Values]:
        """Every modality's values: ids of those that have tokenizers, else the field itself."""
        found, ids = {}, {}
        for name, modality in self.modalities.items():
            source = (modality.tokenizer, modality.features, field_of(name, modality))
            if not modality.tokenizer:
                found[name] = read_values(name, modality, batch)
                continue
            if source not in ids:  # modalities may share a tokenizer and a field
                ids[source] = self.tokenize(variables, modality, batch[source[-1]])
            found[name] = ids[source]
        return found

    def tokenize(self, variables: Variables, modality: Modality, values: Array) -> Array:
        """Ids [batch, places] of a field's values."""
        network, values = self.tokenizers[modality.tokenizer], jnp.asarray(values)
        if modality.features:
            teacher = self.tokenizers[modality.features]
            values = features_of(teacher, variables.frozen[modality.features], values, network)
        pixels = network.channels_of(values)
        ids = apply_frozen(network, variables.frozen[modality.tokenizer], pixels, method="tokenize")
        return jax.lax.stop_gradient(ids).reshape(ids.shape[0], -1).astype(jnp.int32)

    def detokenize(self, variables: Variables, modality: Modality, ids: Array) -> Array:
        """A field's values, or its features, from ids [batch, places]."""
        network = self.tokenizers[modality.tokenizer]
        frozen = variables.frozen[modality.tokenizer]
        written = apply_frozen(network, frozen, ids.reshape(ids.shape[0], *network.id_shape), method="detokenize")
        return network.values_of(written)

    def mask(self, key: Key[Array, ""], values: Mapping[str, Values]) -> dict[str, Tokens]:
        """Random masks of every sample."""
        shown, asked = (
            (fewest or most, most)
            for fewest, most in ((self.fewest_inputs, self.num_inputs), (self.fewest_targets, self.num_targets))
        )
        return mask_batch(key, values, self.modalities, self.budgets, shown, asked)

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], Aux]:
        mask_key, order_key, dropout_key = jax.random.split(ctx.key, 3)
        tokens = self.mask(mask_key, self.values(variables, batch))
        order = jax.random.permutation(order_key, len(self.network.outputs))
        found: Any = self.network.apply(
            {"params": self.parameters(variables)},
            tokens,
            self.num_inputs,
            self.num_targets,
            order,
            train=ctx.train,
            rngs={"dropout": dropout_key},
            method="entropies",
        )
        entropies, asked = found
        mine = {name: asked.modality == self.network.number(name) for name in self.network.outputs}
        losses, counts = modality_losses(entropies, mine)
        vocabularies = {name: modality.vocabulary for name, modality in self.network.outputs.items()}
        total = total_loss(losses, counts, vocabularies, self.loss_kind)
        return total, Aux(metrics={f"{name}_loss": loss for name, loss in losses.items()})

    def evaluators(self) -> dict[str, Evaluator]:
        return {"": AnyToAny(task=self)} if self.evaluate else {}

    def features(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        pixels = [name for name, modality in self.network.inputs.items() if modality.kind == "pixels"]
        if not pixels:
            return super().features(variables, batch, ctx)
        values = read_values(pixels[0], self.modalities[pixels[0]], batch)
        known = {pixels[0]: whole(self.modalities[pixels[0]], values, shown=True)}
        return {"pooled": encode(self.network, self.parameters(variables), known).encoded.mean(axis=1)}

    def depths(self, params: Tree) -> Tree:
        return self.network.layer_numbers(params)


def _plain(component: Any) -> dict[str, Any]:
    return {name: dict(value.items()) if hasattr(value, "items") else value for name, value in component.items()}
