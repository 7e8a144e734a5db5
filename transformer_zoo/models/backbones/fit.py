"""FIT: Far-reaching Interleaved Transformers (Chen and Li 2023, arXiv 2305.12689).

Tokens are split into groups. Local layers attend inside each group; every group also has a few latents, which read from
their group, attend to the latents of all groups, and write back. With groups of about L^(1/3) of L tokens attention
costs O(L^(4/3)). Three networks share the layers: an encoder, a denoiser for diffusion in pixels that hands its latents
on from step to step, and an autoregressive decoder whose groups see earlier groups through latents alone. Reference:
google-research/pix2seq (Apache-2.0). The paper prints no sizes.
"""

import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from transformer_zoo.layers.attention import Attention
from transformer_zoo.layers.blocks import drop_path_rates, scan_blocks
from transformer_zoo.layers.constraints import constrain_batch
from transformer_zoo.layers.mlp import Mlp
from transformer_zoo.layers.norms import DropPath, layer_norm
from transformer_zoo.layers.patches import grid_of, patchify
from transformer_zoo.layers.positions import sincos_1d
from transformer_zoo.layers.windows import partition

Groups = Float[Array, "batch groups tokens width"]
Latents = Float[Array, "batch groups latents latent_width"]

POSITIONS = ("learned", "sincos", "sincos_2d")
TRUNCATED = nn.initializers.truncated_normal(0.02)
FARTHEST = 1000.0  # coordinates of sine-cosine positions run from 0 to this, and times are scaled by it


def parse_layers(layers: str) -> tuple[tuple[int, int], ...]:
    """Numbers of (local, global) layers, as '(2)4(1)' tells them: 2 local, 4 global, 1 local, none global.

    Raises:
        ValueError: another form, or a pair before the last one without global layers.
    """
    if not re.fullmatch(r"(\(\d+\)\d*)+", layers):
        raise ValueError(f"layers {layers!r} must be pairs of local and global layers, such as '(2)4(2)'")
    pairs = tuple((int(own), int(shared or 0)) for own, shared in re.findall(r"\((\d+)\)(\d*)", layers))
    if any(not shared for _, shared in pairs[:-1]):
        raise ValueError(f"layers {layers!r} must have global layers in every pair but the last")
    return pairs


def group_patches(
    images: Float[Array, "batch height width channels"], group_size: tuple[int, int], patch_size: tuple[int, int]
) -> Float[Array, "batch groups tokens pixels"]:
    """Sub-images of `group_size` pixels, row-major, each as its patches, row-major; (row, column, channel) inside.

    Raises:
        ValueError: sub-images that do not tile the image, or patches that do not tile them.
    """
    rows, columns = grid_of((images.shape[1], images.shape[2]), group_size)
    parts = partition(images, group_size).reshape(-1, *group_size, images.shape[-1])
    patches = patchify(parts, patch_size)
    return patches.reshape(images.shape[0], rows * columns, *patches.shape[1:])


def sincos_positions(grid: Sequence[int], width: int) -> Float[Array, "tokens width"]:
    """Sine-cosine positions of a row-major grid, axis by axis, each from 0 to `FARTHEST` on its share of the width."""
    tables = [
        sincos_1d(FARTHEST * np.arange(length) / (length - 1), width // len(grid)) for length in grid if length > 1
    ]
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, len(grid))
    return jnp.concatenate([table[places[:, axis]] for axis, table in enumerate(tables)], axis=-1)


def chunk_causal_mask(groups: int, latents: int) -> Bool[np.ndarray, "1 1 tokens tokens"]:
    """True where a latent may see another: inside its group, and in groups before."""
    group = np.arange(groups * latents) // latents
    return (group[:, None] >= group[None])[None, None]


def shift_groups(x: Groups) -> Groups:
    """Group g gets what group g - 1 had, the first one zeros."""
    return jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]


