"""Tables of rules that take the arrays of another library to ours and back.

A layout is a list of rules: their name, our path, and how the axes move. Repeated blocks have one name each there and
one stacked leaf here, so a name holds the block's number: 'blocks.{i}.norm1.weight' fills the first axis of
'blocks/norm1/scale'. Import and export read the same rules, so neither can disagree with the other.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

Arrays = Mapping[str, np.ndarray]
Shape = tuple[int, ...]

CONSTANT_TOLERANCE = 1e-5  # of a fixed table: what float32 sines of float32 angles are off by
NUMBER = re.compile(r"\{(?:(\d+)\*)?([a-z])(?:\+(\d+))?\}")


@dataclasses.dataclass(frozen=True)
class Transform:
    """An orthogonal change of one array's layout, both ways.

    Attributes:
        to_ours: (their array, the shape of ours) to ours.
        to_theirs: our array to theirs.
    """

    to_ours: Callable[[np.ndarray, Shape], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


def axes(pattern: str, **sizes: int) -> Transform:
    """Moves, splits and joins axes that are named on both sides: '(part head dim) width -> width part head dim'.

    Args:
        pattern: their axes, an arrow, ours. Names in brackets share one axis, the first one outermost; 1 is an axis of
            length one.
        sizes: lengths that the shape of our array does not tell, where several names share one of our axes.

    Raises:
        ValueError: the two sides name different axes.
    """
    theirs, ours = (_groups(side) for side in pattern.split("->"))
    if sorted(itertools.chain(*theirs)) != sorted(itertools.chain(*ours)):
        raise ValueError(f"the two sides of {pattern!r} name different axes")

    def lengths(shape: Shape) -> dict[str, int]:
        found = dict(sizes)
        for group, length in zip(ours, shape, strict=True):
            unknown = [name for name in group if name not in sizes]
            known = math.prod(sizes[name] for name in group if name in sizes)
            if len(unknown) > 1 or length % known or (length != known and not unknown):
                raise ValueError(f"{pattern!r} with {sizes} does not tell how to split an axis of length {length}")
            found |= {name: length // known for name in unknown}
        return found

    def move(array: np.ndarray, source: list[list[str]], target: list[list[str]], length: dict[str, int]) -> np.ndarray:
        before, after = list(itertools.chain(*source)), list(itertools.chain(*target))
        array = array.reshape([length[name] for name in before]).transpose([before.index(name) for name in after])
        return array.reshape([math.prod(length[name] for name in group) for group in target])

    return Transform(
        to_ours=lambda array, shape: move(array, theirs, ours, lengths(shape)),
        to_theirs=lambda array: move(array, ours, theirs, lengths(array.shape)),
    )


def _groups(side: str) -> list[list[str]]:
    found = re.findall(r"\(([^)]*)\)|(\S+)", side)
    return [several.split() if several else [name] if name != "1" else [] for several, name in found]


PLAIN = Transform(to_ours=lambda array, shape: array, to_theirs=lambda array: array)
LINEAR = axes("out in -> in out")  # torch.nn.Linear
CONVOLUTION = axes("out in row column -> row column in out")  # torch.nn.Conv2d
HEADS = axes("(part head dim) width -> width part head dim")  # to `HeadProjection`; parts are q, k, v or k, v or one
HEADS_BIAS = axes("(part head dim) -> part head dim")
HEADS_OUT = axes("width (head dim) -> head dim width")  # the output projection of an attention
ROW = axes("1 row width -> row width")  # class tokens, position tables


def patch_convolution(patch_size: Sequence[int]) -> Transform:
    """torch.nn.Conv2d with kernel = stride = patch_size, to `PatchEmbed`."""
    return axes("width channel row column -> (row column channel) width", row=patch_size[0], column=patch_size[1])


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a table.

    Attributes:
        theirs: their name, with '{i}' (or '{2*i+1}') where the first axis of ours counts, and '{j}' for the second.
            Several names are parts of one array.
        ours: our path; several paths are parts of one of theirs.
        transform: from the whole of theirs, one block at a time, to each of ours.
        axis: of theirs, along which several parts are joined.
        shares: how much of that axis each of several names takes, relative to the others; () means equal parts.
    """

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    transform: Transform = PLAIN
    axis: int = 0
    shares: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """`theirs` as a tuple."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    @property
    def paths(self) -> tuple[str, ...]:
        """`ours` as a tuple."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    def lengths(self, whole: int) -> list[int]:
        """How much of the joined axis each of their names takes."""
        shares = self.shares or (1,) * len(self.names)
        return [whole * share // sum(shares) for share in shares]

    def blocks(self, shape: Shape) -> list[tuple[tuple[int, ...], list[str]]]:
        """Indices into the stacked axes of our array, and the names of theirs that belong there."""
        letters = sorted({letter for name in self.names for _, letter, _ in NUMBER.findall(name)})
        return [
            (index, [numbered(name, dict(zip(letters, index))) for name in self.names])
            for index in np.ndindex(*shape[: len(letters)])
        ]


@dataclasses.dataclass(frozen=True)
class Constant:
    """An array of theirs that is no parameter of ours: checked on import where it is there, written on export.

    Attributes:
        theirs: their name.
        value: the array.
        tolerance: how far theirs may lie from it.
    """

    theirs: str
    value: Any
    tolerance: float = CONSTANT_TOLERANCE


Table = Sequence[Rule | Constant]


def numbered(name: str, numbers: Mapping[str, int]) -> str:
    """'blocks.{2*i+1}.x' with i = 3 as 'blocks.7.x'."""

    def number(match: re.Match[str]) -> str:
        factor, letter, offset = match.groups()
        return str(int(factor or 1) * numbers[letter] + int(offset or 0))

    return NUMBER.sub(number, name)


def linear(theirs: str, ours: str) -> list[Rule]:
    """Weight and bias of torch.nn.Linear to nn.Dense."""
    return [Rule(f"{theirs}.weight", f"{ours}/kernel", LINEAR), Rule(f"{theirs}.bias", f"{ours}/bias")]


def norm(theirs: str, ours: str) -> list[Rule]:
    """Weight and bias of torch.nn.LayerNorm to nn.LayerNorm."""
    return [Rule(f"{theirs}.weight", f"{ours}/scale"), Rule(f"{theirs}.bias", f"{ours}/bias")]


def without_prefix(name: str, prefixes: Iterable[str]) -> str:
    """The name without the first of the prefixes that it starts with."""
    return next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), name)


