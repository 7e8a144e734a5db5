"""Feed-forward blocks."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from transformer_zoo.layers.products import multiply


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """X * Phi(x) by erf, as torch computes it; jax.nn.gelu takes erfc, which costs a CPU twice the MLP's time."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.7071067811865476))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,  # timm, transformers, most papers in torch
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),  # big_vision, magvit, DiT
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # CLIP, PUT
    "tanh": jax.numpy.tanh,
}


def mlp_width(width: int, ratio: float) -> int:
    """Hidden width as papers in torch have it: fractions of a channel are cut off, but not those that rounding left."""
    return int(width * ratio + 1e-6)


class Mlp(nn.Module):
    """Dense, activation, dense; with `gated`, activation(gate) * up before the last dense (GLU, SwiGLU).

    Attributes:
        hidden: width between the two dense layers.
        activation: a key of `ACTIVATIONS`.
        gated: whether a third dense layer gates the hidden one (Shazeer 2020, arXiv 2002.05202).
        use_bias: whether the dense layers have biases.
        dropout_rate: dropout after the activation and after the last layer.
        train: whether dropout applies.
        dtype: of the computation; parameters stay float32.
    """

    hidden: int
    activation: str = "gelu"
    gated: bool = False
    use_bias: bool = True
    dropout_rate: float = 0.0
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(
                features,
                use_bias=self.use_bias,
                kernel_init=nn.initializers.xavier_uniform(),
                dtype=self.dtype,
                dot_general=multiply,
                name=name,
            )

        activate = ACTIVATIONS[self.activation]
        hidden = dense(self.hidden, "up")(x)
        hidden = activate(dense(self.hidden, "gate")(x)) * hidden if self.gated else activate(hidden)
        drop = nn.Dropout(self.dropout_rate, deterministic=not self.train)
        return drop(dense(x.shape[-1], "down")(drop(hidden)))
