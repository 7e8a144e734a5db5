"""Token by token in raster order: the autoregressive decoding that masked generators are compared with.

The transformer of VQGAN and DALL-E in its plain form: a causal pre-norm transformer over a prefix that says what is
shown and the ids so far (Esser et al. 2021, arXiv 2012.09841, section 3.2). Keys and values are kept, so that sampling
computes every token once.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from transformer_zoo.decoding.autoregressive import decode_autoregressive
from transformer_zoo.decoding.sampling import guide
from transformer_zoo.layers.attention import Attention, KVCache, empty_cache
from transformer_zoo.layers.blocks import scan_blocks
from transformer_zoo.layers.constraints import constrain_tokens
from transformer_zoo.layers.mlp import Mlp
from transformer_zoo.layers.norms import layer_norm
from transformer_zoo.task import Aux, Batch, Context, Variables
from transformer_zoo.tasks.masked_tokens import MaskedTokens, token_loss


class CausalBlock(nn.Module):
    """The pre-norm block of a causal transformer; where it is given a cache it gives it back with the new tokens.

    Attributes:
        num_heads, mlp_ratio, attention, dtype: see `layers.blocks.Block`.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    attention: str = "auto"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"], cache: Any) -> tuple[Array, Any]:
        x = constrain_tokens(x)
        attention = Attention(
            self.num_heads, causal=True, implementation=self.attention, dtype=self.dtype, name="attention"
        )
        y = layer_norm(dtype=self.dtype, name="norm1")(x)
        if isinstance(cache, KVCache):
            y, cache = attention(y, cache=cache)
        else:
            y = attention(y)
        x = x + y
        hidden = round(self.mlp_ratio * x.shape[-1])
        mlp = Mlp(hidden, activation="gelu_tanh", dtype=self.dtype, name="mlp")
        return x + mlp(layer_norm(dtype=self.dtype, name="norm2")(x)), cache


class Raster(nn.Module):
    """Logits of the code that follows each of a prefix's last and a grid's tokens.

    Attributes:
        grid, num_codes, num_conditions, prefix_length, null_condition: see `MaskGIT`.
        depth, width, num_heads, mlp_ratio: of the blocks.
        attention, remat, unroll, dtype: see `Block` and `scan_blocks`.
    """

    grid: tuple[int, ...] = (16, 16)
    num_codes: int = 1024
    num_conditions: int = 1000
    prefix_length: int = 1
    null_condition: int = -1
    depth: int = 24
    width: int = 768
    num_heads: int = 16
    mlp_ratio: float = 4.0
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    @property
    def mask_id(self) -> int:
        """No token is ever hidden; an id that is none, for tasks that ask."""
        return self.num_codes + self.num_conditions

    @property
    def condition_shape(self) -> tuple[int, ...]:
        """Of one sample's condition: () for a class."""
        return () if self.prefix_length == 1 else (self.prefix_length,)

    @property
    def length(self) -> int:
        """Tokens of a sample that are ever read: the last one is not."""
        return self.prefix_length + math.prod(self.grid) - 1

    def empty_cache(self, batch: int) -> KVCache:
        """For all tokens of `batch` samples and all blocks."""
        dtype = jnp.dtype(self.dtype or jnp.float32)
        one = empty_cache(batch, self.length, self.num_heads, self.width // self.num_heads, dtype)
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.depth, *leaf.shape)), one)

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch tokens"], cache: KVCache | None = None, *, train: bool = False
    ) -> tuple[Float[Array, "batch tokens codes"], dict[str, Any]]:
        """Logits of what follows each token, and 'cache' with the tokens; ids of conditions come after the codes'."""
        normal = nn.initializers.normal(0.02)
        vocabulary = self.num_codes + self.num_conditions
        words = nn.Embed(vocabulary, self.width, embedding_init=normal, dtype=self.dtype, name="embed")
        table = self.param("positions", normal, (self.length, self.width))
        start = 0 if cache is None else cache.length[0]
        places = jax.lax.dynamic_slice_in_dim(table, start, tokens.shape[1])
        x = words(tokens) + places.astype(self.dtype or jnp.float32)
        block = CausalBlock(self.num_heads, self.mlp_ratio, self.attention, self.dtype)
        scanned = jnp.zeros(self.depth) if cache is None else cache
        x, found = scan_blocks(self, block, self.depth, x, scanned, remat=self.remat, unroll=self.unroll)
        x = layer_norm(dtype=self.dtype, name="norm")(x)
        logits = nn.Dense(self.num_codes, kernel_init=normal, dtype=self.dtype, name="logits")(x)
        return logits.astype(jnp.float32), {"cache": None if cache is None else found}


