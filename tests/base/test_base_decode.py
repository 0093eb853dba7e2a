"""Data become spec types, or every problem is told at once."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.base.canonical import plain
from ropewalk.base.spec import SpecError, decode
from ropewalk.model.spec import Architecture
from ropewalk.train.spec import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain:
    kind: Literal["plain"] = "plain"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
    kind: Literal["linear"] = "linear"
    factor: float

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"factor {self.factor} is below 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    steps: int
    lr: float = 1.0
    name: str = ""
    on: bool = False
    betas: tuple[float, float] = (0.9, 0.95)
    shards: tuple[int, ...] = ()
    rope: Plain | Linear = Plain()
    limit: int | None = None
    when: Mapping[str, str | tuple[str, ...]] = dataclasses.field(default_factory=dict)
    policy: Literal["concat", "documents"] = "concat"


def problems(data: Any, kind: type = Spec) -> dict[str, str]:
    """Return `path -> message` of everything that is wrong."""
    with pytest.raises(SpecError) as caught:
        decode(kind, data)
    return {".".join(map(str, p.path)): p.message for p in caught.value.problems}


def test_every_problem_is_told_at_once() -> None:
    """Guards against a user who learns of ten mistakes in ten runs."""
    found = problems(
        {
            "step": 3,
            "lr": "fast",
            "name": 3,
            "on": 1,
            "betas": [0.9],
            "shards": [1, "2", 3.0],
            "rope": {"kind": "linear", "factr": 2},
            "limit": True,
            "when": {"size": 7},
            "policy": "document",
        }
    )
    assert set(found) == {
        "step",
        "steps",
        "lr",
        "name",
        "on",
        "betas",
        "shards.1",
        "shards.2",
        "rope.factr",
        "rope.factor",
        "limit",
        "when.size",
        "policy",
    }
    assert "did you mean 'steps'?" in found["step"]
    assert found["steps"] == "missing"
    assert "did you mean 'factor'?" in found["rope.factr"]
    assert "'concat', 'documents'" in found["policy"]
    assert "2 items" in found["betas"]


def test_unions_are_told_apart_by_kind() -> None:
    """Guards against a rope that silently becomes another rope."""
    linear = decode(Spec, {"steps": 1, "rope": {"kind": "linear", "factor": 4}})
    assert linear.rope == Linear(factor=4.0)
    assert isinstance(linear.rope.factor, float)
    assert problems({"steps": 1, "rope": {"factor": 4}}) == {
        "rope": "'kind' is missing; known: linear, plain"
    }
    wrong = problems({"steps": 1, "rope": {"kind": "liner", "factor": 4}})
    assert wrong == {"rope.kind": "'liner' is unknown; did you mean 'linear'?"}
    assert "rope.kind" in problems({"steps": 1, "rope": {"kind": []}})
    assert problems({"steps": 1, "rope": "linear"}) == {"rope": "'linear' is not a map"}


def test_optional_values_tuples_and_defaults() -> None:
    """Guards against lists inside frozen specs and against null read as a value."""
    found = decode(Spec, {"steps": 2, "limit": None, "shards": [1, 2], "when": {"a": ["x"]}})
    assert found == Spec(steps=2, shards=(1, 2), when={"a": ("x",)})
    assert decode(Spec, {"steps": 2, "limit": 5}).limit == 5
    assert "steps" in problems({"steps": None})


def test_a_type_that_refuses_a_value_is_a_problem_with_its_path() -> None:
    """Guards against a traceback where a message with a place is due."""
    assert problems({"steps": 1, "rope": {"kind": "linear", "factor": 0.5}}) == {
        "rope": "factor 0.5 is below 1"
    }


@pytest.mark.parametrize("value", [1.0, True, "1", [1]])
def test_whole_numbers_are_whole_numbers(value: Any) -> None:
    """Guards against true read as one step, and 1.5 steps cut to 1."""
    assert set(problems({"steps": value})) == {"steps"}


@pytest.mark.parametrize("text", [".inf", "-.inf", ".nan"])
def test_numbers_that_are_not_finite_are_refused(text: str) -> None:
    """Guards against a learning rate of NaN that fails only when an identity is computed."""
    assert "finite" in problems({"steps": 1, "lr": yaml.safe_load(text)})["lr"]


def test_a_number_that_yaml_reads_as_text_has_a_hint() -> None:
    """Guards against puzzled users: YAML 1.1 reads 1e-4 as text."""
    assert yaml.safe_load("1e-4") == "1e-4"
    assert "write 1.0e-4" in problems({"steps": 1, "lr": "1e-4"})["lr"]
    assert "write" not in problems({"steps": 1, "lr": "fast"})["lr"]


@given(
    st.from_regex(r"-?[0-9]{1,3}(\.[0-9]{1,3})?[eE][-+]?[0-9]{1,2}", fullmatch=True).filter(
        lambda text: isinstance(yaml.safe_load(text), str)
    )
)
def test_the_hint_is_a_number_for_yaml(text: str) -> None:
    """Guards against advice that leads to the same error again."""
    hint = problems({"steps": 1, "lr": text})["lr"].rpartition("write ")[2]
    assert yaml.safe_load(hint) == float(text)


def test_specs_survive_json() -> None:
    """Guards against a stage that runs with other settings than the plan has."""
    data = {
        "architecture": {"layers": 2, "hidden": 64, "heads": 2, "ffn": 8}
        | {"vocabulary_size": 16, "context_tokens": 8},
        "tokenizer": "t",
        "weights": {"kind": "scratch", "seed": 1},
        "phases": [
            {"windows": "w", "length_tokens": 8, "steps": 3}
            | {"rope": {"kind": "linear", "factor": 2}}
        ],
        "batch": {"tokens": 64},
        "optimizer": {"lr": 1, "betas": [0.9, 0.95]},
        "schedule": {"shape": "constant"},
    }
    run = decode(Run, data)
    assert decode(Run, plain(run)) == run
    assert plain(decode(Run, plain(run))) == plain(run)


def test_a_head_dimension_that_is_odd_is_refused() -> None:
    """Guards against a rotary embedding that drops a dimension."""
    data = {"layers": 1, "hidden": 6, "heads": 2, "ffn": 8, "vocabulary_size": 9}
    assert "odd" in problems({**data, "context_tokens": 8}, Architecture)[""]
