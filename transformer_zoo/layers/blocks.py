"""The pre-norm transformer block, and stacks of equal blocks as one scan."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from transformer_zoo.layers.attention import Attention, HeadProjection, KVCache
from transformer_zoo.layers.constraints import constrain_tokens
from transformer_zoo.layers.devices import current_device
from transformer_zoo.layers.mlp import Mlp
from transformer_zoo.layers.norms import DropPath, LayerScale, layer_norm

# What the backward pass keeps from the forward pass; 'none' recomputes nothing.
REMAT_POLICIES = {
    "none": None,
    "full": "nothing_saveable",
    "dots": "dots_saveable",
    "dots_no_batch": "dots_with_no_batch_dims_saveable",
}


def scan_blocks(
    parent: nn.Module,
    block: nn.Module,
    depth: int,
    x: Any,
    scanned: Any,
    *broadcast: Any,
    name: str = "blocks",
    remat: str = "none",
    unroll: int = 1,
) -> tuple[Any, Any]:
    """Applies `block` `depth` times, with parameters of its own each time, stacked on a leading axis under `name`.

    `unroll=depth` is a plain loop, which compiles longer and on a CPU runs faster; parameters, outputs and dropout are
    the same. What nobody reads of the blocks' second outputs costs nothing under jit.

    Args:
        parent: the module inside whose compact method this is called, and which owns the parameters.
        block: called as block(x, scanned[i], *broadcast) and returning (x, y).
        depth: number of blocks.
        x: what they hand on.
        scanned: a tree of arrays with a leading axis of `depth`.
        broadcast: further arguments, equal for all blocks.
        name: of the parameters.
        remat: a key of `REMAT_POLICIES`.
        unroll: blocks a loop iteration.

    Returns:
        The last block's x, and all y stacked on a leading axis.

    Raises:
        ValueError: `remat` is no known policy.
    """
    if remat not in REMAT_POLICIES:
        raise ValueError(f"remat {remat!r} is none of {', '.join(REMAT_POLICIES)}")
    block = block.clone(parent=None)

    def init(key: Array) -> Any:
        first = jax.tree.map(lambda leaf: leaf[0], scanned)
        keys = jax.random.split(key, depth)

        def one(key: Array) -> Any:
            return block.init({"params": key, "dropout": key}, x, first, *broadcast).get("params", {})

        return jax.vmap(one)(keys)

    params = parent.param(name, init)
    keys = jax.random.split(parent.make_rng("dropout"), depth) if parent.has_rng("dropout") else None

    def apply(x: Any, one: tuple[Any, Any, Any]) -> tuple[Any, Any]:
        params, key, scanned = one
        return block.apply({"params": params}, x, scanned, *broadcast, rngs=None if key is None else {"dropout": key})

    policy = REMAT_POLICIES[remat]
    if policy is not None:
        apply = jax.checkpoint(apply, policy=getattr(jax.checkpoint_policies, policy), prevent_cse=unroll >= depth)
    if unroll < depth:
        return jax.lax.scan(apply, x, (params, keys, scanned), unroll=unroll)
    outputs = []
    for one in unstacked((params, keys, scanned), depth):
        x, y = apply(jax.tree.map(summed_once, x), one)
        outputs.append(y)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


@jax.custom_jvp
def summed_once(x: Num[Array, "*shape"]) -> Num[Array, "*shape"]:
    """X, with a gradient that XLA's CPU compiler sums up once.

    It repeats cheap sums in each of their readers, so that in a plain loop every block would sum up the gradients of
    all blocks behind it. A division is not cheap to it, and this one, by 1, it cannot foresee.
    """
    return x


@summed_once.defjvp
def _summed_once(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return x, tangent / (1 + 0 * x) if floating and current_device()[0] == "cpu" else tangent


def unstacked(tree: Any, depth: int) -> list[Any]:
    """`depth` trees from one whose leaves have a leading axis of that length.

    The gradient of a split is one concatenation; those of `depth` slices would be a sum of as many whole arrays, which
    made work and memory of the backward pass grow with the square of the depth.
    """
    leaves, structure = jax.tree.flatten(tree)
    parts = [jax.lax.split(leaf, (1,) * depth) for leaf in leaves]
    return [jax.tree.unflatten(structure, [part[0] for part in one]) for one in zip(*parts)]


def drop_path_rates(rate: float, depth: int) -> Float[Array, " depth"]:
    """Rates that grow linearly from 0 in the first block to `rate` in the last."""
    return jnp.linspace(0.0, rate, depth)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): the pre-norm block of ViT and most of its descendants.

    Attributes:
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over the block's width, rounded to a whole number.
        activation, gated, use_bias: of the MLP, see `Mlp`.
        qkv_bias, qk_norm, scale, causal, attention: of the attention, see `Attention`; `attention` is its
            implementation.
        layer_scale: initial value of LayerScale on both branches; 0 leaves it out.
        norm_epsilon: of the LayerNorms.
        norm_bias: whether the LayerNorms have biases.
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
    scale: float | None = None
    causal: bool = False
    attention: str = "auto"
    layer_scale: float = 0.0
    norm_epsilon: float = 1e-6
    norm_bias: bool = True
    dropout_rate: float = 0.0
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        drop_path_rate: Float[Array, ""] | float = 0.0,
        rope: Any = None,
        mask: Bool[Array, "#batch #heads #tokens tokens"] | None = None,
    ) -> tuple[Float[Array, "batch tokens width"], Float[Array, "batch tokens width"]]:
        def branch(y: Array, name: str) -> Array:
            if self.layer_scale:
                y = LayerScale(self.layer_scale, name=f"{name}_scale")(y)
            return DropPath(self.train, name=f"{name}_drop")(y, drop_path_rate)

        x = constrain_tokens(x)
        y = Attention(
            self.num_heads,
            qkv_bias=self.qkv_bias,
            out_bias=self.use_bias,
            qk_norm=self.qk_norm,
            qk_norm_bias=self.norm_bias,
            scale=self.scale,
            causal=self.causal,
            implementation=self.attention,
            dtype=self.dtype,
            name="attention",
        )(layer_norm(self.norm_epsilon, self.dtype, "norm1", use_bias=self.norm_bias)(x), rope=rope, mask=mask)
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
        )(layer_norm(self.norm_epsilon, self.dtype, "norm2", use_bias=self.norm_bias)(x))
        x = x + branch(y, "mlp")
        return x, x


class DecoderCache(NamedTuple):
    """What a `DecoderBlock` need not compute again: keys and values of the tokens so far, and those of the context."""

    tokens: KVCache
    context: tuple[Array, Array]


class DecoderBlock(nn.Module):
    """Pre-norm self-attention, cross-attention to a context, and MLP, each on a residual branch of its own.

    Attributes:
        num_heads: attention heads, of both attentions.
        mlp_ratio, activation, gated, use_bias, norm_epsilon, norm_bias, dtype: see `Block`.
        qk_norm, attention: of both attentions, see `Block`.
        train: whether drop path applies.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    gated: bool = False
    use_bias: bool = True
    qk_norm: bool = False
    attention: str = "auto"
    norm_epsilon: float = 1e-6
    norm_bias: bool = True
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        scanned: Float[Array, ""] | float | DecoderCache,
        context: Float[Array, "batch keys context_width"],
        mask: Bool[Array, "#batch #heads #tokens tokens"] | None = None,
        context_mask: Bool[Array, "#batch #heads #tokens all_keys"] | None = None,
        rope: Any = None,
    ) -> tuple[Float[Array, "batch tokens width"], Float[Array, "batch tokens width"] | KVCache]:
        """Hands on x, and gives it as well, or with a cache the tokens' keys and values, these included.

        Args:
            x: tokens.
            scanned: the rate of drop path, or the cache of a block that reads on.
            context: what cross-attention looks at; with a cache, which holds it, without any tokens.
            mask: True where a token may see another.
            context_mask: True where a token may see a place of the context.
            rope: tables that turn the tokens' queries and keys of self-attention; not with a cache.
        """
        cache, rate = (scanned, 0.0) if isinstance(scanned, DecoderCache) else (None, scanned)

        def norm(name: str) -> nn.LayerNorm:
            return layer_norm(self.norm_epsilon, self.dtype, name, use_bias=self.norm_bias)

        def attention(name: str) -> Attention:
            return Attention(
                self.num_heads,
                qkv_bias=self.use_bias,
                out_bias=self.use_bias,
                qk_norm=self.qk_norm,
                qk_norm_bias=self.norm_bias,
                implementation=self.attention,
                dtype=self.dtype,
                name=name,
            )

        def branch(y: Any, name: str) -> Array:
            return DropPath(self.train, name=f"{name}_drop")(y, rate)

        x = constrain_tokens(x)
        if cache is None:
            y, tokens = attention("attention")(norm("norm1")(x), rope=rope, mask=mask), None
        else:
            y, tokens = attention("attention")(norm("norm1")(x), cache=cache.tokens)
        x = x + branch(y, "attention")
        query, known = norm("query_norm")(x), norm("context_norm")(context)
        cached = None if cache is None else cache.context
        y = attention("cross_attention")(query, known, mask=context_mask, extra_key_values=cached)
        x = x + branch(y, "cross_attention")
        mlp = Mlp(
            round(self.mlp_ratio * x.shape[-1]),
            activation=self.activation,
            gated=self.gated,
            use_bias=self.use_bias,
            dtype=self.dtype,
            name="mlp",
        )
        x = x + branch(mlp(norm("norm2")(x)), "mlp")
        return x, x if tokens is None else tokens


def context_keys(
    block: DecoderBlock, params: Any, context: Float[Array, "batch keys context_width"]
) -> tuple[Float[Array, "batch keys heads dim"], Float[Array, "batch keys heads dim"]]:
    """Keys and values of a context for the `DecoderCache` of a block with these parameters."""

    def norm(params: Any, x: Array, epsilon: float = 1e-6) -> Any:
        return layer_norm(epsilon, block.dtype, use_bias=block.norm_bias).apply({"params": params}, x)

    cross = params["cross_attention"]
    _, num_heads, head_dim = cross["kv"]["kernel"].shape[1:]
    project = HeadProjection(2, num_heads, head_dim, use_bias=block.use_bias, dtype=block.dtype)
    normed = norm(params["context_norm"], context, block.norm_epsilon)
    found: Any = project.apply({"params": cross["kv"]}, normed)
    key, value = found
    return norm(cross["k_norm"], key) if block.qk_norm else key, value