@dataclasses.dataclass(frozen=True)
class RasterTokens(MaskedTokens):
    """Cross-entropy of every token after those before it; sampling draws one token a call."""

    def sequence(self, condition: Array, ids: Int[Array, "batch *grid"]) -> Int[Array, "batch tokens"]:
        """Prefix and ids."""
        prefix = condition.reshape(ids.shape[0], -1) + self.network.num_codes
        return jnp.concatenate([prefix, ids.reshape(ids.shape[0], -1)], axis=1)

    def inputs(self, shown: Array, condition: Any, hidden: Array) -> tuple[Any, ...]:
        return (self.sequence(condition, shown)[:, :-1],)

    def predict(
        self,
        variables: Variables,
        shown: Array,
        condition: Any,
        hidden: Array,
        *,
        key: Key[Array, ""] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch *grid codes"]:
        """Logits at every place from the tokens before it, hidden or not."""
        (sequence,) = self.inputs(shown, condition, hidden)
        logits, _ = self.network.apply({"params": variables.params["model"]}, sequence, train=train)
        return logits[:, self.network.prefix_length - 1 :].reshape(*shown.shape, -1)

    def hide(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Bool[Array, "batch *grid"]:
        return jnp.ones(shape, bool)

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], Aux]:
        ids = self.tokenize(variables, batch)
        condition = self.condition_of(batch)
        condition = self.drop(ctx.key, condition) if ctx.train else condition
        everywhere = self.hide(ctx.key, ids.shape)
        logits = self.predict(variables, ids, condition, everywhere, train=ctx.train)
        right = (logits.argmax(axis=-1) == ids).mean()
        return token_loss(logits, ids, everywhere, self.label_smoothing), Aux(metrics={"accuracy": right})

    def sample(
        self, variables: Variables, condition: Any, key: Key[Array, ""], ids: Any = None, unknown: Any = None
    ) -> Int[Array, "batch *grid"]:
        """See `MaskedTokens.sample`; all tokens are drawn.

        Raises:
            ValueError: some tokens are given.
        """
        if ids is not None:
            raise ValueError("tokens in raster order cannot go around given ones: leave `ids` out")
        chosen, network, count = self.sampling, self.network, condition.shape[0]
        nothing = jnp.zeros((count, 0), jnp.int32)
        unconditional = self.sequence(self.without(condition), nothing)

        def logits(tokens: Array, cache: Any, index: Any) -> tuple[Array, Any]:
            if self.guided:  # the first call, whose index is a plain number, has the prefixes
                tokens = jnp.concatenate([tokens, unconditional if isinstance(index, int) else tokens])
            found, aux = network.apply({"params": variables.params["model"]}, tokens, cache)
            last = found[:, -1]
            if self.guided:
                with_it, without_it = jnp.split(last, 2)
                last = guide(with_it, without_it, chosen.guidance_scale)
            return last, aux["cache"]

        found = decode_autoregressive(
            logits,
            self.sequence(condition, nothing),
            network.empty_cache(count * (2 if self.guided else 1)),
            key,
            length=math.prod(network.grid),
            temperature=chosen.temperature,
            top_k=chosen.top_k,
            top_p=chosen.top_p,
        )
        return found.reshape(count, *network.grid)

    @property
    def calls(self) -> int:
        """Passes of the network that one sample takes."""
        return math.prod(self.network.grid) * (2 if self.guided else 1)
