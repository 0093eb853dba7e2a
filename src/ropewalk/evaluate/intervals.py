"""Intervals: paired bootstrap over documents, Wilson for shares, parametric bootstrap for reach.

The unit of resampling is the document: tokens of one document are not independent. Arms measured on
the same documents are resampled together, so what documents have in common cancels in a difference.
"""

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from ropewalk.base.rng import generator
from ropewalk.evaluate import reach as reach_rules

DRAWS = 2000
LEVEL = 0.95
DRAWS_AT_ONCE = 2**22  # elements of one block of resampling weights: 32 MiB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A two-sided interval."""

    low: float
    high: float


def percentile(draws: np.ndarray, level: float = LEVEL) -> Interval:
    """Return the central interval that holds `level` of the draws [n]."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high))


def nll_draws(
    nll_sums: np.ndarray, tokens: np.ndarray, *, seed: int, draws: int = DRAWS
) -> np.ndarray:
    """Return bootstrap draws of the mean loss of each arm, float64 [arms, draws].

    `nll_sums` and `tokens` are [arms, documents], column i the same document in every arm. In each
    draw as many documents as there are are taken with replacement, the same for all arms, and the
    mean is over their tokens (Efron and Tibshirani 1993, ch. 6, with documents as the units).
    The resamples depend on the seed and the number of documents only, so that arms drawn in
    separate calls on the same documents are paired as well.

    Raises:
        ValueError: if the two tables differ in shape or hold no document.
    """
    nll_sums, tokens = np.atleast_2d(nll_sums), np.atleast_2d(tokens)
    if nll_sums.shape != tokens.shape or nll_sums.shape[1] == 0:
        raise ValueError(
            f"nll_sums {nll_sums.shape} and tokens {tokens.shape} must be [arms, documents] alike, "
            "with at least one document"
        )
    documents = nll_sums.shape[1]
    random = generator(seed, "document bootstrap", documents)
    drawn = np.empty((len(nll_sums), draws))
    step = max(1, DRAWS_AT_ONCE // documents)
    for begin in range(0, draws, step):
        size = min(step, draws - begin)
        taken = random.multinomial(documents, np.full(documents, 1 / documents), size=size)
        for arm, (sums, counts) in enumerate(zip(nll_sums, tokens, strict=True)):
            # einsum and not matmul: equal arms must give equal bits, whatever BLAS is linked.
            total = np.einsum("nd,d->n", taken, sums) / np.einsum("nd,d->n", taken, counts)
            drawn[arm, begin : begin + size] = total
    return drawn


def mean_nll(
    nll_sums: Sequence[float],
    tokens: Sequence[float],
    *,
    seed: int,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Interval:
    """Return the interval of the mean loss of one arm; exponentiate it for perplexity."""
    drawn = nll_draws(np.array([nll_sums]), np.array([tokens]), seed=seed, draws=draws)
    return percentile(drawn[0], level)


def difference(
    arm: tuple[Sequence[float], Sequence[int]],
    baseline: tuple[Sequence[float], Sequence[int]],
    *,
    seed: int,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Interval:
    """Return the interval of nll(arm) - nll(baseline), each `(nll_sums, tokens)` per document.

    Document i is the same document in both.
    """
    first, second = _paired(arm, baseline, seed=seed, draws=draws)
    return percentile(first - second, level)


def perplexity_ratio(
    arm: tuple[Sequence[float], Sequence[int]],
    baseline: tuple[Sequence[float], Sequence[int]],
    *,
    seed: int,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Interval:
    """Return the interval of perplexity(arm) / perplexity(baseline): exp of the difference."""
    bounds = difference(arm, baseline, seed=seed, draws=draws, level=level)
    return Interval(low=math.exp(bounds.low), high=math.exp(bounds.high))


def wilson(successes: int, trials: int, level: float = LEVEL) -> Interval:
    """Return the score interval of a share (Wilson 1927, JASA 22, p. 209).

    Raises:
        ValueError: unless 0 <= successes <= trials and trials > 0.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes of {trials} trials is not a share")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return Interval(
        low=max(0.0, (centre - half) / scale) if successes else 0.0,
        high=min(1.0, (centre + half) / scale) if successes < trials else 1.0,
    )


def share_difference(
    arm: tuple[int, int], baseline: tuple[int, int], level: float = LEVEL
) -> Interval:
    """Return the interval of a difference of two shares, each `(successes, trials)`.

    Newcombe 1998 (Statistics in Medicine 17, p. 873), method 10: Wilson's intervals of both arms,
    taken for independent; where arms share their trials it is too wide rather than too narrow.
    """
    first, second = wilson(*arm, level), wilson(*baseline, level)
    share, other = arm[0] / arm[1], baseline[0] / baseline[1]
    return Interval(
        low=share - other - math.hypot(share - first.low, second.high - other),
        high=share - other + math.hypot(first.high - share, other - second.low),
    )


def reach_draws(
    distances: Sequence[int],
    successes: Sequence[int],
    trials: Sequence[int],
    threshold: float,
    *,
    seed: int,
    draws: int = DRAWS,
) -> np.ndarray:
    """Return parametric bootstrap draws of k_max, int64 [draws].

    Each draw repeats the whole probe: at every distance a binomial of as many trials, with the rate
    (successes + 1/2) / (trials + 1). The measured rate itself would give 0 of 10 and 10 of 10 no
    spread at all; this is the mean of the rate after Jeffreys' prior.
    """
    counts = np.asarray(trials, dtype=np.int64)
    rates = (np.asarray(successes) + 0.5) / (counts + 1)
    random = generator(seed, "reach bootstrap", len(counts))
    drawn = random.binomial(counts, rates, size=(draws, len(counts)))
    return reach_rules.reaches(np.asarray(distances, dtype=np.int64), drawn, counts, threshold)


def reach(
    distances: Sequence[int],
    successes: Sequence[int],
    trials: Sequence[int],
    threshold: float,
    *,
    seed: int,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Interval:
    """Return the interval of k_max in tokens; both ends are tested distances, or 0."""
    drawn = reach_draws(distances, successes, trials, threshold, seed=seed, draws=draws)
    ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Interval(low=float(ends[0]), high=float(ends[1]))


def effective_length(
    distances: Sequence[int],
    drops: np.ndarray,
    *,
    share: float,
    least_nats: float,
    seed: int,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Interval:
    """Return the interval of the effective length of a copy probe in tokens.

    `drops` are nats per token, [distances, trials]. A trial has the same tokens at every distance,
    so all its drops are drawn together. Both ends are tested distances, or 0.
    """
    drawn = nll_draws(drops, np.ones_like(drops), seed=seed, draws=draws).T
    lengths = reach_rules.effective_length(distances, drawn, share=share, least_nats=least_nats)
    ends = np.quantile(lengths, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Interval(low=float(ends[0]), high=float(ends[1]))


def _paired(
    arm: tuple[Sequence[float], Sequence[int]],
    baseline: tuple[Sequence[float], Sequence[int]],
    *,
    seed: int,
    draws: int,
) -> tuple[np.ndarray, np.ndarray]:
    if len(arm[0]) != len(baseline[0]):
        raise ValueError(
            f"arms on {len(arm[0])} and {len(baseline[0])} documents cannot be paired: both must "
            "be measured on the same documents"
        )
    nll_sums = np.array([arm[0], baseline[0]], dtype=np.float64)
    tokens = np.array([arm[1], baseline[1]], dtype=np.float64)
    drawn = nll_draws(nll_sums, tokens, seed=seed, draws=draws)
    return drawn[0], drawn[1]
