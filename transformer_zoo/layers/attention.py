"""Attention: one function for every implementation, one module for every transformer block."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Bool, Float

from transformer_zoo.layers import attention_kernels as kernels
from transformer_zoo.layers.attention_kernels import Shaped, Window
from transformer_zoo.layers.attention_ring import ring
from transformer_zoo.layers.constraints import SEQUENCE_AXIS, sequence_parts
from transformer_zoo.layers.devices import current_device
from transformer_zoo.layers.norms import layer_norm
from transformer_zoo.layers.products import multiply
from transformer_zoo.layers.rope import Rope, apply_rope

IMPLEMENTATIONS = ("auto", "xla", "chunked", "cudnn", "pallas", "ring")
QK_NORMS = ("layer", "rms")
# From this many logits a head and sample, 'auto' no longer writes them out. On a CPU 'chunked' is then up to twice as
# fast, on shorter sequences equal or slower.
MANY_LOGITS = 1024**2


def choose_implementation(
    implementation: str,
    query: Shaped,
    key: Shaped,
    value: Shaped,
    *,
    platform: str,
    capability: float = 0.0,
    causal: bool = False,
    window: Window | None = None,
    sequence: int = 1,
    **hooks: Shaped | None,
) -> tuple[str, str]:
    """The implementation that serves a call of `attend`, and why; looks at shapes and dtypes only.

    Args:
        implementation: one of `IMPLEMENTATIONS`.
        query: as in `attend`, or its shape and dtype.
        key: likewise.
        value: likewise.
        platform: 'cpu', 'gpu' or 'tpu'.
        capability: of the GPU, 9.0 for Hopper; 0 where there is none.
        causal: see `attend`.
        window: see `attend`.
        sequence: devices that the tokens of queries and keys are split over.
        **hooks: bias, mask, logit_multiplier and probability_mask of `attend`.

    Raises:
        ValueError: `implementation` is unknown, or was asked for by name and cannot serve the call.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r} is none of {', '.join(IMPLEMENTATIONS)}")
    refusals = {
        "cudnn": kernels.cudnn_refusal(query, key, value, platform=platform, capability=capability, **hooks),
        "pallas": kernels.pallas_refusal(query, key, value, platform=platform, causal=causal, window=window, **hooks),
        "ring": "" if sequence > 1 else "it needs a mesh whose sequence axis splits the tokens",
    }
    if implementation != "auto":
        if refusals.get(implementation):
            raise ValueError(
                f"implementation {implementation!r} cannot serve this call: {refusals[implementation]}; "
                "'chunked' can, and 'auto' chooses"
            )
        return implementation, "it was asked for"
    logits = f"{query.shape[1]} x {key.shape[1]} logits"
    if sequence > 1:
        return "ring", f"{logits} are split over sequence={sequence}"
    if query.shape[1] * key.shape[1] < MANY_LOGITS:
        return "xla", f"{logits} are few"
    kernel = {"gpu": "cudnn", "tpu": "pallas"}.get(platform)
    if kernel is None:
        return "chunked", f"{logits} are many on {platform}"
    if refusals[kernel]:
        return "chunked", f"{logits} are many and {kernel} cannot: {refusals[kernel]}"
    return kernel, f"{logits} are many on {platform}"


@functools.cache
def log_once(name: str, reason: str) -> None:
    """Logs a choice the first time it is made."""
    logging.info("attention runs as %s: %s", name, reason)


