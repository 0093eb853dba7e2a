"""Numbers of calibrations and trainings in claims, against arithmetic by hand."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from ropewalk.report.compare import Arms, Region, Sampling, compare, estimated
from ropewalk.report.measurements import spread
from ropewalk.report.quantities import Results, describe, extract
from ropewalk.report.samples import Measured, Missing
from ropewalk.report.spec import Claim, Ordering, Quantity, Threshold
from ropewalk.report.verdict import Evidence, judge_claim

SAMPLING = Sampling(draws=500, seed=0)


def shape(length: int, sequences: int, seconds: list[float], peak: int = 4_000_000_000) -> Any:
    return {
        "length_tokens": length,
        "context_tokens": length,
        "sequences": sequences,
        "tokens": length * sequences,
        "seconds": seconds,
        "peak_bytes": peak,
        "tokens_that_fit": 5000.0,
    }


# A machine that slows down twofold in the second half of the rounds: all shapes alike.
SLOW = [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]
COST = {
    "rounds": 6,
    "shapes": {
        "short": shape(32, 8, [0.1 * s for s in SLOW]),
        "long": shape(64, 4, [0.12 * s for s in SLOW], peak=8_000_000_000),
    },
}
BEFORE, AFTER = [3.0, 3.1, 2.9, 3.0], [3.5, 3.4, 3.6, 3.5]
SWITCHES = [{"phase": 1, "step": 4, "before": BEFORE, "after": AFTER}]
ROWS = [
    {"length_tokens": 32, "context_tokens": 32, "sequences": 8, "steps": 10},
    {"length_tokens": 64, "context_tokens": 64, "sequences": 4, "steps": 5},
]
RESULTS = Results(
    study="s",
    by_name={},
    calibrations={"s/cost": COST},
    trainings={
        "s/grow": {
            "calibration": "s/cost",
            "phases": ROWS,
            "switches": SWITCHES,
            "tokens": 3840,
            "start": "s/base",
        },
        "s/long": {"calibration": "s/cost", "phases": ROWS[1:] * 3, "switches": []},
        "s/none": {"calibration": None, "phases": ROWS, "switches": []},
        "s/other": {"calibration": None, "phases": [{**ROWS[1], "sequences": 1}]},
    },
)


def cost(context: str, value: Any = "seconds_per_step") -> Quantity:
    return Quantity(calibration="cost", context=context, value=value)


def of(quantity: Quantity) -> Measured:
    found = extract(quantity, RESULTS)
    assert isinstance(found, Measured)
    return found


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("seconds_per_step", 0.15),
        ("tokens_per_second", (2560 + 1280) / 2),
        ("peak_gigabytes", 4.0),
        ("tokens_that_fit", 5000),
    ],
)
def test_a_cost_is_the_median_over_rounds(value: str, number: float) -> None:
    """Guards against a unit or an aggregate that differs from the report's words."""
    assert of(cost("short", value)).number == pytest.approx(number)


def test_a_ratio_of_costs_is_taken_within_rounds() -> None:
    """Guards against a machine's slow minutes taken for a difference between shapes."""
    arms = Arms(subject=of(cost("long")), baseline=of(cost("short")), compare="ratio")
    found = estimated(arms, SAMPLING)
    assert (found.number, found.low, found.high) == pytest.approx((1.2, 1.2, 1.2))
    assert "6 rounds" in found.method
    alone = estimated(Arms(subject=arms.subject, baseline=None, compare="value"), SAMPLING)
    assert (alone.low, alone.high) == pytest.approx((0.12, 0.24))


@pytest.mark.parametrize(
    ("rounds", "low", "high", "covered"),
    [(2, 0, 1, 0.5), (5, 0, 4, 0.94), (6, 0, 5, 0.97), (9, 1, 7, 0.96), (20, 5, 14, 0.96)],
)
def test_the_spread_of_a_median_by_the_binomial_table(
    rounds: int, low: int, high: int, covered: float
) -> None:
    """Guards against an interval of five rounds that is called one of 95 %.

    Ranks and coverages are those of printed tables of the sign test (n = 6: 1 and 6, 96.9 %;
    n = 9: 2 and 8, 96.1 %; n = 20: 6 and 15, 95.9 %).
    """
    shuffled = np.random.default_rng(0).permutation(np.arange(float(rounds)))
    ends, _, level = spread(shuffled, 0.95)
    assert (ends.low, ends.high, level) == (low, high, covered)


def test_a_sentence_says_what_an_interval_of_few_rounds_covers() -> None:
    """Guards against two rounds printed as a 95 % interval."""
    few = {"rounds": 2, "shapes": {"short": shape(32, 8, [0.1, 0.2])}}
    results = dataclasses.replace(RESULTS, calibrations={"s/cost": few})
    found = extract(cost("short"), results)
    assert isinstance(found, Measured)
    arms = Arms(subject=found, baseline=None, compare="value")
    assert "(50 % interval" in compare(arms, Region(low=0.0), SAMPLING).sentence


