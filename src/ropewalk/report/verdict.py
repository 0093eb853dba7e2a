"""Verdicts: execution, extraction and comparison, in this order and apart.

A comparison is decided by its 95 % interval: satisfied if the whole interval lies in the region the
rule names, violated if none of it does, undecided if it straddles the edge. A number that was not
measured is "not tested at this scale"; a number that cannot be read is an "error"; neither is ever
"contradicted".
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, assert_never

from ropewalk.report.compare import (
    Arms,
    Comparison,
    Region,
    Sampling,
    Standing,
    compare,
)
from ropewalk.report.orders import compare_order, compare_steps
from ropewalk.report.quantities import Results, extract, run_name
from ropewalk.report.samples import Measured, Missing
from ropewalk.report.spec import (
    Claim,
    Exact,
    Ordering,
    Outcome,
    Pairs,
    Predicted,
    Quantity,
    Rule,
    Steeper,
    Threshold,
    Trend,
    Value,
)
from ropewalk.report.wording import UNITS, bounds, count, edge, figure, listed, span, with_unit

DECIDED: tuple[Outcome, ...] = ("reproduced", "partly", "contradicted")
PAPER_SCALE = "paper"  # the only scale at which printed values are compared


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a claim, and why."""

    outcome: Outcome
    reason: str  # plain English, with numbers
    measured: tuple[Measured | Missing, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    checks: tuple[str, ...] = ()  # checks of theory it rests on
    number: float | None = None  # of an exact check


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything a verdict may rest on."""

    scale: str
    results: Results
    checks: Mapping[str, Mapping[str, Any]]  # name -> the check's result
    sampling: Sampling
    predicted: Mapping[str, float] = dataclasses.field(default_factory=dict)
    # run -> its bound by the laws of RoPE bases, where they say something


def judge_claim(claim: Claim, evidence: Evidence) -> Verdict:
    """Return the verdict of a claim.

    Evidence that is absent or cannot be compared is a verdict of its own, never an exception.
    """
    if claim.rule is None:
        if claim.outcome is None:
            return Verdict(outcome="error", reason="The claim has neither a rule nor an outcome.")
        return Verdict(outcome=claim.outcome, reason=claim.note or "No reason is recorded.")
    if isinstance(claim.rule, Exact):
        return _exact(claim.rule, evidence)
    found = tuple(extract(q, evidence.results) for q in quantities(claim.rule))
    missing = [m for m in found if isinstance(m, Missing)]
    if missing:
        broken = any(m.broken for m in missing)
        reasons = "; ".join(dict.fromkeys(m.reason for m in missing))
        return Verdict(
            outcome="error" if broken else "not tested at this scale",
            reason=f"Not compared: {reasons}.",
            measured=found,
        )
    measured = tuple(m for m in found if isinstance(m, Measured))
    try:
        comparisons = _comparisons(claim.rule, measured, evidence)
    except ValueError as error:
        return Verdict(outcome="error", reason=f"Not comparable: {error}.", measured=measured)
    unmet = _unmet(claim, evidence)
    if unmet:
        return Verdict(
            outcome="inconclusive", reason=unmet, measured=measured, comparisons=comparisons
        )
    if isinstance(claim.rule, Value) and evidence.scale != PAPER_SCALE:
        return Verdict(
            outcome="not tested at this scale",
            reason=_both_numbers(claim.rule, measured[0], evidence.scale),
            measured=measured,
            comparisons=comparisons,
        )
    least = claim.rule.least if isinstance(claim.rule, Predicted) else None
    return Verdict(
        outcome=combine([c.standing for c in comparisons], least),
        reason=_near_reason(comparisons, least)
        if isinstance(claim.rule, Predicted) and claim.rule.factor
        else _reason(comparisons, "pair" if isinstance(claim.rule, Pairs) else "step"),
        measured=measured,
        comparisons=comparisons,
    )


def _unmet(claim: Claim, evidence: Evidence) -> str | None:
    """Return why the rule would say nothing: a condition that is not shown to hold."""
    for condition in claim.requires:
        verdict = judge_claim(dataclasses.replace(claim, rule=condition, requires=()), evidence)
        if verdict.outcome != "reproduced":
            return f"Nothing follows: a condition of this claim does not hold. {verdict.reason}"
    return None


def quantities(rule: Rule) -> tuple[Quantity, ...]:
    """Return the quantities a rule rests on, in the order it names them; none for `Exact`."""
    match rule:
        case Threshold():
            return (rule.quantity, *([rule.baseline] if rule.baseline else []))
        case Ordering():
            return rule.ascending
        case Pairs():
            return tuple(q for pair in rule.pairs for q in (pair.below, pair.above))
        case Trend() | Steeper() | Predicted():
            return rule.along
        case Value():
            return (rule.quantity,)
        case Exact():
            return ()
    assert_never(rule)


def combine(standings: Sequence[Standing], least: int | None = None) -> Outcome:
    """Return the outcome of a rule from its comparisons.

    One comparison: its own standing. Several (a chain): reproduced or contradicted if all of them
    agree, partly if some are satisfied and some violated, else inconclusive. With `least` as many
    must be satisfied: reproduced if they are, contradicted if they cannot be any more.
    """
    if not standings:
        return "error"
    if least is not None:
        if standings.count("satisfied") >= least:
            return "reproduced"
        possible = len(standings) - standings.count("violated")
        return "inconclusive" if possible >= least else "contradicted"
    if "satisfied" in standings and "violated" in standings:
        return "partly"
    if "undecided" in standings:
        return "inconclusive"
    return "reproduced" if standings[0] == "satisfied" else "contradicted"


def _comparisons(
    rule: Threshold | Ordering | Pairs | Trend | Steeper | Predicted | Value,
    measured: Sequence[Measured],
    evidence: Evidence,
) -> tuple[Comparison, ...]:
    sampling = evidence.sampling
    match rule:
        case Threshold():
            region = Region(low=rule.at_least, high=rule.at_most)
            baseline = measured[1] if rule.baseline else None
            arms = Arms(subject=measured[0], baseline=baseline, compare=rule.compare)
            return (compare(arms, region, sampling),)
        case Ordering():
            region = Region(low=rule.margin, strict=True)
            return tuple(_steps(measured, region, sampling))
        case Pairs():
            region = Region(low=rule.margin, strict=True)
            return tuple(
                step
                for i in range(0, len(measured), 2)
                for step in _steps(measured[i : i + 2], region, sampling)
            )
        case Trend() if rule.direction == "rising":
            return tuple(_steps(measured, Region(low=-rule.slack, strict=True), sampling))
        case Trend():
            return tuple(_steps(measured, Region(high=rule.slack, strict=True), sampling))
        case Steeper():
            return (compare_steps(measured, rule.direction, sampling),)
        case Predicted(factor=None):
            laws = [_law(m, evidence) for m in measured]
            return (compare_order(measured, laws, rule.rank_at_least or 0.0, sampling),)
        case Predicted():
            return tuple(
                _near(m, _law(m, evidence), rule.factor or 1.0, sampling) for m in measured
            )
        case Value():
            width = abs(rule.printed) * rule.relative_tolerance
            region = Region(low=rule.printed - width, high=rule.printed + width)
            arms = Arms(subject=measured[0], baseline=None, compare="value")
            return (compare(arms, region, sampling),)
    assert_never(rule)


def _law(measured: Measured, evidence: Evidence) -> float:
    run = run_name(measured.quantity)
    if run not in evidence.predicted:
        raise ValueError(f"the laws of RoPE bases predict no bound for the rope of {run}")
    return evidence.predicted[run]


def _near(measured: Measured, law: float, factor: float, sampling: Sampling) -> Comparison:
    arms = Arms(subject=measured, baseline=None, compare="value")
    region = Region(low=float(round(law / factor)), high=float(round(law * factor)))  # tokens
    return compare(arms, region, sampling)


def _steps(chain: Sequence[Measured], region: Region, sampling: Sampling) -> list[Comparison]:
    if len(chain) < 2:
        raise ValueError(f"an order needs at least two quantities, the rule names {len(chain)}")
    return [
        compare(Arms(subject=after, baseline=before, compare="difference"), region, sampling)
        for before, after in pairwise(chain)
    ]


def _exact(rule: Exact, evidence: Evidence) -> Verdict:
    if rule.at_least is None and rule.at_most is None:
        return Verdict(outcome="error", reason=f"The rule on {rule.number!r} names no bound.")
    result = evidence.checks.get(rule.check)
    if result is None:
        return Verdict(
            outcome="not tested at this scale",
            reason=f"Not compared: check {rule.check!r} was not run at this scale.",
        )
    checks = (rule.check,)
    number = result["numbers"].get(rule.number)
    if number is None:
        known = ", ".join(sorted(result["numbers"]))
        reason = f"Check {rule.check!r} gives no number {rule.number!r}, only {known}."
        return Verdict(outcome="error", reason=reason, checks=checks)
    if not math.isfinite(number):
        reason = f"Check {rule.check!r} gives {rule.number} = {number}, not a finite number."
        return Verdict(outcome="error", reason=reason, checks=checks)
    low = -math.inf if rule.at_least is None else rule.at_least
    high = math.inf if rule.at_most is None else rule.at_most
    name = rule.number.replace("_", " ")
    needs = bounds(rule.at_least, rule.at_most)
    return Verdict(
        outcome="reproduced" if low <= number <= high else "contradicted",
        reason=(
            f"The check computes {name} = {figure(number, 'number')}; the claim needs {needs}. "
            "No statistics are involved."
        ),
        checks=checks,
        number=float(number),
    )


def _both_numbers(rule: Value, measured: Measured, scale: str) -> str:
    unit = measured.quantity.value
    return (
        f"We measure {with_unit(measured.number, unit)} where the paper prints "
        f"{edge(rule.printed)}. A value depends on the model and the text, and scale "
        f"{scale!r} has neither of the paper's, so the two are shown and not compared."
    )


def _reason(comparisons: Sequence[Comparison], each: str) -> str:
    if len(comparisons) == 1:
        return f"{comparisons[0].sentence} {_ENDING[comparisons[0].standing]}"
    standings = [c.standing for c in comparisons]
    parts = [f"{standings.count(s)} {_CHAIN[s]}" for s in _CHAIN if s in standings]
    steps = count(len(comparisons), each)
    every = f"Both {each}s" if len(comparisons) == 2 else f"All {steps}"
    shares = f"{every} are {_CHAIN[standings[0]]}"
    if len(parts) > 1:
        shares = f"Of {steps} {listed(parts)}"
    unit = comparisons[0].estimate.unit
    differences = listed([figure(c.estimate.number, unit) for c in comparisons])
    return f"{shares}: differences of {differences} {UNITS[unit]}".rstrip() + "."


def _near_reason(comparisons: Sequence[Comparison], least: int | None) -> str:
    standings = [c.standing for c in comparisons]
    parts = listed([f"{standings.count(s)} {_CHAIN[s]}" for s in _CHAIN if s in standings])
    each = "; ".join(
        f"{figure(c.estimate.number, c.estimate.unit)} tokens "
        f"({span(c.estimate.low, c.estimate.high, c.estimate.unit)}), predicted {c.needs}"
        for c in comparisons
    )
    needed = "all of them" if least is None else f"at least {least}"
    total = count(len(comparisons), "bound")
    return f"Of {total} {parts}; the claim needs {needed} as claimed. {each}."


_ENDING: Mapping[Standing, str] = {
    "satisfied": "The whole interval satisfies that.",
    "violated": "No part of the interval satisfies that.",
    "undecided": "The interval does not decide it.",
}
_CHAIN: Mapping[Standing, str] = {
    "satisfied": "as claimed",
    "violated": "the other way",
    "undecided": "undecided",
}
