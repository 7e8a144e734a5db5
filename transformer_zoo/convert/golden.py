"""Golden files: runs of a paper's reference code, stored with its parameters, inputs, outputs and gradients.

A paper's `layouts/SLUG.py` gives `golden(config)`: the network, and run(variables, inputs), which returns outputs by
the names of the file. Every stored output and gradient must be among them. Among the inputs are, as 'param/NAME', the
reference's fixed tables. The file's `config` says what was run:
`paper`, `arguments` of the reference's constructor, `settings`, and `accuracy`, how far the reference itself moves; to
them `inputs` and `outputs` are added, the shapes of both by name, for networks whose parameters or number of tokens
depend on them.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transformer_zoo import naming
from transformer_zoo.convert import files
from transformer_zoo.convert.layout import abstract_variables, detect, layout, paper_layouts
from transformer_zoo.convert.table import Constant, Rule, Table, export_arrays, flatten, import_arrays, unflatten

TOLERANCE = 1e-4  # of an array's largest value, or of
SMALLEST = 1e-3
MARGIN = 10  # times the reference's own inaccuracy, where that is larger than the tolerance

# Settings that name parameters of the reference which no output depends on.
IDLE_PARAMETERS = ("params_not_reaching_the_outputs", "params_without_effect")

# How `config.accuracy` states the reference's own inaccuracy by output, and whether it is a share of the largest value.
ACCURACIES = {
    "max_abs_change_under_2e-6_relative_parameter_jitter": False,
    "float32_minus_float64_max_abs": False,
    "float32_vs_float64_max_relative_to_max": True,
}


@dataclasses.dataclass(frozen=True)
class Golden:
    """A golden file: its config, and its arrays by kind and name."""

    config: dict[str, Any]
    params: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One stored array beside ours; `note` says what the numbers do not."""

    name: str
    error: float
    allowed: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the error is allowed; one that is not a number is not."""
        return self.error <= self.allowed


def read(file: str | Path) -> Golden:
    """Reads a golden file.

    Raises:
        ValueError: no `config`, or an array of an unknown kind.
    """
    arrays = files.read_arrays(file)
    if "config" not in arrays:
        raise ValueError(f"{file} is no golden file: it has no 'config'")
    config = json.loads(str(arrays.pop("config")))
    kinds: dict[str, dict[str, np.ndarray]] = {"param": {}, "in": {}, "out": {}, "grad": {}}
    for name, array in arrays.items():
        kind, _, rest = name.partition("/")
        if kind not in kinds:
            raise ValueError(f"{file} holds {name!r}, which is none of {', '.join(kinds)}")
        kinds[kind][rest] = array
    source = re.search(r"\S+\.npz", str(config.get("settings", {}).get("weights_from", "")))
    if source:  # a run of several small steps, whose network stands in another file
        other = read(Path(file).parent / source[0])
        config["weights"] = other.config
        kinds["in"] |= {f"weights/{name}": array for name, array in other.params.items()}
    return Golden(config, kinds["param"], kinds["in"], kinds["out"], kinds["grad"])


def golden_arguments(given: Mapping[str, Any], known: Mapping[str, tuple[Any, str]]) -> dict[str, Any]:
    """Fields of ours from a reference constructor's arguments.

    Args:
        given: the arguments of a golden file.
        known: all arguments of the constructor: their defaults, and our names ('' for those that are no field of ours);
            `image_size` and `patch_size` may be one number, for squares.

    Raises:
        ValueError: an argument that the constructor does not have.
    """
    for name in given:
        if name not in known:
            raise naming.unknown("argument", name, known)
    fields = {}
    for name, (default, ours) in known.items():
        value = given.get(name, default)
        if ours in ("image_size", "patch_size"):
            value = (value, value) if isinstance(value, int) else value
        if ours:
            fields[ours] = tuple(value) if isinstance(value, list) else value
    return fields


@dataclasses.dataclass(frozen=True)
class Network:
    """What a golden file was computed with, on our side.

    Attributes:
        table: its parameters' layout.
        variables: its parameters, as ours.
        run: (variables, inputs) to outputs and gradients of the output 'loss' (none where the file stores none).
    """

    table: Table
    variables: dict[str, Any]
    run: Callable[[Any, Mapping[str, Any]], tuple[Any, Any]]


def build(golden: Golden) -> Network:
    """The network of a golden file, filled with its parameters.

    Raises:
        ValueError: a paper without a golden run, or parameters that do not fit the network.
    """
    shapes = {name: array.shape for name, array in golden.inputs.items()}
    given = {name: array.shape for name, array in golden.outputs.items()}
    paper = golden.config["paper"]
    config = json.dumps(golden.config | {"inputs": shapes, "outputs": given}, sort_keys=True)
    if not hasattr(paper_layouts(paper), "golden"):
        raise ValueError(f"there is no golden run of {paper!r}")
    module, run = _run(config, bool(golden.gradients))
    if not golden.params:
        return Network((), {}, run)
    chosen = layout(paper, detect(paper, golden.params))
    table, abstract = chosen.table(module), abstract_variables(paper, module)
    settings = golden.config["settings"]
    idle = [re.escape(name) for kind in IDLE_PARAMETERS for name in settings.get(kind, ())]
    arrays = import_arrays(table, golden.params, flatten(abstract), prefixes=chosen.prefixes, allow_unplaced=idle)
    return Network(table, unflatten(arrays, abstract), run)


@functools.cache
def _run(config: str, gradients: bool) -> tuple[Any, Any]:
    """The module of a config (as JSON) and `Network.run`, jitted where there is a module; compiled once a config."""
    parsed = json.loads(config)
    module, run = paper_layouts(parsed["paper"]).golden(parsed)

    def loss(params: Any, rest: Mapping[str, Any], inputs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        outputs = run({"params": params, **rest}, inputs)
        return outputs["loss"], outputs

    def run_all(variables: Mapping[str, Any], inputs: Mapping[str, Any]) -> tuple[Any, Any]:
        if not gradients:
            return run(variables, inputs), {}
        rest = {name: tree for name, tree in variables.items() if name != "params"}
        (_, outputs), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"], rest, inputs)
        return outputs, gradient

    return module, run_all if module is None else jax.jit(run_all)


def compute(golden: Golden, network: Network) -> dict[str, np.ndarray]:
    """What our network gives in float32: 'out/name' and 'grad/name', in the reference's names and shapes."""
    inputs = {name: array for name, array in golden.inputs.items() if array.dtype.kind in "biuf" or not golden.params}
    fixed = [rule.theirs for rule in network.table if isinstance(rule, Constant)]
    inputs |= {f"param/{name}": golden.params[name] for name in fixed if name in golden.params}
    with jax.default_matmul_precision("highest"):
        outputs, gradients = network.run(network.variables, inputs)
    rules = [rule for rule in network.table if isinstance(rule, Rule)]
    theirs = export_arrays(rules, flatten({"params": jax.device_get(gradients)}))
    found = {f"out/{name}": np.asarray(array) for name, array in outputs.items()}
    return found | {f"grad/{name}": array for name, array in theirs.items()}


