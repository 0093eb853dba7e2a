"""The judge's file: every claim decided as known, every cell with its counterpart."""

import dataclasses

import numpy as np
import pytest
from report_sample import (
    LOSSES,
    PERPLEXITY,
    RETRIEVAL,
    SLIDING,
    judge_job,
    losses,
    result,
)

from ropewalk.base.canonical import plain
from ropewalk.base.files import read_json
from ropewalk.base.manifest import MANIFEST, read_manifest
from ropewalk.base.spec import decode
from ropewalk.base.stage import Job, StageError
from ropewalk.model.spec import LinearRope
from ropewalk.report import judge, series
from ropewalk.report.conventions import convention
from ropewalk.report.spec import JudgeJob

EXPECTED = {
    "base-blows-up": "reproduced",
    "pi-below-direct": "reproduced",
    "loss-falls": "reproduced",
    "free-inside": "contradicted",
    "partly": "partly",
    "reaches": "reproduced",
    "undecided": "inconclusive",
    "value": "not tested at this scale",
    "not-run": "not tested at this scale",
    "theory": "reproduced",
    "blocked": "blocked",
}


@pytest.fixture(scope="module")
def judged(sample):
    return read_json(sample / "judged" / judge.JUDGED)


def job(sample, spec) -> Job:
    names = read_manifest(sample / "judged" / MANIFEST).inputs
    paths = {
        "evaluation": lambda rest: (
            sample / "evaluations" / rest.replace("pi/", "", 1).replace(":", "/")
        ),
        "run": lambda rest: sample / "runs" / rest,
        "check": lambda rest: sample / "checks" / rest,
    }
    inputs = {}
    for name in names:
        kind, _, rest = name.partition(":")
        inputs[name] = read_manifest(paths[kind](rest) / MANIFEST)
    return Job(stage="judge", spec=spec, inputs=inputs, folder=sample, recipe="", code="")


def test_every_claim_has_its_known_outcome(judged):
    assert {name: claim["outcome"] for name, claim in judged["claims"].items()} == EXPECTED


def test_promises(judged):
    """Guards against an undecided claim counted as kept, or an unpromised one as broken."""
    kept = {name: (c["promised"], c["kept"]) for name, c in judged["claims"].items()}
    assert kept["base-blows-up"] == (True, True)
    assert kept["undecided"] == (True, False)
    assert kept["not-run"] == (False, True)


def test_tables_put_our_number_beside_each_printed_one(judged):
    """Guards against rows or columns swapped: every cell against the made-up input."""
    table = judged["tables"]["table-1"]
    runs = ["shared/base", "pi/direct", "pi/interpolated"]
    for i, run in enumerate(runs):
        final = PERPLEXITY[run][max(PERPLEXITY[run])]
        for j, level in enumerate(final):
            cell = table["rows"][i]["cells"][j]
            assert cell["printed"] == judge_job().tables["table-1"].rows[i].cells[j]
            assert cell["run"] == run
            # The documents' shared difficulty moves every level by one factor.
            assert cell["number"] == pytest.approx(0.89 * level, rel=0.03)
            assert cell["low"] < cell["number"] < cell["high"]
    assert all("missing" in cell for cell in table["rows"][3]["cells"])
    assert judged["tables"]["table-4"]["rows"][0]["cells"][1]["number"] == 384


def test_evidence_leads_to_recipes_and_contents(judged, sample):
    """Guards against a chain that names the wrong artifact."""
    keys = judged["claims"]["free-inside"]["evidence"]["evaluations"]
    assert keys == ["pi/loss:pi/interpolated", "pi/loss:shared/base"]
    found = judged["evaluations"][keys[0]]
    run = read_manifest(sample / "runs" / "pi/interpolated" / MANIFEST)
    assert (found["run_recipe"], found["run_content"]) == (run.recipe, run.content)
    assert judged["runs"]["pi/interpolated"]["content"] == run.content
    assert judged["claims"]["theory"]["evidence"]["checks"] == ["figure-5"]


def test_a_revision_is_shown_with_its_commit(sample):
    """Guards against a reader who cannot tell which `main` was measured."""
    spec = decode(JudgeJob, read_manifest(sample / "judged" / MANIFEST).spec)
    given = job(sample, spec)
    base = given.inputs["run:shared/base"]
    origin = {"hub": "lab/model", "revision": "main", "commit": "c" * 40, "files": {}}
    adopted = dataclasses.replace(base, result={**base.result, "origin": origin})
    inputs = {**given.inputs, "run:shared/base": adopted}
    found = judge.judge(spec, judge.read_material(dataclasses.replace(given, inputs=inputs)))
    commits = {
        name: [s["value"] for s in run["settings"] if s["key"] == "weights.commit"]
        for name, run in found["runs"].items()
    }
    assert commits.pop("shared/base") == ["c" * 40]
    assert not any(commits.values())


def test_settings_carry_their_class(judged):
    by_key = {s["key"]: s for s in judged["runs"]["pi/interpolated"]["settings"]}
    assert by_key["optimizer.lr"] == {"key": "optimizer.lr", "value": 2e-4, "class": "paper"}
    assert by_key["phases.0.rope.factor"]["value"] == 4.0


def test_same_material_same_file(judged, sample):
    """Guards against a verdict that changes from one run to the next."""
    again = job(sample, judge_job())
    assert judge.judge(again.spec, judge.read_material(again)) == judged


