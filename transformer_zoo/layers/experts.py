"""A mixture of experts: many MLPs, of which each token passes through few (Shazeer et al. 2017, arXiv 1701.06538).

Routing is one array of zeros and ones, [batch, tokens, experts, places]: whether a token takes a place of an expert.
Products with it bring tokens to experts and back (Lepikhin et al. 2020, GShard, arXiv 2006.16668, section 3.2), which
on a mesh with an `expert` axis are two exchanges of tokens between the devices that hold the experts; weights stay.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo import naming
from transformer_zoo.layers.constraints import constrain_experts
from transformer_zoo.layers.mlp import Mlp

ROUTINGS = ("token", "expert")

Probabilities = Float[Array, "batch tokens experts"]
Places = Float[Array, "batch tokens experts places"]


def places_of(capacity_factor: float, top_k: int, tokens: int, num_experts: int) -> int:
    """Tokens of a sample that an expert has places for: `capacity_factor` times its part of an even load."""
    return min(tokens, max(1, int(capacity_factor * top_k * tokens / num_experts)))


def tokens_choose(probabilities: Probabilities, top_k: int, places: int) -> tuple[Places, Places, Float[Array, ""]]:
    """Each token asks its `top_k` likeliest experts; all first choices find places before second ones do, in order.

    Gates are the probabilities, for `top_k` > 1 divided by the sum of those chosen (GShard, algorithm 1).

    Returns:
        Taken places, the same with gates, and the load-balancing loss: experts times the sum over them of their share
        of choices and their mean probability, 1 where all are even (Fedus et al. 2021, Switch Transformers, arXiv
        2101.03961, equations 4 to 6). It is no plain mean over the batch, so accumulation is not exact for it.
    """
    num_experts = probabilities.shape[-1]
    taken = gated = jnp.zeros((*probabilities.shape, places))
    before = jnp.zeros((probabilities.shape[0], 1, num_experts))
    total, left = jnp.zeros(probabilities.shape[:2]), probabilities
    for _ in range(top_k):  # a compiler gathers what jax.lax.top_k looks at from all devices
        asked = jax.nn.one_hot(left.argmax(-1), num_experts)
        left = jnp.where(asked > 0, -1.0, left)
        gate = (asked * probabilities).sum(-1)
        number = before + jnp.cumsum(asked, axis=1) - asked  # of the place that a token would get
        found = asked[..., None] * jax.nn.one_hot(number.astype(jnp.int32), places)  # none beyond the last
        taken, gated, total = taken + found, gated + found * gate[..., None, None], total + gate
        before = before + asked.sum(axis=1, keepdims=True)
    if top_k > 1:
        gated = gated / total[..., None, None]
    load = before.mean((0, 1)) / (probabilities.shape[1] * top_k)
    balance = num_experts * (load * probabilities.mean((0, 1))).sum()
    return taken, gated, balance


def experts_choose(probabilities: Probabilities, places: int) -> tuple[Places, Places]:
    """Each expert takes the tokens of a sample that are likeliest its own (Zhou et al. 2022, arXiv 2202.09368).

    The load is even by construction; a token may get several experts or none.
    """
    order = jnp.argsort(-jax.lax.stop_gradient(probabilities), axis=1)[:, :places].swapaxes(1, 2)
    taken = jax.nn.one_hot(order, probabilities.shape[1], axis=1)
    return taken, taken * probabilities[..., None]


class MixtureOfExperts(nn.Module):
    """Sum of gate * expert(token) over the experts of each token; zero for a token without, as on a residual branch.

    Routing looks at one sample at a time, so a sample's output does not depend on the others in its batch. It takes
    tokens^2 * top_k * capacity_factor numbers a sample, as many as the logits of as many attention heads.

    Attributes:
        num_experts: how many there are.
        hidden: width of each, see `Mlp`.
        routing: 'token' (see `tokens_choose`) or 'expert' (see `experts_choose`).
        top_k: experts a token; on average where experts choose.
        capacity_factor: places of an expert over its part of an even load.
        activation, gated, use_bias, dropout_rate, train, dtype: of the experts, see `Mlp`; the router is float32.
    """

    num_experts: int
    hidden: int
    routing: str = "token"
    top_k: int = 2
    capacity_factor: float = 1.0
    activation: str = "gelu"
    gated: bool = False
    use_bias: bool = True
    dropout_rate: float = 0.0
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"]
    ) -> tuple[Float[Array, "batch tokens width"], dict[str, Array]]:
        """(y, aux): 'probabilities' of the router, 'balance_loss' (0 where experts choose) and 'unrouted', the share
        of tokens without an expert.

        Raises:
            ValueError: an unknown `routing`, or experts that the mesh's `expert` axis does not divide.
        """
        if self.routing not in ROUTINGS:
            raise naming.unknown("routing", self.routing, ROUTINGS)
        router = nn.Dense(self.num_experts, use_bias=False, dtype=jnp.float32, name="router")
        probabilities = jax.nn.softmax(router(x.astype(jnp.float32)))
        places = places_of(self.capacity_factor, self.top_k, x.shape[1], self.num_experts)
        balance = jnp.zeros(())
        if self.routing == "token":
            taken, gated, balance = tokens_choose(probabilities, self.top_k, places)
        else:
            taken, gated = experts_choose(probabilities, places)
        experts = nn.vmap(Mlp, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True})(
            self.hidden,
            activation=self.activation,
            gated=self.gated,
            use_bias=self.use_bias,
            dropout_rate=self.dropout_rate,
            train=self.train,
            dtype=self.dtype,
            name="experts",
        )
        here = constrain_experts(jnp.einsum("btep,btd->ebpd", taken.astype(x.dtype), x), moved=False)
        there = experts(constrain_experts(here, moved=True))
        back = constrain_experts(constrain_experts(there, moved=True), moved=False)
        y = jnp.einsum("btep,ebpd->btd", gated.astype(back.dtype), back)
        unrouted = (taken.sum((2, 3)) == 0).mean()
        return y, {"probabilities": probabilities, "balance_loss": balance, "unrouted": unrouted}
