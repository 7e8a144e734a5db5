"""Layouts of one paper's network: their tables, how files are recognised, and what a file tells about the network.

`layouts/SLUG.py` holds all layouts of a paper: `LAYOUTS` by name, `example(module)`, the abstract arguments of a call,
and, where the paper has golden data, `golden(config)` (see `golden.py`).
"""

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

import jax

from transformer_zoo import naming
from transformer_zoo.convert import layouts
from transformer_zoo.convert.preprocessing import Preprocessing
from transformer_zoo.convert.table import Arrays, Table, without_prefix


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names and shapes under which a library or a reference stores a network.

    Attributes:
        table: the rules for a network; raises ValueError for one that the library cannot express.
        marks: names that every file of this layout has.
        arguments: (arrays, options) to the fields of the network that the arrays tell; `options` are those that the
            caller set.
        untold: fields of the network that no array tells.
        preprocessing: what the library does to images before this network; None where it does nothing fixed.
        prefixes: left out of names, see `import_arrays`.
        network: the name in the index of the network that it stores, where that is not the paper's first.
        ignored: regexes of names that files have and this network has no use for.
    """

    table: Callable[[Any], Table]
    marks: tuple[str, ...]
    arguments: Callable[[Arrays, Mapping[str, Any]], dict[str, Any]]
    untold: tuple[str, ...] = ()
    preprocessing: Callable[[Any], Preprocessing] | None = None
    prefixes: tuple[str, ...] = ()
    network: str = ""
    ignored: tuple[str, ...] = ()

    def strip(self, arrays: Arrays) -> Arrays:
        """The arrays without the prefixes of their names."""
        return {without_prefix(name, self.prefixes): array for name, array in arrays.items()}


def papers() -> list[str]:
    """Keys of the papers that have layouts."""
    return sorted(module.name for module in pkgutil.iter_modules(layouts.__path__))


def paper_layouts(key: str) -> ModuleType:
    """`layouts/KEY.py`; raises ValueError naming the nearest paper."""
    if key not in papers():
        raise naming.unknown("paper with layouts", key, papers())
    return importlib.import_module(f"{layouts.__name__}.{key}")


def layout(key: str, name: str) -> Layout:
    """A paper's layout by name; raises ValueError naming the nearest one."""
    known = paper_layouts(key).LAYOUTS
    if name not in known:
        raise naming.unknown(f"layout of {key!r}:", name, known)
    return known[name]


def detect(key: str, names: Iterable[str]) -> str:
    """Which layout of a paper the names belong to.

    Raises:
        ValueError: none of them, with what each would need.
    """
    names = list(names)
    known: dict[str, Layout] = paper_layouts(key).LAYOUTS
    for name, candidate in known.items():
        if set(candidate.marks) <= {without_prefix(name, candidate.prefixes) for name in names}:
            return name
    wants = "; ".join(f"{name} has {', '.join(candidate.marks)}" for name, candidate in known.items())
    raise ValueError(f"the names fit no layout of {key!r} ({wants}); there are e.g. {', '.join(names[:5])}")


def abstract_variables(key: str, module: Any) -> Any:
    """Shapes and dtypes of all variables of a network, by collection; nothing is computed."""
    return jax.eval_shape(module.init, jax.random.key(0), *paper_layouts(key).example(module))


def count(names: Iterable[str], template: str) -> int:
    """How many blocks there are: one more than the highest number in place of '{i}' in any name."""
    pattern = re.escape(template).replace(r"\{i\}", r"(\d+)") + r"[./]"
    found = [re.match(pattern, name) for name in names]
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def square_grid(rows: int, prefixes: Iterable[int]) -> tuple[int, int] | None:
    """(rows in front, side of the square) of a table of positions, for the first number in front that leaves one."""
    for prefix in prefixes:
        side = round(max(rows - prefix, 0) ** 0.5)
        if side and side * side == rows - prefix:
            return prefix, side
    return None
