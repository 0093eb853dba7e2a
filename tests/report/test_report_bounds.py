"""Bounds on the context: read off curves with a known answer, and set against the laws."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_sample import losses, q, result
from scipy.stats import spearmanr

from ropewalk.base.canonical import plain
from ropewalk.evaluate.curve import curve, edges
from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.spec import PositionCurve
from ropewalk.model.spec import Architecture, BaseRope, LinearRope, LogScaledRope, PlainRope, Rope
from ropewalk.report import bounds, curves, figures_theory
from ropewalk.report.compare import Arms, Sampling, estimated
from ropewalk.report.drawn import Look
from ropewalk.report.quantities import Results, extract
from ropewalk.report.samples import Measured
from ropewalk.report.spec import Claim, Predicted, Quantity, Threshold, Trend
from ropewalk.report.verdict import Evidence, Verdict, combine, judge_claim
from ropewalk.report.wording import span
from ropewalk.train.spec import Batch, Optimizer, Phase, Run, RunWeights, Schedule

LONGEST, WINDOW, DOCUMENTS = 4096, 256, 12
PROTOCOL = PositionCurve(contexts={"1x": WINDOW, "16x": LONGEST}, documents=DOCUMENTS, points=72)
SAMPLING = Sampling(draws=300, seed=1)


def snapshot(cliff: float, height: float = 3.0, noise: float = 0.05) -> dict[str, Any]:
    """Return the snapshot of a model whose loss is 2, and higher from a position on."""
    shared = np.random.default_rng(5).normal(scale=0.4, size=DOCUMENTS)
    random = np.random.default_rng(int(cliff) if math.isfinite(cliff) else 0)
    positions = np.arange(1, LONGEST)
    nll = 2 + shared[:, None] + height * (positions >= cliff)[None]
    nll = nll + random.normal(scale=noise, size=nll.shape)
    rows = np.repeat(np.arange(DOCUMENTS), len(positions)).astype(np.int32)
    places = np.tile(positions, DOCUMENTS).astype(np.int32)
    scores = Scores(
        document=rows,
        position=places,
        preceding=places,
        window=rows,
        nll=nll.ravel().astype(np.float32),
        hit=np.zeros(len(rows), dtype=bool),
    )
    names = [f"doc-{i:03d}" for i in range(DOCUMENTS)]
    made = losses({"1x": 8.0, "16x": 9.0}, documents=DOCUMENTS)
    made["contexts"]["16x"]["context_tokens"] = LONGEST
    return {**made, "curve": curve(scores, names, edges(LONGEST, PROTOCOL.points))}


CLIFFS = {"a": 400.0, "b": 700.0, "c": 1500.0, "d": 3000.0, "never": math.inf}
RESULTS = Results(
    study="laws",
    by_name={
        ("laws/curve", f"laws/{name}"): result(name, PROTOCOL, {0: snapshot(cliff)})
        for name, cliff in CLIFFS.items()
    },
)


def bound(run: str, context: str = "1x") -> Quantity:
    return dataclasses.replace(q(f"laws/{run}", context, value="bound"), evaluation="laws/curve")


def number(run: str) -> float:
    found = extract(bound(run), RESULTS)
    assert isinstance(found, Measured), found
    return found.number


def verdict(rule: Any, **predicted: float) -> Verdict:
    evidence = Evidence(
        scale="mini",
        results=RESULTS,
        checks={},
        sampling=SAMPLING,
        predicted={f"laws/{name}": value for name, value in predicted.items()},
    )
    return judge_claim(Claim(statement="s", location="l", printed="p", rule=rule), evidence)


@pytest.mark.parametrize("run", ["a", "b", "c", "d"])
def test_a_bound_lies_where_the_loss_leaves_the_window(run: str) -> None:
    """Guards: a bound read off the wrong bin, or from the start of the text."""
    bin_width = LONGEST ** (1 / PROTOCOL.points)
    assert CLIFFS[run] / bin_width < number(run) < CLIFFS[run] * bin_width


def test_a_bound_that_was_not_met_is_only_known_from_below() -> None:
    """Guards: the end of the text that passes for the end of what a model can read."""
    assert number("never") == LONGEST
    found = extract(bound("never"), RESULTS)
    assert isinstance(found, Measured)
    e = estimated(Arms(subject=found, baseline=None, compare="value"), SAMPLING)
    assert (e.low, e.high) == (LONGEST, math.inf)
    assert span(e.low, e.high, e.unit) == "4,096 and more"
    at_least = Threshold(quantity=bound("never"), at_least=LONGEST / 2)
    at_most = Threshold(quantity=bound("never"), at_most=2 * LONGEST)
    assert verdict(at_least).outcome == "reproduced"
    assert verdict(at_most).outcome == "inconclusive"
    longer = Threshold(
        quantity=bound("never"), baseline=bound("d"), compare="difference", at_least=1.0
    )
    assert verdict(longer).outcome == "reproduced"
    swapped = dataclasses.replace(longer, quantity=bound("d"), baseline=bound("never"))
    assert verdict(swapped).outcome == "contradicted"
    with_itself = dataclasses.replace(longer, baseline=bound("never"))
    assert verdict(with_itself).outcome == "inconclusive"


def test_the_interval_against_a_plain_bootstrap() -> None:
    """Guards: documents drawn anew for the window, which would double the spread."""
    rng = np.random.default_rng(0)
    slope = rng.uniform(0.2, 1.6, DOCUMENTS)  # documents whose loss rises at different rates
    e = edges(LONGEST, PROTOCOL.points)
    counts = np.repeat(np.diff(e)[:, None], DOCUMENTS, axis=1).astype(float)
    centres = np.sqrt(e[:-1] * (e[1:] - 1))
    rise = np.maximum(0, np.log(np.maximum(centres, 1) / WINDOW))[:, None] * slope
    level = rng.normal(2, 1, DOCUMENTS)
    sums = counts * (level + rise)
    made = snapshot(400)
    made["curve"] |= {
        "counts": counts.T.tolist(),
        "nll_sums": sums.T.tolist(),
    }
    found = extract(
        bound("x"),
        Results(study="laws", by_name={("laws/curve", "laws/x"): result("x", PROTOCOL, {0: made})}),
    )
    assert isinstance(found, Measured)
    assert found.number == pytest.approx(WINDOW * math.exp(0.5 / slope.mean()), rel=0.02)
    drawn = [
        WINDOW * math.exp(0.5 / slope[rng.integers(DOCUMENTS, size=DOCUMENTS)].mean())
        for _ in range(4000)
    ]
    arms = Arms(subject=found, baseline=None, compare="value")
    estimate = estimated(arms, Sampling(draws=2000, seed=0))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert estimate.low == pytest.approx(low, rel=0.05)
    assert estimate.high == pytest.approx(high, rel=0.05)


def test_two_bounds_on_the_same_documents_are_paired() -> None:
    """Guards: an interval of a ratio that holds the spread both share twice."""
    found = extract(bound("b"), RESULTS)
    assert isinstance(found, Measured)
    same = estimated(Arms(subject=found, baseline=found, compare="ratio"), SAMPLING)
    assert (same.number, same.low, same.high) == (1.0, 1.0, 1.0)
    rising = Trend(along=tuple(map(bound, "abcd")), direction="rising")
    assert verdict(rising).outcome == "reproduced"
    assert verdict(dataclasses.replace(rising, direction="falling")).outcome == "contradicted"


def test_the_end_of_a_context_is_its_last_half() -> None:
    """Guards: a mean over the whole context, in which the window hides what lies behind it."""
    quantity = dataclasses.replace(bound("d", "16x"), value="end_nll")
    found = extract(quantity, RESULTS)
    assert isinstance(found, Measured)
    half = snapshot(3000.0)["curve"]
    shared = np.random.default_rng(5).normal(scale=0.4, size=DOCUMENTS).mean()
    expected = 2 + shared + 3.0 * (4096 - 3000) / 2048
    assert half["edges"].count(2048) == 1
    assert found.number == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("run", ["a", "never"])
@pytest.mark.parametrize("value", ["bound", "end_nll"])
def test_what_has_no_curve_has_no_bound(run: str, value: Any) -> None:
    """Guards: a bound of a protocol that never looked at positions."""
    by_name = {("laws/curve", "laws/a"): result("a", PROTOCOL, {0: losses({"1x": 9.0})})}
    results = Results(study="laws", by_name=by_name)
    found = extract(dataclasses.replace(bound(run), value=value), results)
    assert not isinstance(found, Measured)
    assert found.broken == (run == "a")


def within(*runs: str, factor: float = 2.0, least: int | None = None) -> Predicted:
    return Predicted(along=tuple(map(bound, runs)), factor=factor, least=least)


@pytest.mark.parametrize(
    ("predicted", "least", "outcome"),
    [
        ({"a": 500, "b": 900, "c": 1200}, None, "reproduced"),
        ({"a": 500, "b": 900, "c": 8000}, None, "partly"),
        ({"a": 4000, "b": 9000, "c": 8000}, None, "contradicted"),
        ({"a": 500, "b": 900, "c": 8000}, 2, "reproduced"),
        ({"a": 500, "b": 9000, "c": 8000}, 2, "contradicted"),
    ],
)
def test_bounds_near_their_predictions(predicted: Any, least: int | None, outcome: str) -> None:
    """Guards: a factor taken one way only, and a number of bounds that is not counted."""
    found = verdict(within("a", "b", "c", least=least), **predicted)
    assert found.outcome == outcome
    assert len(found.comparisons) == 3


def test_a_bound_beyond_what_was_read_decides_nothing_above_it() -> None:
    """Guards: 'within a factor of 2' from a curve that ended before the bound."""
    assert verdict(within("never"), never=5000).outcome == "inconclusive"
    assert verdict(within("never"), never=1000).outcome == "contradicted"


def test_a_rope_without_a_law_is_an_error() -> None:
    """Guards: a run that is left out of a count without a word."""
    found = verdict(within("a", "b"), a=400)
    assert found.outcome == "error"
    assert "laws/b" in found.reason


@pytest.mark.parametrize(
    ("predicted", "outcome"),
    [
        ({"a": 1, "b": 2, "c": 3, "d": 4, "never": 5}, "reproduced"),
        ({"a": 5, "b": 4, "c": 3, "d": 2, "never": 1}, "contradicted"),
    ],
)
def test_bounds_have_the_order_of_their_predictions(predicted: Any, outcome: str) -> None:
    """Guards: a correlation with the sign or the order of the runs mixed up."""
    rule = Predicted(along=tuple(map(bound, CLIFFS)), rank_at_least=0.9)
    assert verdict(rule, **predicted).outcome == outcome


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=8))
def test_rank_correlation_against_scipy(pairs: list[tuple[int, int]]) -> None:
    """Guards: ties that get ranks by their place in a list."""
    a, b = np.array(pairs, dtype=float).T
    expected = spearmanr(a, b).statistic if len(set(a)) > 1 and len(set(b)) > 1 else 0.0
    assert bounds.rank_correlation(a, b[None])[0] == pytest.approx(expected, abs=1e-12)


SHAPE = Architecture(layers=1, hidden=4096, heads=32, ffn=1, vocabulary_size=1, context_tokens=4096)


@pytest.mark.parametrize(
    ("rope", "length", "expected"),
    [
        (BaseRope(base=1e6), 4096, 129_027),  # printed in arXiv 2310.05209's release
        (BaseRope(base=1e6), 16384, 129_027),
        (BaseRope(base=500), 4096, 4096),
        (PlainRope(), 16384, 16384),
        (BaseRope(base=80_000), 16384, 21_003),  # above the critical base of 71,738
        (BaseRope(base=40_000), 16384, 16384),
        (LinearRope(factor=4.0), 16384, None),
        (LogScaledRope(window_tokens=4096, frequencies=BaseRope(base=500)), 4096, None),
    ],
)
def test_predictions_of_a_run(rope: Rope, length: int, expected: float | None) -> None:
    """Guards: a prediction from the wrong length, base or head dimension."""
    run = Run(
        architecture=SHAPE,
        tokenizer="t",
        weights=RunWeights(run="shared/base"),
        phases=(Phase(windows="w", length_tokens=length, steps=1, rope=rope),),
        batch=Batch(sequences=1),
        optimizer=Optimizer(lr=1.0, betas=(0.9, 0.95)),
        schedule=Schedule(shape="constant"),
    )
    found = bounds.predicted(run)
    assert found == (None if expected is None else pytest.approx(expected, abs=1))


def test_untuned_weights_are_bound_by_their_window() -> None:
    """Guards: a crash on weights that were adopted as they are."""
    run = Run(architecture=SHAPE, tokenizer="t", weights=RunWeights(run="shared/base"))
    assert bounds.predicted(run) == 4096


def test_the_figure_has_a_point_per_bound_that_a_claim_names() -> None:
    """Guards: points nobody judged, points twice, an open end drawn as a number."""
    claims = {
        name: Claim(statement="s", location="l", printed="p", rule=rule)
        for name, rule in {
            "near": within("a", "never"),
            "order": Predicted(along=tuple(map(bound, ("a", "b", "never"))), rank_at_least=0.9),
        }.items()
    }
    predicted = {"laws/a": 400.0, "laws/b": 800.0, "laws/never": 9000.0}
    found = curves.bounds(claims, RESULTS, predicted, SAMPLING)
    assert [(s["run"], s["predicted"], s["beyond"]) for s in found] == [
        ("laws/a", 400.0, False),
        ("laws/b", 800.0, False),
        ("laws/never", 9000.0, True),
    ]
    assert found[2]["number"] == LONGEST
    assert found[2]["high"] is None
    assert plain(found) == found  # nothing that JSON cannot hold
    look = Look(study="laws", styles={s["run"]: i for i, s in enumerate(found)})
    figure = figures_theory.bounds(found, {"protocols": {"laws/curve": "Read once."}}, look)
    assert figure is not None
    assert "Read once." in figure.caption
    ((_, svg),) = figure.panels
    description = svg.partition("<desc")[2].partition("</desc>")[0]
    assert "never: predicted 9,000, measured at least 4,096 tokens" in description
    assert "NaN" not in svg


@given(st.lists(st.sampled_from(["satisfied", "violated", "undecided"]), min_size=1, max_size=6))
def test_at_least_so_many(standings: list[Any]) -> None:
    """Guards: an undecided bound that is counted on either side."""
    for least in range(1, len(standings) + 1):
        certain = standings.count("satisfied")
        possible = certain + standings.count("undecided")
        wanted = "inconclusive"
        if certain >= least:
            wanted = "reproduced"
        elif possible < least:
            wanted = "contradicted"
        assert combine(standings, least) == wanted


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({}, "exactly one of factor and rank_at_least"),
        ({"factor": 2.0, "rank_at_least": 0.9}, "exactly one"),
        ({"factor": 1.0}, "must be above 1"),
        ({"factor": 2.0, "least": 4}, "least 4 must lie between 1 and the 3 bounds"),
        ({"rank_at_least": 0.9, "least": 2}, "needs a factor"),
    ],
)
def test_rules_that_ask_nothing_are_refused(settings_: Any, message: str) -> None:
    """Guards: a claim that every result reproduces."""
    with pytest.raises(ValueError, match=message):
        Predicted(along=tuple(map(bound, "abc")), **settings_)
    with pytest.raises(ValueError, match="'bound'"):
        Predicted(along=(q("laws/a", "1x"),), factor=2.0)


def test_one_run_measured_in_two_ways_is_told_apart() -> None:
    """Guards: a sentence that sets a number against itself."""
    other = {("laws/scaled", "laws/b"): result("b", PROTOCOL, {0: snapshot(900.0)})}
    results = Results(study="laws", by_name={**RESULTS.by_name, **other})
    rule = Threshold(
        quantity=dataclasses.replace(bound("b"), evaluation="laws/scaled"),
        baseline=bound("b"),
        compare="ratio",
        at_least=1.0,
    )
    claim = Claim(statement="s", location="l", printed="p", rule=rule)
    evidence = Evidence(scale="mini", results=results, checks={}, sampling=SAMPLING)
    found = judge_claim(claim, evidence)
    assert found.outcome == "reproduced"
    assert "by laws/scaled divided by the" in found.reason
    assert "by laws/curve is" in found.reason