def test_job_survives_the_way_through_json(sample, judged):
    """Guards against a stage run from its JSON spec judging differently."""
    spec = decode(JudgeJob, plain(judge_job()))
    again = job(sample, spec)
    assert judge.judge(spec, judge.read_material(again)) == judged


def test_a_promise_on_an_unknown_claim_is_refused(sample):
    broken = job(sample, judge_job(decides=("no-such-claim",)))
    with pytest.raises(StageError, match="decides: 'no-such-claim' is no claim of pi"):
        judge.judge(broken.spec, judge.read_material(broken))


def test_inputs_that_cannot_be_read_are_refused(sample):
    whole = job(sample, judge_job())
    run = whole.inputs["run:pi/direct"]
    without = dataclasses.replace(whole, inputs={"evaluation:pi/loss:pi/direct": run})
    with pytest.raises(StageError, match=r"lists no file 'result.json'"):
        judge.read_material(without)
    unnamed = dataclasses.replace(whole, inputs={"evaluation:pi/loss": run})
    with pytest.raises(StageError, match="names no run"):
        judge.read_material(unnamed)


def test_without_any_input_nothing_is_contradicted():
    """Guards against 'not run' shown as 'wrong', for a whole study."""
    empty = judge.Material(
        evaluations={},
        results=judge.Results(study="pi", by_name={}),
        checks={},
        check_results={},
        runs={},
    )
    found = judge.judge(judge_job(), empty)["claims"]
    assert {c["outcome"] for c in found.values()} == {"not tested at this scale", "blocked"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7.20", (7.2, False)),
        (">1e3", (1000.0, True)),
        ("> 1,000", (1000.0, True)),
        ("8192", (8192.0, False)),
        ("", None),
        ("\N{EN DASH}", None),
        ("OOM", None),
    ],
)
def test_printed_numbers(text, expected):
    """Guards against a bound redrawn as if it were a value."""
    assert series.printed_number(text) == expected


def test_figure_data_holds_every_run_and_step(judged):
    figures = judged["figures"]
    assert {s["run"] for s in figures["perplexity_by_context"]} == set(PERPLEXITY)
    steps = {(s["run"], s["value"]): [p["x"] for p in s["points"]] for s in figures["by_step"]}
    assert steps["pi/interpolated", "perplexity"] == [0, 10, 40, 80]
    assert steps["pi/direct", "reach"] == [10, 80]
    assert [s["label"] for s in figures["paper_by_context"]] == ["7B none", "7B 8k FT", "7B 8k PI"]
    assert figures["paper_by_context"][0]["points"][1] == {
        "x": 2.0,
        "number": 1000.0,
        "beyond": True,
    }


def test_windows_are_those_a_run_was_trained_on(judged):
    """Guards against a mark at the window of another training."""
    for key in ("by_distance", "by_position", "copied"):
        (found,) = [s for s in judged["figures"][key] if s["run"] == "pi/interpolated"]
        assert (found["pretrained_tokens"], found["trained_tokens"]) == (256, 1024)


def test_runs_that_are_measured_differently_are_told_apart():
    """Guards against one run's contexts or rope under another run's numbers."""
    longer = dataclasses.replace(LOSSES, contexts={"1x": 256, "8x": 2048})
    made = {
        "pi/a": result("pi/a", LOSSES, {0: losses({"1x": 9.0})}),
        "pi/b": result("pi/b", LOSSES, {0: losses({"1x": 9.0})}),
        "pi/c": result("pi/c", longer, {0: losses({"1x": 9.0})}),
        "pi/d": result("pi/d", LOSSES, {0: losses({"1x": 9.0})}),
    }
    made["pi/d"]["key"]["rope"] = plain(LinearRope(factor=4.0))
    empty = judge.Material(evaluations={}, results=None, checks={}, check_results={}, runs={})

    def said(*names) -> str:
        by_name = {("pi/loss", name): made[name] for name in names}
        results = judge.Results(study="pi", by_name=by_name)
        job = judge_job(claims={}, decides=(), tables={}, cells={})
        return judge.judge(job, dataclasses.replace(empty, results=results))["protocols"]["pi/loss"]

    assert said("pi/a", "pi/b") == said("pi/a")
    sentence = said("pi/a", "pi/b", "pi/c", "pi/d")
    assert "pi/a and pi/b: Perplexity" in sentence
    assert "8x = 2,048" in sentence[sentence.index("pi/c: ") : sentence.index("pi/d: ")]
    assert "linear (factor 4)" in sentence[sentence.index("pi/d: ") :]


@pytest.mark.parametrize(
    ("protocol", "facts"),
    [
        (LOSSES, ("128", "1,024-token", "24 documents", "1x = 256", "BOS", "token mean")),
        (SLIDING, ("slide by 64", "24 documents", "at least 1,024", "4x = 1,024", "BOS")),
        (RETRIEVAL, ("5 digits", "8 distances", "10 trials", "20 %")),
    ],
    ids=["same_tokens", "sliding_window", "passkey"],
)
def test_conventions_state_what_moves_a_number(protocol, facts):
    """Guards against a perplexity shown without its window, stride, BOS rule or aggregation."""
    sentence = convention(plain(protocol))
    assert all(fact in sentence for fact in facts), sentence
    assert np.char.count(sentence, ".") >= 1
