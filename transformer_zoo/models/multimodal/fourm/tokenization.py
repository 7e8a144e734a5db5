"""Training of 4M's tokenizers: images, one-valued maps, classes and features, each with the error that suits it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from transformer_zoo import naming
from transformer_zoo.diffusion.ddpm import add_noise, ddim_step, sampling_times, signal_shares
from transformer_zoo.layers.patches import grid_of
from transformer_zoo.models.multimodal.fourm.divae import FourMDiVAE
from transformer_zoo.models.multimodal.fourm.features import abstract_features, features_of, image_shape
from transformer_zoo.task import Aux, Batch, Context, Evaluator, Result, Task, Tree, Variables
from transformer_zoo.tasks.networks import apply_network, init_network
from transformer_zoo.tasks.tokenization import Tokenization, codebook_usage

FEATURE_LOSSES = ("smooth_l1", "cosine")


@dataclasses.dataclass(frozen=True)
class FourMTokenization(Tokenization):
    """Trains a `FourMTokenizer` or a `FourMVectorTokenizer`.

    The error of pixels is squared or absolute (`pixel_loss`), that of maps smooth L1, that of classes and of masks
    cross-entropy (of masks the reference takes that of probabilities in place of logits; here it is the plain one).

    Attributes:
        feature_network: whose features of the field, an image, are what is tokenized; comes with its weights from a run
            that the config `requires` under this name. None tokenizes the field itself.
        feature_loss: of features, 'smooth_l1' (maps of features, poses) or 'cosine' (global features).
    """

    feature_network: nn.Module | None = None
    feature_loss: str = "smooth_l1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feature_loss not in FEATURE_LOSSES:
            raise naming.unknown("task.feature_loss", self.feature_loss, FEATURE_LOSSES)

    def spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        one = self.network.field
        if self.feature_network is not None:
            one = jax.ShapeDtypeStruct((1, *image_shape(self.feature_network)), jnp.float32)
        return {self.field: jax.ShapeDtypeStruct((batch_size, *one.shape[1:]), one.dtype)}

    def init(self, key: Key[Array, ""]) -> Variables:
        values = jnp.zeros(self.network.field.shape, self.network.field.dtype)
        params, state = init_network(self.network, key, self.network.channels_of(values))
        frozen = {} if self.feature_network is None else {"feature_network": abstract_features(self.feature_network)}
        return Variables(params={"model": params}, state={"model": state} if state else {}, frozen=frozen)

    def values(self, variables: Variables, batch: Batch) -> Array:
        """What is tokenized."""
        values = jnp.asarray(batch[self.field])
        if self.feature_network is None:
            return values
        return features_of(self.feature_network, variables.frozen["feature_network"], values, self.network)

    def check(self, batch: Batch) -> None:
        if self.network.reads == "pixels":
            super().check(batch)
        elif self.network.reads == "mask" and not np.isin(batch[self.field], (0, 1)).all():
            raise ValueError(f"{self.field} has values beside 0 and 1, but model.reads is 'mask'")
        elif self.network.reads == "classes" and np.max(batch[self.field]) >= self.network.channels:
            found, most = int(np.max(batch[self.field])), self.network.channels
            raise ValueError(
                f"{self.field} has class {found}, but model.channels is {most}: classes are 0 to {most - 1}"
            )

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], Aux]:
        return super().loss(variables, {self.field: self.network.channels_of(self.values(variables, batch))}, ctx)

    def pixel_errors(self, pixels: Array, reconstruction: Array) -> Array:
        if self.network.reads == "pixels":
            return super().pixel_errors(pixels, reconstruction)
        if self.network.reads == "classes":
            return optax.softmax_cross_entropy(reconstruction, pixels)
        if self.network.reads == "mask":
            return optax.sigmoid_binary_cross_entropy(reconstruction[..., 0], pixels[..., 0])
        if self.network.reads == "features" and self.feature_loss == "cosine":
            return 1 - optax.losses.cosine_similarity(reconstruction, pixels, epsilon=1e-8)
        return optax.losses.huber_loss(reconstruction, pixels)

    def evaluators(self) -> dict[str, Evaluator]:
        if self.network.reads == "pixels":
            return super().evaluators()
        return {"reconstruction": MapReconstruction(task=self)}


@dataclasses.dataclass(frozen=True)
class MapReconstruction(Evaluator):
    """How much of maps survives, beside the best guess that looks at nothing, and how the codes are used.

    Of classes and masks 'accuracy' and 'most_frequent_accuracy'; of features that are compared by angle 'cosine', and
    'mean_cosine' with each place's mean direction; else 'rmse' and 'mean_rmse', the deviation from each place's mean.
    """

    task: FourMTokenization | None = None

    def compute(self, variables: Variables, batch: Batch, ctx: Context) -> dict[str, Array]:
        assert self.task is not None
        network, values = self.task.network, self.task.values(variables, batch)
        written, aux, _ = apply_network(network, variables, network.channels_of(values))
        return {"ids": aux["ids"], "found": network.values_of(written), "values": values}

    def update(self, state: dict | None, arrays: Tree, batch: Batch) -> dict:
        assert self.task is not None
        network, kept = self.task.network, batch["weight"] > 0
        found, values = arrays["found"][kept], np.asarray(arrays["values"])[kept]
        ids = arrays["ids"][kept].reshape(-1, network.num_codebooks)
        new: dict[str, Any] = {"codes": np.stack([np.bincount(c, minlength=network.codebook_size) for c in ids.T])}
        if network.reads in ("classes", "mask"):
            new |= {"right": (found == values).sum(), "count": values.size}
            new["classes"] = np.bincount(values.ravel(), minlength=max(network.channels, 2))
        elif network.reads == "features" and self.task.feature_loss == "cosine":
            found, values = (one / np.linalg.norm(one, axis=-1, keepdims=True) for one in (found, values))
            new |= {"cosines": (found * values).sum(axis=-1).sum(axis=0), "directions": values.sum(axis=0)}
            new["samples"] = len(values)
        else:
            new |= {"error": np.square(found - values).sum(), "count": values.size, "samples": len(values)}
            new |= {"sum": values.sum(axis=0), "squares": np.square(values.astype(np.float64)).sum()}
        return new if state is None else self.merge(state, new)

    def result(self, state: dict) -> Result:
        metrics = codebook_usage(state["codes"])
        if "right" in state:
            metrics["accuracy"] = float(state["right"] / state["count"])
            metrics["most_frequent_accuracy"] = float(state["classes"].max() / state["count"])
            return Result(metrics)
        if "cosines" in state:
            metrics["cosine"] = float(np.mean(state["cosines"] / state["samples"]))
            # The mean cosine with the mean direction is the length of the mean of unit vectors.
            metrics["mean_cosine"] = float(np.linalg.norm(state["directions"] / state["samples"], axis=-1).mean())
            return Result(metrics)
        spread = state["squares"] - np.square(state["sum"]).sum() / state["samples"]
        count = state["count"]
        metrics["rmse"] = float(np.sqrt(state["error"] / count))
        metrics["mean_rmse"] = float(np.sqrt(max(spread, 0.0) / count))
        return Result(metrics)


@dataclasses.dataclass(frozen=True)
class FourMDiffusion(Task):
    """Trains a `FourMDiVAE`: its decoder predicts clean pixels from noised ones and codes, at a random time.

    Attributes:
        network: encoder, codes and diffusion decoder.
        field: of the batch that holds the pixels, in [-1, 1].
        schedule: of the noise, see `diffusion.ddpm`; its last time has no signal.
        drop_share: of the places, in a random half of the samples, whose code is not told.
        steps: of DDIM when pixels are decoded.
    """

    network: FourMDiVAE
    field: str = "image"
    schedule: str = "linear"
    drop_share: float = 0.0
    steps: int = 50

    @property
    def signal(self) -> np.ndarray:
        """Share of signal at each of the 1000 times."""
        return signal_shares(self.schedule, zero_terminal=True)

    def spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        shape = (batch_size, *self.network.image_size, self.network.channels)
        return {self.field: jax.ShapeDtypeStruct(shape, jnp.float32)}

    def init(self, key: Key[Array, ""]) -> Variables:
        pixels = jnp.zeros(self.spec()[self.field].shape)
        params, state = init_network(self.network, key, pixels, pixels, jnp.zeros(1, jnp.int32))
        return Variables(params={"model": params}, state={"model": state})

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], Aux]:
        time_key, noise_key, drop_key, who_key, code_key = jax.random.split(ctx.key, 5)
        pixels, signal = batch[self.field], self.signal
        times = jax.random.randint(time_key, (len(pixels),), 0, len(signal))
        noised = add_noise(pixels, jax.random.normal(noise_key, pixels.shape), times, signal)
        dropped = None
        if self.drop_share and ctx.train:
            grid = (len(pixels), *grid_of(self.network.image_size, self.network.patch_size))
            some = jax.random.bernoulli(who_key, 0.5, (len(pixels), 1, 1))
            dropped = some & jax.random.bernoulli(drop_key, self.drop_share, grid)
        inputs = pixels, noised, times, dropped
        predicted, aux, state = apply_network(self.network, variables, *inputs, key=code_key, train=ctx.train)
        error = jnp.square(predicted - pixels).mean()
        total = error + sum(aux["losses"].values(), jnp.zeros(()))
        return total, Aux(metrics={"pixel_loss": error, **aux["metrics"]}, state=state)

    def decode(self, variables: Variables, ids: Array, key: Key[Array, ""]) -> Array:
        """Pixels of ids, by DDIM from noise."""
        given = {"params": variables.params["model"], **variables.state["model"]}
        codes = self.network.apply(given, ids, method="lookup")
        signal, times = self.signal, sampling_times(self.steps)
        shares = np.append(signal[times], 1.0)
        sample = jax.random.normal(key, (len(ids), *self.network.image_size, self.network.channels))

        def step(sample: Array, index: Array) -> tuple[Array, None]:
            now = jnp.full((len(ids),), jnp.asarray(times)[index])
            predicted, _ = self.network.apply(given, sample, now, codes, method="denoise")
            here, after = (jnp.asarray(shares, jnp.float32)[index + ahead] for ahead in (0, 1))
            return ddim_step(predicted, sample, here, after, "sample", clip=1.0), None

        return jax.lax.scan(step, sample, jnp.arange(len(times)))[0]
