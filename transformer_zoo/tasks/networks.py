"""How tasks call networks: parameters by player, every other collection (batch statistics) in the state."""

from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Key

from transformer_zoo.task import Tree, Variables


def init_network(network: nn.Module, key: Key[Array, ""], *inputs: Any) -> tuple[Tree, Tree]:
    """Parameters, and the network's other collections by name."""
    collections = dict(network.init(key, *inputs))
    return collections.pop("params"), collections


def apply_network(
    network: nn.Module,
    variables: Variables,
    *inputs: Any,
    player: str = "model",
    key: Key[Array, ""] | None = None,
    train: bool = False,
) -> tuple[Any, dict[str, Any], Tree]:
    """Output and intermediates of a player's network, and the new state of all players.

    While training the network may replace its other collections; in evaluation they stay as they are.
    """
    own = variables.state.get(player, {})
    rngs = None if key is None else {"dropout": key}
    given = {"params": variables.params[player], **own}
    mutable = list(own) if train else []
    (output, aux), new = network.apply(given, *inputs, train=train, rngs=rngs, mutable=mutable)
    state = {**variables.state, player: new} if mutable else variables.state
    return output, aux, state


def frozen_network(network: nn.Module, *inputs: Any) -> Tree:
    """What stands in `Variables.frozen` for a network of another run until the loop fills it; see `apply_frozen`."""
    params, state = jax.eval_shape(lambda key: init_network(network, key, *inputs), jax.random.key(0))
    return {"params": params, "state": state}


def apply_frozen(network: nn.Module, frozen: Tree, *inputs: Any, **options: Any) -> Any:
    """Calls a network of another run; `options` go to `apply`, such as `method`."""
    return network.apply({"params": frozen["params"], **frozen["state"]}, *inputs, **options)
