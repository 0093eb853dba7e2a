"""Comparisons of more than two measured numbers: their order, and whether steps grow."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ropewalk.evaluate import intervals
from ropewalk.report import bounds as bound_maths
from ropewalk.report.compare import Comparison, Region, Sampling, bound_draws, standing
from ropewalk.report.estimate import LEVEL, Estimate, over_seeds
from ropewalk.report.quantities import describe
from ropewalk.report.samples import Measured, PerPosition, PerUnit
from ropewalk.report.wording import bounds as worded
from ropewalk.report.wording import count


def compare_order(
    measured: Sequence[Measured], predicted: Sequence[float], least: float, sampling: Sampling
) -> Comparison:
    """Return where Spearman's correlation of bounds with their predictions stands to `least`.

    Bounds beyond what was read are equal in it.

    Raises:
        ValueError: if the bounds were not measured on the same documents.
    """
    laws = np.array(predicted)
    estimate = over_seeds(measured, lambda numbers: _correlation(numbers, laws, sampling))
    region = Region(low=least)
    return Comparison(
        of=f"rank correlation of {len(measured)} measured bounds with the predicted ones",
        needs=worded(least, None),
        region=region,
        estimate=estimate,
        standing=standing(estimate, region),
    )


def _correlation(measured: Sequence[Measured], laws: np.ndarray, sampling: Sampling) -> Estimate:
    samples = [m.sample for m in measured if isinstance(m.sample, PerPosition)]
    if len({(s.names, int(s.edges[-1])) for s in samples}) != 1 or len(samples) != len(measured):
        raise ValueError("bounds have an order only on the same documents, read as far")
    drawn = np.stack([np.minimum(bound_draws(s, sampling), s.edges[-1]) for s in samples], axis=1)
    numbers = np.array([[m.number for m in measured]])
    ends = intervals.percentile(bound_maths.rank_correlation(laws, drawn), LEVEL)
    units = count(len(samples[0].names), "document")
    return Estimate(
        number=float(bound_maths.rank_correlation(laws, numbers)[0]),
        low=ends.low,
        high=ends.high,
        method=f"paired bootstrap over {units}, {sampling.draws:,} draws",
        unit="number",
    )


def compare_steps(
    chain: Sequence[Measured], direction: Literal["falling", "rising"], sampling: Sampling
) -> Comparison:
    """Return whether the second of two steps goes further in a direction than the first.

    Raises:
        ValueError: unless the three numbers are means over the same documents or samples.
    """
    sign = -1.0 if direction == "falling" else 1.0
    estimate = over_seeds(chain, lambda numbers: _growth(numbers, sign, sampling))
    region = Region(low=0.0, strict=True)
    start, turn, end = (describe(m.quantity) for m in chain)
    return Comparison(
        of=f"{'fall' if direction == 'falling' else 'rise'} from the {turn} to the {end}, less "
        f"that from the {start} to the {turn},",
        needs=worded(0.0, None, strict=True),
        region=region,
        estimate=estimate,
        standing=standing(estimate, region),
    )


def _growth(chain: Sequence[Measured], sign: float, sampling: Sampling) -> Estimate:
    samples = [m.sample for m in chain if isinstance(m.sample, PerUnit)]
    alike = {s.names for s in samples}, {m.quantity.value for m in chain}
    if len(samples) != 3 or any(len(found) != 1 for found in alike):
        raise ValueError("steps are compared between three means over the same documents")
    a, b, c = intervals.nll_draws(
        np.stack([s.sums for s in samples]),
        np.stack([s.weights for s in samples]),
        seed=sampling.seed,
        draws=sampling.draws,
    )
    ends = intervals.percentile(sign * ((c - b) - (b - a)), LEVEL)
    first, middle, last = (s.mean for s in samples)
    units = count(len(samples[0].names), samples[0].unit)
    return Estimate(
        number=sign * ((last - middle) - (middle - first)),
        low=ends.low,
        high=ends.high,
        method=f"paired bootstrap over {units}, {sampling.draws:,} draws",
        unit=chain[0].quantity.value,
    )