class FITBlock(nn.Module):
    """x + attention(norm(x)), unless it is left out, then x + mlp(norm(x)).

    Attributes:
        num_heads, mlp_ratio, attention, dropout_rate: see `Block`.
        self_attention: whether there is attention.
        causal: whether a token sees no later one.
        train: whether dropout and drop path apply.
        dtype: of the computation.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    self_attention: bool = True
    causal: bool = False
    attention: str = "auto"
    dropout_rate: float = 0.0
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], drop_path_rate: Float[Array, ""] | float, mask: Any = None
    ) -> tuple[Float[Array, "batch tokens width"], None]:
        x = constrain_batch(x)
        if self.self_attention:
            attention = Attention(
                self.num_heads,
                causal=self.causal,
                implementation=self.attention,
                dtype=self.dtype,
                name="attention",
            )
            y: Any = attention(layer_norm(1e-6, self.dtype, "norm1")(x), mask=mask)
            y = nn.Dropout(self.dropout_rate, deterministic=not self.train)(y)
            x = x + DropPath(self.train, name="attention_drop")(y, drop_path_rate)
        y = residual_mlp(x, self.mlp_ratio, self.dropout_rate, self.train, self.dtype)
        return x + DropPath(self.train, name="mlp_drop")(y, drop_path_rate), None


def residual_mlp(x: Array, mlp_ratio: float, dropout_rate: float, train: bool, dtype: Any) -> Array:
    """mlp(norm(x)), inside a module's compact method."""
    mlp = Mlp(round(mlp_ratio * x.shape[-1]), dropout_rate=dropout_rate, train=train, dtype=dtype, name="mlp")
    return mlp(layer_norm(1e-6, dtype, "norm2")(x))


class Read(nn.Module):
    """x + attention(norm(x), norm(context)), and, where `mlp_ratio` is not 0, plus mlp(norm(x)).

    Attributes:
        num_heads, head_dim: of the attention.
        context_norm: whether the context is normalised.
        mlp_ratio: hidden width of the MLP over the width of x.
        attention: implementation, see `attend`.
        dtype: of the computation.
    """

    num_heads: int
    head_dim: int
    context_norm: bool = True
    mlp_ratio: float = 0.0
    attention: str = "auto"
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], context: Float[Array, "batch places context_width"]
    ) -> Float[Array, "batch tokens width"]:
        if self.context_norm:
            context = layer_norm(1e-6, self.dtype, "context_norm")(context)
        attention = Attention(
            self.num_heads, self.head_dim, implementation=self.attention, dtype=self.dtype, name="attention"
        )
        y: Any = attention(layer_norm(1e-6, self.dtype, "norm1")(x), context)
        x = x + y
        return x + residual_mlp(x, self.mlp_ratio, 0.0, False, self.dtype) if self.mlp_ratio else x


class ResidualMlp(nn.Module):
    """x + mlp(norm(x))."""

    mlp_ratio: float
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Groups) -> Groups:
        return x + residual_mlp(x, self.mlp_ratio, 0.0, False, self.dtype)


