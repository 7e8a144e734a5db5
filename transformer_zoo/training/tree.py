"""Parameter trees by name: paths, splitting and joining, and tables of regexes over paths.

A missing leaf is None, which jax counts as an empty subtree: what maps over a split tree sees only what was kept.
"""

import difflib
import re
from collections.abc import Sequence
from typing import Any

import jax

from transformer_zoo.task import Tree


def paths(tree: Tree) -> Tree:
    """The tree with every leaf replaced by its path, such as 'blocks/attention/qkv/kernel'."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: jax.tree_util.keystr(keys, simple=True, separator="/"), tree
    )


def partition(tree: Tree, mask: Tree) -> tuple[Tree, Tree]:
    """Splits a tree by a tree of bools into (where True, where False), each with None in place of the other."""
    kept = jax.tree.map(lambda keep, leaf: leaf if keep else None, mask, tree)
    rest = jax.tree.map(lambda keep, leaf: None if keep else leaf, mask, tree)
    return kept, rest


def combine(kept: Tree, rest: Tree) -> Tree:
    """The inverse of `partition`."""
    return jax.tree.map(lambda a, b: b if a is None else a, kept, rest, is_leaf=lambda leaf: leaf is None)


def match_table(table: Sequence[tuple[str, Any]], paths: Tree, name: str = "table", every_row: bool = True) -> Tree:
    """The value of the first row whose regex matches the whole path, for every path of a tree of paths.

    Args:
        table: rows (regex, value).
        paths: see `paths`.
        name: what errors call the table.
        every_row: refuse a row that is the first match of no path, unless its regex is '.*'.

    Raises:
        ValueError: a regex does not compile, a path matches no row, or a row decides nothing.
    """
    rows = [(compile_pattern(pattern, name), value) for pattern, value in table]
    leaves, structure = jax.tree.flatten(paths)
    first = [next((i for i, (regex, _) in enumerate(rows) if regex.fullmatch(path)), -1) for path in leaves]
    uncovered = [path for path, row in zip(leaves, first) if row < 0]
    if uncovered:
        shown = ", ".join(uncovered[:10]) + (", ..." if len(uncovered) > 10 else "")
        raise ValueError(f"{name} has no row for {len(uncovered)} of {len(leaves)} parameters: {shown}")
    for row, (regex, _) in enumerate(rows):
        if every_row and row not in first and regex.pattern != ".*":
            check_matches(regex, leaves, name)
            raise ValueError(f"{name} has the row {regex.pattern!r}, but rows above it match all of its parameters")
    return jax.tree.unflatten(structure, [rows[row][1] for row in first])


def match_any(patterns: Sequence[str], paths: Tree, name: str = "patterns") -> Tree:
    """Whether any of the regexes matches the whole path, for every path of a tree of paths.

    Raises:
        ValueError: a regex does not compile or matches no path.
    """
    regexes = [compile_pattern(pattern, name) for pattern in patterns]
    for regex in regexes:
        check_matches(regex, jax.tree.leaves(paths), name)
    return jax.tree.map(lambda path: any(regex.fullmatch(path) for regex in regexes), paths)


def compile_pattern(pattern: str, name: str) -> re.Pattern[str]:
    """The compiled regex; raises ValueError where it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name} has the pattern {pattern!r}, which is no regex: {error}") from None


def check_matches(regex: re.Pattern[str], paths: Sequence[str], name: str) -> None:
    """Raises ValueError, with the nearest path, where the regex matches the whole of no path."""
    if not any(regex.fullmatch(path) for path in paths):
        nearest = difflib.get_close_matches(regex.pattern, paths, 1, 0.0)
        hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
        raise ValueError(f"{name} has the pattern {regex.pattern!r}, which matches no whole parameter path{hint}")
