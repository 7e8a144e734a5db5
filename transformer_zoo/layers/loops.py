"""Loops whose turns depend on values: with a note of how many are to be expected, for those who count the work."""

import contextlib
import re

import jax


def about(turns: int) -> contextlib.AbstractContextManager[None]:
    """Notes for the loops that are traced within how many turns they take on average, where no shape tells."""
    return jax.named_scope(f"about_{turns}_turns")


def expected_turns(name: str) -> int:
    """The turns that `about` noted in the name of an operation; 0 where it noted none."""
    noted = re.findall(r"about_(\d+)_turns", name)
    return int(noted[-1]) if noted else 0
