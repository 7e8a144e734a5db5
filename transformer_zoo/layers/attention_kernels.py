"""Four ways to compute softmax(query key^T) value; `attention.attend` chooses among them and `attention_ring`.

Shapes: query [batch, queries, heads, dim], key [batch, keys, heads, dim], value [batch, keys, heads, value_dim]; bias,
mask, logit_multiplier and probability_mask broadcast to [batch, heads, queries, keys]. The last query stands beside
the last key: `causal` and `window` compare positions i + keys - queries with j. A query that may see no key gets the
mean of all values, as with a softmax over equal logits.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from transformer_zoo.layers.constraints import BATCH_AXES, dividing_axes

Shaped = jax.Array | jax.ShapeDtypeStruct
Window = tuple[int | None, int | None]
Query = Float[Array, "batch queries heads dim"]
Key = Float[Array, "batch keys heads dim"]
Value = Float[Array, "batch keys heads value_dim"]
Logits = Float[Array, "#batch #heads #queries #keys"]
Mask = Bool[Array, "#batch #heads #queries #keys"]
Output = Float[Array, "batch queries heads value_dim"]

HEAD_AXES = ("tensor",)  # the mesh axes over which heads are split


def limits(causal: bool, window: Window | None) -> Window:
    """How many keys before and after its own position a query sees; None where there is no limit."""
    left, right = window or (None, None)
    return left, 0 if causal else right


def visible(
    query_positions: Int[Array, " queries"], key_positions: Int[Array, " keys"], causal: bool, window: Window | None
) -> Bool[Array, "queries keys"]:
    """True where `causal` and `window` = (left, right) let a query see a key."""
    left, right = limits(causal, window)
    distance = key_positions - query_positions[:, None]
    seen = jnp.ones(distance.shape, bool)
    if left is not None:
        seen &= distance >= -left
    if right is not None:
        seen &= distance <= right
    return seen


def with_band(
    mask: Mask | None, queries: int, keys: int, causal: bool, window: Window | None, first: Int[Array, ""] | int = 0
) -> Mask | None:
    """`mask` and `visible` as one mask, for queries at the positions first, first + 1, ... among those of the keys."""
    if limits(causal, window) == (None, None):
        return mask
    band = visible(first + jnp.arange(queries), jnp.arange(keys), causal, window)[None, None]
    return band if mask is None else mask & band


def plain(
    query: Query,
    key: Key,
    value: Value,
    *,
    scale: float,
    bias: Logits | None = None,
    mask: Mask | None = None,
    causal: bool = False,
    window: Window | None = None,
    logit_multiplier: Logits | None = None,
    probability_mask: Logits | None = None,
) -> Output:
    """Writes all logits out; the softmax is float32.

    Transposed to [batch, heads, tokens, dim] and divided by the softmax's sum after the product with the values: on a
    CPU this forward takes a fifth of the time of einsums on the untransposed arrays (ViT-S, 197 tokens, float32).
    """
    queries, keys = query.shape[1], key.shape[1]
    mask = with_band(mask, queries, keys, causal, window, keys - queries)
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, key).astype(jnp.float32) * scale
    if logit_multiplier is not None:
        logits = logits * logit_multiplier
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    if probability_mask is not None:
        weights = weights * probability_mask
    output = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value) / total
    return output.astype(value.dtype).transpose(0, 2, 1, 3)


def chunked(
    query: Query,
    key: Key,
    value: Value,
    *,
    scale: float,
    chunk_size: int,
    bias: Logits | None = None,
    mask: Mask | None = None,
    causal: bool = False,
    window: Window | None = None,
    logit_multiplier: Logits | None = None,
    probability_mask: Logits | None = None,
) -> Output:
    """`plain` on at most `chunk_size` queries at a time, forward and backward: chunk_size x keys logits at once."""
    batch, queries, heads, _ = query.shape
    keys = key.shape[1]
    chunks = -(-queries // chunk_size)
    size = -(-queries // chunks)

    def split(x: Array, axis: int) -> Array:  # the axis of queries -> [chunks, ..., size, ...]
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, chunks * size - queries)
        x = jnp.pad(x, padding)
        return jnp.moveaxis(x.reshape(x.shape[:axis] + (chunks, size) + x.shape[axis + 1 :]), axis, 0)

    hooks = dict(bias=bias, mask=mask, logit_multiplier=logit_multiplier, probability_mask=probability_mask)
    given: dict[str, Any] = {name: x for name, x in hooks.items() if x is not None}
    shared = {name: x for name, x in given.items() if x.shape[2] == 1}
    per_query = {name: split(x, 2) for name, x in given.items() if x.shape[2] > 1}

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(chunk: tuple[Array, Array, dict[str, Any]]) -> Array:
        number, query, hooks = chunk
        hooks = {**shared, **hooks}
        band = with_band(hooks.pop("mask", None), size, keys, causal, window, number * size + keys - queries)
        return plain(query, key, value, scale=scale, mask=band, **hooks)

    output = jax.lax.map(one, (jnp.arange(chunks), split(query, 1), per_query))
    return jnp.moveaxis(output, 0, 1).reshape(batch, chunks * size, heads, value.shape[-1])[:, :queries]


def with_defined_rows(output: Output, value: Value, mask: Mask | None) -> Output:
    """Replaces the rows of queries that see no key, where kernels differ, by the mean of all values."""
    if mask is None:
        return output
    empty = ~mask.any(-1).transpose(0, 2, 1)[..., None]
    return jnp.where(empty, value.mean(1, keepdims=True), output)


def cudnn_refusal(
    query: Shaped,
    key: Shaped,
    value: Shaped,
    *,
    platform: str,
    capability: float,
    bias: Shaped | None = None,
    mask: Shaped | None = None,
    logit_multiplier: Shaped | None = None,
    probability_mask: Shaped | None = None,
) -> str:
    """Why cuDNN cannot serve the call; empty where it can. `capability` is the GPU's, 9.0 for Hopper."""
    head_dim, largest = query.shape[-1], 256 if capability >= 9 else 128
    dtypes = sorted({str(x.dtype) for x in (query, key, value)})
    batches = [x.shape[0] for x in (bias, mask) if x is not None]
    if platform != "gpu" or capability < 8:
        return f"it needs an NVIDIA GPU of compute capability 8.0 or more, not {platform} {capability or ''}".rstrip()
    if dtypes not in (["bfloat16"], ["float16"]):
        return f"it needs bfloat16 or float16, not {' and '.join(dtypes)}"
    if head_dim % 8 or head_dim > largest:
        return f"it needs a head size that is a multiple of 8 up to {largest}, not {head_dim}"
    if value.shape[-1] != head_dim:
        return f"it needs values as wide as keys, not {value.shape[-1]} and {head_dim}"
    if logit_multiplier is not None or probability_mask is not None:
        return "it takes no logit_multiplier and no probability_mask"
    if bias is not None and max(batches) > 1:
        return f"it has a bias gradient only where bias and mask have a batch of 1, not {max(batches)}"
    return ""


