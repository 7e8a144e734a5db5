"""The optimizer as tables: what every parameter's learning rate, weight decay and fate is, by regex on its path."""

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from transformer_zoo.task import Tree
from transformer_zoo.training import matrices
from transformer_zoo.training.schedules import SCHEDULES, make_schedule
from transformer_zoo.training.tree import match_any, match_table, partition, paths

DEFAULTS: dict[str, Any] = {
    "name": "adamw",
    "schedule": "cosine",
    "warmup_steps": 0,
    "decay_steps": 0,
    "final_learning_rate_ratio": 0.0,
    "weight_decay": 0.0,
    "b1": 0.9,
    "b2": 0.999,
    "epsilon": 1e-8,
    "momentum": 0.9,
    "clip_norm": 0.0,
    "layer_decay": 1.0,
    "learning_rate_table": ((".*", 1.0),),
    "weight_decay_table": ((".*kernel", 1.0), (".*", 0.0)),
    "freeze": (),
    "every": 1,
}
# What an optimizer takes instead where the config is silent.
OWN_DEFAULTS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adafactor": {},
    "lion": {"b2": 0.99},
    "muon": {"momentum": 0.95},
    "lars": {},
    "sgd": {},
    "schedule_free_adamw": {"schedule": "constant"},
}
# Lowest and highest valid value.
RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (0.0, math.inf),
    "final_learning_rate_ratio": (0.0, 1.0),
    "weight_decay": (0.0, math.inf),
    "b1": (0.0, 0.999999),
    "b2": (0.0, 0.999999),
    "epsilon": (0.0, math.inf),
    "momentum": (0.0, 0.999999),
    "clip_norm": (0.0, math.inf),
    "layer_decay": (0.0, 1.0),
}
WHOLE_NUMBERS = {"warmup_steps": 0, "decay_steps": 0, "every": 1}  # name to lowest valid value
TABLES = ("learning_rate_table", "weight_decay_table")


class Optimizer(NamedTuple):
    """What a config makes of one player's parameters.

    Attributes:
        transform: to be given gradients, state and parameters of the trainable leaves alone (`tree.partition`).
        trainable: tree of bool like the parameters.
        schedule: number of completed updates to learning rate, before any parameter's own multiplier.
        evaluation_params: (optimizer state, trainable parameters) to the parameters to evaluate and to keep: the
            averaged ones of schedule_free_adamw, else what it is given.
    """

    transform: optax.GradientTransformation
    trainable: Tree
    schedule: optax.Schedule
    evaluation_params: Callable[[Any, Tree], Tree]


