"""What a step needs, from shapes alone: nothing is compiled, so a laptop tells in seconds.

Memory is the state, one gradient, and what the forward pass keeps for the backward pass; a compiler fuses some of that
away and needs room for temporaries. Memory traffic is what must move at least: parameters once a pass, optimizer state
in and out, kept activations written and read. Communication is that of data parallelism and of sharded parameters, by
rings; what `tensor`, `sequence` and `expert` send of activations shows in a compiled plan only. Kept activations are
taken to be split over `sequence` too, as those of long streams are.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from transformer_zoo.task import Context, Variables
from transformer_zoo.training.planner.programs import Collective
from transformer_zoo.training.planner.settings import Setting, item_bytes, shard_bytes
from transformer_zoo.training.tree import combine, partition


@dataclasses.dataclass(frozen=True)
class Needs:
    """What one device holds and moves in a step.

    Attributes:
        memory: bytes by purpose.
        traffic: bytes to and from its memory.
        collectives: communication.
    """

    memory: dict[str, int]
    traffic: float
    collectives: tuple[Collective, ...]


@dataclasses.dataclass(frozen=True)
class Costs:
    """What does not depend on the mesh: of a step on all devices.

    Attributes:
        kept: bytes that the forward pass keeps, of the player that keeps most.
        model_flops: useful FLOPs.
        executed_flops: with what is computed twice.
    """

    kept: int
    model_flops: float
    executed_flops: float


def costs_of(setting: Setting) -> Costs:
    """Costs of a setting; they take some seconds to trace."""
    kept = max(kept_bytes(setting, player) for player in setting.task.players)
    return Costs(kept, setting.flops(recomputed=False), setting.flops(recomputed=True))


def estimate(setting: Setting, costs: Costs, accumulate_steps: int) -> Needs:
    """Needs of one device by shapes."""
    state = setting.state
    trained = {p: partition(state.params[p], setting.optimizers[p].trainable)[0] for p in setting.task.players}
    params, trainable = shard_bytes(state.params), shard_bytes(trained)
    moments = shard_bytes((state.optimizer, state.ema))
    kept = costs.kept // (setting.groups * setting.mesh.shape["sequence"]) // accumulate_steps
    memory = {
        "parameters": params,
        "optimizer and averages": moments,
        "frozen and model state": shard_bytes((state.frozen, state.state)),
        "gradients": trainable * (1 if accumulate_steps == 1 else 2),
        "kept activations": kept,
        "batch": shard_bytes(setting.batch),
    }
    traffic = 2 * moments + 2 * params + 3 * trainable + accumulate_steps * (2 * params + 2 * kept)
    return Needs(memory, float(traffic), collectives(setting, trained, accumulate_steps))


def kept_bytes(setting: Setting, player: str) -> int:
    """Bytes that the forward pass of one player keeps for its backward pass, of the whole batch on all devices."""
    state, batch = setting.abstract()
    trainable, rest = partition(state.params[player], setting.optimizers[player].trainable)
    ctx = jax.eval_shape(
        lambda: Context(jax.random.key(0), jnp.int32(0), player=player, phase=setting.task.phase(0), train=True)
    )

    others = {name: tree for name, tree in state.params.items() if name != player}

    def backward(trainable: Any, rest: Any, others: Any, model_state: Any, frozen: Any, batch: Any, ctx: Any) -> Any:
        def loss(trainable: Any) -> Any:
            variables = Variables({**others, player: combine(trainable, rest)}, model_state, frozen)
            return setting.task.loss(variables, batch, ctx)[0]

        return jax.vjp(loss, trainable)[1]  # a tree whose leaves are what it keeps

    arguments = (trainable, rest, others, state.state, state.frozen, batch, ctx)
    jaxpr = jax.make_jaxpr(backward)(*arguments).jaxpr
    kept = {var for var in jaxpr.outvars if not isinstance(var, Literal)} - set(jaxpr.invars)
    return sum(math.prod(var.aval.shape) * item_bytes(var.aval.dtype) for var in kept)


def collectives(setting: Setting, trained: Any, accumulate_steps: int) -> tuple[Collective, ...]:
    """Communication of gradients over what holds copies, and of parameters and gradients over `fsdp`."""
    fsdp = setting.mesh.shape["fsdp"]
    copies = math.prod(setting.mesh.shape[axis] for axis in ("data", "sequence", "expert"))
    shards = shard_bytes(trained)
    found = []
    if copies > 1:
        found.append(Collective("all-reduce", copies, shards, 1))
    if fsdp > 1:
        gathered = shards * fsdp // 2  # in bfloat16, forward and backward
        found.append(Collective("all-gather", fsdp, gathered, 2 * accumulate_steps))
        found.append(Collective("reduce-scatter", fsdp, shards * fsdp, accumulate_steps))
    return tuple(found)
