"""Comparison: one measured number, or two, against the region a rule names, with an interval.

Losses are resampled by document, both arms with the same draws, so that what two arms share (hard
documents) cancels. The two arms of a retrieval probe are independent samples; the interval of their
difference or ratio is built from the ends of the two intervals and is never too narrow.
"""

import dataclasses
import math
from typing import Literal

import numpy as np

from ropewalk.evaluate import intervals
from ropewalk.report.quantities import Measured, PerDistance, PerDocument, describe
from ropewalk.report.wording import Unit, bounds, count, percent, span, with_unit

LEVEL = 0.95
Standing = Literal["satisfied", "violated", "undecided"]
Compare = Literal["value", "difference", "ratio"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """Where a claim says a number lies. `strict`: a number on the edge is outside."""

    low: float | None = None
    high: float | None = None
    strict: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How often the bootstrap draws, and from which seed."""

    draws: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arms:
    """What is compared: one number, or a number with its baseline."""

    subject: Measured
    baseline: Measured | None
    compare: Compare


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval. Infinite where a ratio has a baseline of zero."""

    number: float
    low: float
    high: float
    method: str  # of the interval
    unit: Unit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """An estimate against a region."""

    of: str  # what the estimate is of, in words
    needs: str  # the region in words
    region: Region
    estimate: Estimate
    standing: Standing

    @property
    def sentence(self) -> str:
        """Return the comparison as one sentence with its numbers."""
        e = self.estimate
        number = with_unit(e.number, e.unit) if math.isfinite(e.number) else "undefined"
        return (
            f"The {self.of} is {number} ({percent(LEVEL)} interval {span(e.low, e.high, e.unit)}); "
            f"the claim needs {self.needs}."
        )


def compare(arms: Arms, region: Region, sampling: Sampling) -> Comparison:
    """Return where the estimate of `arms` stands to `region`.

    Raises:
        ValueError: if the arms cannot be compared (other documents, other kinds of numbers).
    """
    estimate = estimated(arms, sampling)
    return Comparison(
        of=_what(arms),
        needs=bounds(region.low, region.high, strict=region.strict),
        region=region,
        estimate=estimate,
        standing=standing(
            estimate,
            # Arms that agree in every document show no difference rather than a difference of 0.
            dataclasses.replace(region, strict=region.strict or _identical(arms)),
        ),
    )


def standing(estimate: Estimate, region: Region) -> Standing:
    """Return whether the whole interval, none of it, or a part of it lies in the region."""
    low = -math.inf if region.low is None else region.low
    high = math.inf if region.high is None else region.high
    if estimate.high < low or estimate.low > high:
        return "violated"
    inside = low <= estimate.low and estimate.high <= high
    if region.strict:
        inside = low < estimate.low and estimate.high < high
    return "satisfied" if inside else "undecided"


def estimated(arms: Arms, sampling: Sampling) -> Estimate:
    """Return a number, difference or ratio with its 95 % interval.

    Raises:
        ValueError: if the arms cannot be compared.
    """
    subject, baseline = arms.subject, arms.baseline
    if baseline is None:
        return _single(subject, sampling)
    if subject.quantity.value != baseline.quantity.value:
        raise ValueError(
            f"{describe(subject.quantity)} and {describe(baseline.quantity)} are different units"
        )
    if isinstance(subject.sample, PerDocument) and isinstance(baseline.sample, PerDocument):
        return _paired(arms, subject.sample, baseline.sample, sampling)
    if isinstance(subject.sample, PerDistance) and isinstance(baseline.sample, PerDistance):
        return _from_ends(arms, _single(subject, sampling), _single(baseline, sampling))
    raise ValueError(
        f"{describe(subject.quantity)} is over documents and {describe(baseline.quantity)} over "
        "retrieval trials, or the other way round"
    )


def _single(measured: Measured, sampling: Sampling) -> Estimate:
    unit, sample = measured.quantity.value, measured.sample
    if isinstance(sample, PerDocument):
        means = _means([sample], sampling)[0]
        ends = intervals.percentile(np.exp(means) if unit == "perplexity" else means, LEVEL)
        method = f"bootstrap over {count(len(sample.documents), 'document')}"
    elif unit == "accuracy":
        ends = intervals.wilson(int(sample.successes.sum()), int(sample.trials.sum()), LEVEL)
        return Estimate(
            number=measured.number,
            low=ends.low,
            high=ends.high,
            method="Wilson score interval over all trials",
            unit=unit,
        )
    else:
        ends = intervals.reach(
            sample.distances.tolist(),
            sample.successes.tolist(),
            sample.trials.tolist(),
            sample.threshold,
            seed=sampling.seed,
            draws=sampling.draws,
            level=LEVEL,
        )
        method = "parametric bootstrap of the reach from the success rate at each distance"
        if unit == "reach_share":
            ends = intervals.Interval(
                low=ends.low / sample.distances[-1], high=ends.high / sample.distances[-1]
            )
    return Estimate(
        number=measured.number,
        low=ends.low,
        high=ends.high,
        method=f"{method}, {sampling.draws:,} draws",
        unit=unit,
    )


def _paired(arms: Arms, subject: PerDocument, baseline: PerDocument, by: Sampling) -> Estimate:
    if subject.documents != baseline.documents:
        raise ValueError(
            f"{describe(arms.subject.quantity)} was measured on "
            f"{count(len(subject.documents), 'document')} and its counterpart on others; "
            "a paired comparison needs the same documents"
        )
    unit: Unit = arms.subject.quantity.value
    a, b = _means([subject, baseline], by)
    point_a, point_b = (s.sums.sum() / s.tokens.sum() for s in (subject, baseline))
    if arms.compare == "ratio":
        # exp(a - b) and not exp(a) / exp(b): no overflow, and equal arms give exactly 1.
        logs = unit == "perplexity"
        number = np.exp(point_a - point_b) if logs else _ratio(point_a, point_b)
        drawn = np.exp(a - b) if logs else np.divide(a, b)
        unit = "ratio"
    elif unit == "perplexity":
        number, drawn = np.exp(point_a) - np.exp(point_b), np.exp(a) - np.exp(b)
    else:
        number, drawn = point_a - point_b, a - b
    ends = intervals.percentile(drawn, LEVEL)
    method = f"paired bootstrap over {count(len(subject.documents), 'document')}"
    return Estimate(
        number=float(number),
        low=ends.low,
        high=ends.high,
        method=f"{method}, {by.draws:,} draws",
        unit=unit,
    )


def _from_ends(arms: Arms, a: Estimate, b: Estimate) -> Estimate:
    method = f"ends of two separate intervals, too wide rather than too narrow; each: {a.method}"
    if arms.compare == "difference":
        return Estimate(
            number=a.number - b.number,
            low=a.low - b.high,
            high=a.high - b.low,
            method=method,
            unit=a.unit,
        )
    return Estimate(
        number=_ratio(a.number, b.number),
        low=0.0 if a.low == 0 else _ratio(a.low, b.high),
        high=math.inf if b.low == 0 else _ratio(a.high, b.low),
        method=method,
        unit="ratio",
    )


def _ratio(a: float, b: float) -> float:
    if b:
        return float(a / b)
    return math.nan if a == 0 else math.inf


def _means(samples: list[PerDocument], sampling: Sampling) -> np.ndarray:
    """Return token means, [arms, draws], every arm over the same drawn documents."""
    return intervals.nll_draws(
        np.stack([s.sums for s in samples]),
        np.stack([s.tokens for s in samples]).astype(np.float64),
        seed=sampling.seed,
        draws=sampling.draws,
    )


def _identical(arms: Arms) -> bool:
    """Return whether two arms over documents hold the same numbers in every document."""
    a, b = arms.subject.sample, arms.baseline.sample if arms.baseline else None
    return (
        isinstance(a, PerDocument)
        and isinstance(b, PerDocument)
        and np.array_equal(a.sums, b.sums)
        and np.array_equal(a.tokens, b.tokens)
    )


def _what(arms: Arms) -> str:
    subject = describe(arms.subject.quantity)
    if arms.baseline is None:
        return subject
    return f"{subject} {_RELATION[arms.compare]} the {describe(arms.baseline.quantity)}"


_RELATION = {"difference": "minus", "ratio": "divided by"}