def make_optimizer(config: Any, params: Tree, *, total_steps: int, depths: Tree = None) -> Optimizer:
    """Builds the optimizer of one player.

    An update is -learning_rate(step) * multiplier * (direction + weight_decay * decay_multiplier * parameter): weight
    decay is decoupled, and scaled by learning rate and multiplier as with the parameter groups of torch's AdamW. LARS
    alone decays inside its trust ratio. Directions see float32 gradients clipped by their global norm; moments are
    float32.

    The config's fields; all but learning_rate may be left out, and what the named optimizer does not read may stay in:
        name: 'adamw' (b1, b2, epsilon); 'adafactor' with update clipping and parameter scale, no momentum; 'lion' (b1,
            b2); 'muon' (momentum; b1, b2, epsilon for what is no hidden matrix); 'lars' and 'sgd' (momentum, applied
            before the learning rate as in torch); 'schedule_free_adamw' (b1, b2, epsilon), whose schedule is the
            warm-up and then constant.
        learning_rate, schedule, warmup_steps, decay_steps, final_learning_rate_ratio: see `make_schedule`.
        weight_decay: see above.
        clip_norm: largest global norm of the trainable gradients; 0 is off.
        layer_decay: multiplies the rate of depth d by layer_decay ** (largest depth - d).
        learning_rate_table: rows (regex, multiplier); the first that matches the whole path wins.
        weight_decay_table: the same for weight decay.
        freeze: regexes; parameters whose whole path one of them matches get no gradient and no optimizer state.
        every: for the step, which updates this player at multiples of so many steps.

    Args:
        config: a mapping or ConfigDict of the fields above.
        params: arrays or ShapeDtypeStructs.
        total_steps: updates of this player in the whole run.
        depths: tree like `params` of int, or of int arrays over the stack axes.

    Raises:
        ValueError: a field, a name, a number or a regex is not valid, a parameter matches no row of a table, or a row
            or a freeze pattern matches no parameter.
    """
    settings = _settings(config)
    names = paths(params)
    frozen = match_any(settings["freeze"], names, "optimizer.freeze")
    trainable = jax.tree.map(lambda frozen: not frozen, frozen)
    if not any(jax.tree.leaves(trainable)):
        raise ValueError(f"optimizer.freeze {settings['freeze']} leaves no parameter to train")
    # The default tables hold for any model: only rows that somebody wrote have to match something.
    rates, decays = (
        match_table(settings[table], names, f"optimizer.{table}", every_row=table in config) for table in TABLES
    )
    if settings["layer_decay"] != 1:
        if depths is None:
            raise ValueError(f"optimizer.layer_decay is {settings['layer_decay']}, but the task gives no depths; set 1")
        layer_rates = _layer_rates(settings["layer_decay"], depths, params, names)
        rates = jax.tree.map(lambda rate, layer_rate: rate * layer_rate, rates, layer_rates)
    schedule = make_schedule(
        settings["schedule"],
        settings["learning_rate"],
        total_steps=total_steps,
        warmup_steps=settings["warmup_steps"],
        decay_steps=settings["decay_steps"],
        final_learning_rate_ratio=settings["final_learning_rate_ratio"],
    )

    axes = jax.tree.map(lambda name, param: matrices.matrix_axes(name, len(param.shape)), names, params)
    names, axes, rates, decays = (partition(tree, trainable)[0] for tree in (names, axes, rates, decays))
    transform = optax.chain(
        optax.clip_by_global_norm(settings["clip_norm"]) if settings["clip_norm"] else optax.identity(),
        _direction(settings, names, axes, decays),
        optax.stateless(lambda updates, _: jax.tree.map(lambda u, rate: u * rate, updates, rates)),
        optax.scale_by_learning_rate(schedule),
    )
    if settings["name"] != "schedule_free_adamw":
        return Optimizer(_in_float32(transform), trainable, schedule, lambda state, params: params)
    averaged = optax.contrib.schedule_free(transform, schedule, b1=settings["b1"])
    return Optimizer(_in_float32(averaged), trainable, schedule, optax.contrib.schedule_free_eval_params)


def state_shardings(transform: optax.GradientTransformation, params: Tree, shardings: Tree) -> Tree:
    """Shardings of an optimizer's state: a leaf whose path ends with a parameter's path is placed like it.

    All others are replicated: counts, and Adafactor's factored moments, whose paths end with `rows` and `columns`.

    Args:
        transform: of `make_optimizer`.
        params: the trainable parameters, arrays or ShapeDtypeStructs.
        shardings: NamedShardings, a tree like `params`; may also have those of frozen parameters.
    """
    by_path = dict(jax.tree_util.tree_leaves_with_path(shardings))
    replicated = jax.sharding.NamedSharding(next(iter(by_path.values())).mesh, jax.sharding.PartitionSpec())

    def place(path: tuple[Any, ...], _: jax.ShapeDtypeStruct) -> jax.sharding.NamedSharding:
        endings = (path[start:] for start in range(len(path)))
        return next((by_path[ending] for ending in endings if ending in by_path), replicated)

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(transform.init, params))


def _direction(settings: dict[str, Any], names: Tree, axes: Tree, decays: Tree) -> optax.GradientTransformation:
    """The transformation that the learning rate multiplies, weight decay included."""
    name, b1, b2, epsilon = (settings[field] for field in ("name", "b1", "b2", "epsilon"))
    decays = jax.tree.map(lambda multiplier: settings["weight_decay"] * multiplier, decays)
    decay = optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, p, rate: u + rate * p if rate else u, updates, params, decays)
    )
    adam = optax.scale_by_adam(b1, b2, epsilon)
    momentum = optax.trace(settings["momentum"])
    if name == "lars":
        return optax.chain(decay, matrices.scale_by_trust_ratio(names, axes), momentum)
    steps: dict[str, Sequence[optax.GradientTransformation]] = {
        "adamw": (adam,),
        "adafactor": (
            matrices.scale_by_factored_rms(axes),
            matrices.clip_by_layer_rms(axes),
            matrices.scale_by_layer_rms(axes),
        ),
        "lion": (optax.scale_by_lion(b1, b2),),
        "muon": (matrices.scale_by_muon(names, axes, settings["momentum"], adam),),
        "sgd": (momentum,),
        # Adam without its first moment, which schedule_free replaces by averaging.
        "schedule_free_adamw": (optax.scale_by_rms(b2, epsilon, eps_in_sqrt=False, bias_correction=True),),
    }
    return optax.chain(*steps[name], decay)


