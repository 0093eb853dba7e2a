"""YAML as a tree whose leaves remember where they were written.

Layers are merged before anything is validated, so that a message about a value can name the file
and line it came from, and `show` can say which layer set it. Maps merge, lists replace, null
removes a key.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ropewalk.base.spec import Problem, SpecError

Tree = Any  # dict of str to Tree, list of Tree, or Leaf


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a value was written."""

    file: str
    line: int
    layer: str  # `body`, `scale mini`, ...

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A scalar, or an empty list or map, with its origin."""

    value: Any
    origin: Origin


# Constructs scalars only, `_convert` walks the tree. The parser of libyaml, with which PyYAML is
# usually built, takes a fifth of the time.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(path: Path, *, layer: str = "body", shown: str | None = None) -> dict[str, Tree]:
    """Read one YAML file as a tree.

    Raises:
        SpecError: if the file is missing, is not YAML, is not a map, or repeats a key.
    """
    name = shown or str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"{name}: no such file") from None
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        tree = {} if node is None else _convert(loader, node, name, layer)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise SpecError(f"{name}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{name}: not valid YAML: {error}") from None
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(tree, dict):
        raise SpecError(f"{name}: the file must be a map of keys, found {unwrap(tree)!r}")
    return tree


def _convert(loader: yaml.SafeLoader, node: yaml.Node, file: str, layer: str) -> Tree:
    origin = Origin(file, node.start_mark.line + 1, layer)
    if isinstance(node, yaml.MappingNode):
        tree: dict[str, Tree] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise SpecError(f"{file}:{line}: a key must be a text or a number")
            key = key_node.value  # as written: `on` and `010` are names here, not true and 8
            if key in tree:
                raise SpecError(f"{file}:{line}: key {key!r} appears twice; keep one")
            tree[key] = _convert(loader, value_node, file, layer)
        return tree if tree else Leaf({}, origin)
    if isinstance(node, yaml.SequenceNode):
        items = [_convert(loader, item, file, layer) for item in node.value]
        return items if items else Leaf([], origin)
    return Leaf(loader.construct_object(node), origin)


def merge(below: Tree, above: Tree) -> Tree:
    """Return `below` overlaid by `above`: maps merge, anything else replaces, null removes.

    These are the rules of JSON merge patch (RFC 7396): an empty map changes nothing in a map, and a
    null that finds nothing to remove leaves nothing behind.
    """
    if isinstance(above, Leaf) and above.value == {} and isinstance(below, Mapping):
        return below
    if not isinstance(above, Mapping):
        return above
    merged = dict(below) if isinstance(below, Mapping) else {}
    for key, value in above.items():
        if isinstance(value, Leaf) and value.value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def unwrap(tree: Tree) -> Any:
    """Return the plain data of a tree."""
    if isinstance(tree, Leaf):
        return tree.value
    if isinstance(tree, Mapping):
        return {key: unwrap(value) for key, value in tree.items()}
    return [unwrap(item) for item in tree]


def origin_of(tree: Tree, path: tuple[str | int, ...]) -> Origin | None:
    """Return where the value at `path`, or the nearest thing that holds it, was written."""
    nearest = tree
    for key in path:
        try:
            nearest = nearest[key]
        except (KeyError, IndexError, TypeError):
            break
    return _first_origin(nearest)


def _first_origin(tree: Tree) -> Origin | None:
    if isinstance(tree, Leaf):
        return tree.origin
    children = tree.values() if isinstance(tree, Mapping) else tree
    found = [origin for origin in map(_first_origin, children) if origin]
    return min(found, key=lambda o: (o.file, o.line)) if found else None


def located(problem: Problem, tree: Tree, prefix: str = "") -> str:
    """Return a problem as one line that begins with the file and line it concerns."""
    origin = origin_of(tree, problem.path)
    place = f"{origin}: " if origin else ""
    return f"{place}{prefix}{problem}"


def assign(tree: Tree, dotted_key: str, value: Tree) -> Tree:
    """Return `tree` with the value at a dotted key replaced; list items by number.

    Maps on the way are created, lists must already reach that far. A map assigned to a map merges.

    Raises:
        SpecError: if the path runs through a scalar or past the end of a list.
    """
    head, _, rest = dotted_key.partition(".")
    if isinstance(tree, list):
        index = int(head) if head.isdigit() else -1
        if not 0 <= index < len(tree):
            raise SpecError(f"{dotted_key!r}: {head!r} is not an item of a list of {len(tree)}")
        changed = list(tree)
        changed[index] = assign(tree[index], rest, value) if rest else merge(tree[index], value)
        return changed
    if isinstance(tree, Leaf):
        if tree.value not in (None, {}):
            raise SpecError(f"{dotted_key!r}: cannot be set inside the value {tree.value!r}")
        tree = {}
    if rest:
        return {**tree, head: assign(tree.get(head, {}), rest, value)}
    return merge(tree, {head: value})


_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def substitute(tree: Tree, values: Mapping[str, str]) -> Tree:
    """Return `tree` with `{name}` in texts replaced by `values[name]`.

    Raises:
        SpecError: for a name that is not among the values.
    """
    if isinstance(tree, Leaf):
        if not isinstance(tree.value, str):
            return tree
        unknown = [n for n in _PLACEHOLDER.findall(tree.value) if n not in values]
        if unknown:
            raise SpecError(
                f"{tree.origin}: {tree.value!r} names {{{unknown[0]}}}, which is not an axis "
                f"({', '.join(values)})"
            )
        return Leaf(_PLACEHOLDER.sub(lambda m: values[m[1]], tree.value), tree.origin)
    if isinstance(tree, Mapping):
        return {key: substitute(value, values) for key, value in tree.items()}
    return [substitute(item, values) for item in tree]
