"""One training step: every player's loss, gradient and update, as one compiled function with donated buffers."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from transformer_zoo.task import Batch, Context, Task, Tree, Variables
from transformer_zoo.training.optimizer import Optimizer
from transformer_zoo.training.state import TrainState
from transformer_zoo.training.tree import combine, partition

Metrics = dict[str, Array]
Step = Callable[[TrainState, Batch, Hashable], tuple[TrainState, Metrics]]


def make_step(
    task: Task,
    optimizers: Mapping[str, Optimizer],
    *,
    seed: int,
    every: Mapping[str, int],
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
) -> Step:
    """The pure function (state, batch, phase) -> (state, metrics); `training/loop.py` compiles it.

    Players are updated in order, each on steps divisible by its `every`, and the later sees the earlier's update. An
    update whose loss or gradient norm is not finite is not applied; the metrics say so, and the loop decides.
    With `accumulate_steps` the batch is cut into that many parts whose gradients are averaged, which equals the full
    batch for losses that are plain means.
    """
    root = jax.random.key(seed ^ 0x5EED)

    def gradient(player: str, state: TrainState, batch: Batch, ctx: Context) -> tuple[Tree, Tree, Metrics]:
        """Gradient of the trainable parameters, new model state, and metrics with the loss."""
        trainable, rest = partition(state.params[player], optimizers[player].trainable)

        def loss(trainable: Tree, model_state: Tree, batch: Batch, key: Array) -> tuple[Array, tuple[Tree, Metrics]]:
            params = {**state.params, player: combine(trainable, rest)}
            variables = Variables(params, model_state, state.frozen)
            value, aux = task.loss(variables, batch, ctx.replace(key=key))
            return value, (model_state if aux.state is None else aux.state, {"loss": value, **aux.metrics})

        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        if accumulate_steps == 1:
            (_, (model_state, metrics)), grads = value_and_grad(trainable, state.state, batch, ctx.key)
            return grads, model_state, metrics

        def part(x: Array, number: Array) -> Array:
            # Strided, so that every device keeps its rows, and cut out turn by turn, so that the batch is not copied.
            rows = x.reshape(-1, accumulate_steps, *x.shape[1:])
            return jax.lax.dynamic_index_in_dim(rows, number, axis=1, keepdims=False)

        def body(carry: tuple[Tree, Tree], turn: tuple[Array, Array]) -> tuple[tuple[Tree, Tree], Metrics]:
            total, model_state = carry
            number, key = turn
            one = jax.tree.map(lambda x: part(x, number), batch)
            (_, (model_state, metrics)), grads = value_and_grad(trainable, model_state, one, key)
            return (jax.tree.map(jnp.add, total, grads), model_state), metrics

        start = (jax.tree.map(jnp.zeros_like, trainable), state.state)
        turns = (jnp.arange(accumulate_steps), jax.random.split(ctx.key, accumulate_steps))
        (total, model_state), metrics = jax.lax.scan(body, start, turns)
        grads = jax.tree.map(lambda g: g / accumulate_steps, total)
        return grads, model_state, jax.tree.map(lambda m: m.mean(axis=0), metrics)

    def update(player: str, state: TrainState, batch: Batch, ctx: Context) -> tuple[TrainState, Metrics]:
        optimizer = optimizers[player]
        grads, model_state, metrics = gradient(player, state, batch, ctx)
        trainable, rest = partition(state.params[player], optimizer.trainable)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        updates, optimizer_state = optimizer.transform.update(grads, state.optimizer[player], trainable)
        new = (optax.apply_updates(trainable, updates), optimizer_state, model_state)
        old = (trainable, state.optimizer[player], state.state)
        trainable, optimizer_state, model_state = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        state = state.replace(
            params={**state.params, player: combine(trainable, rest)},
            optimizer={**state.optimizer, player: optimizer_state},
            state=model_state,
        )
        rate = optimizer.schedule(ctx.step // every[player])
        return state, metrics | {"grad_norm": norm, "finite": finite, "learning_rate": rate}

    def step(state: TrainState, batch: Batch, phase: Hashable) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(root, state.step)
        metrics: Metrics = {}
        for number, player in enumerate(task.players):
            ctx = Context(jax.random.fold_in(step_key, number), state.step, state.ema, player, phase, train=True)
            prefix = "" if len(task.players) == 1 else f"{player}/"
            if every[player] == 1:
                state, found = update(player, state, batch, ctx)
            else:
                shapes = jax.eval_shape(lambda s, p=player, c=ctx: update(p, s, batch, c)[1], state)
                skipped = jax.tree.map(lambda m: jnp.full(m.shape, jnp.nan).astype(m.dtype), shapes)
                due = state.step % every[player] == 0
                state, found = jax.lax.cond(
                    due,
                    lambda s, p=player, c=ctx: update(p, s, batch, c),
                    lambda s, skipped=skipped: (s, skipped),
                    state,
                )
                found = found | {"updated": due, "finite": found["finite"] | ~due}
            metrics |= {prefix + name: value for name, value in found.items()}
        ema = state.ema
        if ema is not None:
            ema = jax.tree.map(lambda e, p: ema_decay * e + (1 - ema_decay) * p, ema, state.params)
        return state.replace(step=state.step + 1, ema=ema), metrics

    return step


def host_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Floats of one step: figures of players that were not updated are left out, and so are the flags."""
    skipped = {
        name.removesuffix("updated") for name, value in metrics.items() if name.endswith("updated") and not value
    }
    return {
        name: float(value)
        for name, value in metrics.items()
        if name.rpartition("/")[2] not in ("updated", "finite")
        and not any(name.startswith(prefix) for prefix in skipped)
    }
