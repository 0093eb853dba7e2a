"""Comparison: one measured number, or two, against the region a rule names, with an interval.

Losses and bounds are resampled by document and scores by sample, both arms with the same draws, so
that what two arms share (hard documents) cancels. The two arms of a retrieval or copy probe are
taken for independent samples: a difference of shares has Newcombe's interval, any other difference
or ratio one from the ends of the two intervals, which is never too narrow.
"""

import dataclasses
import math
from typing import Literal

import numpy as np

from ropewalk.evaluate import intervals
from ropewalk.report import bounds as bounds_of
from ropewalk.report import measurements
from ropewalk.report.estimate import LEVEL, Estimate, by_seed, over_seeds
from ropewalk.report.measurements import Counted, PerRound, PerStep
from ropewalk.report.quantities import PERPLEXITIES, SHARES, describe
from ropewalk.report.samples import (
    Between,
    Measured,
    PerDistance,
    PerPosition,
    PerSeed,
    PerTrial,
    PerUnit,
)
from ropewalk.report.wording import Unit, bounds, count, percent, span, with_unit

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
        ends = span(e.low, e.high, e.unit)
        return (
            f"The {self.of} is {number} ({percent(e.level)} interval {ends}); "
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


def estimated(arms: Arms, by: Sampling) -> Estimate:
    """Return a number, difference or ratio with its 95 % interval, over all seeds of the runs.

    Raises:
        ValueError: if the arms cannot be compared.
    """
    measured = (arms.subject, *([arms.baseline] if arms.baseline else []))

    def of_seed(numbers: tuple[Measured, ...]) -> Estimate:
        baseline = numbers[1] if arms.baseline else None
        return _estimated(Arms(subject=numbers[0], baseline=baseline, compare=arms.compare), by)

    return over_seeds(measured, of_seed)


def _estimated(arms: Arms, sampling: Sampling) -> Estimate:
    subject, baseline = arms.subject, arms.baseline
    if baseline is None:
        return _single(subject, sampling)
    if subject.quantity.value != baseline.quantity.value:
        raise ValueError(
            f"{describe(subject.quantity)} and {describe(baseline.quantity)} are different units"
        )
    if isinstance(subject.sample, PerUnit) and isinstance(baseline.sample, PerUnit):
        return _paired(arms, subject.sample, baseline.sample, sampling)
    if (
        isinstance(subject.sample, PerRound)
        and isinstance(baseline.sample, PerRound)
        and subject.sample.calibration == baseline.sample.calibration
    ):
        return _within_rounds(arms, subject.sample, baseline.sample)
    if isinstance(subject.sample, PerPosition) and isinstance(baseline.sample, PerPosition):
        return _paired_bounds(arms, subject.sample, baseline.sample, sampling)
    if (
        isinstance(subject.sample, PerDistance)
        and isinstance(baseline.sample, PerDistance)
        and subject.quantity.value in SHARES
        and arms.compare == "difference"
    ):
        return _share_difference(arms, subject.sample, baseline.sample)
    if type(subject.sample) is type(baseline.sample):
        return _from_ends(arms, _single(subject, sampling), _single(baseline, sampling))
    raise ValueError(
        f"{describe(subject.quantity)} and {describe(baseline.quantity)} are measured by different "
        "kinds of protocols"
    )


def _single(measured: Measured, sampling: Sampling) -> Estimate:
    value, sample = measured.quantity.value, measured.sample
    assert not isinstance(sample, PerSeed)  # one seed at a time
    level = LEVEL
    if isinstance(sample, PerRound):
        ends, method, level = measurements.spread(sample.numbers, LEVEL)
    elif isinstance(sample, Counted):
        ends = intervals.Interval(low=sample.number, high=sample.number)
        method = "a count, the same in every repetition"
    elif isinstance(sample, PerStep):
        ends, method = measurements.rise(
            sample, seed=sampling.seed, draws=sampling.draws, level=LEVEL
        )
    elif isinstance(sample, PerTrial):
        ends, method = _copied(sample, sampling)
    elif isinstance(sample, Between):
        ends = intervals.Interval(low=sample.low, high=sample.high)
        method = "the snapshots before and after"
    elif isinstance(sample, PerDistance):
        ends, method = _retrieved(value, sample, sampling)
    elif isinstance(sample, PerPosition):
        ends, method = _bounded(sample, sampling)
    else:
        ends, method = _of_units(value, sample, sampling)
    if value == "reach_share" and isinstance(sample, PerDistance | PerTrial):
        longest = sample.distances[-1]
        ends = intervals.Interval(low=ends.low / longest, high=ends.high / longest)
    return Estimate(
        number=measured.number,
        low=ends.low,
        high=ends.high,
        method=method,
        unit=value,
        level=level,
    )


def _of_units(value: Unit, sample: PerUnit, by: Sampling) -> tuple[intervals.Interval, str]:
    units = count(len(sample.names), sample.unit)
    whole = np.isin(sample.sums, (0.0, 1.0)).all() and (sample.weights == 1.0).all()
    if value == "score" and whole:  # shares of 0 and 1 have no spread to resample
        ends = intervals.wilson(int(sample.sums.sum()), len(sample.sums), LEVEL)
        return ends, f"Wilson score interval over {units}"
    means = _means([sample], by)[0]
    ends = intervals.percentile(np.exp(means) if value in PERPLEXITIES else means, LEVEL)
    return ends, f"bootstrap over {units}, {by.draws:,} draws"


def _retrieved(value: Unit, sample: PerDistance, by: Sampling) -> tuple[intervals.Interval, str]:
    if value in SHARES:
        ends = intervals.wilson(int(sample.successes.sum()), int(sample.trials.sum()), LEVEL)
        return ends, "Wilson score interval over all trials"
    ends = intervals.reach(
        sample.distances.tolist(),
        sample.successes.tolist(),
        sample.trials.tolist(),
        sample.threshold,
        seed=by.seed,
        draws=by.draws,
        level=LEVEL,
    )
    method = "parametric bootstrap of the reach from the success rate at each distance"
    return ends, f"{method}, {by.draws:,} draws"


def _copied(sample: PerTrial, by: Sampling) -> tuple[intervals.Interval, str]:
    ends = intervals.effective_length(
        sample.distances.tolist(),
        sample.drops,
        share=sample.share,
        least_nats=sample.least_nats,
        seed=by.seed,
        draws=by.draws,
        level=LEVEL,
    )
    method = f"bootstrap over {count(sample.drops.shape[1], 'trial')}, the same at every distance"
    return ends, f"{method}, {by.draws:,} draws"


def bound_draws(sample: PerPosition, by: Sampling) -> np.ndarray:
    """Return bootstrap draws of a bound, float64 [draws]; infinite where a draw has none.

    Documents are drawn as for losses, so that the draws of two runs on the same ones are paired.
    """
    # A draw without any token in a bin has no mean there, which counts as beyond the bound.
    with np.errstate(invalid="ignore"):
        drawn = intervals.nll_draws(*sample.arms, seed=by.seed, draws=by.draws)
    return bounds_of.measured(sample.edges, drawn[:-1], drawn[-1], sample.window_tokens)


def _bounded(sample: PerPosition, by: Sampling) -> tuple[intervals.Interval, str]:
    drawn = bound_draws(sample, by)
    proven = np.minimum(drawn, sample.edges[-1])
    method = f"bootstrap over {count(len(sample.names), 'document')}, {by.draws:,} draws"
    return _outer(proven, drawn), method


def _outer(lowest: np.ndarray, highest: np.ndarray) -> intervals.Interval:
    """Return the interval from the low tail of one set of draws to the high tail of another.

    They differ where a draw is only known to lie between them; ends are draws, which may be
    infinite.
    """
    tails = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    return intervals.Interval(
        low=float(np.quantile(lowest, tails[0], method="inverted_cdf")),
        high=float(np.quantile(highest, tails[1], method="inverted_cdf")),
    )


def _paired_bounds(
    arms: Arms, subject: PerPosition, baseline: PerPosition, by: Sampling
) -> Estimate:
    _same_units(arms, subject.names, baseline.names, "document")
    a, b = bound_draws(subject, by), bound_draws(baseline, by)
    a_low, b_low = np.minimum(a, subject.edges[-1]), np.minimum(b, baseline.edges[-1])
    ratio = arms.compare == "ratio"
    x, y = arms.subject.number, arms.baseline.number if arms.baseline else math.nan
    ends = _outer(a_low / b, a / b_low) if ratio else _outer(a_low - b, a - b_low)
    method = f"paired bootstrap over {count(len(subject.names), 'document')}"
    return Estimate(
        number=x / y if ratio else x - y,
        low=ends.low,
        high=ends.high,
        method=f"{method}, {by.draws:,} draws",
        unit="ratio" if ratio else "bound",
    )


def _same_units(arms: Arms, subject: tuple[str, ...], baseline: tuple[str, ...], unit: str) -> None:
    if subject != baseline:
        raise ValueError(
            f"{describe(arms.subject.quantity)} was measured on {count(len(subject), unit)} and "
            f"its counterpart on others; a paired comparison needs the same {unit}s"
        )


def _paired(arms: Arms, subject: PerUnit, baseline: PerUnit, by: Sampling) -> Estimate:
    _same_units(arms, subject.names, baseline.names, subject.unit)
    unit: Unit = arms.subject.quantity.value
    a, b = _means([subject, baseline], by)
    logs = unit in PERPLEXITIES
    if arms.compare == "ratio":
        # exp(a - b) and not exp(a) / exp(b): no overflow, and equal arms give exactly 1.
        number = (
            np.exp(subject.mean - baseline.mean) if logs else _ratio(subject.mean, baseline.mean)
        )
        drawn = np.exp(a - b) if logs else np.divide(a, b)
        unit = "ratio"
    elif logs:
        number, drawn = np.exp(subject.mean) - np.exp(baseline.mean), np.exp(a) - np.exp(b)
    else:
        number, drawn = subject.mean - baseline.mean, a - b
    ends = intervals.percentile(drawn, LEVEL)
    method = f"paired bootstrap over {count(len(subject.names), subject.unit)}"
    return Estimate(
        number=float(number),
        low=ends.low,
        high=ends.high,
        method=f"{method}, {by.draws:,} draws",
        unit=unit,
    )


def _within_rounds(arms: Arms, subject: PerRound, baseline: PerRound) -> Estimate:
    """Return a difference or ratio with its spread over the rounds of a calibration."""
    by_ratio = arms.compare == "ratio"
    a, b = subject.numbers, baseline.numbers
    each = np.divide(a, b) if by_ratio else np.subtract(a, b)
    ends, method, level = measurements.spread(each, LEVEL)
    return Estimate(
        number=float(np.median(each)),
        low=ends.low,
        high=ends.high,
        method=method,
        unit="ratio" if by_ratio else arms.subject.quantity.value,
        level=level,
    )


def _share_difference(arms: Arms, subject: PerDistance, baseline: PerDistance) -> Estimate:
    a, b = (
        (int(sample.successes.sum()), int(sample.trials.sum())) for sample in (subject, baseline)
    )
    ends = intervals.share_difference(a, b, LEVEL)
    return Estimate(
        number=a[0] / a[1] - b[0] / b[1],
        low=ends.low,
        high=ends.high,
        method="Newcombe interval of two shares over all trials, taken for independent",
        unit=arms.subject.quantity.value,
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


def _means(samples: list[PerUnit], sampling: Sampling) -> np.ndarray:
    """Return means, [arms, draws], every arm over the same drawn units."""
    return intervals.nll_draws(
        np.stack([s.sums for s in samples]),
        np.stack([s.weights for s in samples]),
        seed=sampling.seed,
        draws=sampling.draws,
    )


def _identical(arms: Arms) -> bool:
    """Return whether two arms hold the same numbers in every document or sample, at every seed."""
    if arms.baseline is None:
        return False
    pairs = [(a.sample, b.sample) for a, b in by_seed((arms.subject, arms.baseline))]
    return all(
        isinstance(a, PerUnit)
        and isinstance(b, PerUnit)
        and np.array_equal(a.sums, b.sums)
        and np.array_equal(a.weights, b.weights)
        for a, b in pairs
    )


def _what(arms: Arms) -> str:
    subject = describe(arms.subject.quantity)
    if arms.baseline is None:
        return subject
    baseline = describe(arms.baseline.quantity)
    by = arms.subject.quantity.evaluation, arms.baseline.quantity.evaluation
    if by[0] != by[1]:
        subject, baseline = f"{subject} by {by[0]}", f"{baseline} by {by[1]}"
    return f"{subject} {_RELATION[arms.compare]} the {baseline}"


_RELATION = {"difference": "minus", "ratio": "divided by"}
