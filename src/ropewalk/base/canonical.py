"""One canonical text for a value, and digests over it.

Identity (what an artifact *is*) is a hash of canonical JSON, so the encoder refuses whatever has
no single spelling: callables, sets, NaN, objects with a default repr.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

DIGEST_CHARACTERS = 16
EXECUTION = {"identity": False}  # metadata of spec fields that say where and how, never what


def plain(value: Any, *, identity: bool = False) -> Any:
    """Return `value` as JSON data (dict, list, str, int, float, bool, None).

    Frozen dataclasses become dicts; fields that are `None` are left out, so that adding an optional
    field to a spec type does not change the identity of everything made before it. With `identity`,
    fields marked `EXECUTION` are left out too.

    Raises:
        TypeError: for a value that has no canonical spelling.
        ValueError: for a float that is not finite.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {
            f.name: getattr(value, f.name)
            for f in dataclasses.fields(value)
            if not identity or f.metadata.get("identity", True)
        }
        return {k: plain(v, identity=identity) for k, v in items.items() if v is not None}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value!r} has no canonical spelling: use a finite number")
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"map key {key!r} is {type(key).__name__}: use a string")
        return {key: plain(value[key], identity=identity) for key in value}
    if isinstance(value, list | tuple):
        return [plain(item, identity=identity) for item in value]
    raise TypeError(f"{value!r} ({type(value).__name__}) has no canonical spelling")


def canonical_json(value: Any) -> str:
    """Return the canonical JSON text of `value`: sorted keys, no spaces."""
    return json.dumps(
        plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any) -> str:
    """Return the first 16 hex digits of the sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:DIGEST_CHARACTERS]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `(key path, scalar or list of scalars)` for every leaf of plain data, in key order.

    A list of scalars is one leaf; a list holding maps is walked by index: `phases.0.steps`.
    """
    if isinstance(value, Mapping):
        if not value and path:
            yield path, {}
        for key in sorted(value):
            yield from leaves(value[key], f"{path}.{key}" if path else key)
    elif isinstance(value, list | tuple) and any(
        isinstance(v, Mapping | list | tuple) for v in value
    ):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}.{index}" if path else str(index))
    else:
        yield path, list(value) if isinstance(value, tuple) else value
