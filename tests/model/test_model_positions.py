"""Positions against the papers' rules, enumerated, and the distances they cover."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.base.rng import generator
from ropewalk.model.positions import Chunks, placed, position_ids, scattered
from ropewalk.model.spec import NaturalPositions, PosePositions, RandPosPositions

WINDOW, TARGET = 2048, 16384  # of the PoSE paper
DRAWS = 10_000
CONTENTS = ("random", "contiguous", "aligned")


# What one row looks like


@st.composite
def rows(draw: st.DrawFn) -> tuple[PosePositions, int, int, int]:
    """Return (positions, tokens, document tokens, seed) that go together."""
    tokens = draw(st.integers(2, 60))
    lengths = draw(st.sampled_from(["uniform", "short_first"]))
    chunks = 2 if lengths == "short_first" else draw(st.integers(1, min(tokens, 6)))
    target = tokens + draw(st.integers(0, 100))
    content = draw(st.sampled_from(CONTENTS))
    document = (target if content == "aligned" else tokens) + draw(st.integers(0, 100))
    positions = PosePositions(
        target_tokens=target,
        chunks=chunks,
        lengths=lengths,
        content=content,
        first=draw(st.sampled_from(["zero", "random"])),
        document_tokens=draw(st.none() | st.integers(tokens, 200)),
    )
    return positions, tokens, document, draw(st.integers(0, 2**32))


@settings(deadline=None)
@given(rows())
def test_model_positions_of_chunks_are_places_in_the_target(
    row: tuple[PosePositions, int, int, int],
) -> None:
    """Guards against positions that overlap, tear a chunk apart or reach beyond the target."""
    positions, tokens, document, seed = row
    chunks = placed(positions, tokens, generator(seed, "test"), document)
    assert len(chunks.lengths) == len(chunks.skips) == len(chunks.texts) == positions.chunks
    assert sum(chunks.lengths) == tokens
    assert min(chunks.lengths) >= 1
    if positions.lengths == "short_first":
        assert chunks.lengths[0] <= chunks.lengths[1] + 1
    assert list(chunks.skips) == sorted(chunks.skips)
    assert list(chunks.texts) == sorted(chunks.texts)
    if positions.first == "zero":
        assert chunks.skips[0] == 0
    for ids in (chunks.positions, chunks.document_places):
        assert ids.dtype == np.int64
        assert ids.shape == (tokens,)
    assert 0 <= chunks.positions[0] <= chunks.positions[-1] < positions.target_tokens
    assert 0 <= chunks.document_places[0] <= chunks.document_places[-1] < document
    # The papers' indices, token by token.
    begin = 0
    for length, skip, text in zip(chunks.lengths, chunks.skips, chunks.texts, strict=True):
        for inside in range(length):
            assert chunks.positions[begin + inside] == skip + begin + inside
            assert chunks.document_places[begin + inside] == text + begin + inside
        begin += length
    assert (np.diff(chunks.positions) >= 1).all()
    assert (np.diff(chunks.document_places) >= 1).all()
    match positions.content:
        case "contiguous":
            assert chunks.texts == (0,) * positions.chunks
        case "aligned":
            assert chunks.texts == chunks.skips
        case "random":
            assert chunks.texts[0] == 0
            if positions.document_tokens is not None:
                assert chunks.document_places[-1] < positions.document_tokens


@settings(deadline=None)
@given(rows(), st.integers(0, 500))
def test_model_positions_do_not_depend_on_content(
    row: tuple[PosePositions, int, int, int], more: int
) -> None:
    """Guards against runs that differ in content and, unseen, in positions too."""
    positions, tokens, document, seed = row
    fields = vars(positions) | {"document_tokens": None}
    long = positions.target_tokens + more
    others = [
        placed(PosePositions(**fields | {"content": c}), tokens, generator(seed, "test"), long)
        for c in CONTENTS
    ]
    alone = position_ids(positions, tokens, [generator(seed, "test")])
    found = placed(positions, tokens, generator(seed, "test"), document)
    assert alone.tolist() == [found.positions.tolist()]
    for other in others:
        assert (other.lengths, other.skips) == (found.lengths, found.skips)


@pytest.mark.parametrize("content", CONTENTS)
def test_model_positions_of_one_chunk_are_natural(content: Any) -> None:
    """Guards against an N = 1 baseline that is not ordinary training."""
    positions = PosePositions(target_tokens=40, chunks=1, content=content)
    for seed in range(20):
        chunks = placed(positions, 10, generator(seed, "test"), 50)
        assert chunks.positions.tolist() == list(range(10))
        assert chunks.document_places.tolist() == list(range(10))
        assert np.array_equal(
            position_ids(positions, 10, [generator(seed, "test")]),
            position_ids(NaturalPositions(), 10),
        )


def test_model_positions_of_rows_are_those_of_each_generator() -> None:
    """Guards against a row whose positions depend on the rows beside it."""
    for positions in (PosePositions(target_tokens=90), RandPosPositions(target_tokens=90)):
        whole = position_ids(positions, 16, [generator(0, "test", row) for row in range(5)])
        assert whole.dtype == np.int64
        assert whole.shape == (5, 16)
        for row in range(5):
            one = position_ids(positions, 16, [generator(0, "test", row)])
            assert np.array_equal(one, whole[row : row + 1])
        assert len({tuple(row) for row in whole.tolist()}) == 5
    natural = position_ids(NaturalPositions(), 16)
    assert natural.dtype == np.int64
    assert natural.tolist() == [list(range(16))]


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(0, 100), st.integers(0, 2**32))
def test_model_positions_of_randpos_are_sorted_and_distinct(
    tokens: int, room: int, seed: int
) -> None:
    """Guards against two tokens at one position, and positions beyond the target."""
    positions = RandPosPositions(target_tokens=tokens + room)
    ids = scattered(positions, tokens, generator(seed, "test"))
    assert ids.dtype == np.int64
    assert ids.shape == (tokens,)
    assert (np.diff(ids) >= 1).all()
    assert 0 <= ids[0] <= ids[-1] < tokens + room


# How likely each row is: the rules enumerated with their exact probabilities


def outcomes(positions: PosePositions, tokens: int, document: int) -> dict[Chunks, Fraction]:
    """Return the probability of every row, by the text of the paper (section 3.2, figure 6)."""
    count = positions.chunks
    readable = min(document, positions.document_tokens or document)

    def steps(taken: tuple[int, ...], low: int, high: int) -> Iterator[tuple[tuple[int, ...], int]]:
        for value in range(low, high + 1):
            yield (*taken, value), high - low + 1

    def ascending(start: tuple[int, ...], high: int) -> Iterator[tuple[tuple[int, ...], Fraction]]:
        if len(start) == count:
            yield start, Fraction(1)
            return
        for longer, ways in steps(start, start[-1], high):
            for whole, chance in ascending(longer, high):
                yield whole, chance / ways

    def splits(start: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Fraction]]:
        left = tokens - sum(start)
        if len(start) == count - 1:
            yield (*start, left), Fraction(1)
            return
        short = positions.lengths == "short_first"
        most = (tokens + 1) // 2 if short else left - (count - 1 - len(start))
        for longer, ways in steps(start, 1, most):
            for whole, chance in splits(longer):
                yield whole, chance / ways

    room = positions.target_tokens - tokens
    if positions.first == "zero":
        skips = list(ascending((0,), room))
    else:
        firsts = range(room + 1)
        skips = [(u, c / (room + 1)) for first in firsts for u, c in ascending((first,), room)]
    texts = list(ascending((0,), readable - tokens))
    return {
        Chunks(lengths=lengths, skips=u, texts=v): a * b * c
        for (lengths, a), (u, b), (v, c) in itertools.product(splits(()), skips, texts)
    }


@pytest.mark.parametrize(
    ("positions", "document"),
    [
        (PosePositions(target_tokens=8, chunks=3), 6),
        (PosePositions(target_tokens=9), 9),
        (PosePositions(target_tokens=9, lengths="short_first"), 8),
        (PosePositions(target_tokens=8, first="random"), 7),
        (PosePositions(target_tokens=7, document_tokens=8), 90),
    ],
    ids=["three", "two", "short_first", "version_1", "document_tokens"],
)
def test_model_positions_are_drawn_as_likely_as_the_paper_says(
    positions: PosePositions, document: int
) -> None:
    """Guards against ranges that miss an end, or a draw whose range is another's."""
    tokens, draws = 5, 20_000
    expected = outcomes(positions, tokens, document)
    assert sum(expected.values()) == 1
    rng = generator(0, "test")
    found = Counter(placed(positions, tokens, rng, document) for _ in range(draws))
    assert set(found) <= set(expected)
    _assert_fits([(found[row], float(chance) * draws) for row, chance in expected.items()])