def _in_float32(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Whatever the parameters' and gradients' dtype, `transform` sees float32."""

    def init(params: Tree) -> Any:
        return transform.init(optax.tree.cast(params, jnp.float32))

    def update(updates: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
        return transform.update(optax.tree.cast(updates, jnp.float32), state, optax.tree.cast(params, jnp.float32))

    return optax.GradientTransformation(init, update)


def _layer_rates(layer_decay: float, depths: Tree, params: Tree, names: Tree) -> Tree:
    """layer_decay ** (largest depth - depth), shaped to be multiplied with the parameters."""
    deepest = max(int(np.max(depth)) for depth in jax.tree.leaves(depths))

    def rate(name: str, param: Any, depth: Any) -> np.ndarray:
        depth = np.asarray(depth)
        if depth.shape != param.shape[: depth.ndim] or depth.ndim > matrices.stack_axes(name):
            raise ValueError(f"the depth of {name} has shape {depth.shape}, but its shape is {param.shape}")
        rates = np.float32(layer_decay) ** (deepest - depth).astype(np.float32)
        return rates.reshape(depth.shape + (1,) * (len(param.shape) - depth.ndim))

    return jax.tree.map(rate, names, params, depths)


def _settings(config: Any) -> dict[str, Any]:
    """The config with its defaults, every field checked."""
    known = ("learning_rate", *DEFAULTS)
    for field in config:
        if field not in known:
            raise ValueError(f"optimizer.{field} is no field; the nearest is optimizer.{_nearest(field, known)}")
    if "learning_rate" not in config:
        raise ValueError("optimizer.learning_rate is missing")
    given = {field: config[field] for field in config}
    name = _choice("name", given.get("name", DEFAULTS["name"]), tuple(OWN_DEFAULTS))
    settings = DEFAULTS | OWN_DEFAULTS[name] | given
    _choice("schedule", settings["schedule"], SCHEDULES)
    for field, (low, high) in RANGES.items():
        _number(field, settings[field], low, high)
        settings[field] = float(settings[field])
    for field, low in WHOLE_NUMBERS.items():
        value = settings[field]
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"optimizer.{field} is {value!r}; it must be a whole number, {low} or more")
    for table in TABLES:
        for row in settings[table]:
            if isinstance(row, str) or len(row) != 2 or not isinstance(row[0], str):
                raise ValueError(f"optimizer.{table} has the row {row!r}; a row is (regex, multiplier)")
            _number(f"{table} row {row[0]!r}", row[1], 0.0, math.inf)
    if isinstance(settings["freeze"], str) or not all(isinstance(pattern, str) for pattern in settings["freeze"]):
        raise ValueError(f"optimizer.freeze is {settings['freeze']!r}; it must be a tuple of regexes")
    if name == "schedule_free_adamw" and settings["schedule"] != "constant":
        raise ValueError(
            f"optimizer.schedule is {settings['schedule']!r}; schedule_free_adamw averages instead of decaying and "
            "takes 'constant'"
        )
    if name == "schedule_free_adamw" and not settings["b1"]:
        raise ValueError("optimizer.b1 is 0.0; schedule_free_adamw needs more than 0, such as 0.9")
    return settings


def _choice(field: str, value: Any, valid: Sequence[str]) -> str:
    if value not in valid:
        raise ValueError(
            f"optimizer.{field} is {value!r}; the nearest of {', '.join(valid)} is {_nearest(str(value), valid)!r}"
        )
    return value


def _nearest(value: str, valid: Sequence[str]) -> str:
    return difflib.get_close_matches(value, valid, 1, 0.0)[0]


def _number(field: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"optimizer.{field} is {value!r}; it must be a number")
    if not low <= value <= high:
        nearest = high if value > high else low
        raise ValueError(
            f"optimizer.{field} is {value!r}, not in [{low}, {high}]; the nearest valid value is {nearest}"
        )
