"""Rules on made-up data whose answer is known."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_sample import LOSSES, RETRIEVAL, losses, q, result, retrieval

from ropewalk.report.compare import Estimate, Region, Sampling, standing
from ropewalk.report.quantities import Results
from ropewalk.report.spec import (
    Claim,
    Exact,
    Ordering,
    Pair,
    Pairs,
    Quantity,
    Steeper,
    Threshold,
    Trend,
    Value,
)
from ropewalk.report.verdict import Evidence, combine, judge_claim

ARMS = {
    "good": losses({"1x": 20.0, "4x": 20.0}, seed=1),
    "same": losses({"1x": 20.0, "4x": 20.0}, seed=1),
    "near": losses({"1x": 20.0, "4x": 20.02}, seed=4),
    "bad": losses({"1x": 25.0, "4x": 40.0}, seed=2),
    "worse": losses({"1x": 30.0, "4x": 90.0}, seed=3),
}
REACH = {
    "far": retrieval([1.0] * 8),
    "short": retrieval([1.0, 1.0, 0.0, 0, 0, 0, 0, 0]),
    "chancy": retrieval([0.3] * 8),
    "none": retrieval([0.0] * 8),
}


def evidence(scale: str = "mini", **checks) -> Evidence:
    by_name = {("pi/loss", f"pi/{n}"): result(n, LOSSES, {0: s}) for n, s in ARMS.items()}
    by_name |= {("pi/passkey", f"pi/{n}"): result(n, RETRIEVAL, {0: s}) for n, s in REACH.items()}
    return Evidence(
        scale=scale,
        results=Results(study="pi", by_name=by_name),
        checks={name: {"numbers": numbers} for name, numbers in checks.items()},
        sampling=Sampling(draws=400, seed=1),
    )


def verdict(rule, **more):
    claim = Claim(statement="s", location="l", printed="p", rule=rule)
    return judge_claim(claim, evidence(**more))


def ppl(run: str, context: str = "4x") -> Quantity:
    return q(f"pi/{run}", context, value="perplexity")


def loss(run: str, context: str = "4x") -> Quantity:
    return q(f"pi/{run}", context)


def reach(run: str, value="reach") -> Quantity:
    return Quantity(evaluation="passkey", run=f"pi/{run}", value=value)


@pytest.mark.parametrize("quantity", [ppl, loss])
@pytest.mark.parametrize(
    ("arm", "outcome"),
    [("bad", "reproduced"), ("same", "inconclusive"), ("near", "inconclusive")],
)
@pytest.mark.parametrize("compare", ["difference", "ratio"])
def test_threshold_against_a_baseline(quantity, arm, outcome, compare):
    """Guards against a win by noise, and against a tie counted as a win."""
    edge = {"difference": 0.0, "ratio": 1.0}[compare]
    rule = Threshold(
        quantity=quantity(arm), baseline=quantity("good"), compare=compare, at_least=edge
    )
    assert verdict(rule).outcome == outcome


def test_every_pair_counts_and_only_within_itself():
    """Guards against arms of one pair compared with those of the next, as in a chain."""

    def outcome(*pairs: tuple[str, str], margin: float = 0.0) -> str:
        made = tuple(Pair(below=loss(a), above=loss(b)) for a, b in pairs)
        return verdict(Pairs(pairs=made, margin=margin)).outcome

    assert outcome(("good", "bad"), ("good", "worse"), ("bad", "worse")) == "reproduced"
    assert outcome(("good", "bad"), ("worse", "bad")) == "partly"
    assert outcome(("bad", "good"), ("worse", "bad")) == "contradicted"
    assert outcome(("good", "bad"), ("good", "near")) == "inconclusive"
    assert outcome(("good", "bad"), margin=0.6) == "reproduced"  # ln(40 / 20) is 0.69
    assert outcome(("good", "bad"), margin=0.8) == "contradicted"
    with pytest.raises(ValueError, match="name at least one pair"):
        Pairs(pairs=())


@pytest.mark.parametrize("compare", ["difference", "ratio"])
def test_swapped_arms_are_contradicted(compare):
    """Guards against a sign lost on the way."""
    edge = {"difference": 0.0, "ratio": 1.0}[compare]
    rule = Threshold(quantity=ppl("good"), baseline=ppl("bad"), compare=compare, at_least=edge)
    assert verdict(rule).outcome == "contradicted"


def test_perplexity_ratio_is_exp_of_the_loss_difference():
    """Guards against a ratio of mean losses where a ratio of perplexities is meant."""
    rule = Threshold(quantity=ppl("bad"), baseline=ppl("good"), compare="ratio", at_least=1.0)
    found = verdict(rule).comparisons[0].estimate
    nll = {arm: ARMS[arm]["contexts"]["4x"]["nll"] for arm in ("bad", "good")}
    assert found.number == pytest.approx(math.exp(nll["bad"] - nll["good"]), rel=1e-12)
    assert found.low < found.number < found.high


def test_pairing_cancels_what_documents_share():
    """Guards against arms resampled apart, which would hide every small effect."""
    paired = verdict(
        Threshold(quantity=loss("bad"), baseline=loss("good"), compare="difference", at_least=0.0)
    )
    alone = verdict(Threshold(quantity=loss("bad"), at_least=0.0))
    width = [
        v.comparisons[0].estimate.high - v.comparisons[0].estimate.low for v in (paired, alone)
    ]
    assert width[0] < width[1] / 4


def test_paired_interval_against_a_plain_bootstrap():
    """Guards against the bootstrap weighting documents wrongly: a loop with another generator."""
    a, b = (ARMS[n]["contexts"]["4x"] for n in ("bad", "good"))
    random = np.random.default_rng(5)
    drawn = []
    for _ in range(4000):
        taken = random.integers(24, size=24)
        means = [
            np.array(x["nll_sums"])[taken].sum() / np.array(x["tokens"])[taken].sum()
            for x in (a, b)
        ]
        drawn.append(means[0] - means[1])
    rule = Threshold(
        quantity=loss("bad"), baseline=loss("good"), compare="difference", at_least=0.0
    )
    found = verdict(rule).comparisons[0].estimate
    expected = np.quantile(drawn, [0.025, 0.975])
    assert [found.low, found.high] == pytest.approx(expected, abs=0.004)


def test_arms_on_other_documents_are_an_error_and_not_a_verdict():
    """Guards against pairing documents that are not the same."""
    proof = evidence()
    changed = {**proof.results.by_name}
    other = losses({"4x": 20.0}, documents=24)
    other["contexts"]["4x"]["documents"] = [f"other-{i}" for i in range(24)]
    changed["pi/loss", "pi/good"] = result("good", LOSSES, {0: other})
    proof = dataclasses.replace(proof, results=Results(study="pi", by_name=changed))
    rule = Threshold(quantity=loss("bad"), baseline=loss("good"), compare="ratio", at_least=1.0)
    found = judge_claim(Claim(statement="", location="", printed="", rule=rule), proof)
    assert found.outcome == "error"
    assert "same documents" in found.reason


@pytest.mark.parametrize(
    ("arms", "outcome"),
    [
        (("good", "bad", "worse"), "reproduced"),
        (("worse", "bad", "good"), "contradicted"),
        (("good", "worse", "bad"), "partly"),
        (("good", "same"), "inconclusive"),
        (("same", "good", "worse"), "inconclusive"),
    ],
)
def test_ordering(arms, outcome):
    """Guards against a chain judged by its ends only."""
    assert verdict(Ordering(ascending=tuple(map(ppl, arms)))).outcome == outcome


def test_ordering_needs_its_margin():
    found = [
        verdict(Ordering(ascending=(loss("good"), loss("bad")), margin=margin)).outcome
        for margin in (0.5, 0.9)
    ]
    assert found == ["reproduced", "contradicted"]


@pytest.mark.parametrize(
    ("direction", "slack", "outcome"),
    [
        ("rising", 0.0, "reproduced"),
        ("falling", 0.0, "contradicted"),
        ("falling", 5.0, "reproduced"),
    ],
)
def test_trend_and_its_slack(direction, slack, outcome):
    """Guards against slack applied to the wrong side."""
    rule = Trend(along=(loss("good"), loss("bad"), loss("worse")), direction=direction, slack=slack)
    assert verdict(rule).outcome == outcome


@pytest.mark.parametrize(
    ("arms", "direction", "outcome"),
    [
        (("good", "bad", "worse"), "rising", "reproduced"),  # ln 2, then ln 2.25
        (("worse", "bad", "good"), "falling", "contradicted"),
        (("worse", "good", "bad"), "rising", "reproduced"),
        (("bad", "good", "worse"), "falling", "contradicted"),
        (("good", "good", "good"), "rising", "inconclusive"),
    ],
)
def test_the_second_step_is_the_larger(arms, direction, outcome):
    """Guards: steps compared the wrong way round, or by size without direction."""
    rule = Steeper(along=tuple(map(loss, arms)), direction=direction)
    found = verdict(rule)
    assert found.outcome == outcome
    (comparison,) = found.comparisons
    a, b, c = (ARMS[arm]["contexts"]["4x"]["nll"] for arm in arms)
    sign = 1 if direction == "rising" else -1
    assert comparison.estimate.number == pytest.approx(sign * ((c - b) - (b - a)))
    assert comparison.estimate.low <= comparison.estimate.number <= comparison.estimate.high


@pytest.mark.parametrize(
    ("along", "message"),
    [(("good", "bad"), "names 2 quantities"), (("good", "bad", "near", "worse"), "names 4")],
)
def test_two_steps_need_three_quantities(along, message):
    """Guards: a rule whose last quantities are never looked at."""
    with pytest.raises(ValueError, match=message):
        Steeper(along=tuple(map(loss, along)), direction="rising")
    with pytest.raises(ValueError, match="'nll' or 'end_nll'"):
        Steeper(along=tuple(map(reach, ("far", "short", "none"))), direction="rising")


def test_a_chain_of_one_is_an_error():
    assert verdict(Ordering(ascending=(ppl("good"),))).outcome == "error"


@pytest.mark.parametrize(
    ("run", "at_least", "outcome"),
    [
        ("far", 1.0, "reproduced"),
        ("short", 1.0, "contradicted"),
        ("none", 0.5, "contradicted"),
        ("chancy", 0.9, "inconclusive"),
    ],
)
def test_reach_with_its_interval(run, at_least, outcome):
    """Guards against a reach cut short by chance read as a fact, and against 1.0 < 1.0."""
    rule = Threshold(quantity=reach(run, "reach_share"), at_least=at_least)
    assert verdict(rule).outcome == outcome


@pytest.mark.parametrize(
    ("baseline", "outcome"),
    [("short", "reproduced"), ("none", "reproduced"), ("far", "contradicted")],
)
def test_reach_ratio_also_of_nothing(baseline, outcome):
    """Guards against a division by a reach of zero."""
    rule = Threshold(quantity=reach("far"), baseline=reach(baseline), compare="ratio", at_least=1.5)
    assert verdict(rule).outcome == outcome


def test_accuracy_has_the_wilson_interval():
    """Wilson 95 % for 80 of 80: 1 / (1 + z^2/n) = 0.9542 (closed form at p = 1)."""
    found = verdict(Threshold(quantity=reach("far", "accuracy"), at_least=0.9))
    z2 = 1.959963984540054**2
    assert found.comparisons[0].estimate.low == pytest.approx(1 / (1 + z2 / 80), rel=1e-9)
    assert found.outcome == "reproduced"


@pytest.mark.parametrize(
    ("scale", "printed", "outcome"),
    [
        ("mini", 20.0, "not tested at this scale"),
        ("paper", 20.0, "reproduced"),
        ("paper", 3.0, "contradicted"),
    ],
)
def test_values_are_compared_at_paper_scale_only(scale, printed, outcome):
    """Guards against a small model 'contradicting' a printed perplexity."""
    found = verdict(
        Value(quantity=ppl("good"), printed=printed, relative_tolerance=0.3), scale=scale
    )
    assert found.outcome == outcome
    if scale == "mini":
        assert "20" in found.reason
        assert "We measure" in found.reason


@pytest.mark.parametrize(
    ("number", "outcome"), [(1.1, "reproduced"), (1.0, "reproduced"), (0.9, "contradicted")]
)
def test_exact_checks_need_no_statistics(number, outcome):
    found = verdict(Exact(check="c", number="minimum", at_least=1.0), c={"minimum": number})
    assert found.outcome == outcome
    assert found.number == number
    assert not found.comparisons


@pytest.mark.parametrize(
    ("rule", "outcome"),
    [
        (Exact(check="absent", number="minimum", at_least=1.0), "not tested at this scale"),
        (Exact(check="c", number="absent", at_least=1.0), "error"),
        (Exact(check="c", number="infinite", at_least=1.0), "error"),
        (Exact(check="c", number="minimum"), "error"),
        (Threshold(quantity=ppl("absent"), at_most=1.0), "not tested at this scale"),
        (Ordering(ascending=(ppl("bad"), ppl("good"), ppl("absent"))), "not tested at this scale"),
        (Threshold(quantity=ppl("good", "16x"), at_most=1.0), "not tested at this scale"),
        (Threshold(quantity=reach("far", "nll"), at_most=1.0), "error"),
        (
            Threshold(quantity=ppl("good"), baseline=reach("far"), compare="ratio", at_least=1.0),
            "error",
        ),
    ],
)
def test_absent_or_unreadable_evidence_is_never_contradicted(rule, outcome):
    """Guards against 'not run' or 'cannot be read' shown as the paper being wrong."""
    assert verdict(rule, c={"minimum": 2.0, "infinite": math.inf}).outcome == outcome


def test_claims_without_a_rule_keep_their_outcome():
    claim = Claim(statement="", location="", printed="", outcome="blocked", note="no harness")
    found = judge_claim(claim, evidence())
    assert (found.outcome, found.reason) == ("blocked", "no harness")
    bare = Claim(statement="", location="", printed="")
    assert judge_claim(bare, evidence()).outcome == "error"


numbers = st.floats(-10, 10)


@given(ends=st.tuples(numbers, numbers).map(sorted), edge=numbers, strict=st.booleans())
def test_standing_mirrors_when_the_number_line_does(ends, edge, strict):
    """Guards against at_least and at_most treated unlike."""
    low, high = ends
    up = standing(
        Estimate(number=low, low=low, high=high, method="", unit="nll"),
        Region(low=edge, strict=strict),
    )
    down = standing(
        Estimate(number=-low, low=-high, high=-low, method="", unit="nll"),
        Region(high=-edge, strict=strict),
    )
    assert up == down
    if low > edge:
        assert up == "satisfied"
    elif high < edge:
        assert up == "violated"
    elif low < edge <= high or strict:
        assert up == "undecided"


@given(st.lists(st.sampled_from(["satisfied", "violated", "undecided"]), min_size=1))
def test_chains_against_the_rule_in_words(standings):
    """All satisfied, all violated, some of each, else inconclusive."""
    expected = "inconclusive"
    if set(standings) == {"satisfied"}:
        expected = "reproduced"
    elif set(standings) == {"violated"}:
        expected = "contradicted"
    elif {"satisfied", "violated"} <= set(standings):
        expected = "partly"
    assert combine(standings) == expected


@settings(max_examples=30, deadline=None)
@given(shift=st.floats(-0.5, 0.5), edge=st.floats(-0.5, 0.5))
def test_a_verdict_never_depends_on_the_order_of_documents(shift, edge):
    """Guards against arms paired by position where a result lists documents in another order."""
    arm = losses({"4x": 20.0 * math.exp(shift)}, seed=9)
    rule = Threshold(
        quantity=loss("arm"), baseline=loss("good"), compare="difference", at_least=edge
    )
    claim = Claim(statement="", location="", printed="", rule=rule)
    proof = evidence()
    by_name = {**proof.results.by_name, ("pi/loss", "pi/arm"): result("arm", LOSSES, {0: arm})}
    first = judge_claim(
        claim, dataclasses.replace(proof, results=Results(study="pi", by_name=by_name))
    )
    data = arm["contexts"]["4x"]
    for key in ("documents", "nll_sums", "tokens", "hits"):
        data[key] = data[key][::-1]
    second = judge_claim(
        claim, dataclasses.replace(proof, results=Results(study="pi", by_name=by_name))
    )
    assert first.outcome == second.outcome
    assert first.comparisons[0].estimate == second.comparisons[0].estimate