def test_model_positions_of_randpos_are_every_subset_alike() -> None:
    """Guards against a fast draw that favours some positions or combinations."""
    draws = 20_000
    rng = generator(0, "test")
    positions = RandPosPositions(target_tokens=7)
    found = Counter(tuple(scattered(positions, 3, rng).tolist()) for _ in range(draws))
    subsets = list(itertools.combinations(range(7), 3))
    assert set(found) <= set(subsets)
    _assert_fits([(found[subset], draws / len(subsets)) for subset in subsets])


def _assert_fits(counts: list[tuple[int, float]]) -> None:
    """Assert that chi-square is within 5 standard deviations of its expectation."""
    assert min(expected for _, expected in counts) > 5
    freedom = len(counts) - 1
    chi_square = sum((found - expected) ** 2 / expected for found, expected in counts)
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


# Which distances one row covers (PoSE, figures 5 and 6)


def covered(chunks: Chunks, target: int) -> np.ndarray:
    """Return which distances 0 ... target - 1 lie between two tokens of a row, bool [target].

    Two runs of consecutive positions, [a, b] before [c, d], cover the distances c - b to d - a.
    """
    first = np.add(chunks.skips, np.cumsum([0, *chunks.lengths[:-1]]))
    last = first + chunks.lengths - 1
    found = np.zeros(target, dtype=bool)
    for near in range(len(first)):
        for far in range(near, len(first)):
            low = first[far] - last[near] if far > near else 0
            found[low : last[far] - first[near] + 1] = True
    return found