def cudnn(
    query: Query,
    key: Key,
    value: Value,
    *,
    scale: float,
    bias: Logits | None = None,
    mask: Mask | None = None,
    causal: bool = False,
    window: Window | None = None,
) -> Output:
    """Fused attention by cuDNN; `cudnn_refusal` says what it cannot do.

    The bias is rounded to the inputs' dtype. With a bias or a mask cuDNN's backward pass needs even lengths: odd ones
    are padded by one token that is masked.
    """
    queries, keys = query.shape[1], key.shape[1]
    left, right = limits(causal, window)
    native = queries == keys and mask is None and right == 0 and (left is None or bias is None)
    if not native:
        mask = with_band(mask, queries, keys, causal, window, keys - queries)
    seen = mask
    odd = (0, 0) if bias is None and mask is None else (queries % 2, keys % 2)
    if any(odd) and mask is None:
        mask = jnp.ones((1, 1, queries, keys), bool)

    def pad_logits(x: Array, heads: int) -> Array:
        x = jnp.broadcast_to(x, (x.shape[0], heads, queries, keys))
        return jnp.pad(x, ((0, 0), (0, 0), (0, odd[0]), (0, odd[1])))

    def pad_tokens(x: Array, more: int) -> Array:
        return jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0)))

    output = jax.nn.dot_product_attention(
        pad_tokens(query, odd[0]),
        pad_tokens(key, odd[1]),
        pad_tokens(value, odd[1]),
        None if bias is None else pad_logits(bias.astype(query.dtype), query.shape[2]),
        None if mask is None else pad_logits(mask, mask.shape[1]),
        scale=scale,
        is_causal=native,
        local_window_size=(left, 0) if native and left is not None else None,
        implementation="cudnn",
    )
    return with_defined_rows(output[:, :queries], value, seen)


