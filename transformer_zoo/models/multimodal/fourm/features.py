"""Features of a frozen network of another run, which 4M tokenizes as it does those of CLIP, DINOv2 and ImageBind.

The network is any that gives 'tokens' [batch, rows x columns, width] of images: a ViT, or MAE, of which the encoder
alone is kept. A tokenizer of maps reads the tokens where they stand, one of vectors their mean.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_zoo.task import Tree


def abstract_features(network: nn.Module) -> Tree:
    """What stands in `Variables.frozen` for the network until the loop fills it."""

    def init(key: Array) -> Tree:
        return network.init(key, jnp.zeros((1, *image_shape(network))), **_method(network))

    collections = dict(jax.eval_shape(init, jax.random.key(0)))
    return {"params": collections.pop("params"), "state": collections}


def image_shape(network: Any) -> tuple[int, int, int]:
    """Height, width and channels of an image that the network takes."""
    return (*network.image_size, network.channels)


def features_of(
    network: nn.Module, frozen: Tree, images: Float[Array, "batch height width channels"], tokenizer: Any
) -> Float[Array, "batch *grid dim"]:
    """The features of images in the shape that `tokenizer` reads; no gradient flows into them."""
    found: Any = network.apply({"params": frozen["params"], **frozen["state"]}, images, **_method(network))
    aux = found if _method(network) else found[1]
    tokens = jax.lax.stop_gradient(aux["tokens"]).astype(jnp.float32)
    shape = tokenizer.field.shape[1:]
    return tokens.mean(axis=1) if len(shape) == 1 else tokens.reshape(len(tokens), *shape)


def _method(network: nn.Module) -> dict[str, Any]:
    """How whole images are encoded, where a call does something else."""
    return {"method": "encode"} if hasattr(network, "encode") else {}
