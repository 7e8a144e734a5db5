"""Layer numbers of parameters, for learning rates that decay with depth."""

import re
from collections.abc import Sequence
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


def pyramid_depths(params: Any, depths: Sequence[int], stem: str = r"^(patch_embed|stem)/") -> Any:
    """0 for the stem, 1 to sum(depths) for the blocks of all stages in a row, one more for what comes after.

    Args:
        params: a tree of (abstract) arrays; `stage{k}_blocks` are stacked, `stage{k}_...` else leads into stage k and
            counts as its first block.
        depths: blocks a stage.
        stem: regex of the paths that come before the first stage.
    """
    first = [1 + sum(depths[:stage]) for stage in range(len(depths))]

    def number(path: tuple[Any, ...], leaf: Any) -> Any:
        name = "/".join(str(entry.key) for entry in path)
        found = re.match(r"stage(\d+)_(blocks/)?", name)
        if found is None:
            return 0 if re.search(stem, name) else 1 + sum(depths)
        stage = int(found[1])
        return first[stage] + jnp.arange(depths[stage]) if found[2] else first[stage]

    return jax.tree_util.tree_map_with_path(number, params)