def attend(
    query: Float[Array, "batch queries heads dim"],
    key: Float[Array, "batch keys heads dim"],
    value: Float[Array, "batch keys heads value_dim"],
    *,
    bias: Float[Array, "#batch #heads #queries #keys"] | None = None,
    mask: Bool[Array, "#batch #heads #queries #keys"] | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: Window | None = None,
    logit_multiplier: Float[Array, "#batch #heads #queries #keys"] | None = None,
    probability_mask: Float[Array, "#batch #heads #queries #keys"] | None = None,
    implementation: str = "auto",
    chunk_size: int = 256,
) -> Float[Array, "batch queries heads value_dim"]:
    """softmax(query key^T * scale * logit_multiplier + bias) * probability_mask value, the softmax in float32.

    A query that may see no key gets the mean of all values, in every implementation.

    Args:
        query: what each token asks for, head by head.
        key: what each token is asked by.
        value: what each token answers.
        bias: added to the logits; finite.
        mask: True where a query may see a key.
        scale: of the logits; None means dim^-0.5.
        causal: a query sees no later key. The last query stands beside the last key, so keys in front are seen by all.
        window: how many keys (before, after) its own position a query sees; None on a side is no limit.
        logit_multiplier: multiplies the scaled logits.
        probability_mask: multiplies the softmax, which is not normalised again.
        implementation: 'xla' writes all logits out, 'chunked' at most `chunk_size` queries' at a time in both
            directions, 'cudnn' and 'pallas' are the fused kernels for NVIDIA GPUs and TPUs, 'ring' serves tokens that
            are split over devices, 'auto' chooses and logs.
        chunk_size: queries at a time for 'chunked', keys for 'ring'.

    Raises:
        ValueError: `implementation` is unknown, or was asked for by name and cannot serve the call.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    hooks: dict[str, Any] = dict(
        bias=bias, mask=mask, logit_multiplier=logit_multiplier, probability_mask=probability_mask
    )
    platform, capability = current_device()
    mesh = dict(jax.sharding.get_abstract_mesh().shape)
    # Few tokens stay whole; by name they are split all the same.
    parts = min(sequence_parts(query.shape[1]), sequence_parts(key.shape[1]))
    name, reason = choose_implementation(
        implementation,
        query,
        key,
        value,
        platform=platform,
        capability=capability,
        causal=causal,
        window=window,
        sequence=mesh.get(SEQUENCE_AXIS, 1) if implementation == "ring" else parts,
        **hooks,
    )
    log_once(name, reason)
    options: dict[str, Any] = dict(scale=scale, causal=causal, window=window)
    if name == "cudnn":
        return kernels.cudnn(query, key, value, bias=bias, mask=mask, **options)
    if name == "pallas":
        return kernels.pallas(query, key, value, mask=mask, **options)
    if name == "ring":
        return ring(query, key, value, chunk_size=chunk_size, **hooks, **options)
    if name == "chunked":
        return kernels.chunked(query, key, value, chunk_size=chunk_size, **hooks, **options)
    return kernels.plain(query, key, value, **hooks, **options)


class KVCache(NamedTuple):
    """Keys and values of the tokens so far, [batch, max_length, heads, dim], and how many they are, a scalar."""

    key: Array
    value: Array
    length: Array


def empty_cache(batch: int, max_length: int, num_heads: int, head_dim: int, dtype: Any = jnp.float32) -> KVCache:
    """A cache for one `Attention`; a scanned stack of blocks takes one with a leading depth axis on every leaf."""
    empty = jnp.zeros((batch, max_length, num_heads, head_dim), dtype)
    return KVCache(empty, empty, jnp.zeros((), jnp.int32))


def extend_cache(
    cache: KVCache, key: Float[Array, "batch tokens heads dim"], value: Float[Array, "batch tokens heads dim"]
) -> KVCache:
    """Writes the keys and values of further tokens behind those in the cache.

    The length is traced, so that too many tokens over several calls cannot raise: they overwrite the last ones.

    Raises:
        ValueError: more tokens at once than `max_length`.
    """
    if key.shape[1] > cache.key.shape[1]:
        raise ValueError(f"{key.shape[1]} tokens do not fit into a cache with max_length {cache.key.shape[1]}")
    start = (0, cache.length, 0, 0)
    return KVCache(
        jax.lax.dynamic_update_slice(cache.key, key.astype(cache.key.dtype), start),
        jax.lax.dynamic_update_slice(cache.value, value.astype(cache.value.dtype), start),
        cache.length + key.shape[1],
    )


class HeadProjection(nn.Module):
    """Dense layer to `parts` x heads x head_dim: kernel [width, parts, heads, head_dim], initialised part by part."""

    parts: int
    num_heads: int
    head_dim: int
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> tuple[Float[Array, "batch tokens heads dim"], ...]:
        """The parts, in the order of the kernel's second axis."""
        shape = (self.parts, self.num_heads, self.head_dim)
        initializer = nn.initializers.variance_scaling(1, "fan_avg", "uniform", 0, (2, 3), (1,))
        kernel = self.param("kernel", initializer, (x.shape[-1], *shape))
        bias = self.param("bias", nn.initializers.zeros, shape) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        # A product a part: the backward pass of one product for all is slower, and one with heads and parts in a single
        # axis cannot be split over heads.
        y = tuple(multiply(x, kernel[:, part], (((2,), (0,)), ((), ()))) for part in range(self.parts))
        return y if bias is None else tuple(part + bias[number] for number, part in enumerate(y))


