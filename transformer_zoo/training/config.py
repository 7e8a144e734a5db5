"""Configs: the fields every run has, reading a config file, overrides, checks."""

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections import ConfigDict

from transformer_zoo.naming import nearest
from transformer_zoo.training.errors import UserError

# May differ between a run and its continuation: they do not change what is learned.
FREE_FIELDS = ("checkpoint", "eval", "log", "mesh", "evaluators", "sampling", "data.workers")
# Groups whose fields are those of what they build, which checks them: any may be set, not only those in the file.
SOURCE_GROUPS = ("options", "train_options", "eval_options")  # of data: belong to its source
OPEN_GROUPS = (
    "model",
    "task",
    "optimizer",
    "mesh",
    "data.options",
    "data.train_options",
    "data.eval_options",
    "evaluators",
)
OPTIONAL_FIELDS = (
    "ema",
    "evaluators",
    "init_from",
    "requires",
    "sampling",
    "stages",
    "summary",
)


def base_config() -> ConfigDict:
    """The fields every config has, with defaults that suit most.

    `dtype` is 'auto' (bfloat16 on accelerators, float32 on a CPU) or a dtype's name; parameters are float32 always.
    `mesh` gives the number of devices along each axis, -1 for what is left. `accumulate_steps` cuts a batch into so
    many parts; `nan` says what follows a loss that is not finite: 'stop' or 'skip'. `data` is described in
    `data/pipeline.py`; where `eval_transforms` is None, evaluation transforms as training does. A run in which no step
    ended for `log.stall_seconds` is stopped; 0 lets it hang.
    """
    return ConfigDict(
        {
            "seed": 0,
            "total_steps": 1000,
            "batch_size": 128,
            "dtype": "auto",
            "accumulate_steps": 1,
            "nan": "stop",
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "model": {},
            "task": {},
            "data": {
                "source": "",
                "options": {},
                "transforms": (("scale", {}),),
                "eval_transforms": None,
                "workers": 0,
                "max_corrupt_share": 0.01,
            },
            "optimizer": {"name": "adamw", "learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 0},
            "checkpoint": {"every_steps": 1000, "keep": 2},
            "eval": {"every_steps": 0, "batch_size": 0},
            "log": {"every_steps": 50, "wandb_project": "", "stall_seconds": 3600.0},
        }
    )


def load_config(spec: str, overrides: Iterable[str] | Mapping[str, Any] = ()) -> ConfigDict:
    """The config of 'path/to/config.py' or 'path/to/config.py:variant', with overrides 'a.b=value' applied.

    Raises:
        UserError: no such file or variant, or an override that does not fit; the nearest valid name is given.
    """
    path, _, variant = spec.partition(":")
    file = Path(path)
    if not file.is_file():
        known = sorted(str(near) for near in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise UserError(f"no config file {path!r}; did you mean {nearest(path, known)!r}?")
    module_spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    try:
        config = module.get_config(variant) if variant else module.get_config()
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    override(config, overrides)
    check(config)
    return config.lock()


def override(config: ConfigDict, overrides: Iterable[str] | Mapping[str, Any]) -> None:
    """Sets fields in place, from 'a.b=text' strings or from a mapping of 'a.b' to values.

    Another `data.source` begins with no options: those of the config's own source are left out.

    Raises:
        UserError: an unknown field (with the nearest one) or a value of another type than the field's.
    """
    if not isinstance(overrides, Mapping):
        pairs = [text.partition("=") for text in overrides]
        overrides = {key: _parse(value) for key, _, value in pairs}
    if "data" in config and overrides.get("data.source", config.data.source) != config.data.source:
        with config.unlocked():  # options of one source mean nothing to another
            for group in SOURCE_GROUPS:
                if group in config.data:
                    config.data[group] = ConfigDict()
    for path, value in overrides.items():
        *parents, last = path.split(".")
        node = config
        seen: list[str] = []
        for name in parents:
            node = _child(node, name, seen)
            seen.append(name)
            if not isinstance(node, ConfigDict):
                raise UserError(f"config.{'.'.join(seen)} is a value, not a group, so {path!r} names nothing")
        is_open = any(".".join(seen[: name.count(".") + 1]) == name for name in OPEN_GROUPS)
        old = node.get(last) if is_open else _child(node, last, seen)
        with node.unlocked():
            node[last] = _convert(value, old, path)


def _child(node: ConfigDict, name: str, seen: list[str]) -> Any:
    if name in node:
        return node[name]
    names = list(node) + ([] if seen else [field for field in OPTIONAL_FIELDS if field not in node])
    where = ".".join(["config", *seen])
    raise UserError(f"{where} has no field {name!r}; did you mean {nearest(name, names)!r}?")


def _parse(text: str) -> Any:
    """A Python literal, or the text itself."""
    try:
        return {"true": True, "false": False}[text] if text in ("true", "false") else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _convert(value: Any, old: Any, path: str) -> Any:
    if isinstance(old, ConfigDict):
        if not isinstance(value, Mapping):
            raise UserError(f"config.{path} is a group with the fields {', '.join(old)}; set one of them")
        return ConfigDict(value)
    if old is None or (isinstance(value, type(old)) and isinstance(value, bool) == isinstance(old, bool)):
        return value
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(old, str):
        return str(value)
    if isinstance(old, tuple | list) and isinstance(value, tuple | list):
        return type(old)(value)
    raise UserError(f"config.{path} is {value!r}, but must be of type {type(old).__name__} (as {old!r} is)")


def check(config: ConfigDict) -> None:
    """Names and plain numbers of the fields every config has.

    Raises:
        UserError: a missing or unknown field, or a number that is impossible.
    """
    base = base_config()
    for name in config:
        if name not in base and name not in OPTIONAL_FIELDS:
            raise UserError(f"config has no field {name!r}; did you mean {nearest(name, [*base, *OPTIONAL_FIELDS])!r}?")
    for group in ("mesh", "checkpoint", "eval", "log", "data"):
        known = {*base[group], "train_options", "eval_options", "split", "mixture", "best"}
        known |= {"sequence", "expert"} if group == "mesh" else set()
        for name in config.get(group, {}):
            if name not in known:
                raise UserError(f"config.{group} has no field {name!r}; did you mean {nearest(name, known)!r}?")
    if "stages" in config:
        return
    for name in base:
        if name not in config:
            raise UserError(f"config lacks the field {name!r}, which every config has")
    positive = {
        "total_steps": config.total_steps,
        "batch_size": config.batch_size,
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "checkpoint.keep": config.checkpoint.keep,
        "log.every_steps": config.log.every_steps,
        "accumulate_steps": config.accumulate_steps,
    }
    for name, value in positive.items():
        if not isinstance(value, int) or value < 1:
            raise UserError(f"config.{name} is {value!r}, but must be a whole number of at least 1")
    for name, value in {"seed": config.seed, "eval.every_steps": config.eval.every_steps}.items():
        if not isinstance(value, int) or value < 0:
            raise UserError(f"config.{name} is {value!r}, but must be a whole number of at least 0")
    if config.batch_size % config.accumulate_steps:
        raise UserError(
            f"config.batch_size {config.batch_size} is not divisible by accumulate_steps {config.accumulate_steps}"
        )
    if config.nan not in ("stop", "skip"):
        raise UserError(f"config.nan is {config.nan!r}, but must be 'stop' or 'skip'")


def to_json(config: Any) -> Any:
    """Plain dicts, lists and numbers, as written to config.json."""
    if isinstance(config, ml_collections.ConfigDict | Mapping):
        return {key: to_json(config[key]) for key in sorted(config)}
    return [to_json(item) for item in config] if isinstance(config, tuple | list) else config


def config_hash(config: Any) -> str:
    """Twelve hex digits that name a config."""
    return hashlib.sha256(json.dumps(to_json(config), sort_keys=True).encode()).hexdigest()[:12]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """'field: old -> new' for every field in which two JSON configs differ."""
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found
