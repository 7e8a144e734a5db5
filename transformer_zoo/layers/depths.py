"""Layer numbers of parameters, for learning rates that decay with depth."""

import re
from typing import Any

import jax
import jax.numpy as jnp

STEM = r"(^|/)(patch_embed|positions?|class_token|registers|mask_token)(/|$)"


def layer_depths(params: Any, depth: int, stem: str = STEM) -> Any:
    """0 for the stem, 1 to `depth` for the scanned `blocks` (an array over their leading axis), `depth` + 1 after.

    Args:
        params: a tree of (abstract) arrays, paths as in `ViT`.
        depth: number of blocks.
        stem: regex of the paths that come before the first block.
    """

    def number(path: tuple[Any, ...], leaf: Any) -> Any:
        name = "/".join(str(entry.key) for entry in path)
        if re.search(r"(^|/)blocks/", name):
            return jnp.arange(1, depth + 1)
        return 0 if re.search(stem, name) else depth + 1

    return jax.tree_util.tree_map_with_path(number, params)
