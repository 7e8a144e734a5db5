"""Mixup and cutmix on the device: each batch mixed with itself in reverse order (timm's batch mode)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def mix(
    key: Key[Array, ""],
    images: Float[Array, "batch *frames height width channels"],
    targets: Float[Array, "batch classes"],
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    switch_probability: float = 0.5,
) -> tuple[Float[Array, "batch *frames height width channels"], Float[Array, "batch classes"]]:
    """Images and targets with a share of other ones, the same share and box for the whole batch.

    Args:
        key: of this step.
        images: pictures, or clips, whose frames share a box.
        targets: distributions over classes, such as smoothed one-hot labels.
        mixup_alpha: mixup (Zhang et al. 2017, arXiv 1710.09412) draws its share from Beta(alpha, alpha); 0 is off.
        cutmix_alpha: likewise for cutmix (Yun et al. 2019, arXiv 1905.04899). The share that counts for the targets is
            that of the pixels, after the box was cut off at the border.
        switch_probability: of cutmix instead of mixup, where both are on.

    Returns:
        Images and targets; those that came in where both alphas are 0.
    """
    if not mixup_alpha and not cutmix_alpha:
        return images, targets
    mixup_key, cutmix_key, choice_key = jax.random.split(key, 3)
    height, width = images.shape[-3:-1]
    share = jnp.ones(())
    own = jnp.ones((height, width, 1))  # of every pixel, the share of the image's own
    if mixup_alpha:
        share = jax.random.beta(mixup_key, mixup_alpha, mixup_alpha)
        own = jnp.full_like(own, share)
    if cutmix_alpha:
        outside = _outside_box(cutmix_key, cutmix_alpha, height, width)
        cut = jax.random.bernoulli(choice_key, switch_probability) if mixup_alpha else True
        own = jnp.where(cut, outside, own)
        share = jnp.where(cut, outside.mean(), share)
    own = own.astype(images.dtype)
    return images * own + images[::-1] * (1 - own), targets * share + targets[::-1] * (1 - share)


def _outside_box(key: Key[Array, ""], alpha: float, height: int, width: int) -> Float[Array, "height width 1"]:
    """1 outside of a box whose area before it is cut off at the border is 1 - Beta(alpha, alpha), 0 inside."""
    share_key, row_key, column_key = jax.random.split(key, 3)
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))

    def inside(key: Key[Array, ""], length: int) -> Int[Array, " length"]:
        extent = jnp.floor(length * side)
        low = jax.random.randint(key, (), 0, length) - extent // 2
        place = jnp.arange(length)
        return ((place >= low) & (place < low + extent)).astype(jnp.int32)

    box = inside(row_key, height)[:, None] & inside(column_key, width)[None, :]
    return 1.0 - box[..., None].astype(jnp.float32)