class Interleaved(nn.Module):
    """What the three networks share: their fields, and local and global layers in turn.

    Attributes:
        layers: see `parse_layers`.
        latents_per_group: latents of each group.
        width, num_heads: of tokens and local layers.
        latent_width, latent_num_heads: of latents and global layers.
        mlp_ratio: of all MLPs.
        positions: of tokens inside their group: 'learned', 'sincos', or 'sincos_2d' for square groups.
        latent_positions: what the latents start from, 'learned' or 'sincos'.
        local_attention: whether local layers attend; else they are MLPs.
        read_mlp, read_norm: whether reading and writing have MLPs, and normalise what they read.
        dropout_rate: of the layers' branches.
        drop_path_rate: of the last layer of each stack, growing linearly from 0 in the first.
        attention: implementation, see `attend`.
        remat, unroll: see `scan_blocks`.
        dtype: of the computation; parameters stay float32.
    """

    layers: str = "(4)4(4)4(4)"
    latents_per_group: int = 8
    width: int = 384
    num_heads: int = 6
    latent_width: int = 768
    latent_num_heads: int = 12
    mlp_ratio: float = 4.0
    positions: str = "learned"
    latent_positions: str = "learned"
    local_attention: bool = True
    read_mlp: bool = False
    read_norm: bool = True
    dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 1
    dtype: Any = None

    def _positions(self, tokens: int) -> Float[Array, "tokens width"]:
        if self.positions == "learned":
            return self.param("positions", TRUNCATED, (tokens, self.width))
        side = round(tokens**0.5)
        if self.positions == "sincos_2d" and side * side != tokens:
            raise ValueError(f"positions 'sincos_2d' is for square groups, but {tokens} tokens are no square")
        return sincos_positions((side, side) if self.positions == "sincos_2d" else (tokens,), self.width)

    def _latents(self, batch: int, groups: int) -> Latents:
        shape = (groups, self.latents_per_group)
        if self.latent_positions == "learned":
            table = self.param("latents", TRUNCATED, (groups * self.latents_per_group, self.latent_width))
        else:
            both = shape if min(shape) > 1 else (groups * self.latents_per_group,)
            table = sincos_positions(both, self.latent_width)
        return jnp.broadcast_to(table.reshape(1, *shape, -1), (batch, *shape, self.latent_width))

    def _stem(self, x: Float[Array, "batch groups tokens pixels"], name: str) -> Groups:
        x = nn.Dense(self.width, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name=name)(x)
        return layer_norm(1e-6, self.dtype, f"{name}_norm")(x)

    def _read(self, x: Array, context: Array, name: str) -> Array:
        """Every group of x reads from the same group of the context."""
        heads = min(self.num_heads, self.latent_num_heads)
        read = Read(
            heads,
            min(self.width, self.latent_width) // heads,
            self.read_norm,
            self.mlp_ratio if self.read_mlp else 0.0,
            attention=self.attention,
            dtype=self.dtype,
            name=name,
        )
        return read(merged(x), merged(context)).reshape(x.shape)

    def _interleave(
        self, x: Groups, latents: Latents, conditions: Array | None = None, causal: bool = False, train: bool = False
    ) -> tuple[Groups, Latents, dict[str, list[Array]]]:
        """Tokens and latents behind all layers, and what each kind of layer gives, pair by pair."""
        for name, options in (("positions", POSITIONS), ("latent_positions", POSITIONS[:2])):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(options)}")
        pairs = parse_layers(self.layers)
        mask = jnp.asarray(chunk_causal_mask(*latents.shape[1:3])) if causal else None
        shared: Any = dict(mlp_ratio=self.mlp_ratio, attention=self.attention, dropout_rate=self.dropout_rate)
        shared |= dict(train=train, dtype=self.dtype)
        own = FITBlock(self.num_heads, self_attention=self.local_attention, causal=causal, **shared)
        wide = FITBlock(self.latent_num_heads, **shared)
        found: dict[str, list[Array]] = {"local": [], "read": [], "conditioned": [], "global": [], "written": []}

        def stack(block: FITBlock, depth: int, x: Array, name: str, *mask: Any) -> Array:
            rates = drop_path_rates(self.drop_path_rate, depth)
            options: Any = dict(name=f"{name}_blocks", remat=self.remat, unroll=self.unroll)
            return scan_blocks(self, block, depth, x, rates, *mask, **options)[0] if depth else x

        for pair, (local_depth, global_depth) in enumerate(pairs):
            x = stack(own, local_depth, merged(x), f"local{pair}").reshape(x.shape)
            found["local"].append(x)
            if global_depth:
                latents = self._read(latents, x, f"read{pair}")
                found["read"].append(latents)
                flat = latents.reshape(latents.shape[0], -1, latents.shape[-1])
                if conditions is not None:
                    read = Read(
                        self.latent_num_heads,
                        self.latent_width // self.latent_num_heads,
                        self.read_norm,
                        attention=self.attention,
                        dtype=self.dtype,
                        name=f"condition{pair}",
                    )
                    flat = read(flat, conditions)
                    found["conditioned"].append(flat)
                flat = stack(wide, global_depth, flat, f"global{pair}", mask)
                found["global"].append(flat)
                latents = flat.reshape(latents.shape)
            if pair < len(pairs) - 1:
                x = self._read(x, shift_groups(latents) if causal else latents, f"write{pair}")
                found["written"].append(x)
        return x, latents, found


def merged(x: Groups) -> Float[Array, "sequences tokens width"]:
    """Groups as a batch of sequences."""
    return x.reshape(-1, *x.shape[2:])