def compare(golden: Golden, found: Mapping[str, np.ndarray]) -> list[Comparison]:
    """Every stored output and gradient beside ours."""
    stored = {f"out/{name}": array for name, array in golden.outputs.items()}
    stored |= {f"grad/{name}": array for name, array in golden.gradients.items()}
    return [_compare(name, array, found.get(name), golden.config) for name, array in stored.items()]


def _compare(name: str, stored: np.ndarray, ours: np.ndarray | None, config: Mapping[str, Any]) -> Comparison:
    if ours is None:
        return Comparison(name, np.inf, 0.0, "not compared: our run does not give it")
    if ours.shape != stored.shape:
        return Comparison(name, np.inf, 0.0, f"ours has shape {ours.shape}, stored is {stored.shape}")
    if stored.dtype.kind not in "fc":
        return Comparison(name, float(np.sum(ours != stored)), 0.0, "entries that differ")
    with np.errstate(invalid="ignore"):
        apart = np.abs(ours.astype(np.float64) - stored.astype(np.float64))
    error = float(np.where(ours == stored, 0, apart).max(initial=0))  # equal infinities are no distance apart
    finite = stored[np.isfinite(stored)]
    scale = max(float(np.abs(finite).max(initial=0)), SMALLEST)
    inaccuracy = _inaccuracy(name.removeprefix("out/"), scale, config.get("accuracy") or {})
    if inaccuracy > TOLERANCE * scale:
        return Comparison(name, error, MARGIN * inaccuracy, f"the reference itself moves by {inaccuracy:.2g}")
    return Comparison(name, error, TOLERANCE * scale)


def _inaccuracy(name: str, scale: float, accuracy: Mapping[str, Any]) -> float:
    """How far the reference itself moves in one output; 0 where the file says nothing."""
    found = [0.0]
    for kind, relative in ACCURACIES.items():
        figures = accuracy.get(kind)
        if isinstance(figures, Mapping) and name in figures:
            found.append(float(figures[name]) * (scale if relative else 1.0))
    return max(found)


def report(comparisons: list[Comparison]) -> str:
    """A table: name, largest error, what is allowed, whether it is ok."""
    width = max([len(comparison.name) for comparison in comparisons], default=4)
    lines = [f"{'name':{width}}  {'max error':>10}  {'allowed':>10}  ok"]
    for one in comparisons:
        line = f"{one.name:{width}}  {one.error:10.3g}  {one.allowed:10.3g}  {'yes' if one.ok else 'NO'}"
        lines.append(f"{line}  {one.note}".rstrip())
    wrong = sum(not one.ok for one in comparisons)
    lines.append(f"{len(comparisons) - wrong} of {len(comparisons)} arrays agree")
    return "\n".join(lines)
