"""Extraction: the right number, or the reason there is none."""

import math

import pytest
from report_sample import LOSSES, RETRIEVAL, losses, q, result, retrieval

from ropewalk.report.quantities import Measured, Missing, Results, describe, extract
from ropewalk.report.spec import Quantity

SNAPSHOTS = {
    0: losses({"1x": 30.0, "4x": 90.0}, seed=1),
    10: losses({"1x": 25.0, "4x": 40.0}, seed=2),
    100: losses({"1x": 20.0, "4x": 22.0}, seed=3),
}
RESULTS = Results(
    study="pi",
    by_name={
        ("pi/loss", "pi/a"): result("pi/a", LOSSES, SNAPSHOTS),
        ("pi/passkey", "pi/a"): result("pi/a", RETRIEVAL, {100: retrieval([1.0, 1.0, 0.1, 1.0])}),
    },
)


def passkey(**more) -> Quantity:
    return Quantity(evaluation="passkey", run="pi/a", **more)


@pytest.mark.parametrize(("snapshot", "step"), [("final", 100), ("first", 0), ("10", 10)], ids=str)
def test_snapshot_names_mean_steps_and_not_text_order(snapshot, step):
    """Guards against '10' sorting before '2', or final and first swapped."""
    expected = SNAPSHOTS[step]["contexts"]["4x"]
    found = extract(q("pi/a", snapshot=snapshot), RESULTS)
    assert isinstance(found, Measured)
    assert found.number == pytest.approx(expected["nll"], rel=1e-12)
    ppl = extract(q("pi/a", snapshot=snapshot, value="perplexity"), RESULTS)
    assert isinstance(ppl, Measured)
    assert ppl.number == pytest.approx(expected["perplexity"], rel=1e-12)


def test_first_is_step_0_and_nothing_that_stands_in_for_it():
    """Guards against trained weights judged as untrained ones where step 0 was not kept."""
    kept = {step: SNAPSHOTS[step] for step in (10, 100)}
    results = Results(study="pi", by_name={("pi/loss", "pi/a"): result("pi/a", LOSSES, kept)})
    found = extract(q("pi/a", snapshot="first"), results)
    assert isinstance(found, Missing)
    assert not found.broken
    assert found.reason == "pi/loss of pi/a has no snapshot before any step, only at 10, 100"


def test_accuracy_of_losses_is_hits_over_tokens():
    """Guards against losses being read where hits were asked for."""
    data = SNAPSHOTS[100]["contexts"]["1x"]
    found = extract(q("pi/a", "1x", value="accuracy"), RESULTS)
    assert isinstance(found, Measured)
    assert found.number == sum(data["hits"]) / sum(data["tokens"])


@pytest.mark.parametrize(
    ("value", "expected"), [("reach", 512), ("reach_share", 0.5), ("accuracy", 31 / 40)]
)
def test_retrieval_values(value, expected):
    found = extract(passkey(value=value), RESULTS)
    assert isinstance(found, Measured)
    assert found.number == expected


@pytest.mark.parametrize(
    ("quantity", "says"),
    [
        (q("pi/a", evaluation="other"), "pi/other was not run at this scale"),
        (q("pi/b"), "pi/loss was not run on pi/b, only on pi/a"),
        (q("pi/a", snapshot="20"), "no snapshot at step 20, only at 0, 10, 100"),
        (q("pi/a", "16x"), "no context '16x', only 1x, 4x"),
    ],
    ids=["evaluation", "run", "snapshot", "context"],
)
def test_what_was_not_measured_is_missing_and_not_broken(quantity, says):
    """Guards against 'not run' being read as 'wrong', or stopping the report."""
    found = extract(quantity, RESULTS)
    assert isinstance(found, Missing)
    assert not found.broken
    assert says in found.reason


@pytest.mark.parametrize(
    "quantity",
    [q("pi/a", value="reach"), passkey(value="nll"), q("pi/a", None)],
    ids=["reach of losses", "loss of retrieval", "no context"],
)
def test_a_question_the_result_cannot_answer_is_broken(quantity):
    """Guards against a wrong question passing as 'not tested'."""
    found = extract(quantity, RESULTS)
    assert isinstance(found, Missing)
    assert found.broken


def test_infinite_perplexity_is_broken_and_does_not_overflow():
    """Guards against inf entering a comparison."""
    snapshot = losses({"1x": 20.0})
    snapshot["contexts"]["1x"]["nll_sums"] = [1e6] * 24
    results = Results(
        study="pi", by_name={("pi/loss", "pi/a"): result("pi/a", LOSSES, {0: snapshot})}
    )
    found = extract(q("pi/a", "1x", value="perplexity"), results)
    assert isinstance(found, Missing)
    assert found.broken
    loss = extract(q("pi/a", "1x"), results)
    assert isinstance(loss, Measured)
    assert math.isfinite(loss.number)


def test_unresolved_run_is_refused():
    """Guards against a claim silently judged on no run."""
    with pytest.raises(ValueError, match="names its run by axes"):
        extract(Quantity(evaluation="loss", run={"method": "pi"}), RESULTS)


def test_quantities_in_words():
    assert describe(q("pi/a", value="perplexity")) == "perplexity of pi/a at 4x"
    assert describe(q("pi/a", "1x", snapshot="first")) == "loss of pi/a at 1x before any step"
    assert describe(passkey(value="reach", snapshot="10")) == "reach of pi/a after 10 steps"
