"""Toy tasks, each of which needs one thing that the loop must carry."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.data.pipeline import Data
from transformer_zoo.task import Aux, Evaluator, Result, Task, Variables
from transformer_zoo.training.config import base_config, check

WIDTH = 4


def toy_config(**fields):
    config = base_config()
    config.total_steps, config.batch_size = 8, 8
    config.log.every_steps = 2
    config.optimizer = {"name": "sgd", "learning_rate": 0.1, "schedule": "constant", "momentum": 0.0}
    for name, value in fields.items():
        config[name] = value
    check(config)
    return config.lock()


def toy_batch(number: int, batch_size: int = 8, width: int = WIDTH) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    x = rng.normal(size=(batch_size, width)).astype(np.float32)
    return {"x": x, "y": x @ np.arange(1, width + 1, dtype=np.float32)}


def toy_data(make=toy_batch) -> Data:
    def train(start):
        number = start
        while True:
            yield make(number)
            number += 1

    def evaluate(split, limit):
        yield make(10_000) | {"weight": np.ones(8, np.float32)}

    return Data(train, evaluate)


@dataclasses.dataclass(frozen=True)
class Error(Evaluator):
    task: Any = None

    def compute(self, variables, batch, ctx):
        return (batch["x"] @ variables.params["model"]["w"] - batch["y"]) ** 2

    def update(self, state, arrays, batch):
        new = np.array([(arrays * batch["weight"]).sum(), batch["weight"].sum()])
        return new if state is None else state + new

    def result(self, state):
        return Result({"error": float(state[0] / state[1])})


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """Linear regression with a little dropout-like noise, so that resuming must restore the random stream too."""

    noise: float = 0.1

    def spec(self, batch_size=1):
        return {
            "x": jax.ShapeDtypeStruct((batch_size, WIDTH), jnp.float32),
            "y": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
        }

    def init(self, key):
        return Variables({"model": {"w": jax.random.normal(key, (WIDTH,)), "bias": jnp.zeros(())}})

    def loss(self, variables, batch, ctx):
        p = variables.params["model"]
        x = batch["x"] + self.noise * jax.random.normal(ctx.key, batch["x"].shape)
        return ((x @ p["w"] + p["bias"] - batch["y"]) ** 2).mean(), Aux()

    def evaluators(self):
        return {"": Error(task=self)}


@dataclasses.dataclass(frozen=True)
class Players(Regression):
    """A follower that tracks the model's weight, updated every third step, after the model."""

    @property
    def players(self):
        return ("model", "follower")

    def init(self, key):
        model = super().init(key).params["model"]
        return Variables({"model": model, "follower": {"w": jnp.zeros(WIDTH)}})

    def loss(self, variables, batch, ctx):
        if ctx.player == "model":
            return super().loss(variables, batch, ctx)
        gap = variables.params["follower"]["w"] - jax.lax.stop_gradient(variables.params["model"]["w"])
        return 0.5 * (gap**2).sum(), Aux(metrics={"gap": jnp.abs(gap).max()})


@dataclasses.dataclass(frozen=True)
class Taught(Regression):
    """Learns the output of a frozen teacher."""

    def init(self, key):
        teacher = {"w": jax.ShapeDtypeStruct((WIDTH,), jnp.float32)}
        return super().init(key).replace(frozen={"teacher": teacher})

    def loss(self, variables, batch, ctx):
        target = batch["x"] @ variables.frozen["teacher"]["w"]
        p = variables.params["model"]
        return ((batch["x"] @ p["w"] + p["bias"] - target) ** 2).mean(), Aux()


@dataclasses.dataclass(frozen=True)
class Codebook(Regression):
    """A buffer that follows the batch mean, and a teacher that follows the parameters, both in `state`."""

    def init(self, key):
        variables = super().init(key)
        return variables.replace(state={"mean": jnp.zeros(WIDTH), "teacher": variables.params["model"]["w"]})

    def loss(self, variables, batch, ctx):
        value, _ = super().loss(variables, batch, ctx)
        state = {
            "mean": 0.5 * variables.state["mean"] + 0.5 * batch["x"].mean(axis=0),
            "teacher": 0.9 * variables.state["teacher"] + 0.1 * variables.params["model"]["w"],
        }
        return value, Aux(state=jax.lax.stop_gradient(state))


@dataclasses.dataclass(frozen=True)
class Phased(Regression):
    """From step 4 on it looks at half of the features only."""

    def phase(self, step):
        return "half" if step >= 4 else "all"

    def loss(self, variables, batch, ctx):
        width = WIDTH // 2 if ctx.phase == "half" else WIDTH
        x, w = batch["x"][:, :width], variables.params["model"]["w"][:width]
        return ((x @ w - batch["y"]) ** 2).mean(), Aux(metrics={"width": jnp.float32(width)})


@dataclasses.dataclass(frozen=True)
class Mixed(Regression):
    """Batches of two datasets of different shapes, told apart by the name they come under."""

    def loss(self, variables, batch, ctx):
        ((name, fields),) = batch.items()
        w = variables.params["model"]["w"][: fields["x"].shape[1]]
        return ((fields["x"] @ w - fields["y"]) ** 2).mean(), Aux(metrics={f"{name}_seen": jnp.float32(1)})


@dataclasses.dataclass(frozen=True)
class LowRank(Regression):
    """A dense weight with a low-rank addition."""

    def init(self, key):
        weight = jax.random.normal(key, (WIDTH, 1))
        return Variables({"model": {"kernel": weight, "lora": {"a": weight[:, :1], "b": jnp.zeros((1, 1))}}})

    def loss(self, variables, batch, ctx):
        p = variables.params["model"]
        weight = p["kernel"] + p["lora"]["a"] @ p["lora"]["b"]
        return (((batch["x"] @ weight)[:, 0] - batch["y"]) ** 2).mean(), Aux()

    def evaluators(self):
        return {}


@dataclasses.dataclass(frozen=True)
class Diverging(Regression):
    """Its loss is not a number at step 5."""

    def loss(self, variables, batch, ctx):
        value, aux = super().loss(variables, batch, ctx)
        return jnp.where(ctx.step == 4, jnp.nan, value), aux
