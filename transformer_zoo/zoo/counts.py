"""What a published size costs, counted from shapes alone: parameters, and multiply-accumulates of one forward pass."""

import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from transformer_zoo.task import Batch, Context, Task, Variables
from transformer_zoo.training.config import load_config
from transformer_zoo.training.flops import count_flops
from transformer_zoo.training.state import abstract_variables
from transformer_zoo.zoo.build import build_task
from transformer_zoo.zoo.index import paper, sizes

PAPERS = Path(__file__).parent / "papers"
ORDER = ("parameters", "published_parameters", "macs", "published_macs", "note")  # of a size's lines


def num_parameters(variables: Variables) -> int:
    """Parameters of all players, of arrays or of what stands for them."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables.params))


def forward_macs(task: Task, variables: Variables) -> int:
    """Multiply-accumulates of the loss of one example, in evaluation mode, without its gradient.

    Raises:
        ValueError: a kernel or a loop whose work no jaxpr shows.
    """
    abstract = jax.eval_shape(lambda: Context(jax.random.key(0), jnp.int32(0), train=False))

    def loss(variables: Variables, batch: Batch, ctx: Context) -> Any:
        return task.loss(variables, batch, ctx)[0]

    counted = count_flops(loss, variables, task.spec(1), abstract)
    if counted.opaque or counted.unknown_loops:
        raise ValueError(f"work is hidden in {', '.join(counted.opaque) or 'a loop of unknown length'}; count on a CPU")
    return counted.total // 2


def recount(key: str) -> dict[str, dict[str, int]]:
    """`parameters` and `macs` of every published size of a paper, by variant, as its config builds it.

    Parameters are those of the player 'model': a discriminator that it trains against is no part of it.

    Raises:
        UserError: the paper's config lacks a size.
    """
    found = {}
    for size in sizes(key):
        task = build_task(load_config(f"{paper(key)['config']}:{size}"))
        variables = abstract_variables(task)
        own = variables.replace(params={"model": variables.params["model"]})
        found[size] = {"parameters": num_parameters(own), "macs": forward_macs(task, variables)}
    return found


def write_counts(key: str, counts: dict[str, dict[str, Any]], folder: Path = PAPERS) -> list[str]:
    """Writes counts into a paper's TOML file, comments and order untouched; 'size.figure: old -> new' a change."""
    file = folder / f"{key}.toml"
    text, changes = file.read_text(), []
    for size, figures in counts.items():
        for name, value in figures.items():
            table = re.search(rf"^\[sizes\.{re.escape(size)}\].*\n((?!\[).*\n)*", text, re.MULTILINE)
            if table is None:
                raise ValueError(f"{file} has no table [sizes.{size}]")
            line = re.search(rf"^{name} = (\w+).*\n", table[0], re.MULTILINE)
            if line and int(line[1]) == value:
                continue
            changes.append(f"{key} {size}.{name}: {line[1] if line else '(absent)'} -> {value:_}")
            if line:
                start, end = line.span(1)
                new = f"{value:_}"
            else:  # in front of the first line that belongs behind it
                behind = re.search(rf"^({'|'.join(ORDER[ORDER.index(name) + 1 :])}) = ", table[0], re.MULTILINE)
                own = re.sub(r"(\n(#.*)?)+\Z", "\n", table[0])  # without comments that belong to what follows
                start = end = behind.start() if behind else len(own)
                new = f"{name} = {value:_}\n"
            text = text[: table.start() + start] + new + text[table.start() + end :]
    if changes:
        file.write_text(text)
    return changes
