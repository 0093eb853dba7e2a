"""Coverage of relative distances against pairs of tokens and every draw there can be."""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.evaluate.check_pose import GROUPS, PoseCost, PoseCoverage
from ropewalk.evaluate.coverage import covered, scattered_far, two_chunks
from ropewalk.model.spec import PosePositions

EIGHTHS = range(1, 8)


@given(st.data(), st.integers(1, 80), st.booleans())
def test_covered_distances_are_those_of_all_pairs(
    data: st.DataObject, target: int, bunched: bool
) -> None:
    """Guards against a distance off by one, in intervals or in the transform for many runs."""
    share = st.just(True) if bunched else st.booleans()
    kept = [place for place in range(target) if data.draw(share)]
    if bunched:  # a few runs: holes at a few places
        kept = sorted(set(kept) - set(data.draw(st.lists(st.integers(0, target - 1), max_size=6))))
    ids = np.array(kept or [target - 1], dtype=np.int64)
    expected = {int(far - near) for near in ids for far in ids if far >= near}
    found = covered(ids, target)
    assert found.shape == (target,)
    assert set(np.flatnonzero(found).tolist()) == expected


# Every draw of a row with its chance, by the text of the paper (section 3.2, figure 6)


def lengths_of(tokens: int, chunks: int, short: bool) -> Iterator[tuple[list[int], Fraction]]:
    if chunks == 1:
        yield [tokens], Fraction(1)
        return
    most = (tokens + 1) // 2 if short else tokens - (chunks - 1)
    for first in range(1, most + 1):
        for rest, chance in lengths_of(tokens - first, chunks - 1, False):
            yield [first, *rest], chance / most


def skips_of(least: int, room: int, count: int) -> Iterator[tuple[list[int], Fraction]]:
    if count == 0:
        yield [], Fraction(1)
        return
    for skip in range(least, room + 1):
        for rest, chance in skips_of(skip, room, count - 1):
            yield [skip, *rest], chance / (room - least + 1)


def placed_chances(
    tokens: int, target: int, chunks: int, *, short: bool = False, random_first: bool = False
) -> list[Fraction]:
    """Return p(d) by going through every row and every pair of its tokens."""
    room = target - tokens
    chances = [Fraction(0)] * target
    drawn = chunks if random_first else chunks - 1
    for lengths, likely in lengths_of(tokens, chunks, short):
        for later, chance in skips_of(0, room, drawn):
            skips = later if random_first else [0, *later]
            places = iter(range(tokens))
            ids = [u + next(places) for u, n in zip(skips, lengths, strict=True) for _ in range(n)]
            for distance in {far - near for near in ids for far in ids if far >= near}:
                chances[distance] += likely * chance
    return chances


def scattered_chances(tokens: int, target: int) -> list[Fraction]:
    subsets = list(itertools.combinations(range(target), tokens))
    return [
        Fraction(sum(any(i + d in s for i in s) for s in map(set, subsets)), len(subsets))
        for d in range(target)
    ]


@pytest.mark.parametrize("first", ["zero", "random"])
@pytest.mark.parametrize("lengths", ["uniform", "short_first"])
def test_closed_form_of_two_chunks_is_the_sum_over_every_draw(first: Any, lengths: Any) -> None:
    """Guards against a gap or a length drawn from another range than the row's."""
    for tokens, more in itertools.product(range(2, 8), range(9)):
        target = tokens + more
        positions = PosePositions(target_tokens=target, first=first, lengths=lengths)
        expected = placed_chances(
            tokens, target, 2, short=lengths == "short_first", random_first=first == "random"
        )
        found = two_chunks(positions, tokens)
        assert found == pytest.approx([float(chance) for chance in expected], abs=1e-12)