def pallas_refusal(
    query: Shaped,
    key: Shaped,
    value: Shaped,
    *,
    platform: str,
    bias: Shaped | None = None,
    mask: Shaped | None = None,
    causal: bool = False,
    window: Window | None = None,
    logit_multiplier: Shaped | None = None,
    probability_mask: Shaped | None = None,
) -> str:
    """Why the TPU kernel cannot serve the call; empty where it can."""
    dtypes = sorted({str(x.dtype) for x in (query, key, value)})
    if platform != "tpu":
        return f"it needs a TPU, not {platform}"
    if dtypes not in (["bfloat16"], ["float32"]):
        return f"it needs bfloat16 or float32, not {' and '.join(dtypes)}"
    if bias is not None or logit_multiplier is not None or probability_mask is not None:
        return "it takes no bias, no logit_multiplier and no probability_mask"
    if mask is not None and mask.shape[1:3] != (1, 1):
        return f"it masks keys, [batch, 1, 1, keys], not pairs, {list(mask.shape)}"
    if limits(causal, window) != (None, None) and query.shape[1] > key.shape[1]:
        return f"causal or window leaves some of {query.shape[1]} queries without any of {key.shape[1]} keys"
    return ""


def per_device(kernel: Callable[..., Array], batch: int, heads: int) -> Callable[..., Array]:
    """`kernel` on every device's own samples and heads, since the compiler does not split kernels over a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = mesh.auto_axes
    if not axes:
        return kernel

    samples, split_heads = dividing_axes(BATCH_AXES, batch), dividing_axes(HEAD_AXES, heads)
    tokens = PartitionSpec(samples, None, split_heads)
    specs = (tokens, tokens, tokens, PartitionSpec(samples))
    return jax.shard_map(kernel, in_specs=specs, out_specs=tokens, axis_names=set(axes), check_vma=False)


def pallas(
    query: Query,
    key: Key,
    value: Value,
    *,
    scale: float,
    mask: Bool[Array, "#batch 1 1 #keys"] | None = None,
    causal: bool = False,
    window: Window | None = None,
    interpret: bool = False,
) -> Output:
    """The splash kernel for TPUs, on every device's own samples and heads; keys can be masked, not pairs.

    Lengths are padded to multiples of 128. `interpret` runs the kernel without a TPU.
    """
    # Loaded here since it is slow to import and only TPUs need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

    queries, keys = query.shape[1], key.shape[1]
    shown = jnp.broadcast_to(True if mask is None else mask[:, 0, 0], (query.shape[0], keys))

    def kernel(query: Array, key: Array, value: Array, shown: Array) -> Array:
        padded_queries, padded_keys = (-(-length // 128) * 128 for length in (queries, keys))
        shape, offset = (padded_queries, padded_keys), keys - queries
        left, right = limits(causal, window)
        if (left, right) == (None, None):
            band: splash_mask.Mask = splash_mask.FullMask(shape)
        else:
            band = splash_mask.LocalMask(shape, (left, right), offset)
        block_q, block_kv = (next(b for b in (512, 384, 256, 128) if length % b == 0) for length in shape)
        attention = splash.make_splash_mha(
            splash_mask.MultiHeadMask([band] * query.shape[2]),
            block_sizes=splash.BlockSizes(
                block_q=block_q,
                block_kv=block_kv,
                block_q_dkv=block_q,
                block_kv_dkv=block_kv,
                block_q_dq=block_q,
                block_kv_dq=block_kv,
            ),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )

        def pad(x: Array, length: int) -> Array:  # [batch, tokens, heads, dim] -> [batch, heads, length, dim]
            return jnp.pad(x.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, length - x.shape[1]), (0, 0)))

        segments = splash.SegmentIds(
            q=jnp.ones((query.shape[0], padded_queries), jnp.int32),
            kv=jnp.pad(shown.astype(jnp.int32), ((0, 0), (0, padded_keys - keys))),
        )
        output = jax.vmap(attention)(
            pad(query * scale, padded_queries), pad(key, padded_keys), pad(value, padded_keys), segments
        )
        return output[:, :, :queries].transpose(0, 2, 1, 3)

    output = per_device(kernel, query.shape[0], query.shape[2])(query, key, value, shown)
    if mask is None:
        return output
    return with_defined_rows(output, value, with_band(mask, queries, keys, causal, window, keys - queries))
