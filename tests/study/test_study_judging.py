"""Which of our runs a sentence or a cell of the paper means."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from study_samples import DEMO, changed, plan, write

from ropewalk.base.spec import SpecError
from ropewalk.report.spec import JudgeJob, Ordering, Pairs, Quantity
from ropewalk.study.judging import counterpart, run_of, snapshot_of
from ropewalk.study.plan import Plan

MINI = """
scales:
  mini:
    main: { length: 4x }
    snapshots: { "200": "40", "1000": "final", "10000": "" }
    runs: { extend: { axes: { length: [4x] }, only: null } }
"""


@pytest.fixture
def paper(tmp_path: Path) -> Plan:
    return plan(write(tmp_path))


@pytest.fixture
def mini(tmp_path: Path) -> Plan:
    return plan(write(tmp_path, demo=DEMO + MINI), scale="mini")


def job(found: Plan) -> JudgeJob:
    spec: JudgeJob = found.node("judge", {"name": found.config.run_name, "study": "demo"}).spec
    return spec


@pytest.mark.parametrize(
    ("selection", "run"),
    [
        ({}, "demo/pi-2x"),
        ({"method": "direct"}, "demo/direct-2x"),
        ({"length": "4x"}, "demo/pi-4x"),
        ({"method": "direct", "length": "4x"}, None),
        ({"size": "7B"}, None),
        ("original", "shared/base"),
        ("demo/pi-4x", "demo/pi-4x"),
        ("orignal", None),
    ],
)
def test_axes_not_named_take_the_main_values(paper: Plan, selection: Any, run: str | None) -> None:
    """Guards against a claim judged on another cell than it speaks of."""
    assert run_of(paper.studies["demo"], selection) == run


def test_the_main_cell_of_the_paper_stands_beside_our_main_cell(mini: Plan) -> None:
    """Guards against the paper's number beside a run of another length."""
    study = mini.studies["demo"]
    assert counterpart(study, {"method": "pi", "length": "2x"}) == "demo/pi-4x"
    assert counterpart(study, {"method": "direct", "length": "2x"}) == "demo/direct-4x"
    assert counterpart(study, {"method": "pi", "length": "16x"}) is None
    assert counterpart(study, "original") == "shared/base"
    assert counterpart(study, "unknown") is None


def test_cells_are_filled_where_there_is_a_run_and_only_there(paper: Plan) -> None:
    """Guards against a cell that shows the number of its neighbour."""
    cells = job(paper).cells["one"]
    assert set(cells) == {"0,0", "0,1", "1,0", "1,1"}
    assert cells["0,1"] == Quantity(
        evaluation="loss", run="shared/base", context="2x", value="perplexity"
    )
    assert cells["1,0"].run == "demo/pi-2x"


def test_columns_and_rows_may_be_of_other_evaluations(tmp_path: Path) -> None:
    """Guards against a method's column filled with the numbers of another method."""
    data = yaml.safe_load(DEMO)
    table = data["tables"]["one"]
    table |= {"by": "evaluation", "columns": ["", "loss"], "context": "2x", "headings": ["A", "B"]}
    table["rows"][0]["cells"] = ["1", "2"]
    cells = job(plan(write(tmp_path, demo=yaml.safe_dump(data)))).cells["one"]
    assert {place: (q.evaluation, q.context) for place, q in cells.items()} == {
        "0,1": ("loss", "2x"),
        "1,1": ("loss", "2x"),
    }
    table |= {"columns": ["", "los"]}
    with pytest.raises(SpecError, match=r"tables\.one\.columns: there is no evaluation 'los'"):
        plan(write(tmp_path, demo=yaml.safe_dump(data)))
    table |= {"columns": ["loss"], "by": "context"}
    with pytest.raises(SpecError, match="2 headings for 1 columns"):
        plan(write(tmp_path, demo=yaml.safe_dump(data)))


OURS = """
calibrations:
  cost: { run: { method: pi, length: 2x }, shapes: { rows: { length_tokens: 32, sequences: 4 } } }
tables:
  ours:
    title: Ours
    evaluation: loss
    value: perplexity
    columns: [2x, hits, tokens, time]
    other:
      hits: { heading: hits at 1x, evaluation: loss, context: 1x, value: accuracy }
      tokens: { heading: tokens, value: trained_tokens }
      time: { heading: seconds, calibration: cost, value: seconds_per_million_tokens }
    rows:
      - { run: { method: pi }, label: PI }
      - { run: { method: pi, length: 4x }, label: PI again, evaluations: { loss: again } }
      - { run: { method: other }, label: no run }
"""


def ours(**changes: Any) -> str:
    """Return a study with a table that no paper prints, some of its settings changed."""
    data, more = yaml.safe_load(DEMO), yaml.safe_load(OURS)
    data["evaluations"]["again"] = data["evaluations"]["loss"]
    more["tables"]["ours"] |= changes
    data["tables"] |= more["tables"]
    return yaml.safe_dump(data | {"calibrations": more["calibrations"]})


