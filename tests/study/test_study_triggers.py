"""Params of rules: what Snakemake is told of every job, so that exactly what changed reruns it."""

from pathlib import Path

import pytest
from snakemake.io import apply_wildcards
from snakemake.rules import Rule
from study_samples import DEMO, changed, plan, write

from ropewalk.study.data_nodes import Node
from ropewalk.study.registry import STAGES
from ropewalk.study.triggers import Triggers

STATEMENT = "The loss of {study} at {length} is lower."


@pytest.fixture
def triggers(tmp_path: Path) -> Triggers:
    demo = changed(DEMO, {("claims", "better", "statement"): STATEMENT})
    return Triggers(plan(write(tmp_path, demo=demo)), tmp_path)


def told(triggers: Triggers, node: Node) -> list[str]:
    """Return what Snakemake makes of a rule's params for one job."""
    return [
        apply_wildcards(param, node.wildcards) if isinstance(param, str) else param(node.wildcards)
        for param in triggers.params(node.stage)
    ]


def test_a_job_is_told_its_causes_and_nothing_else(triggers: Triggers) -> None:
    """Guards against a changed setting that reruns nothing, or that reruns other jobs."""
    nodes = triggers.plan.nodes.values()
    assert {node.stage for node in nodes} == set(STAGES) - {"calibrate"}
    for node in nodes:
        assert set(told(triggers, node)) == {"", *triggers.of(node)}
    run = triggers.plan.nodes["results/paper/runs/demo/pi-4x/manifest.json"]
    other = triggers.plan.nodes["results/paper/runs/demo/direct-2x/manifest.json"]
    key = "spec.run.phases.0.rope.factor="
    assert f"{key}4.0" in told(triggers, run)
    assert not any(cause.startswith(key) for cause in told(triggers, other))


def test_braces_of_a_text_are_no_wildcards(triggers: Triggers) -> None:
    """Guards against a claim that Snakemake fills in, or cannot: its wildcards look the same."""
    node = triggers.plan.nodes["results/paper/judged/demo/manifest.json"]
    assert any(cause.endswith(f'"{STATEMENT}"') for cause in told(triggers, node))


def test_params_are_not_derived_from_files(triggers: Triggers) -> None:
    """Guards against causes that Snakemake leaves out of its record, as it does with derived ones.

    It takes a function for derived that may be given input, output, threads or resources.
    """
    for stage in STAGES:
        functions = [param for param in triggers.params(stage) if not isinstance(param, str)]
        assert functions
        assert not any(Rule._is_deriving_function(function) for function in functions)


def test_a_rule_has_no_more_params_than_a_job_has_causes(triggers: Triggers) -> None:
    """Guards against planning that slows with the keys of all jobs: Snakemake asks each of all."""
    for stage in STAGES:
        most = max((len(triggers.of(n)) for n in triggers.plan.of_stage(stage)), default=0)
        always = len(["", "source", "rebuilds"])
        assert len(triggers.params(stage)) <= most + always
