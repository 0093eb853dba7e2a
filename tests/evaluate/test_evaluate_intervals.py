"""Intervals and reach against closed forms, printed values and brute force."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.evaluate import intervals
from ropewalk.evaluate.reach import grid, k_max


def by_definition(
    distances: list[int], successes: list[int], trials: list[int], threshold: float
) -> int:
    """Return the largest k such that every k' <= k passes."""
    passing = [
        k
        for k in distances
        if all(
            s / n >= threshold
            for d, s, n in zip(distances, successes, trials, strict=True)
            if d <= k
        )
    ]
    return max(passing, default=0)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 10)), min_size=1, max_size=12),
    st.sampled_from([0.1, 0.2, 0.3, 0.5, 1.0]),
)
def test_k_max_is_its_definition(steps: list[tuple[int, int]], threshold: float) -> None:
    """Guards: the largest passing distance instead of the end of the unbroken run of passes."""
    distances = np.cumsum([step for step, _ in steps]).tolist()
    successes = [s for _, s in steps]
    trials = [10] * len(steps)
    expected = by_definition(distances, successes, trials, threshold)
    assert k_max(distances, successes, trials, threshold) == expected


def test_k_max_counts_a_rate_equal_to_the_threshold() -> None:
    """Guards: 2 of 10 read as below 20 %, by rounding or by a strict comparison."""
    assert k_max([8, 16, 24], [2, 2, 1], [10, 10, 10], 0.2) == 16
    assert k_max([8, 16], [3, 3], [10, 10], 0.3) == 16
    assert k_max([8, 16], [0, 10], [10, 10], 0.2) == 0


def test_grid_is_that_of_the_paper() -> None:
    """Guards: a grid off by one. PI table 4: multiples of 256 up to 8192."""
    assert grid(8192, 32) == tuple(range(256, 8193, 256))
    assert grid(10, 4) == (2, 5, 7, 10)
    assert grid(3, 8) == (1, 2, 3)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (10, 10, 0.7225, 1.0),
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_equals_printed_values(successes: int, trials: int, low: float, high: float) -> None:
    """Guards: a normal interval in its place. 81 of 263: Newcombe 1998, method 3, without c.c."""
    found = intervals.wilson(successes, trials)
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_solve_the_score_equation(case: tuple[int, int]) -> None:
    """Guards: an algebra slip: at both ends |share - p| = z sqrt(p (1 - p) / n)."""
    successes, trials = case
    found = intervals.wilson(successes, trials)
    share = successes / trials
    assert 0 <= found.low <= share <= found.high <= 1
    for p in (found.low, found.high):
        if 0 < p < 1:
            z = abs(share - p) / math.sqrt(p * (1 - p) / trials)
            assert z == pytest.approx(1.959964, rel=1e-5)


def test_wilson_refuses_what_is_no_share() -> None:
    """Guards: an interval around 11 of 10."""
    with pytest.raises(ValueError, match="11 successes of 10 trials"):
        intervals.wilson(11, 10)