def import_arrays(
    table: Table,
    arrays: Arrays,
    shapes: Mapping[str, Any],
    *,
    prefixes: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
    allow_unplaced: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Our arrays by path, from theirs by name. A rule whose path `shapes` lacks does not count.

    Args:
        table: the layout.
        arrays: theirs.
        shapes: ours, as ShapeDtypeStructs; the result has their dtypes.
        prefixes: left out of names on both sides ('vit.').
        allow_missing: regexes of our paths that may stay without an array, and are then left out.
        allow_unplaced: regexes of their names that need no place.

    Raises:
        ValueError: shapes that do not fit, a fixed table of another value, arrays of theirs without a place, ours that
            nothing fills; the message names all of them.
    """
    short = {without_prefix(name, prefixes): name for name in arrays}
    theirs = {name: arrays[full] for name, full in short.items()}
    placed: set[str] = set()
    filled: dict[str, np.ndarray] = {}
    lacking: dict[str, list[str]] = {}
    wrong: list[str] = []
    for rule in table:
        if isinstance(rule, Constant):
            name = without_prefix(rule.theirs, prefixes)
            placed.add(name)
            wrong += _different(short[name], theirs[name], rule) if name in theirs else []
        elif all(path in shapes for path in rule.paths):
            new, taken, absent, bad = _fill(rule, theirs, shapes, prefixes)
            placed |= taken
            wrong += [f"{short[name]} {problem}" for name, problem in bad]
            for path, array in new.items():
                if absent:
                    lacking[path] = absent
                elif path in filled and not np.array_equal(filled[path], array):
                    wrong.append(f"{path} gets another value from {', '.join(rule.names)} than from a row before it")
                else:
                    filled[path] = array
    empty = [path for path in shapes if path not in filled and not _matches(path, allow_missing)]
    empty = [f"{path} (wants {', '.join(lacking[path])})" if path in lacking else path for path in empty]
    left = [full for name, full in short.items() if name not in placed and not _matches(full, allow_unplaced)]
    problems = {"these do not fit": wrong, "nothing fills": empty, "there is no place for": left}
    found = [f"{problem}: {'; '.join(which)}" for problem, which in problems.items() if which]
    if found:
        raise ValueError("\n".join(found))
    return filled


def _fill(
    rule: Rule, theirs: Arrays, shapes: Mapping[str, Any], prefixes: Sequence[str]
) -> tuple[dict[str, np.ndarray], set[str], list[str], list[tuple[str, str]]]:
    """Our arrays of one rule, the names it takes, those of them that are absent, and what is wrong with which."""
    new = {path: np.empty(shapes[path].shape, shapes[path].dtype) for path in rule.paths}
    first = rule.paths[0]
    taken, absent, bad = set(), [], []
    for index, names in rule.blocks(new[first].shape):
        names = [without_prefix(name, prefixes) for name in names]
        inner = [new[path].shape[len(index) :] for path in rule.paths]
        expected, lengths = _their_shapes(rule, inner)
        taken |= set(names)
        absent += [name for name in names if name not in theirs]
        misfits = [(n, shape) for n, shape in zip(names, expected) if n in theirs and theirs[n].shape != shape]
        bad += [
            (name, f"has shape {theirs[name].shape}, but {first} of shape {new[first].shape} takes {shape}")
            for name, shape in misfits
        ]
        if absent or misfits:
            continue
        whole = np.concatenate([theirs[name] for name in names], rule.axis) if len(names) > 1 else theirs[names[0]]
        pieces = np.split(whole, np.cumsum(lengths)[:-1], rule.axis) if len(lengths) > 1 else [whole]
        for path, piece, shape in zip(rule.paths, pieces, inner):
            new[path][index] = rule.transform.to_ours(piece, shape)
    return new, taken, absent, bad


def export_arrays(table: Table, arrays: Arrays) -> dict[str, np.ndarray]:
    """Their arrays by name, from ours by path: the inverse of `import_arrays`.

    Gradients of ours become gradients of theirs, because all transforms are orthogonal. A rule whose path `arrays`
    lacks does not count.

    Raises:
        ValueError: an array of ours that no rule takes.
    """
    found: dict[str, np.ndarray] = {}
    placed: set[str] = set()
    for rule in table:
        if isinstance(rule, Constant):
            found[rule.theirs] = np.asarray(rule.value)
            continue
        if not all(path in arrays for path in rule.paths):
            continue
        placed |= set(rule.paths)
        for index, theirs in rule.blocks(arrays[rule.paths[0]].shape):
            pieces = [rule.transform.to_theirs(np.asarray(arrays[path][index])) for path in rule.paths]
            whole = np.concatenate(pieces, rule.axis) if len(pieces) > 1 else pieces[0]
            parts = [whole]
            if len(theirs) > 1:
                parts = np.split(whole, np.cumsum(rule.lengths(whole.shape[rule.axis]))[:-1], rule.axis)
            found |= {name: np.ascontiguousarray(part) for name, part in zip(theirs, parts)}
    left = [path for path in arrays if path not in placed]
    if left:
        raise ValueError(f"the layout has no place for: {'; '.join(left)}")
    return found


def _their_shapes(rule: Rule, inner: Sequence[Shape]) -> tuple[list[Shape], list[int]]:
    """The shapes of their parts, and how much of the joined axis each of our paths takes."""
    takes = [rule.transform.to_theirs(np.broadcast_to(np.float32(0), shape)).shape for shape in inner]
    if len(takes) == len(rule.names) == 1:
        return takes, [0]
    lengths = [shape[rule.axis] for shape in takes]
    shapes = [list(takes[0]) for _ in rule.names]
    for shape, length in zip(shapes, rule.lengths(sum(lengths))):
        shape[rule.axis] = length
    return [tuple(shape) for shape in shapes], lengths


def _different(name: str, found: np.ndarray, rule: Constant) -> list[str]:
    value, tolerance = np.asarray(rule.value), rule.tolerance
    if found.shape != value.shape:
        return [f"{name} has shape {found.shape}, but ours is fixed at {value.shape}"]
    if jnp.issubdtype(found.dtype, jnp.floating):
        tolerance = max(tolerance, float(jnp.finfo(found.dtype).eps))
    error = float(np.abs(found.astype(np.float64) - value.astype(np.float64)).max(initial=0))
    return [] if error <= tolerance else [f"{name} differs by {error:.2g} from our fixed table"]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of linen variables by path 'a/b/c'; those outside 'params' start with their collection's name."""
    flat = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    return {path.removeprefix("params/"): leaf for path, leaf in flat.items()}


def unflatten(arrays: Mapping[str, Any], collections: Iterable[str] = ()) -> dict[str, Any]:
    """The inverse of `flatten`, for variables with these collections beside 'params'."""
    known = {*collections} - {"params"}
    flat = {path if path.split("/")[0] in known else f"params/{path}": leaf for path, leaf in arrays.items()}
    return flax.traverse_util.unflatten_dict(flat, sep="/")