class FIT(Interleaved):
    """The encoder of images, with a linear head on the mean of its latents, or of its tokens where layers end locally.

    Attributes:
        num_classes: width of the head; 0 leaves it out.
        image_size: (height, width) in pixels.
        group_size: (height, width) in pixels of the sub-image that makes a group.
        patch_size: (height, width) in pixels.
        channels: of the image.
        extra_width: channels of a further token in front of every group, its one-hot number; 0 leaves it out.
    """

    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    group_size: tuple[int, int] = (56, 56)
    patch_size: tuple[int, int] = (8, 8)
    channels: int = 3
    extra_width: int = 0

    def layer_numbers(self, params: Any) -> Any:
        """0 for the stem, then local and global layers in their order, one more for what comes after."""
        first, last = {}, 0
        for pair, depths in enumerate(parse_layers(self.layers)):
            for name, depth in zip(("local", "global"), depths):
                first[f"{name}{pair}_blocks"] = last + 1
                first[{"local": f"write{pair - 1}", "global": f"read{pair}"}[name]] = last + 1
                last += depth

        def number(path: tuple[Any, ...], leaf: Any) -> Any:
            name = str(path[0].key)
            if name.endswith("_blocks"):
                return first[name] + jnp.arange(leaf.shape[0])
            return first.get(name, last + 1 if name in ("norm", "latent_norm", "head") else 0)

        return jax.tree_util.tree_map_with_path(number, params)

    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> tuple[Float[Array, "batch out"], dict[str, Any]]:
        """Logits [batch, num_classes], or with no head the pooled vector; and the intermediates of `encode`."""
        tokens = group_patches(images, self.group_size, self.patch_size)
        groups = tokens.shape[1]
        number = jnp.broadcast_to(
            jnp.eye(groups, self.extra_width)[None, :, None], (images.shape[0], groups, 1, self.extra_width)
        )
        _, _, aux = self.encode(tokens, number if self.extra_width else None, train=train)
        return (aux["logits"] if self.num_classes else aux["pooled"]), aux

    @nn.compact
    def encode(
        self,
        tokens: Float[Array, "batch groups tokens pixels"],
        extra: Float[Array, "batch groups extra_tokens extra_width"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "batch groups all_tokens width"], Latents, dict[str, Any]]:
        """Tokens and latents, normalised (with a head those that it reads), and named intermediates.

        Of these 'patches' are the first tokens, 'levels' the latents behind every global stack, 'tokens' what a decoder
        is to read, latents or tokens as one sequence, 'pooled' their mean and 'logits' what the head makes of it.

        Args:
            tokens: as of `group_patches`.
            extra: further tokens that stand in front of each group's.
            train: whether dropout and drop path apply.
        """
        x = patches = self._stem(tokens, "stem") + self._positions(tokens.shape[2]).astype(tokens.dtype)
        if extra is not None:
            x = jnp.concatenate([self._stem(extra, "extra"), x], axis=2)
        latents = self._latents(tokens.shape[0], tokens.shape[1]).astype(x.dtype)
        x, latents, found = self._interleave(x, latents, train=train)
        reads_latents = parse_layers(self.layers)[-1][1] > 0
        if not (self.num_classes and reads_latents):
            x = layer_norm(1e-6, self.dtype, "norm")(x)
        if not self.num_classes or reads_latents:
            latents = layer_norm(1e-6, self.dtype, "latent_norm")(latents)
        chosen = latents if reads_latents else x
        chosen = chosen.reshape(chosen.shape[0], -1, chosen.shape[-1])
        pooled = chosen.mean(axis=1)
        aux: dict[str, Any] = found | {"levels": tuple(found["global"]), "tokens": chosen, "pooled": pooled}
        aux["patches"] = patches.reshape(patches.shape[0], -1, self.width)
        if self.num_classes:
            head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="head")
            aux["logits"] = head(pooled).astype(jnp.float32)
        return x, latents, aux


