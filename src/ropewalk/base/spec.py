"""Reading resolved JSON into the frozen spec types of the rooms.

The types are plain frozen dataclasses. `study` validates YAML against the same types with pydantic;
a stage, which must run without pydantic, uses `decode`. Both refuse unknown keys.
A union of dataclasses is told apart by its `kind` field, a `Literal` with one value.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class SpecError(ValueError):
    """A spec that cannot be used; the message names the key, the value and what is allowed."""


def decode(kind: type[T], data: Any, path: str = "spec") -> T:
    """Return `data` (plain JSON) as an instance of the frozen dataclass `kind`.

    Raises:
        SpecError: for an unknown or missing key or a value of the wrong type, naming its path.
    """
    return typing.cast(T, _decode(kind, data, path))


def _decode(kind: Any, data: Any, path: str) -> Any:
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if kind is Any:
        return data
    if origin is typing.Annotated:
        return _decode(arguments[0], data, path)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, data, path)
    if origin is typing.Literal:
        if data not in arguments:
            raise SpecError(f"{path}: {data!r} is not one of {', '.join(map(repr, arguments))}")
        return data
    if origin is tuple:
        if not isinstance(data, list | tuple):
            raise SpecError(f"{path}: {data!r} is not a list")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_decode(arguments[0], v, f"{path}[{i}]") for i, v in enumerate(data))
        if len(arguments) != len(data):
            raise SpecError(f"{path}: {data!r} must have {len(arguments)} items")
        return tuple(
            _decode(a, v, f"{path}[{i}]")
            for i, (a, v) in enumerate(zip(arguments, data, strict=True))
        )
    if origin in (dict, Mapping):
        if not isinstance(data, Mapping):
            raise SpecError(f"{path}: {data!r} is not a map")
        return {k: _decode(arguments[1], v, f"{path}.{k}") for k, v in data.items()}
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), data, path)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind in (int, float, str, bool):
        if type(data) is not kind:
            raise SpecError(f"{path}: {data!r} is not of type {kind.__name__}")
        return data
    if kind is type(None):
        if data is not None:
            raise SpecError(f"{path}: {data!r} must be null")
        return None
    raise TypeError(f"{path}: spec type {kind!r} is not supported")


def _decode_union(options: tuple[Any, ...], data: Any, path: str) -> Any:
    if data is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    classes = [option for option in options if dataclasses.is_dataclass(option)]
    if isinstance(data, Mapping) and len(classes) > 1:
        by_kind = {typing.get_type_hints(c)["kind"].__args__[0]: c for c in classes}
        if data.get("kind") not in by_kind:
            allowed = ", ".join(sorted(by_kind))
            raise SpecError(f"{path}.kind: {data.get('kind')!r} is not one of {allowed}")
        return _decode(by_kind[data["kind"]], data, path)
    problems = []
    for option in options:
        try:
            return _decode(option, data, path)
        except SpecError as error:
            problems.append(str(error))
    raise SpecError("; or ".join(problems))


def _decode_dataclass(kind: type, data: Any, path: str) -> Any:
    if not isinstance(data, Mapping):
        raise SpecError(f"{path}: {data!r} is not a map")
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise SpecError(f"{path}.{unknown[0]}: unknown key; known keys: {', '.join(fields)}")
    missing = sorted(
        name
        for name, f in fields.items()
        if name not in data
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    )
    if missing:
        raise SpecError(f"{path}.{missing[0]}: missing")
    values = {name: _decode(hints[name], data[name], f"{path}.{name}") for name in data}
    try:
        return kind(**values)
    except ValueError as error:
        raise SpecError(f"{path}: {error}") from None
