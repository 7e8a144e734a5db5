"""From names and options in a config to objects, with errors that name the field and the nearest valid name."""

import dataclasses
import difflib
import importlib
import typing
from collections.abc import Iterable, Mapping
from typing import Any

Options = Any  # a group of a config: a dict or a ConfigDict, which is no Mapping to isinstance


def nearest(name: str, options: Iterable[str]) -> str:
    """The option most like `name`, or 'nothing' where there are none."""
    return next(iter(difflib.get_close_matches(name, list(options), 1, 0)), "nothing")


def unknown(where: str, name: str, options: Iterable[str]) -> ValueError:
    """An error for a name that is none of `options`."""
    options = list(options)
    near, listed = nearest(name, options), ", ".join(options)
    return ValueError(f"{where} {name!r} is unknown; did you mean {near!r}? There are: {listed}")


def load(path: str) -> Any:
    """The object at 'package.module:attribute'."""
    module, attribute = path.split(":")
    return getattr(importlib.import_module(module), attribute)


def construct(kind: type, options: Options, where: str, given: Mapping[str, Any] | None = None) -> Any:
    """`kind(**options, **given)` for a dataclass (a linen module is one), with names and plain types checked first.

    Args:
        kind: a dataclass.
        options: fields that a config sets.
        where: the config's path to `options`, for messages.
        given: fields that the caller sets and a config cannot.

    Raises:
        ValueError: a name that is no field of `kind`, or a value of another type than the field's.
    """
    given = dict(given or {})
    hints = typing.get_type_hints(kind)
    hidden = {"parent", "name", *given}
    names = [field.name for field in dataclasses.fields(kind) if field.init and field.name not in hidden]
    values = {}
    for name, value in options.items():
        if name not in names:
            raise unknown(f"{where}.{name}:", name, names)
        values[name] = checked(value, hints.get(name, Any), f"{where}.{name}")
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.name in names
        and field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return kind(**values, **given)


def checked(value: Any, hint: Any, where: str) -> Any:
    """`value` as a field of type `hint` takes it: lists become tuples, whole numbers become floats where asked.

    Raises:
        ValueError: a value of another plain type; `where` is its path in the config.
    """
    if isinstance(value, list | tuple):
        floats = set(typing.get_args(hint)) <= {float, ...} and typing.get_origin(hint) is tuple
        value = tuple(checked(item, float, where) for item in value) if floats else tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = typing.get_origin(hint) or hint
    if expected not in (int, float, str, bool, tuple):
        return value
    wrong_bool = isinstance(value, bool) and expected is not bool
    if wrong_bool or not isinstance(value, expected):
        raise ValueError(f"{where} is {value!r}, but must be of type {expected.__name__}")
    return value
