"""Identity rests on one spelling per value."""

import dataclasses
import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.base.canonical import EXECUTION, canonical_json, digest, leaves, plain

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)
DATA = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    width: int
    note: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    pair: tuple[float, float] = (0.9, 0.95)
    device: str = dataclasses.field(default="cpu", metadata=EXECUTION)


def same(a: Any, b: Any) -> bool:
    """Return whether two values are equal and of equal types: 1, 1.0 and True are three things."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return a == b and math.copysign(1, a) == math.copysign(1, b)
    return bool(a == b)


def respelled(value: Any) -> Any:
    """Return equal data built another way: maps in the other order, lists as tuples."""
    if isinstance(value, dict):
        return {key: respelled(value[key]) for key in reversed(value)}
    return tuple(map(respelled, value)) if isinstance(value, list) else value


@given(DATA)
def test_the_order_of_a_map_and_the_kind_of_a_list_do_not_change_the_digest(value: Any) -> None:
    """Guards against a rerun because a YAML file was reordered."""
    assert digest(respelled(value)) == digest(value)
    assert same(json.loads(canonical_json(value)), value)


@given(DATA, DATA)
def test_digests_are_equal_exactly_where_the_data_are(a: Any, b: Any) -> None:
    """Guards against two different specs under one identity."""
    assert (digest(a) == digest(b)) == same(a, b)


def test_a_digest_can_be_computed_by_hand() -> None:
    """Guards against a new spelling, which would orphan every artifact made before it."""
    text = '{"a":[1,0.5,true,null],"b":"ß"}'
    assert canonical_json({"b": "ß", "a": (1, 0.5, True, None)}) == text
    assert (
        digest({"b": "ß", "a": [1, 0.5, True, None]})
        == (hashlib.sha256(text.encode("utf-8")).hexdigest()[:16])
    )


def test_a_field_that_is_none_is_left_out() -> None:
    """Guards against a new optional field that changes the identity of everything made before."""
    assert plain(Inner(width=3)) == {"width": 3}
    assert digest(Inner(width=3)) == digest({"width": 3})
    assert plain({"a": None}) == {"a": None}  # in a map somebody wrote it


def test_where_something_runs_is_not_what_it_is() -> None:
    """Guards against a month of training orphaned because it moved to another machine."""
    here, there = Outer(inner=Inner(width=1)), Outer(inner=Inner(width=1), device="gpu")
    assert plain(here, identity=True) == plain(there, identity=True)
    assert plain(here) != plain(there)
    assert plain(there, identity=True) == {"inner": {"width": 1}, "pair": [0.9, 0.95]}
    nested = plain({"list": [there]}, identity=True)
    assert nested == {"list": [{"inner": {"width": 1}, "pair": [0.9, 0.95]}]}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    """Guards against JSON that other readers refuse, and NaN that is not equal to itself."""
    with pytest.raises(ValueError, match="finite"):
        digest({"lr": [value]})


@pytest.mark.parametrize("value", [{1, 2}, len, object(), b"bytes", Outer, {1: "a"}, 1j])
def test_what_has_no_single_spelling_is_refused(value: Any) -> None:
    """Guards against an identity that holds a memory address or the order of a set."""
    with pytest.raises(TypeError):
        digest({"key": value})


@given(st.dictionaries(st.text("abc", min_size=1), DATA, max_size=3))
def test_leaves_tell_every_difference(value: dict[str, Any]) -> None:
    """Guards against a setting that changes without a rerun, because no leaf shows it."""
    changed = {**value, "z": 1}
    assert dict(leaves(value)) != dict(leaves(changed))
    assert [path for path, _ in leaves(value)] == [path for path, _ in leaves(respelled(value))]


def test_leaves_of_lists() -> None:
    """Guards against key paths that move: a list of scalars is one value, maps go by number."""
    data = {"betas": (0.9, 0.95), "phases": [{"steps": 3}, {"rope": {"kind": "x"}}], "empty": {}}
    assert dict(leaves(data)) == {
        "betas": [0.9, 0.95],
        "phases.0.steps": 3,
        "phases.1.rope.kind": "x",
        "empty": {},
    }
