"""Searching for a size by its count, against trying every size."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.evaluate.fitting import exact, most

# steps of a count from one size to the next: mostly 0, some up, few down, as when text is cut
STEPS = st.lists(st.sampled_from([0, 0, 0, 1, 1, 2, -1]), min_size=1, max_size=20)


def counts(steps: list[int], sizes: int = 40_000) -> np.ndarray:
    repeated = np.resize(steps, sizes)
    return np.cumsum(repeated) + 10


@settings(deadline=None)
@given(STEPS, st.integers(0, 200), st.integers(0, 30))
def test_exact_finds_what_there_is(steps: list[int], above: int, start: int) -> None:
    """Guards: cases dropped although a size fits, and sizes that miss the count."""
    steps = [*steps, 1 + max(0, -sum(steps))]  # in the long run it grows
    count = counts(steps)
    target = int(count[start]) + above
    fitting = {size for size in range(start, len(count)) if count[size] == target}
    found = list(exact(lambda size: int(count[size]), target, start))
    assert len(found) == len(set(found))
    assert set(found) <= fitting
    assert found or not fitting


@settings(deadline=None)
@given(STEPS, st.integers(0, 200), st.integers(0, 30))
def test_most_is_the_last_size_below(steps: list[int], above: int, start: int) -> None:
    """Guards: haystacks smaller than they can be, or larger than the text may be."""
    steps = [*(max(step, 0) for step in steps), 1]
    count = counts(steps)
    target = int(count[start]) + above
    expected = int(np.flatnonzero(count <= target)[-1])
    assert most(lambda size: int(count[size]), target, start) == expected


def test_a_start_that_is_too_large_gives_nothing() -> None:
    """Guards: a search that goes on for ever, or gives a size below the smallest."""
    assert list(exact(lambda size: size + 5, 4)) == []
    assert most(lambda size: size + 5, 4) is None
    assert list(exact(lambda size: 5, 6)) == []


def test_few_counts_are_taken() -> None:
    """Guards: a search whose every step tokenises a long text, and takes many."""
    seen: list[int] = []

    def count(size: int) -> int:
        seen.append(size)
        return size // 4 + 40

    assert next(exact(count, 30_000)) // 4 == 30_000 - 40
    assert len(seen) <= 4
    seen.clear()
    assert most(lambda size: count(40 * size), 30_000) == 29_960 * 4 // 40
    assert len(seen) <= 40
