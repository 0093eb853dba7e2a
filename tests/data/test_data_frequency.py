"""Position frequency against counting by hand and against the closed forms."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from ropewalk.data.frequency import (
    concatenated,
    histogram,
    position_frequency,
    shares,
    uniform,
)


def counted(segments: list[int], length: int) -> list[int]:
    """Count every pair of a token and one before it, or itself, by its distance."""
    frequency = [0] * length
    for size in segments:
        for token in range(size):
            for seen in range(token + 1):
                frequency[token - seen] += 1
    return frequency


@given(st.integers(1, 20), st.data())
def test_frequency_counts_every_pair(length: int, data: st.DataObject) -> None:
    """Guards against an index off by one: f(0) must be the number of tokens."""
    segments = data.draw(st.lists(st.integers(0, length), max_size=12))
    found = position_frequency(histogram(np.array(segments, dtype=np.int32), length))
    assert found.tolist() == counted(segments, length)
    assert found[0] == sum(segments)
    assert found.sum() == sum(size * (size + 1) // 2 for size in segments)


def test_histogram_in_blocks_is_the_histogram() -> None:
    """Guards against a block counted twice or not at all."""
    lengths = np.random.default_rng(0).integers(0, 8, (1 << 22) + 5).astype(np.int32)
    assert histogram(lengths, 9).tolist() == [*np.bincount(lengths).tolist(), 0, 0]


@pytest.mark.parametrize("length", [1, 2, 255, 2048])
def test_closed_forms(length: int) -> None:
    """Guards against closed forms that only resemble the definition (claims S1 and S3)."""
    full = np.zeros(length + 1, dtype=np.int64)
    full[length] = 7
    assert concatenated(7, length).tolist() == position_frequency(full).tolist()
    each = np.full(length + 1, 3)
    each[0] = 0
    assert uniform(3, length).tolist() == position_frequency(each).tolist()


def test_shares_are_those_of_the_paper() -> None:
    """Guards against shares over other ranges than STRING's figure 1 has."""
    linear, quadratic = shares(concatenated(1, 2048)), shares(uniform(1, 2048))
    assert linear["below_half"] == pytest.approx(0.750, abs=5e-4)
    assert linear["last_quarter"] == pytest.approx(0.0626, abs=5e-5)
    assert linear["last_third"] == pytest.approx(1 / 9, abs=2 / 2048)
    assert quadratic["below_half"] == pytest.approx(0.875, abs=7e-4)
    assert quadratic["last_quarter"] == pytest.approx(0.0157, abs=5e-5)
    assert quadratic["last_third"] == pytest.approx(0.037, abs=4e-4)


@given(st.integers(2, 40), st.data())
def test_shares_are_sums_over_their_ranges(length: int, data: st.DataObject) -> None:
    """Guards against a limit rounded to the wrong side where L is no multiple of 2, 3 or 4."""
    segments = data.draw(st.lists(st.integers(1, length), min_size=1, max_size=8))
    frequency = counted(segments, length)
    found = shares(np.array(frequency))
    total = sum(frequency)
    expected = {
        "below_half": sum(f for i, f in enumerate(frequency) if i <= length / 2),
        "last_quarter": sum(f for i, f in enumerate(frequency) if i >= 3 * length / 4),
        "last_third": sum(f for i, f in enumerate(frequency) if i >= length * 2 / 3 - 1e-9),
    }
    assert found == {name: value / total for name, value in expected.items()}


@given(st.integers(2, 60), st.data())
def test_full_windows_have_the_largest_share_of_far_distances(
    length: int, data: st.DataObject
) -> None:
    """Guards against a packing that lets attention look across documents (the theorem)."""
    segments = data.draw(st.lists(st.integers(1, length), min_size=1, max_size=10))
    found = shares(position_frequency(histogram(np.array(segments), length)))
    bound = shares(concatenated(1, length))
    for name in ("last_quarter", "last_third"):
        assert found[name] <= bound[name]
        if min(segments) < length and bound[name] > 0:
            assert found[name] < bound[name]


def test_a_large_corpus_does_not_overflow() -> None:
    """Guards against sums that wrap around at the size of SlimPajama."""
    length, windows = 131_072, 5_000_000
    frequency = concatenated(windows, length)
    assert int(frequency.sum()) == windows * length * (length + 1) // 2
    assert frequency.dtype == np.int64