def test_a_column_may_ask_for_another_number_than_its_table(tmp_path: Path) -> None:
    """Guards against a cost or a share of one method in the row of another."""
    cells = job(plan(write(tmp_path, demo=ours()))).cells["ours"]
    pi, longer = "demo/pi-2x", "demo/pi-4x"
    assert cells == {
        "0,0": Quantity(evaluation="loss", run=pi, context="2x", value="perplexity"),
        "0,1": Quantity(evaluation="loss", run=pi, context="1x", value="accuracy"),
        "0,2": Quantity(run=pi, value="trained_tokens"),
        "0,3": Quantity(calibration="cost", run=pi, value="seconds_per_million_tokens"),
        "1,0": Quantity(evaluation="again", run=longer, context="2x", value="perplexity"),
        "1,1": Quantity(evaluation="again", run=longer, context="1x", value="accuracy"),
        "1,2": Quantity(run=longer, value="trained_tokens"),
        "1,3": Quantity(calibration="cost", run=longer, value="seconds_per_million_tokens"),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": ["2x", "hits", "tokens"]}, "other names 'time', which is not among"),
        (
            {"rows": [{"run": "original", "label": "a", "evaluations": {"lost": "again"}}]},
            "row 'a' replaces 'lost', which no column asks for",
        ),
        (
            {"rows": [{"run": "original", "label": "a", "evaluations": {"loss": "agian"}}]},
            r"tables\.ours\.rows\.0\.evaluations: there is no evaluation 'agian'",
        ),
        (
            {
                "columns": ["time"],
                "other": {
                    "time": {"heading": "s", "calibration": "coast", "value": "peak_gigabytes"}
                },
            },
            r"tables\.ours\.other\.time: there is no calibration 'coast'",
        ),
        (
            {"columns": ["time"], "other": {"time": {"heading": "s", "value": "nll"}}},
            "value 'nll' is of an evaluation; name one",
        ),
        (
            {"rows": [{"run": "original", "label": "a", "cells": ["1"]}]},
            "1 cells for 4 columns",
        ),
    ],
)
def test_a_table_of_ours_that_cannot_be_filled_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Guards against a column that stays empty for a typing error."""
    with pytest.raises(SpecError, match=message):
        plan(write(tmp_path, demo=ours(**changes)))


def test_pairs_and_costs_of_runs_name_runs_after_resolution(tmp_path: Path) -> None:
    """Guards against a judge that guesses, and a verdict on a run that this scale lacks."""
    loss = {"evaluation": "loss", "context": "2x"}
    cost = {"calibration": "cost", "value": "seconds_per_million_tokens"}
    pair = {"below": loss, "above": loss | {"run": {"method": "direct"}}}
    costs = {"below": cost | {"run": {"method": "pi"}}, "above": cost | {"run": "demo/direct-2x"}}
    data = yaml.safe_load(ours())
    data["claims"]["better"]["rule"] = {"kind": "pairs", "pairs": [pair, costs]}
    rule = job(plan(write(tmp_path, demo=yaml.safe_dump(data)))).claims["better"].rule
    assert isinstance(rule, Pairs)
    found = [(pair.below.run, pair.above.run) for pair in rule.pairs]
    assert found == [("demo/pi-2x", "demo/direct-2x")] * 2
    costs["above"]["run"] = {"method": "other"}
    data["decides"] = []
    claim = job(plan(write(tmp_path, demo=yaml.safe_dump(data)))).claims["better"]
    assert (claim.rule, claim.outcome) == (None, "not tested at this scale")
    costs["above"]["context"] = "rows"
    with pytest.raises(SpecError, match="name a context or a run, and one only"):
        plan(write(tmp_path, demo=yaml.safe_dump(data)))


def test_windows_reach_the_judge_where_a_claim_asks_what_they_show(tmp_path: Path) -> None:
    """Guards against a frequency of other windows than those a run was trained on."""
    data = yaml.safe_load(DEMO)
    asked = {"evaluation": "loss", "value": "frequency", "distance": 8}
    rule = {"kind": "threshold", "quantity": asked, "at_least": 1.0}
    data["claims"]["better"]["rule"] = rule
    found = plan(write(tmp_path, demo=yaml.safe_dump(data)))
    node = found.node("judge", {"name": "paper", "study": "demo"})
    windows = {name: path for name, path in node.inputs.items() if name.startswith("windows:")}
    assert list(windows) == ["windows:demo/pi-2x"]
    packed = found.nodes[windows["windows:demo/pi-2x"]]
    assert packed.wildcards == {"windows": "plain", "length": "32"}


def test_claims_name_runs_after_resolution(paper: Plan) -> None:
    """Guards against a judge that guesses."""
    rule = job(paper).claims["better"].rule
    assert isinstance(rule, Ordering)
    assert [q.run for q in rule.ascending] == ["demo/pi-2x", "demo/direct-2x"]


def test_a_claim_without_its_run_is_not_tested_and_says_what_is_lacking(tmp_path: Path) -> None:
    """Guards against a verdict on runs that this scale does not have."""
    demo = changed(DEMO, {("runs", "extend", "only"): [{"method": "pi"}], ("decides",): []})
    claim = job(plan(write(tmp_path, demo=demo))).claims["better"]
    assert claim.rule is None
    assert claim.outcome == "not tested at this scale"
    assert claim.note is not None
    assert "direct" in claim.note


def test_a_note_does_not_hide_why_a_claim_is_not_tested(tmp_path: Path) -> None:
    """Guards against a remark on the claim that reads as the reason for having no verdict."""
    demo = changed(
        DEMO,
        {
            ("runs", "extend", "only"): [{"method": "pi"}],
            ("decides",): [],
            ("claims", "better", "note"): "A remark.",
        },
    )
    note = job(plan(write(tmp_path, demo=demo))).claims["better"].note
    assert note is not None
    assert note.startswith("this scale has no loss of method direct")
    assert note.endswith("A remark.")


def test_what_the_paper_leaves_open_reaches_the_judge(tmp_path: Path) -> None:
    """Guards against a list that only the YAML shows."""
    demo = changed(DEMO, {("unstated",): ["clipping"]})
    assert job(plan(write(tmp_path, demo=demo))).unstated == ("clipping",)


def test_steps_of_the_paper_stand_for_steps_of_ours(tmp_path: Path) -> None:
    """Guards against step 200 of the paper beside step 200 of a run of 80 steps."""
    ascending = ("claims", "better", "rule", "ascending")
    demo = changed(
        DEMO,
        {
            (*ascending, 0, "snapshot"): "200",
            (*ascending, 1, "snapshot"): "1000",
            ("tables", "one", "by"): "snapshot",
            ("tables", "one", "context"): "2x",
            ("tables", "one", "columns"): ["200", "10000"],
        },
    )
    mini = plan(write(tmp_path, demo=demo + MINI), scale="mini")
    study = mini.studies["demo"]
    found = {step: snapshot_of(study, step) for step in ("200", "1000", "10000", "5")}
    assert found == {"200": "40", "1000": "final", "10000": "", "5": "5"}
    spec = job(mini)
    rule = spec.claims["better"].rule
    assert isinstance(rule, Ordering)
    assert [q.snapshot for q in rule.ascending] == ["40", "final"]
    assert {k: (q.snapshot, q.context) for k, q in spec.cells["one"].items()} == {
        "0,0": ("40", "2x"),
        "1,0": ("40", "2x"),
    }


def test_a_step_without_counterpart_makes_a_claim_untested(tmp_path: Path) -> None:
    """Guards against a claim on 10,000 steps judged after 80."""
    demo = changed(DEMO, {("claims", "better", "rule", "ascending", 0, "snapshot"): "10000"})
    claim = job(plan(write(tmp_path, demo=demo + MINI), scale="mini")).claims["better"]
    assert (claim.rule, claim.outcome) == (None, "not tested at this scale")


def test_contexts_of_the_paper_stand_for_contexts_of_ours(tmp_path: Path) -> None:
    """Guards against eight times the window of the paper beside eight times ours, not measured."""
    ascending = ("claims", "better", "rule", "ascending")
    demo = changed(
        DEMO,
        {
            (*ascending, 0, "context"): "8x",
            (*ascending, 1, "context"): "8x",
            ("tables", "one", "columns"): ["2x", "8x"],
        },
    )
    scale = MINI.replace("    main:", '    contexts: { "8x": 2x, "2x": "" }\n    main:')
    spec = job(plan(write(tmp_path, demo=demo + scale), scale="mini"))
    rule = spec.claims["better"].rule
    assert isinstance(rule, Ordering)
    assert [q.context for q in rule.ascending] == ["2x", "2x"]
    assert {place: q.context for place, q in spec.cells["one"].items()} == {
        "0,1": "2x",
        "1,1": "2x",
    }


def test_a_context_without_counterpart_makes_a_claim_untested(tmp_path: Path) -> None:
    """Guards against a claim on the target that is judged at half of it."""
    scale = MINI.replace("    main:", '    contexts: { 2x: "" }\n    main:')
    claim = job(plan(write(tmp_path, demo=DEMO + scale), scale="mini")).claims["better"]
    assert (claim.rule, claim.outcome) == (None, "not tested at this scale")
    assert claim.note == "this scale has no context 2x"


def test_an_evaluation_that_a_scale_leaves_out_makes_its_claims_untested(tmp_path: Path) -> None:
    """Guards against benchmarks of large models that every small scale must take out by hand."""
    demo = changed(DEMO, {("decides",): []})
    scale = MINI + "    evaluations: { loss: null }\n"
    claim = job(plan(write(tmp_path, demo=demo + scale), scale="mini")).claims["better"]
    assert (claim.rule, claim.outcome) == (None, "not tested at this scale")


def test_a_misspelled_evaluation_is_refused(tmp_path: Path) -> None:
    """Guards against a typing error that reads as 'not tested at this scale'."""
    ascending = ("claims", "better", "rule", "ascending")
    demo = changed(DEMO, {(*ascending, 0, "evaluation"): "los"})
    with pytest.raises(SpecError, match="there is no evaluation 'los'"):
        plan(write(tmp_path, demo=demo))
