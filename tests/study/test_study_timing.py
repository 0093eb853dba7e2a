"""Budgets of time in the plan: calibrations among the inputs, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from study_samples import DEMO, changed, plan, problems, write

from ropewalk.base.canonical import plain
from ropewalk.study.plan import Plan
from ropewalk.study.triggers import spec_leaves

SPEC = ("runs", "extend", "spec")
PHASES = (*SPEC, "phases")
OVERRIDES = ("runs", "extend", "overrides")
LIKE = {"run": "demo/direct-2x", "share": 0.5}


def demo(**changes: Any) -> str:
    """Return a study where `pi` trains for half the seconds of `direct-2x`."""
    own: dict[tuple[Any, ...], Any] = {
        (*SPEC, "calibration"): "cost",
        ("calibrations", "cost"): {
            "run": {"method": "pi"},
            "shapes": {"rows": {"length_tokens": 32, "sequences": 4}},
        },
        (*OVERRIDES, "timed"): {
            "when": {"method": "pi", "length": "2x"},
            "set": {
                "phases": [{"windows": "plain", "length_tokens": 32, "seconds_like": dict(LIKE)}]
            },
        },
    }
    return changed(DEMO, own | {tuple(key.split("__")): value for key, value in changes.items()})


def node(found: Plan, stage: str, **wildcards: str) -> Any:
    return found.node(stage, {"name": "paper", "study": "demo", **wildcards})


def test_a_budget_of_time_needs_its_calibration_and_the_other_runs_steps(tmp_path: Path) -> None:
    """Guards against a run of equal time that starts before anybody has measured."""
    found = plan(write(tmp_path, demo=demo()))
    timed = node(found, "train", run="pi-2x")
    cost = node(found, "calibrate", calibration="cost")
    assert timed.inputs["calibration:demo/cost"] == cost.manifest
    assert plain(timed.spec)["timed"] == {
        "demo/direct-2x": [
            {
                "calibration": "demo/cost",
                "length_tokens": 32,
                "context_tokens": 32,
                "sequences": 4,
                "steps": 10,
            }
        ]
    }
    # Nobody waits who does not need it, and the other run is not trained first for its seconds.
    assert not any("calibration" in name for name in node(found, "train", run="direct-2x").inputs)
    assert "run:demo/direct-2x" not in timed.inputs
    assert cost.inputs == {}
    assert node(found, "judge").inputs["calibration:demo/cost"] == cost.manifest


EDITS: list[tuple[str, dict[str, Any], bool]] = [
    ("learning rate", {"runs__extend__spec__optimizer__lr": 0.5}, False),
    ("seed", {"runs__extend__spec__seed": 7}, False),
    ("schedule", {"runs__extend__spec__schedule__shape": "linear"}, False),
    ("steps of the other run", {"runs__extend__spec__phases": [
        {"windows": "plain", "length_tokens": 32, "steps": 20}]}, False),
    ("precision", {"runs__extend__spec__numerics": {"matmul": "medium"}}, True),
    ("device", {"runs__extend__spec__hardware": {"device": "v100-32"}}, True),
    ("rounds", {"calibrations__cost__rounds": 7}, True),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "again"), [e[1:] for e in EDITS], ids=[e[0] for e in EDITS])
def test_what_costs_no_time_measures_nothing_anew(
    tmp_path: Path, changes: dict[str, Any], again: bool
) -> None:
    """Guards against budgets that move with a learning rate, or stay with another machine's."""
    before = node(plan(write(tmp_path, demo=demo())), "calibrate", calibration="cost")
    after = node(plan(write(tmp_path, demo=demo(**changes))), "calibrate", calibration="cost")
    assert (spec_leaves(before) != spec_leaves(after)) == again


def test_the_steps_of_the_other_run_are_part_of_a_budget(tmp_path: Path) -> None:
    """Guards against a run that keeps its steps when the run it is held against trains longer."""
    before = node(plan(write(tmp_path, demo=demo())), "train", run="pi-2x")
    longer = [{"windows": "plain", "length_tokens": 32, "steps": 20}]
    edited = demo(runs__extend__spec__phases=longer)
    after = node(plan(write(tmp_path, demo=edited)), "train", run="pi-2x")
    changes = set(spec_leaves(after).items()) - set(spec_leaves(before).items())
    assert {key for key, _ in changes} == {"spec.timed.demo/direct-2x.0.steps"}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"runs__extend__spec__calibration": "costs"}, "no calibration 'demo/costs'"),
    ({"runs__extend__spec__calibration": None}, "runs.pi-2x.calibration: missing"),
    (
        {"calibrations__cost__shapes": {"rows": {"length_tokens": 32, "sequences": 2}}},
        "has no shape of 4 sequences with length_tokens 32",
    ),
    (
        {"runs__extend__overrides__timed__when": {"length": "2x"}},
        "'demo/direct-2x' has a budget of time itself",
    ),
    ({"calibrations__cost__run": {"method": "pose"}}, "is no run of this scale"),
    (
        {"runs__extend__spec__hardware": {"processes": 2}},
        "calibrations.cost.run: hardware.processes 2",
    ),
    (
        {"claims__better__rule": {
            "kind": "threshold", "at_least": 1.0,
            "quantity": {"calibration": "speed", "context": "rows", "value": "seconds_per_step"}}},
        "there is no calibration 'speed'; known: cost",
    ),
    (
        {"claims__better__rule": {
            "kind": "threshold", "at_least": 1.0,
            "quantity": {"evaluation": "loss", "value": "seconds_per_step"}}},
        "value 'seconds_per_step' is of a calibration",
    ),
    ({"calibrations__loss": {"run": "demo/pi-2x", "shapes": {
        "rows": {"length_tokens": 32, "sequences": 4}}}}, "'loss' is both a calibration and"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_budgets_that_cannot_be_resolved_are_refused_in_planning(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Guards against a cluster job that finds out what the plan could have said."""
    assert message in problems(write(tmp_path, demo=demo(**changes)))


def test_costs_stand_in_claims_and_tables_by_the_label_of_a_shape(tmp_path: Path) -> None:
    """Guards against a cell of a table of costs that shows nothing, or another shape's."""
    table = {
        "title": "Seconds",
        "location": "Table 2",
        "calibration": "cost",
        "value": "seconds_per_step",
        "columns": ["rows", "longer rows"],
        "rows": [{"run": {}, "label": "time", "cells": ["0.1", "0.2"]}],
    }
    rule = {
        "kind": "threshold",
        "at_least": 1.0,
        "quantity": {"calibration": "cost", "context": "longer rows", "value": "seconds_per_step"},
    }
    found = plan(write(tmp_path, demo=demo(tables__two=table, claims__better__rule=rule)))
    job = node(found, "judge").spec
    assert set(job.cells["two"]) == {"0,0"}
    assert job.cells["two"]["0,0"].context == "rows"
    assert job.claims["better"].rule is None  # this scale has no such shape
    assert "no shape longer rows" in job.claims["better"].note
