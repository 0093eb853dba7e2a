"""Reading plain data into the frozen spec types of the rooms: one decoder for YAML and for JSON.

The types are stdlib dataclasses. Unknown keys, missing keys and wrong types are problems; all of
them are collected and reported at once. A union of dataclasses is told apart by its `kind` field, a
`Literal` with one value, whose default may be left out of the data only where the union has no
other member.
"""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
_INVALID: Any = object()


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that cannot be used: where, and what is wrong with what remedy."""

    path: tuple[str | int, ...]
    message: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.message}" if self.path else self.message


class SpecError(ValueError):
    """Data that cannot be used; carries every problem found."""

    def __init__(self, problems: Iterable[Problem] | str) -> None:
        if isinstance(problems, str):
            problems = [Problem((), problems)]
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def dotted(path: Iterable[str | int]) -> str:
    """Return a key path as text: `phases.0.steps`."""
    return ".".join(map(str, path))


def suggestion(word: object, known: Iterable[str]) -> str:
    """Return ` (did you mean x?)` for the closest known word, else what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(str(word), names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(names)}" if names else "none is known"


def decode(kind: type[T], data: Any, path: tuple[str | int, ...] = ()) -> T:
    """Return plain `data` as an instance of the frozen dataclass `kind`.

    Raises:
        SpecError: with every unknown or missing key and every value of a wrong type.
    """
    problems: list[Problem] = []
    value = _decode(kind, data, path, problems)
    if problems:
        raise SpecError(problems)
    return typing.cast(T, value)


def _decode(kind: Any, data: Any, path: tuple[str | int, ...], problems: list[Problem]) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, data, path, problems)
    if origin is typing.Literal:
        if data in arguments and type(data) in {type(a) for a in arguments}:
            return data
        allowed = ", ".join(repr(a) for a in arguments)
        return _refuse(problems, path, f"{data!r} is not allowed; allowed: {allowed}")
    if origin is tuple:
        return _decode_tuple(arguments, data, path, problems)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(data, Mapping):
            return _refuse(problems, path, f"{data!r} is not a map")
        return {k: _decode(arguments[1], v, (*path, k), problems) for k, v in data.items()}
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), data, path, problems)
    if kind in (int, float, str, bool):
        return _decode_scalar(kind, data, path, problems)
    raise TypeError(f"{dotted(path)}: spec type {kind!r} is not supported")


def _refuse(problems: list[Problem], path: tuple[str | int, ...], message: str) -> Any:
    problems.append(Problem(path, message))
    return _INVALID


def _decode_scalar(
    kind: type, data: Any, path: tuple[str | int, ...], problems: list[Problem]
) -> Any:
    if kind is float and type(data) is float and not math.isfinite(data):
        return _refuse(problems, path, f"{data!r} is not a finite number")
    if type(data) is kind:
        return data
    if kind is float and type(data) is int:
        return float(data)
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    hint = ""
    if kind is float and isinstance(data, str):
        try:
            float(data)
            if "e" in data.lower():
                hint = f"; YAML reads it as text: write {_yaml_float(data)}"
        except ValueError:
            pass
    return _refuse(problems, path, f"{data!r} is not {names[kind]}{hint}")


def _yaml_float(text: str) -> str:
    """Return a number such as `1e-4` as YAML wants it: a point and a signed exponent."""
    mantissa, _, exponent = text.strip().lower().partition("e")
    point = "" if "." in mantissa else ".0"
    sign = "" if exponent[:1] in ("+", "-") else "+"
    return f"{mantissa}{point}e{sign}{exponent}"


def _decode_tuple(
    arguments: tuple[Any, ...], data: Any, path: tuple[str | int, ...], problems: list[Problem]
) -> Any:
    if not isinstance(data, list | tuple):
        return _refuse(problems, path, f"{data!r} is not a list")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        kinds: Iterable[Any] = (arguments[0],) * len(data)
    elif len(arguments) == len(data):
        kinds = arguments
    else:
        return _refuse(problems, path, f"{data!r} must have {len(arguments)} items")
    pairs = enumerate(zip(kinds, data, strict=True))
    return tuple(_decode(k, v, (*path, i), problems) for i, (k, v) in pairs)


def _decode_union(
    options: tuple[Any, ...], data: Any, path: tuple[str | int, ...], problems: list[Problem]
) -> Any:
    if data is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if len(options) == 1:
        return _decode(options[0], data, path, problems)
    classes = [option for option in options if dataclasses.is_dataclass(option)]
    if isinstance(data, Mapping) and len(classes) > 1:
        by_kind = {_hints(typing.cast(type, c))["kind"].__args__[0]: c for c in classes}
        if not isinstance(data.get("kind"), str) or data["kind"] not in by_kind:
            if "kind" not in data:
                return _refuse(problems, path, f"'kind' is missing; {suggestion('', by_kind)}")
            given = data["kind"]
            return _refuse(
                problems, (*path, "kind"), f"{given!r} is unknown; {suggestion(given, by_kind)}"
            )
        return _decode(by_kind[data["kind"]], data, path, problems)
    collected: list[Problem] = []
    for option in options:
        own: list[Problem] = []
        value = _decode(option, data, path, own)
        if not own:
            return value
        collected += own
    problems += collected if isinstance(data, Mapping) else collected[:1]
    return _INVALID


def _decode_dataclass(
    kind: type, data: Any, path: tuple[str | int, ...], problems: list[Problem]
) -> Any:
    if not isinstance(data, Mapping):
        return _refuse(problems, path, f"{data!r} is not a map")
    before = len(problems)
    hints = _hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in data:
        if key not in fields:
            _refuse(problems, (*path, key), f"unknown key; {suggestion(key, fields)}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in data:
            _refuse(problems, (*path, name), "missing")
    values = {
        name: _decode(hints[name], data[name], (*path, name), problems)
        for name in fields
        if name in data
    }
    if len(problems) > before:
        return _INVALID
    try:
        return kind(**values)
    except ValueError as error:
        return _refuse(problems, path, str(error))


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)