def corpus(seed: int = 0, documents: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return losses of two arms that share most of their variation, and token counts."""
    random = np.random.default_rng(seed)
    tokens = random.integers(20, 200, size=documents)
    hard = random.normal(3, 0.5, size=documents)
    first = hard + random.normal(0, 0.02, size=documents)
    second = hard + 0.05 + random.normal(0, 0.02, size=documents)
    return first * tokens, second * tokens, tokens


def test_mean_interval_agrees_with_the_delta_method() -> None:
    """Guards: resampled tokens instead of documents, or documents without their weights.

    The variance of a ratio estimator, sum((x_i - r t_i)^2) / (sum t)^2, is an independent formula.
    """
    sums, _, tokens = corpus()
    found = intervals.mean_nll(sums.tolist(), tokens.tolist(), seed=1)
    ratio = sums.sum() / tokens.sum()
    sigma = math.sqrt(((sums - ratio * tokens) ** 2).sum()) / tokens.sum()
    assert found.low == pytest.approx(ratio - 1.96 * sigma, abs=0.15 * sigma)
    assert found.high == pytest.approx(ratio + 1.96 * sigma, abs=0.15 * sigma)


def test_bootstrap_equals_brute_force_resampling() -> None:
    """Guards: a vectorised resample that is not n documents with replacement.

    With three documents all 27 resamples can be listed; the draws must have their distribution.
    """
    sums, tokens = np.array([1.0, 4.0, 12.0]), np.array([1, 2, 3])
    exact = [
        (sums[[a, b, c]].sum() / tokens[[a, b, c]].sum())
        for a in range(3)
        for b in range(3)
        for c in range(3)
    ]
    values, counts = np.unique(np.round(exact, 9), return_counts=True)
    drawn = np.round(intervals.nll_draws(sums, tokens, seed=0, draws=27_000)[0], 9)
    assert set(drawn) == set(values)
    for value, count in zip(values, counts, strict=True):
        assert (drawn == value).sum() == pytest.approx(
            1000 * count, abs=5 * math.sqrt(1000 * count)
        )


def test_difference_is_paired() -> None:
    """Guards: arms resampled apart: the interval would be as wide as the documents differ."""
    first, second, tokens = corpus()
    arm, baseline = (first.tolist(), tokens.tolist()), (second.tolist(), tokens.tolist())
    found = intervals.difference(arm, baseline, seed=0)
    assert -0.07 < found.low < found.high < -0.03
    other = intervals.difference(baseline, arm, seed=0)
    assert (other.low, other.high) == (pytest.approx(-found.high), pytest.approx(-found.low))
    same = intervals.difference(arm, arm, seed=0)
    assert (same.low, same.high) == (0.0, 0.0)


def test_perplexity_ratio_follows_from_the_losses() -> None:
    """Guards: a ratio of mean perplexities over documents."""
    first, second, tokens = corpus()
    arm, baseline = (first.tolist(), tokens.tolist()), (second.tolist(), tokens.tolist())
    loss = intervals.difference(arm, baseline, seed=4)
    ratio = intervals.perplexity_ratio(arm, baseline, seed=4)
    assert ratio.low == pytest.approx(math.exp(loss.low))
    assert ratio.high == pytest.approx(math.exp(loss.high))


def test_equal_seeds_give_equal_intervals_and_others_do_not() -> None:
    """Guards: a global generator, and draws that depend on how arms are grouped."""
    first, second, tokens = corpus()
    together = intervals.nll_draws(np.stack([first, second]), np.stack([tokens, tokens]), seed=0)
    np.testing.assert_array_equal(together[0], intervals.nll_draws(first, tokens, seed=0)[0])
    assert not np.array_equal(together[0], intervals.nll_draws(first, tokens, seed=1)[0])


def test_arms_on_other_documents_are_refused() -> None:
    """Guards: pairing by place of lists of different length."""
    with pytest.raises(ValueError, match="2 and 3 documents cannot be paired"):
        intervals.difference(([1.0, 2.0], [1, 1]), ([1.0, 2.0, 3.0], [1, 1, 1]), seed=0)
    with pytest.raises(ValueError, match="at least one document"):
        intervals.mean_nll([], [], seed=0)


def test_reach_draws_have_the_probabilities_of_the_binomial() -> None:
    """Guards: a reach interval from one draw for all distances, or from another rule.

    At three distances with s of 10 successes, P(k_max = k) is a product of binomial tails of the
    smoothed rates.
    """
    distances, successes, trials = [8, 16, 24], [3, 2, 6], [10, 10, 10]
    drawn = intervals.reach_draws(distances, successes, trials, 0.2, seed=0, draws=40_000)
    passes = []
    for s, n in zip(successes, trials, strict=True):
        p = (s + 0.5) / (n + 1)
        passes.append(sum(math.comb(n, x) * p**x * (1 - p) ** (n - x) for x in range(2, n + 1)))
    a, b, c = passes
    expected = {0: 1 - a, 8: a * (1 - b), 16: a * b * (1 - c), 24: a * b * c}
    for reach, probability in expected.items():
        assert (drawn == reach).mean() == pytest.approx(probability, abs=0.012)


def test_reach_of_a_model_that_never_or_always_answers() -> None:
    """Guards: an interval of a perfect probe that is cut short, or of no success that is long."""
    distances, trials = list(range(8, 264, 8)), [10] * 32
    always = intervals.reach(distances, [10] * 32, trials, 0.2, seed=0)
    assert (always.low, always.high) == (256, 256)
    never = intervals.reach(distances, [0] * 32, trials, 0.2, seed=0)
    assert never.low == 0
    assert never.high <= 16


def test_a_rate_of_one_half_is_often_cut_short() -> None:
    """Guards: a reach read as certain. 32 distances, true rate 0.5: cut short in 29 % of probes."""
    exact = 1 - (1 - 11 / 1024) ** 32
    assert exact == pytest.approx(0.29, abs=0.005)
    drawn = intervals.reach_draws(
        list(range(1, 33)), [5] * 32, [10] * 32, 0.2, seed=0, draws=20_000
    )
    assert (drawn < 32).mean() == pytest.approx(exact, abs=0.015)
