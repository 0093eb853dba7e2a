"""YAML with origins: merging follows RFC 7396, and every message finds its line."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.base.spec import Problem, SpecError
from ropewalk.study.tree import (
    Leaf,
    Origin,
    Tree,
    assign,
    load_yaml,
    located,
    merge,
    origin_of,
    substitute,
    unwrap,
)

SCALARS = st.none() | st.integers(0, 3) | st.sampled_from(["a", "b"])
DATA = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=8,
)
MAPS = st.dictionaries(st.sampled_from("abc"), DATA, max_size=3)


def wrap(data: Any, layer: str = "body") -> Tree:
    """Return data as the tree that `load_yaml` gives."""
    if isinstance(data, dict) and data:
        return {key: wrap(value, layer) for key, value in data.items()}
    if isinstance(data, list) and data:
        return [wrap(item, layer) for item in data]
    return Leaf(data, Origin("x.yaml", 1, layer))


def patch(target: Any, change: Any) -> Any:
    """Return the result of a JSON merge patch, word for word the pseudocode of RFC 7396."""
    if not isinstance(change, dict):
        return change
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in change.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = patch(result.get(name), value)
    return result


@given(MAPS, MAPS)
def test_layers_merge_by_the_rules_of_json_merge_patch(below: Any, above: Any) -> None:
    """Guards against a scale that erases what it meant to add to, or adds what it meant to drop."""
    assert unwrap(merge(wrap(below), wrap(above))) == patch(below, above)


@given(MAPS, MAPS)
def test_merging_changes_neither_layer(below: Any, above: Any) -> None:
    """Guards against one scale's values leaking into the next study."""
    first, second = wrap(below), wrap(above)
    merge(first, second)
    assert (unwrap(first), unwrap(second)) == (below, above)


@given(MAPS)
def test_an_empty_layer_changes_nothing(below: Any) -> None:
    """Guards against `{}` read as 'erase'."""
    assert unwrap(merge(wrap(below), wrap({}))) == below


@given(MAPS, MAPS)
def test_merged_values_remember_their_layer(below: Any, above: Any) -> None:
    """Guards against a value of ours shown as the paper's."""
    merged = merge(wrap(below, "body"), wrap(above, "scale mini"))
    for key, value in merged.items() if isinstance(merged, dict) else ():
        if key not in above:
            assert _layers(value) == {"body"}
        elif not isinstance(value, dict):
            assert _layers(value) == {"scale mini"}


def _layers(tree: Tree) -> set[str]:
    if isinstance(tree, Leaf):
        return {tree.origin.layer}
    children = tree.values() if isinstance(tree, dict) else tree
    return {layer for child in children for layer in _layers(child)} or {"body"}


TEXT = """\
# a comment
title: Demo
runs:
  base:
    steps: 3
    betas: [0.9,
            0.95]
    phases:
      - windows: w
        rope: { kind: linear,
                factor: 4.0 }
  on: 1
  010: 2
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 2),
        (("runs", "base", "steps"), 5),
        (("runs", "base", "betas"), 6),
        (("runs", "base", "betas", 1), 7),
        (("runs", "base", "phases", 0, "windows"), 9),
        (("runs", "base", "phases", 0, "rope", "factor"), 11),
        (("runs", "base", "phases", 0, "rope", "missing"), 10),
        (("runs", "base", "missing"), 5),
        (("missing",), 2),
    ],
)
def test_values_know_their_file_and_line(tmp_path: Path, path: tuple[Any, ...], line: int) -> None:
    """Guards against messages that send the reader to the wrong place."""
    (tmp_path / "x.yaml").write_text(TEXT)
    tree = load_yaml(tmp_path / "x.yaml", shown="papers/x.yaml")
    assert str(origin_of(tree, path)) == f"papers/x.yaml:{line}"
    assert located(Problem(path, "bad"), tree).startswith(f"papers/x.yaml:{line}: ")


def test_keys_are_what_is_written(tmp_path: Path) -> None:
    """Guards against names that YAML 1.1 turns into truth values and octal numbers."""
    (tmp_path / "x.yaml").write_text(TEXT)
    assert set(load_yaml(tmp_path / "x.yaml")["runs"]) == {"base", "on", "010"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"x\.yaml:3: key 'a' appears twice"),
        ("a:\n  b: 1\n  c: 1\n  b: 2\n", r"x\.yaml:4: key 'b' appears twice"),
        ("- 1\n", r"x\.yaml: the file must be a map"),
        ("a: [1\n", r"x\.yaml:2: not valid YAML"),
        ("a: !!python/object:os.system x\n", r"x\.yaml:1: not valid YAML"),
        ("a: b\x01\n", r"x\.yaml: not valid YAML"),
        ("? [a]\n: 1\n", r"x\.yaml:1: a key must be"),
    ],
)
def test_files_that_cannot_be_meant_are_refused(tmp_path: Path, text: str, message: str) -> None:
    """Guards against the last of two equal keys winning silently, and against unsafe tags."""
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(SpecError, match=message):
        load_yaml(tmp_path / "x.yaml", shown="x.yaml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Guards against an absent overlay taken for an empty one."""
    with pytest.raises(SpecError, match=r"no\.yaml: no such file"):
        load_yaml(tmp_path / "no.yaml")


def test_dotted_keys_reach_into_maps_and_lists() -> None:
    """Guards against an override that lands beside the value it should change."""
    tree = wrap({"phases": [{"steps": 1, "rope": {"kind": "linear", "factor": 2}}], "seed": 0})
    assert unwrap(assign(tree, "phases.0.steps", wrap(5)))["phases"][0]["steps"] == 5
    rope = unwrap(assign(tree, "phases.0.rope", wrap({"factor": 4})))["phases"][0]["rope"]
    assert rope == {"kind": "linear", "factor": 4}  # maps merge
    created = unwrap(assign(tree, "optimizer.lr", wrap(1)))
    assert created == {**unwrap(tree), "optimizer": {"lr": 1}}
    assert "seed" not in unwrap(assign(tree, "seed", wrap(None)))
    assert unwrap(tree)["phases"][0]["steps"] == 1  # the original is untouched


@pytest.mark.parametrize("key", ["phases.1.steps", "phases.x", "phases.-1", "seed.x"])
def test_dotted_keys_that_lead_nowhere_are_refused(key: str) -> None:
    """Guards against an override that silently does nothing."""
    with pytest.raises(SpecError, match=key.rpartition(".")[2]):
        assign(wrap({"phases": [{"steps": 1}], "seed": 1}), key, wrap(5))


def test_placeholders_take_the_values_of_the_axes() -> None:
    """Guards against a run named after its cell but started from another."""
    tree = wrap({"start": "shared/llama-{size}", "list": ["{data}", 3], "n": None})
    assert unwrap(substitute(tree, {"size": "7B", "data": "pile"})) == {
        "start": "shared/llama-7B",
        "list": ["pile", 3],
        "n": None,
    }
    with pytest.raises(SpecError, match=r"x\.yaml:1: .*\{data\}, which is not an axis \(size\)"):
        substitute(tree, {"size": "7B"})
