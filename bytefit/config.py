"""Frozen dataclasses to JSON and back, strictly: an unknown or missing key is an error.

Every component keeps its own config dataclass next to it; this file only knows how to write a tree of
them, read it again, and replace one leaf by its dotted path. Understood types: ``bool int float str None``,
``Literal``, ``X | None``, ``tuple[X, ...]``, ``dict[str, X]``, dataclasses, and unions of dataclasses
(written with a ``"type"`` key that holds the class name).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from typing import Any, TypeVar

from bytefit.errors import UserError

T = TypeVar("T")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def to_json(value: Any) -> Any:
    """Plain JSON data for a config value; dataclasses carry their class name as ``"type"``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__} | fields
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value


def _short(value: Any) -> str:
    """A value for a message: never more than a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def from_json(kind: Any, data: Any, path: str = "") -> Any:
    """Build a value of type ``kind`` from JSON data.

    Raises:
        UserError: a wrong type, an unknown key or a missing key; names the dotted path.
    """
    here = path or "the top level"
    if dataclasses.is_dataclass(kind):
        return _dataclass_from_json(typing.cast(type, kind), data, path)
    if _is_union(kind):
        return _union_from_json(typing.get_args(kind), data, path)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        if data not in args:
            raise UserError(f"{here}: {_short(data)} is not one of {', '.join(map(repr, args))}")
        return data
    if origin is tuple:
        if not isinstance(data, list | tuple):
            raise UserError(f"{here}: expected a list, got {_short(data)}")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(from_json(args[0], item, f"{path}[{i}]") for i, item in enumerate(data))
        if len(data) != len(args):
            raise UserError(f"{here}: expected {len(args)} values, got {len(data)}")
        return tuple(from_json(arg, item, f"{path}[{i}]") for i, (arg, item) in enumerate(zip(args, data, strict=True)))
    if origin is dict:
        if not isinstance(data, dict):
            raise UserError(f"{here}: expected an object, got {_short(data)}")
        return {key: from_json(args[1], item, f"{path}.{key}") for key, item in data.items()}
    if kind is float and isinstance(data, int | float) and not isinstance(data, bool):
        if not abs(data) < 1e300:  # neither infinite nor NaN, which JSON does not know and no setting means
            raise UserError(f"{here}: {_short(data)} is not a finite number")
        return float(data)
    if kind in (bool, int, float, str) and type(data) is kind:
        return data
    if kind is type(None) and data is None:
        return None
    raise UserError(f"{here}: expected {getattr(kind, '__name__', kind)}, got {_short(data)}")


def _dataclass_from_json(cls: type, data: Any, path: str) -> Any:
    here = path or cls.__name__
    if not isinstance(data, dict):
        raise UserError(f"{here}: expected an object ({cls.__name__}), got {_short(data)}")
    if data.get("type", cls.__name__) != cls.__name__:
        raise UserError(f"{here}: expected type {cls.__name__!r}, got {_short(data['type'])}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(fields) - {"type"})
    if unknown:
        raise UserError(f"{here}: unknown key {_short(unknown[0])}; known keys: {', '.join(fields)}")
    required = (
        name for name, field in fields.items() if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )
    missing = [name for name in required if name not in data]
    if missing:
        raise UserError(f"{here}: key {missing[0]!r} is missing")
    hints = _hints(cls)
    prefix = f"{path}." if path else ""
    values = {name: from_json(hints[name], data[name], prefix + name) for name in fields if name in data}
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{here}: {error}") from None


def _union_from_json(args: tuple[Any, ...], data: Any, path: str) -> Any:
    if data is None and type(None) in args:
        return None
    options = [arg for arg in args if arg is not type(None)]
    if len(options) == 1:
        return from_json(options[0], data, path)
    if isinstance(data, dict):
        named = {arg.__name__: arg for arg in options if isinstance(arg, type)}
        if not isinstance(data.get("type"), str) or data["type"] not in named:
            raise UserError(f"{path}: type {_short(data.get('type'))} is not one of {', '.join(named)}")
        return from_json(named[data["type"]], data, path)
    for option in options:
        try:
            return from_json(option, data, path)
        except UserError:
            continue
    raise UserError(f"{path}: {_short(data)} fits none of {', '.join(getattr(option, '__name__', str(option)) for option in options)}")


def apply_settings(config: T, settings: list[tuple[str, str]]) -> T:
    """Return ``config`` with fields at dotted paths replaced, all together, so that fields that depend on each other can change.

    Args:
        settings: (path, text) pairs; the text is read as JSON, else as a string.

    Raises:
        UserError: a path does not exist, or the result is not a valid config.
    """
    data = to_json(config)
    for path, text in settings:
        *owners, name = path.split(".")
        place = data
        for owner in owners:
            place = _field(place, owner, path)
        _field(place, name, path)
        try:
            place[name] = json.loads(text)
        except (ValueError, RecursionError):
            place[name] = text
    return from_json(type(config), data)


def _field(place: Any, name: str, path: str) -> Any:
    if not isinstance(place, dict):
        raise UserError(f"{path}: {place!r} has no field {name!r}")
    if name not in place or name == "type":
        known = ", ".join(key for key in place if key != "type")
        raise UserError(f"{path}: {place.get('type', 'this')} has no field {name!r}; it has: {known}")
    return place[name]


def first_difference(held: Any, wanted: Any, path: str = "") -> str:
    """The first place where two JSON values differ, in words; empty where they are equal."""
    if held == wanted:
        return ""
    if isinstance(held, dict) and isinstance(wanted, dict):
        differing = (key for key in [*held, *wanted] if held.get(key) != wanted.get(key))
        key = next(differing, None)  # none where one of them lacks what is null in the other
        return "" if key is None else first_difference(held.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    return f"{path} is {held!r}, not {wanted!r}"