@settings(deadline=None)
@given(rows())
def test_model_positions_coverage_is_counted_right(
    row: tuple[PosePositions, int, int, int],
) -> None:
    """Guards the test below: its intervals against every pair of tokens."""
    positions, tokens, document, seed = row
    chunks = placed(positions, tokens, generator(seed, "test"), document)
    pairs = chunks.positions[:, None] - chunks.positions[None]
    expected = np.isin(np.arange(positions.target_tokens), pairs)
    assert np.array_equal(covered(chunks, positions.target_tokens), expected)


def coverage(positions: PosePositions) -> np.ndarray:
    """Return how often each distance was covered in `DRAWS` rows, float64 [TARGET]."""
    rows = (placed(positions, WINDOW, generator(0, "test", i)) for i in range(DRAWS))
    return _mean((covered(row, TARGET) for row in rows), DRAWS)


def _mean(rows: Iterable[np.ndarray], count: int) -> np.ndarray:
    total = np.zeros(TARGET, dtype=np.int64)
    for row in rows:
        total += row
    return total / count


DISTANCES = [512, 1024, 1536, 2048, 8192, 14336, 15360, 16000]
# At DISTANCES, as printed by another simulation of figure 6 with as many draws; and the mean over
# [2048, 16383].
TABLE: dict[str, tuple[PosePositions, str, float]] = {
    "two": (
        PosePositions(target_tokens=TARGET),
        "1.00 1.00 0.55 0.142 0.141 0.146 0.074 0.026",
        0.132,
    ),
    "three": (
        PosePositions(target_tokens=TARGET, chunks=3),
        "1.00 0.87 0.54 0.28 0.22 0.34 0.25 0.12",
        0.235,
    ),
    "version_1": (
        PosePositions(target_tokens=TARGET, first="random"),
        "1.00 1.00 0.67 0.42 0.097 0.010 0.002 0.000",
        0.107,
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_model_positions_cover_the_distances_of_the_paper(name: str) -> None:
    """Guards against a PoSE that trains other distances than the published one."""
    positions, table, mean = TABLE[name]
    found = coverage(positions)
    for distance, printed in zip(DISTANCES, table.split(), strict=True):
        rounding = 0.5 * 10.0 ** -len(printed.partition(".")[2])
        share = float(printed)
        likely = min(max(share, rounding), 1 - rounding)
        error = math.sqrt(2 * likely * (1 - likely) / DRAWS)  # both are draws
        assert found[distance] == pytest.approx(share, abs=4 * error + rounding), distance
    # The share of long distances that a row covers varies by less than its mean between rows.
    tolerance = 4 * mean * math.sqrt(2 / DRAWS) + 0.0005
    assert found[WINDOW:].mean() == pytest.approx(mean, abs=tolerance)


def exact_coverage(first: str) -> np.ndarray:
    """Return the probability that two chunks cover each distance, float64 [TARGET].

    A distance d is covered inside the longer chunk, d < max(l_0, l_1), or across the gap
    g = u_1 - u_0, g < d < g + T. With R = Lt - T: P(g) = 1 / (R + 1) if u_0 = 0, and
    sum_(k = g + 1)^(R + 1) 1 / (k (R + 1)) if u_0 is drawn evenly from 0 ... R.
    """
    room = TARGET - WINDOW
    if first == "zero":
        gap = np.full(room + 1, 1 / (room + 1))
    else:
        gap = np.cumsum(1 / np.arange(room + 1, 0, -1))[::-1] / (room + 1)
    below = np.concatenate([[0.0], np.cumsum(gap)])  # P(g < index)
    distance = np.arange(TARGET)
    across = below[np.minimum(distance, room + 1)] - below[np.maximum(distance - WINDOW + 1, 0)]
    longest = np.maximum(np.arange(1, WINDOW), WINDOW - np.arange(1, WINDOW))
    inside = (longest[None] > distance[:WINDOW, None]).mean(axis=1)
    inside = np.concatenate([inside, np.zeros(TARGET - WINDOW)])
    return 1 - (1 - inside) * (1 - across)


@pytest.mark.parametrize("first", ["zero", "random"])
@pytest.mark.parametrize("lengths", ["uniform", "short_first"])
def test_model_positions_coverage_is_exact_for_both_length_rules(first: Any, lengths: Any) -> None:
    """Guards against a length rule, or a rule for u_0, that shifts the distances trained."""
    positions = PosePositions(target_tokens=TARGET, first=first, lengths=lengths)
    expected = exact_coverage(first)
    found = coverage(positions)
    error = np.sqrt(expected * (1 - expected) / DRAWS)
    # Where the count is small the binomial is skewed: 10 draws more are no surprise.
    assert (np.abs(found - expected) <= 4.5 * error + 10 / DRAWS).all()
    if first == "random":
        assert found[14336] < expected[14336] + 0.005 < 0.02  # far distances starve in version 1
    else:
        assert found[14336] > 0.13


def test_model_positions_of_randpos_cover_nearly_every_distance() -> None:
    """Guards against positions that are bunched, so that a row lacks distances."""
    positions = RandPosPositions(target_tokens=TARGET)
    draws = 100

    def one(index: int) -> np.ndarray:
        ids = scattered(positions, WINDOW, generator(0, "test", index))
        marks = np.zeros(2 * TARGET)
        marks[ids] = 1
        pairs = np.fft.irfft(np.abs(np.fft.rfft(marks)) ** 2)  # how often each distance occurs
        return pairs[:TARGET] > 0.5

    found = _mean((one(index) for index in range(draws)), draws)
    assert (found[: TARGET - 1024] == 1).all()
    assert found.mean() > 0.99
    assert found[-1] < 0.5  # both ends of the target at once: about 1 row of 64


# What is refused


def test_model_positions_refuse_what_cannot_be_placed() -> None:
    """Guards against rows that are quietly shortened or read beyond a document."""
    rng = generator(0, "test")
    pose = PosePositions(target_tokens=20, chunks=3)
    with pytest.raises(ValueError, match=r"21 tokens must lie within.*target_tokens 20"):
        placed(pose, 21, rng)
    with pytest.raises(ValueError, match=r"2 tokens must lie within positions.chunks 3"):
        placed(pose, 2, rng)
    with pytest.raises(ValueError, match=r"9 tokens of a document .* fewer than the 10 of a row"):
        placed(pose, 10, rng, 9)
    limited = PosePositions(target_tokens=20, document_tokens=8)
    with pytest.raises(ValueError, match=r"8 tokens of a document .*document_tokens 8"):
        placed(limited, 10, rng, 40)
    aligned = PosePositions(target_tokens=20, content="aligned")
    with pytest.raises(ValueError, match=r"document of 19 tokens .*target_tokens 20"):
        placed(aligned, 10, rng, 19)
    with pytest.raises(ValueError, match="target_tokens 20 is below the 21"):
        scattered(RandPosPositions(target_tokens=20), 21, rng)
    for positions in (pose, RandPosPositions(target_tokens=20)):
        with pytest.raises(ValueError, match="each row needs a generator"):
            position_ids(positions, 10)


def test_model_positions_contents_are_those_of_the_spec() -> None:
    """Guards the tests here: a content they do not know would not be tested."""
    assert set(get_args(PosePositions.__annotations__["content"])) == set(CONTENTS)