class FITDenoiser(Interleaved):
    """Denoises groups of patches; times, classes and the latents of the step before enter through the latents alone.

    Attributes:
        groups, tokens: of an image, and of a group.
        in_width, out_width: channels of a noisy and of a denoised token.
        num_classes: width of the condition; 0 for none.
        self_conditioning: whether it takes the latents of the step before; what it makes of them starts at 0.
    """

    groups: int = 16
    tokens: int = 16
    in_width: int = 48
    out_width: int = 48
    num_classes: int = 0
    self_conditioning: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch groups tokens pixels"],
        time: Float[Array, " batch"],
        condition: Float[Array, "batch classes"] | None = None,
        previous: Latents | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "batch groups tokens out"], dict[str, Any]]:
        """The denoised tokens, and of the intermediates 'latents', which the next step takes, and 'time'.

        Args:
            x: noisy tokens.
            time: from 0 to 1.
            condition: of the image, such as a one-hot class.
            previous: latents of the step before; None means zeros, as for the first step.
            train: whether dropout and drop path apply.
        """

        def dense(width: int, name: str) -> nn.Dense:
            return nn.Dense(width, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name=name)

        turns = scalar_sincos(FARTHEST * time, self.latent_width // 4)
        turns = (turns - turns.mean(-1, keepdims=True)) / turns.std(-1, keepdims=True)
        embedded = dense(self.latent_width, "time2")(jax.nn.silu(dense(self.latent_width, "time1")(turns)))
        conditions = [embedded] if condition is None else [embedded, dense(self.latent_width, "condition")(condition)]
        latents = self._latents(x.shape[0], x.shape[1])
        if self.self_conditioning:
            previous = jnp.zeros(latents.shape, latents.dtype) if previous is None else previous
            previous = ResidualMlp(self.mlp_ratio, self.dtype, name="previous")(previous)
            zeros = nn.initializers.zeros
            norm = nn.LayerNorm(1e-6, use_fast_variance=False, scale_init=zeros, dtype=self.dtype, name="previous_norm")
            latents = latents + norm(previous)
        x = self._stem(x, "stem") + self._positions(x.shape[2]).astype(x.dtype)
        x, latents, found = self._interleave(
            x, latents.astype(x.dtype), jnp.stack(conditions, axis=1).astype(x.dtype), train=train
        )
        x = dense(self.out_width, "out")(layer_norm(1e-6, self.dtype, "norm")(x))
        return x.astype(jnp.float32), found | {"latents": latents, "time": embedded}


def scalar_sincos(values: Float[Array, " batch"], width: int) -> Float[Array, "batch width"]:
    """All sines, then all cosines of value * 10000^(-i / n), i < n = width / 2."""
    angles = values[:, None] * (10000.0 ** (-np.arange(width // 2) / (width // 2))).astype(np.float32)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class FITAR(Interleaved):
    """Logits of every token's successor, from the tokens before it in its group and the latents of earlier groups.

    Attributes:
        groups, tokens: of a sequence, and of a group.
        vocabulary: number of tokens that there are.
        shared_embedding: whether one table embeds tokens and gives their logits.
        output_bias: whether logits have one.
    """

    groups: int = 16
    tokens: int = 16
    vocabulary: int = 256
    shared_embedding: bool = True
    output_bias: bool = True

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch groups tokens"], *, train: bool = False
    ) -> tuple[Float[Array, "batch groups tokens vocabulary"], dict[str, Any]]:
        """Logits, and what each kind of layer gives. The latents of a group reach later groups only."""
        embedding = self.param("embedding", TRUNCATED, (self.vocabulary, self.width))
        x = embedding[tokens] + self._positions(tokens.shape[2])
        x = x.astype(self.dtype or x.dtype)
        latents = self._latents(tokens.shape[0], tokens.shape[1]).astype(x.dtype)
        x, _, found = self._interleave(x, latents, causal=True, train=train)
        x = layer_norm(1e-6, self.dtype, "norm")(x)
        if not self.shared_embedding:
            embedding = self.param("output_embedding", TRUNCATED, (self.vocabulary, self.width))
        logits = (x @ embedding.astype(x.dtype).T).astype(jnp.float32)
        if self.output_bias:
            logits = logits + self.param("output_bias", nn.initializers.zeros, (self.vocabulary,))
        return logits, found