def test_closed_form_of_randpos_is_the_share_of_all_subsets() -> None:
    """Guards against a formula for pairs that overlap, below half of the target."""
    for target in range(2, 12):
        for tokens in range(1, target + 1):
            expected = scattered_chances(tokens, target)[-(target // 2) :]
            found = scattered_far(tokens, target)
            assert found == pytest.approx([float(chance) for chance in expected], abs=1e-9)


def test_closed_forms_at_the_size_of_the_paper() -> None:
    """Guards against rounding that only shows in long rows; plain loops and exact fractions."""
    tokens, target = 2048, 16384
    room = target - tokens
    zero = two_chunks(PosePositions(target_tokens=target), tokens)
    random = two_chunks(PosePositions(target_tokens=target, first="random"), tokens)
    for distance in (2048, 8192, 12288, 14336, 16000, 16383):
        gaps = [g for g in range(room + 1) if distance - tokens < g < distance]
        assert zero[distance] == pytest.approx(len(gaps) / (room + 1), rel=1e-9)
        chance = 0.0
        for first in range(room + 1):
            reached = range(gaps[0], min(gaps[-1], room - first) + 1)
            chance += len(reached) / (room - first + 1) / (room + 1)
        assert random[distance] == pytest.approx(chance, rel=1e-9)
    # 12k and 14k of 16k, as found by another simulation: 0.14 to 0.034, 0.146 to 0.010
    assert random[[12288, 14336]] == pytest.approx([0.034, 0.010], abs=0.001)
    assert zero[[12288, 14336]] == pytest.approx([0.143, 0.143], abs=0.001)
    far = scattered_far(tokens, target)
    assert far[-1] == pytest.approx(tokens * (tokens - 1) / (target * (target - 1)), rel=1e-6)
    # Distance Lt - 2 has the pairs (0, Lt - 2) and (1, Lt - 1).
    one = Fraction(tokens * (tokens - 1), target * (target - 1))
    both = one * Fraction((tokens - 2) * (tokens - 3), (target - 2) * (target - 3))
    assert far[-2] == pytest.approx(float(2 * one - both), rel=1e-6)


@pytest.mark.parametrize(("positions", "tokens"), [(3, 6), (2, 1), (2, 21)])
def test_the_closed_form_refuses_what_it_is_not_for(positions: int, tokens: int) -> None:
    """Guards against the coverage of two chunks shown for three."""
    with pytest.raises(ValueError, match=r"2 chunks in 2 \.\.\. 20 tokens"):
        two_chunks(PosePositions(target_tokens=20, chunks=positions), tokens)


# The check


SMALL = {"window_tokens": 6, "target_tokens": 16}
EXPECTED = {
    "two": placed_chances(6, 16, 2),
    "three": placed_chances(6, 16, 3),
    "short_first": placed_chances(6, 16, 2, short=True),
    "random_first": placed_chances(6, 16, 2, random_first=True),
    "randpos": scattered_chances(6, 16),
}


@functools.cache
def small_numbers() -> Mapping[str, float]:
    return PoseCoverage(**SMALL).run().numbers


@pytest.mark.parametrize("way", EXPECTED)
def test_the_sampler_of_training_covers_what_every_draw_covers(way: str) -> None:
    """Guards against a check that draws other rows than training, or counts them wrongly."""
    found, draws = small_numbers(), PoseCoverage.draws
    p = np.array([float(chance) for chance in EXPECTED[way]])
    for k in EIGHTHS:
        error = math.sqrt(p[2 * k] * (1 - p[2 * k]) / draws)
        assert found[f"{way}_at_{k}_of_8"] == pytest.approx(p[2 * k], abs=4.5 * error + 1e-12)
    assert found[f"{way}_far_mean"] == pytest.approx(p[6:].mean(), abs=0.02)
    for n in GROUPS:
        share = (1 - (1 - p) ** n).mean()
        tolerance = 4.5 * 0.5 / math.sqrt(draws // n)  # a share varies by less than 1/2
        assert found[f"{way}_share_after_{n}"] == pytest.approx(share, abs=tolerance)
    if way in ("two", "short_first", "random_first"):
        for k in EIGHTHS:
            assert found[f"{way}_exact_at_{k}_of_8"] == pytest.approx(p[2 * k], rel=1e-9)
        assert found[f"{way}_exact_far_mean"] == pytest.approx(p[6:].mean(), rel=1e-9)
        for n, name in [*((n, n) for n in GROUPS), (64_000, "training")]:
            expected = (1 - (1 - p) ** n).mean()
            assert found[f"{way}_exact_share_after_{name}"] == pytest.approx(expected, rel=1e-9)
    if way != "three":
        assert found[f"{way}_deviation"] < 4.5
    ratios = [float(EXPECTED["two"][2 * k] / EXPECTED["random_first"][2 * k]) for k in EIGHTHS]
    assert [found[f"first_ratio_at_{k}_of_8"] for k in EIGHTHS] == pytest.approx(ratios, rel=1e-9)
    pairs = zip(EXPECTED["two"], EXPECTED["short_first"], strict=True)
    difference = max(abs(a - b) for a, b in pairs)
    assert difference > 0
    assert found["lengths_difference"] == pytest.approx(float(difference), rel=1e-9)


def test_the_numbers_at_the_size_of_the_paper() -> None:
    """Guards against a check of another window or target; N = 3 from another simulation."""
    found = PoseCoverage(draws=1024).run().numbers
    assert found["two_exact_at_6_of_8"] == pytest.approx(0.1428, abs=5e-5)
    assert found["random_first_exact_at_6_of_8"] == pytest.approx(0.0346, abs=5e-5)
    assert found["first_ratio_at_7_of_8"] == pytest.approx(13.3, abs=0.05)
    for k, printed in {1: 0.28, 4: 0.22, 7: 0.34}.items():
        error = 4.5 * math.sqrt(printed * (1 - printed) / 1024) + 0.005
        assert found[f"three_at_{k}_of_8"] == pytest.approx(printed, abs=error)
    assert found["three_far_mean"] > 1.5 * found["two_far_mean"]
    assert found["randpos_far_mean"] > 0.99
    assert found["lengths_difference"] < 1 / 2047  # only where both chunks are equally long
    for way in ("two", "short_first", "random_first", "randpos"):
        assert found[f"{way}_deviation"] < 5


def test_the_deviation_sees_another_rule() -> None:
    """Guards against a comparison that cannot fail: the older rule against the newer one's form."""
    check = PoseCoverage(draws=256)
    zero = two_chunks(PosePositions(target_tokens=check.target_tokens), check.window_tokens)
    older = PosePositions(target_tokens=check.target_tokens, first="random")
    random = two_chunks(older, check.window_tokens)
    assert check._deviation(random, zero) > 5
    assert check._deviation(zero, random) > 5
    assert check._deviation(zero, zero) == 0


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31))
def test_draws_are_addressed_by_the_seed(seed: int) -> None:
    """Guards against randomness that is consumed, so that a second run finds other numbers."""
    small = {**SMALL, "draws": 128}
    first, again = (PoseCoverage(**small, seed=seed).run() for _ in range(2))
    assert first == again
    other = PoseCoverage(**small, seed=seed + 1).run()
    assert first.numbers["two_far_mean"] == pytest.approx(other.numbers["two_far_mean"], abs=0.2)
    assert first.series["two_exact"] == other.series["two_exact"]
    assert first.series != other.series


def test_the_cost_of_a_step_is_that_of_every_product_of_llama_7b() -> None:
    """Guards against a flat cost that counts the wrong rows, or forgets attention.

    Counted matrix by matrix and pair by pair: forward once, backward twice, two FLOPs a product.
    """
    numbers = PoseCost().run().numbers
    weights = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 32000 * 4096

    def step(tokens: int) -> int:
        pairs = sum(range(1, tokens + 1))
        return 16 * 3 * 2 * (weights * tokens + 32 * 2 * 4096 * pairs)

    for windows in (2, 4, 8):
        assert numbers[f"pose_at_{windows}x"] == step(2048)
        assert numbers[f"full_at_{windows}x"] == step(2048 * windows)
    assert numbers["pose_growth"] == 1
    assert numbers["full_growth"] == pytest.approx(step(16384) / step(4096))
    assert numbers["full_over_pose"] == pytest.approx(step(16384) / step(2048))
