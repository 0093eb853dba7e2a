"""A number with its interval, and one of a run that was trained with several seeds.

Each seed gives an estimate of its own, of two runs within the same seed where two are compared. The
number is the mean over seeds. Its interval has to hold for other seeds and for other documents:
half of Student's interval over seeds and the mean half of the seeds' own intervals are added as
squares. Seeds read the same documents, so that the latter does not shrink with their number.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import stdtrit

from ropewalk.report.samples import Measured
from ropewalk.report.wording import Unit, count

LEVEL = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval. Infinite where a ratio has a baseline of zero."""

    number: float
    low: float
    high: float
    method: str  # of the interval
    unit: Unit
    level: float = LEVEL  # another one where a measurement has too few rounds for it


def by_seed(measured: Sequence[Measured]) -> list[tuple[Measured, ...]]:
    """Return the numbers of every seed, in the order of the seeds; one entry where there is one.

    What has no seed (published weights, a measurement of time) stands beside every seed of others.

    Raises:
        ValueError: if two were trained with different numbers of seeds.
    """
    counts = sorted({len(m.by_seed) for m in measured} - {1})
    if len(counts) > 1:
        raise ValueError(f"runs with {counts[0]} and {counts[1]} seeds cannot be compared")
    return [
        tuple(m.by_seed[seed if len(m.by_seed) > 1 else 0] for m in measured)
        for seed in range(counts[0] if counts else 1)
    ]


def over_seeds(
    measured: Sequence[Measured], estimate: Callable[[tuple[Measured, ...]], Estimate]
) -> Estimate:
    """Return what `estimate` gives for numbers of one seed, pooled over all seeds.

    Raises:
        ValueError: if seeds differ in number, or as `estimate` does.
    """
    each = [estimate(numbers) for numbers in by_seed(measured)]
    return each[0] if len(each) == 1 else pooled(each)


def pooled(each: Sequence[Estimate]) -> Estimate:
    """Return one estimate of several seeds', at least two, of one thing.

    Where an end or a number is infinite it is the outermost of theirs.
    """
    numbers = [e.number for e in each]
    mean = float(np.mean(numbers))
    ends = [*numbers, *(e.low for e in each), *(e.high for e in each)]
    low, high = min(e.low for e in each), max(e.high for e in each)
    how = "the outermost of their intervals"
    if all(math.isfinite(end) for end in ends):
        error = float(np.std(numbers, ddof=1)) / math.sqrt(len(each))
        seeds = float(stdtrit(len(each) - 1, (1 + each[0].level) / 2)) * error
        low = mean - math.hypot(seeds, float(np.mean([e.number - e.low for e in each])))
        high = mean + math.hypot(seeds, float(np.mean([e.high - e.number for e in each])))
        how = "Student's interval over them and the mean of their own added as squares"
    return dataclasses.replace(
        each[0],
        number=mean,
        low=low,
        high=high,
        method=f"mean of {count(len(each), 'seed')}, {how}; each: {each[0].method}",
    )