def test_the_seconds_of_a_run_are_those_of_all_its_phases() -> None:
    """Guards against a run whose later, slower phases cost nothing."""
    grow, long = (of(Quantity(run=f"s/{run}", value="run_seconds")) for run in ("grow", "long"))
    assert grow.number == pytest.approx((10 * 0.1 + 5 * 0.12) * 1.5)
    found = estimated(Arms(subject=grow, baseline=long, compare="ratio"), SAMPLING)
    assert (found.low, found.high) == pytest.approx((1.6 / 1.8, 1.6 / 1.8))


@pytest.mark.parametrize(
    ("value", "number"),
    [
        # Of a round without slowing down: 10 steps of 0.1 s and 5 of 0.12 s, each of 256 tokens.
        ("seconds_per_step", 1.5 * 1.6 / 15),
        ("tokens_per_second", (3840 / 1.6 + 3840 / 3.2) / 2),
        ("seconds_per_million_tokens", 1.5 * 1.6 / 3840 * 1e6),
        ("peak_gigabytes", 8.0),
    ],
)
def test_the_cost_of_a_run_is_that_of_all_its_steps(value: Any, number: float) -> None:
    """Guards against rows that grow at the price of the first or of the last ones."""
    for run in ("s/grow", "s/none"):  # whichever calibration the run itself names
        found = of(Quantity(calibration="cost", run=run, value=value))
        assert found.number == pytest.approx(number)
        assert "cost" in describe(found.quantity)
    long = of(Quantity(calibration="cost", run="s/long", value="seconds_per_million_tokens"))
    assert long.number == pytest.approx(1.5 * 0.12 / 256 * 1e6)


def test_tokens_are_those_trained_since_the_run_it_starts_from() -> None:
    """Guards against pretraining counted as a method's own, and an interval around a count."""
    tokens = of(Quantity(run="s/grow", value="trained_tokens"))
    found = estimated(Arms(subject=tokens, baseline=None, compare="value"), SAMPLING)
    assert (found.number, found.low, found.high) == (3840, 3840, 3840)
    pretrained = extract(Quantity(run="s/none", value="trained_tokens"), RESULTS)
    assert isinstance(pretrained, Missing)
    assert "starts from no other run" in pretrained.reason


def test_a_loss_rise_is_the_difference_of_means_with_the_noise_of_steps() -> None:
    """Guards against a rise read with the wrong sign, or one single step taken for it."""
    rise = of(Quantity(run="s/grow", context="1", value="loss_rise"))
    assert rise.number == pytest.approx(0.5)
    found = estimated(Arms(subject=rise, baseline=None, compare="value"), SAMPLING)
    assert 0.3 < found.low < 0.5 < found.high < 0.7


@pytest.mark.parametrize(
    ("quantity", "reason"),
    [
        (cost("longest"), "has no shape 'longest', only short, long"),
        (Quantity(calibration="other", context="a", value="peak_gigabytes"), "was not made"),
        (Quantity(run="s/grow", context="2", value="loss_rise"), "begins no phase 2"),
        (Quantity(run="s/none", value="run_seconds"), "no calibration knows the seconds"),
        (Quantity(run="s/absent", value="run_seconds"), "was not trained"),
        (
            Quantity(calibration="cost", run="s/absent", value="peak_gigabytes"),
            "was not trained",
        ),
        (
            Quantity(calibration="cost", run="s/other", value="peak_gigabytes"),
            "has no shape of 1 sequences of 64 tokens, as s/other trains on",
        ),
    ],
)
def test_what_was_not_measured_is_missing(quantity: Quantity, reason: str) -> None:
    """Guards against 'not measured' that reads as 'wrong'."""
    found = extract(quantity, RESULTS)
    assert isinstance(found, Missing)
    assert reason in found.reason


def test_a_claim_of_equal_time_is_void_where_its_precondition_fails() -> None:
    """Guards against a verdict on a method whose premise the machine does not share."""
    faster = Threshold(
        quantity=cost("short", "tokens_per_second"),
        baseline=cost("long", "tokens_per_second"),
        compare="ratio",
        at_least=1.3,
    )
    claim = Claim(
        statement="Growing takes longer.",
        location="Figure 1",
        printed="",
        requires=(faster,),
        rule=Ordering(
            ascending=(
                Quantity(run="s/grow", value="run_seconds"),
                Quantity(run="s/long", value="run_seconds"),
            )
        ),
    )
    evidence = Evidence(scale="mini", results=RESULTS, checks={}, sampling=SAMPLING)
    verdict = judge_claim(claim, evidence)
    assert verdict.outcome == "inconclusive"
    assert "a condition of this claim does not hold" in verdict.reason
    met = dataclasses.replace(claim, requires=(dataclasses.replace(faster, at_least=1.15),))
    assert judge_claim(met, evidence).outcome == "reproduced"


def test_quantities_name_the_source_that_has_them() -> None:
    """Guards against a loss asked of a calibration, which would only be missing."""
    with pytest.raises(ValueError, match="of an evaluation; name one"):
        Quantity(calibration="cost", value="nll")
    with pytest.raises(ValueError, match="of a calibration; name one"):
        Quantity(evaluation="loss", value="peak_gigabytes")
    with pytest.raises(ValueError, match="of neither an evaluation nor a calibration"):
        Quantity(evaluation="loss", value="loss_rise")
    with pytest.raises(ValueError, match="name a context or a run, and one only"):
        Quantity(calibration="cost", value="peak_gigabytes")
