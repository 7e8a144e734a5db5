"""Activator: GLU Activations as The Core Functions of a Vision Transformer (Abdullah and Aydin, arXiv 2405.15953).

A ViT whose attention is replaced by a gated linear unit with LayerNorm on both of its branches. The later versions of
the paper leave out the MLP that followed and keep the gated unit alone (`use_mlp=False`). Nothing in it mixes tokens
but the mean at the end: the network is a bag of patches, and has no positions. Reference: Abdullah-88/Activator
(BSD-3-Clause). Sizes stand in `zoo/papers/activator.toml`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo.layers.blocks import scan_blocks
from transformer_zoo.layers.constraints import constrain_tokens
from transformer_zoo.layers.depths import layer_depths
from transformer_zoo.layers.mlp import ACTIVATIONS, Mlp
from transformer_zoo.layers.norms import layer_norm
from transformer_zoo.layers.patches import PatchEmbed

Tokens = Float[Array, "batch tokens width"]

# As torch initialises a Linear, which is what the reference leaves it at.
KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class GatedUnit(nn.Module):
    """down(norm(activation(gate(x))) * norm(up(x))), one LayerNorm for both branches (equation 4).

    Attributes:
        hidden: width of the branches.
        activation: of the gate: 'gelu' (GEGLU), 'silu' (SwiGLU) or 'relu' (ReGLU).
        dtype: of the computation.
    """

    hidden: int
    activation: str = "gelu"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        def dense(width: int, name: str) -> nn.Dense:
            return nn.Dense(width, kernel_init=KERNEL, dtype=self.dtype, name=name)

        norm = layer_norm(1e-5, self.dtype, "norm")
        gate = norm(ACTIVATIONS[self.activation](dense(self.hidden, "gate")(x)))
        return dense(x.shape[-1], "down")(gate * norm(dense(self.hidden, "up")(x)))


class ActivatorBlock(nn.Module):
    """x + unit(norm(x)), and then, where there is an MLP, x + mlp(norm(x)) with the SAME norm.

    Attributes:
        hidden: width of unit and MLP.
        activation: of the unit's gate.
        use_mlp: whether the MLP follows.
        dropout_rate: of the MLP.
        train: whether dropout applies.
        dtype: of the computation.
    """

    hidden: int
    activation: str = "gelu"
    use_mlp: bool = True
    dropout_rate: float = 0.5
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Tokens, scanned: None) -> tuple[Tokens, Tokens]:
        x = constrain_tokens(x)
        norm = layer_norm(1e-5, self.dtype, "norm")
        x = x + GatedUnit(self.hidden, self.activation, self.dtype, name="unit")(norm(x))
        if self.use_mlp:
            dropout: Any = dict(dropout_rate=self.dropout_rate, train=self.train)
            x = x + Mlp(self.hidden, dtype=self.dtype, name="mlp", **dropout)(norm(x))
        return x, x


class Activator(nn.Module):
    """The network, with a linear head on the mean of its tokens.

    Attributes:
        num_classes: width of the head; 0 leaves it out.
        image_size: (height, width) in pixels that it is made for; other inputs work, as it has no positions.
        patch_size: (height, width) in pixels.
        channels: of the image.
        depth, width: of the network.
        hidden: width of gated units and MLPs.
        activation, use_mlp, dropout_rate: see `ActivatorBlock`.
        remat, unroll: see `scan_blocks`.
        dtype: of the computation; parameters stay float32.
    """

    num_classes: int = 10
    image_size: tuple[int, int] = (32, 32)
    patch_size: tuple[int, int] = (4, 4)
    channels: int = 3
    depth: int = 4
    width: int = 256
    hidden: int = 512
    activation: str = "gelu"
    use_mlp: bool = True
    dropout_rate: float = 0.5
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    def layer_numbers(self, params: Any) -> Any:
        """Layer number of every parameter, see `layer_depths`."""
        return layer_depths(params, self.depth)

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> tuple[Float[Array, "batch out"], dict[str, Array]]:
        """Logits [batch, num_classes], or with no head the pooled vector; and named intermediates.

        Of these 'patches' are the first tokens, 'levels' [depth, batch, tokens, width] every block's output, 'tokens'
        the last of them and 'pooled' their mean, which the head reads.

        Raises:
            ValueError: an unknown activation, or an image that patches do not tile.
        """
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is none of {', '.join(ACTIVATIONS)}")
        patches = PatchEmbed(self.width, self.patch_size, dtype=self.dtype, name="patch_embed")(images)
        block = ActivatorBlock(
            self.hidden, self.activation, self.use_mlp, self.dropout_rate, train=train, dtype=self.dtype
        )
        x, levels = scan_blocks(self, block, self.depth, patches, None, remat=self.remat, unroll=self.unroll)
        pooled = x.mean(axis=1)
        aux = {"patches": patches, "levels": levels, "tokens": x, "pooled": pooled}
        if not self.num_classes:
            return pooled, aux
        head = nn.Dense(self.num_classes, kernel_init=KERNEL, dtype=self.dtype, name="head")
        return head(pooled).astype(jnp.float32), aux
