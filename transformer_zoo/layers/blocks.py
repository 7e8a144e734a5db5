"""The pre-norm transformer block, and stacks of equal blocks as one scan."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo.layers.attention import Attention
from transformer_zoo.layers.constraints import constrain_batch
from transformer_zoo.layers.mlp import Mlp
from transformer_zoo.layers.norms import DropPath, LayerScale, layer_norm

# What the backward pass keeps from the forward pass; 'none' recomputes nothing.
REMAT_POLICIES = {
    "none": None,
    "full": "nothing_saveable",
    "dots": "dots_saveable",
    "dots_no_batch": "dots_with_no_batch_dims_saveable",
}


def stack(block: type[nn.Module], depth: int, *, remat: str = "none", unroll: int = 1, broadcast: int = 0) -> Any:
    """A module class that applies `block` `depth` times as one scan, parameters stacked on a leading axis.

    The block's `__call__` takes (x, one value scanned over depth, *broadcast values) and returns (x, ys); the stack
    returns (x, ys stacked over depth). What of ys nobody reads costs nothing under jit.

    Args:
        block: the repeated module.
        depth: number of repetitions.
        remat: a key of `REMAT_POLICIES`.
        unroll: blocks a loop iteration; `depth` leaves no loop. The parameters are the same either way.
        broadcast: how many arguments after the scanned one are equal for all blocks.

    Raises:
        ValueError: `remat` is no known policy.
    """
    if remat not in REMAT_POLICIES:
        raise ValueError(f"remat {remat!r} is none of {', '.join(REMAT_POLICIES)}")
    policy = REMAT_POLICIES[remat]
    if policy is not None:
        block = nn.remat(block, policy=getattr(jax.checkpoint_policies, policy), prevent_cse=False)
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0,) + (nn.broadcast,) * broadcast,
        length=depth,
        unroll=min(unroll, depth),
    )


def drop_path_rates(rate: float, depth: int) -> Float[Array, " depth"]:
    """Rates that grow linearly from 0 in the first block to `rate` in the last."""
    return jnp.linspace(0.0, rate, depth)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): the pre-norm block of ViT and most of its descendants.

    Attributes:
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over the block's width, rounded to a whole number.
        activation, gated, use_bias: of the MLP, see `Mlp`.
        qkv_bias, qk_norm, attention: of the attention, see `Attention`; `attention` is its implementation.
        layer_scale: initial value of LayerScale on both branches; 0 leaves it out.
        norm_epsilon: of the LayerNorms.
        dropout_rate: of both branches.
        train: whether dropout and drop path apply.
        dtype: of the computation.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    gated: bool = False
    use_bias: bool = True
    qkv_bias: bool = True
    qk_norm: bool = False
    attention: str = "auto"
    layer_scale: float = 0.0
    norm_epsilon: float = 1e-6
    dropout_rate: float = 0.0
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], drop_path_rate: Float[Array, ""] | float = 0.0, *positions: Any
    ) -> tuple[Float[Array, "batch tokens width"], Float[Array, "batch tokens width"]]:
        def branch(y: Array, name: str) -> Array:
            if self.layer_scale:
                y = LayerScale(self.layer_scale, name=f"{name}_scale")(y)
            return DropPath(self.train, name=f"{name}_drop")(y, drop_path_rate)

        x = constrain_batch(x)
        y = Attention(
            self.num_heads,
            qkv_bias=self.qkv_bias,
            out_bias=self.use_bias,
            qk_norm=self.qk_norm,
            implementation=self.attention,
            dtype=self.dtype,
            name="attention",
        )(layer_norm(self.norm_epsilon, self.dtype, "norm1")(x))
        x = x + branch(nn.Dropout(self.dropout_rate, deterministic=not self.train)(y), "attention")
        y = Mlp(
            round(self.mlp_ratio * x.shape[-1]),
            activation=self.activation,
            gated=self.gated,
            use_bias=self.use_bias,
            dropout_rate=self.dropout_rate,
            train=self.train,
            dtype=self.dtype,
            name="mlp",
        )(layer_norm(self.norm_epsilon, self.dtype, "norm2")(x))
        x = x + branch(y, "mlp")
        return x, x


def levels_of(stacked: Float[Array, "depth batch tokens width"], levels: Sequence[int]) -> list[Array]:
    """The outputs of the blocks numbered `levels` (negative from the end)."""
    return [stacked[level] for level in levels]