class Attention(nn.Module):
    """Multi-head self-attention, or cross-attention where `context` is given.

    Attributes:
        num_heads: number of heads; `width % num_heads == 0` unless `head_dim` is given.
        head_dim: width of a head; 0 means width / num_heads.
        qkv_bias: whether query, key and value projections have biases.
        out_bias: whether the output projection has one.
        qk_norm: whether queries and keys are normalised over the head axis, before `rope`.
        qk_norm_kind: 'layer' or 'rms'.
        qk_norm_bias: whether LayerNorms of queries and keys have biases.
        scale: of the logits; None means head_dim^-0.5.
        causal, window, implementation: see `attend`.
        dtype: of the computation; parameters and the softmax stay float32.
    """

    num_heads: int
    head_dim: int = 0
    qkv_bias: bool = True
    out_bias: bool = True
    qk_norm: bool = False
    qk_norm_kind: str = "layer"
    qk_norm_bias: bool = True
    scale: float | None = None
    causal: bool = False
    window: Window | None = None
    implementation: str = "auto"
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch queries width"],
        context: Float[Array, "batch tokens context_width"] | None = None,
        *,
        bias: Float[Array, "#batch #heads #queries #keys"] | None = None,
        mask: Bool[Array, "#batch #heads #queries #keys"] | None = None,
        logit_multiplier: Float[Array, "#batch #heads #queries #keys"] | None = None,
        probability_mask: Float[Array, "#batch #heads #queries #keys"] | None = None,
        rope: Rope | None = None,
        extra_key_values: tuple[Float[Array, "#batch extra heads dim"], Float[Array, "#batch extra heads dim"]]
        | None = None,
        cache: KVCache | None = None,
    ) -> Float[Array, "batch queries width"] | tuple[Float[Array, "batch queries width"], KVCache]:
        """Attends from `x` to itself, or to `context`.

        Args:
            x: tokens that ask.
            context: tokens that are asked instead of x.
            bias: see `attend`; here and below `keys` counts the extra keys first, then the tokens of x or context, or
                with a cache all its `max_length` places.
            mask: see `attend`.
            logit_multiplier: see `attend`.
            probability_mask: see `attend`.
            rope: tables for the tokens of x, applied to queries and keys.
            extra_key_values: keys and values that stand in front of the others and that causal and window let every
                query see: prompts, registers, another stream.
            cache: the tokens before x, see `empty_cache`; with one the result is (y, the cache with x).

        Raises:
            ValueError: `qk_norm_kind` is unknown, heads do not divide the width, or a context comes with rope or cache.
        """
        if context is not None and (rope is not None or cache is not None):
            raise ValueError("context is given with rope or a cache, which serve self-attention only; leave them out")
        if self.qk_norm_kind not in QK_NORMS:
            raise ValueError(f"qk_norm_kind {self.qk_norm_kind!r} is none of {', '.join(QK_NORMS)}")
        width = x.shape[-1]
        if not self.head_dim and width % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide the width {width}; give head_dim as well")
        head_dim = self.head_dim or width // self.num_heads
        shared = dict(num_heads=self.num_heads, head_dim=head_dim, use_bias=self.qkv_bias, dtype=self.dtype)
        if context is None:
            query, key, value = HeadProjection(3, name="qkv", **shared)(x)
        else:
            (query,) = HeadProjection(1, name="q", **shared)(x)
            key, value = HeadProjection(2, name="kv", **shared)(context)
        if self.qk_norm and self.qk_norm_kind == "layer":
            query = layer_norm(dtype=self.dtype, name="q_norm", use_bias=self.qk_norm_bias)(query)
            key = layer_norm(dtype=self.dtype, name="k_norm", use_bias=self.qk_norm_bias)(key)
        elif self.qk_norm:
            query = nn.RMSNorm(dtype=self.dtype, name="q_norm")(query)
            key = nn.RMSNorm(dtype=self.dtype, name="k_norm")(key)
        if rope is not None:
            query, key = apply_rope(query, rope), apply_rope(key, rope)

        causal, window, seen = self.causal, self.window, None
        if cache is not None:
            asking = cache.length + jnp.arange(x.shape[1])
            cache = extend_cache(cache, key, value)
            key, value = cache.key.astype(query.dtype), cache.value.astype(query.dtype)
            places = jnp.arange(key.shape[1])
            seen = kernels.visible(asking, places, causal, window) & (places < cache.length)
        elif extra_key_values is not None and (causal or window is not None):
            first = key.shape[1] - x.shape[1]
            seen = kernels.visible(first + jnp.arange(x.shape[1]), jnp.arange(key.shape[1]), causal, window)
        if extra_key_values is not None:
            extra = (jnp.broadcast_to(e, (x.shape[0], *e.shape[1:])).astype(query.dtype) for e in extra_key_values)
            key, value = (jnp.concatenate(pair, 1) for pair in zip(extra, (key, value)))
        if seen is not None:
            seen = jnp.pad(seen, ((0, 0), (key.shape[1] - seen.shape[1], 0)), constant_values=True)[None, None]
            mask, causal, window = seen if mask is None else mask & seen, False, None
        y = attend(
            query,
            key,
            value,
            bias=bias,
            mask=mask,
            scale=self.scale,
            causal=causal,
            window=window,
            logit_multiplier=logit_multiplier,
            probability_mask=probability_mask,
            implementation=self.implementation,
        )
        y = nn.DenseGeneral(
            width,
            axis=(-2, -1),
            use_bias=self.out_bias,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            dot_general=multiply,
            name="out",
        )(y)
        return y if cache is None else (y, cache)
