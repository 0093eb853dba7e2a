import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from ropewalk.data.duplicates import near_duplicates, shingles, similarity


def brute_shingles(text: str) -> set[tuple[str, ...]]:
    parts = text.split()
    width = min(8, len(parts))
    return {tuple(parts[i : i + width]) for i in range(len(parts) - width + 1)} if parts else set()


def brute_jaccard(a: set, b: set) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


texts = st.lists(st.sampled_from("a b c d".split()), max_size=30).map(" ".join)


@given(texts, texts)
def test_similarity_is_that_of_word_tuples(first: str, second: str) -> None:
    """Guards against a hash that merges different shingles or depends on their place."""
    found = similarity(shingles(first), shingles(second))
    assert found == brute_jaccard(brute_shingles(first), brute_shingles(second))


sets = st.lists(
    st.frozensets(st.integers(0, 12), max_size=9).map(
        lambda s: np.array(sorted(s), dtype=np.uint64)
    ),
    max_size=12,
)


@given(sets, st.sampled_from([0.2, 0.5, 0.6, 0.7, 1.0]))
def test_search_finds_what_comparing_all_pairs_finds(arrays: list, jaccard: float) -> None:
    """Guards against a prefix filter that misses pairs: they would leak into the test split."""
    expected: list[int | None] = []
    for i, array in enumerate(arrays):
        earlier = [j for j in range(i) if expected[j] is None]
        hits = [j for j in earlier if brute_jaccard(set(arrays[j]), set(array)) >= jaccard]
        expected.append(hits[0] if hits else None)
    assert near_duplicates(arrays, jaccard) == expected


def test_threshold_outside_its_range_is_refused() -> None:
    """Guards against 70 read as a share: nothing would ever be dropped."""
    with pytest.raises(ValueError, match="70"):
        near_duplicates([], 70)
