"""Near-duplicate documents: exact Jaccard similarity of word shingles, found without comparing all.

A file that is in the training split with a few lines changed in the test split makes a test loss
meaningless, so the search is exact: prefix filtering (Bayardo, Ma, Srikant 2007, "Scaling up all
pairs similarity search") finds every pair at or above the threshold, where MinHash would miss some.
"""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

SHINGLE_WORDS = 8
# An odd 64-bit multiplier (the golden ratio's fraction): a shingle is a polynomial in it, mod 2^64.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SLACK = 1e-9  # prefixes are never shorter than exact arithmetic would make them


def shingles(text: str) -> np.ndarray:
    """Return the distinct 64-bit hashes (uint64, sorted) of all runs of 8 words.

    Whitespace separates words. A shorter text is one shingle; a text without words has none.
    """
    words = np.fromiter(map(zlib.crc32, text.encode().split()), dtype=np.uint64)
    width = min(SHINGLE_WORDS, len(words))
    if width == 0:
        return np.empty(0, dtype=np.uint64)
    hashes = np.zeros(len(words) - width + 1, dtype=np.uint64)
    for offset in range(width):
        hashes *= _MULTIPLIER  # wraps around: arithmetic mod 2^64 is meant
        hashes += words[offset : offset + len(hashes)]
    return _distinct(hashes)


def _distinct(values: np.ndarray) -> np.ndarray:
    """Return the distinct values, sorted; `np.unique` is ten times slower on such hashes."""
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])[: len(values)]]


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Return |intersection| / |union| of two sorted distinct arrays; 0 if both are empty."""
    small, large = (first, second) if len(first) <= len(second) else (second, first)
    if not len(small):
        return 0.0
    places = np.minimum(np.searchsorted(large, small), len(large) - 1)
    common = int(np.count_nonzero(large[places] == small))
    return common / (len(first) + len(second) - common)


def near_duplicates(sets: Sequence[np.ndarray], jaccard: float) -> list[int | None]:
    """Return for every set the index of the kept set it is a near-duplicate of, or None if kept.

    Sets come in order of preference: one is dropped exactly if an earlier *kept* set has a
    similarity of at least `jaccard`, so that no two kept sets do.

    Args:
        sets: sorted distinct uint64 arrays, as `shingles` returns them.
        jaccard: threshold in (0, 1].

    Raises:
        ValueError: for a threshold outside (0, 1].
    """
    if not 0 < jaccard <= 1:
        raise ValueError(f"jaccard {jaccard} must lie in (0, 1]")
    duplicate_of: list[int | None] = [None] * len(sets)
    for first, second in _candidates(sets, jaccard):
        both_kept = duplicate_of[first] is None and duplicate_of[second] is None
        if both_kept and similarity(sets[first], sets[second]) >= jaccard:
            duplicate_of[second] = first
    return duplicate_of


def _candidates(sets: Sequence[np.ndarray], jaccard: float) -> Iterator[tuple[int, int]]:
    """Yield pairs (earlier, later), by the later one: every pair at the threshold is among them.

    With the elements of all sets in one order, two sets of similarity >= t share an element among
    the first |x| - ceil(t |x|) + 1 of each. With rare elements first, few other sets share any.
    """
    sizes = np.array([len(s) for s in sets], dtype=np.int64)
    if not sizes.sum():
        return
    owner = np.repeat(np.arange(len(sets)), sizes)
    _, element, count = np.unique(np.concatenate(sets), return_inverse=True, return_counts=True)
    rarity = np.empty(len(count), dtype=np.int64)
    rarity[np.argsort(count, kind="stable")] = np.arange(len(count))
    keys = np.sort(owner * len(count) + rarity[element])  # by set, rare elements first
    position = np.arange(len(keys)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    prefix = sizes - np.ceil(jaccard * sizes - _SLACK).astype(np.int64) + 1
    keys = keys[position < prefix[owner]]
    holder, rank = np.divmod(keys, len(count))
    shared = np.sort(count, kind="stable")[rank] > 1
    order = np.argsort(rank[shared], kind="stable")  # groups by element, holders ascending
    holder, rank = holder[shared][order], rank[shared][order]

    found = np.empty(0, dtype=np.int64)
    place, step = np.arange(len(rank)), 1
    while True:  # pairs that lie `step` apart inside the group of one element
        place = place[place + step < len(rank)]
        place = place[rank[place] == rank[place + step]]
        if not len(place):
            break
        first, second = holder[place], holder[place + step]
        low = np.minimum(sizes[first], sizes[second])
        high = np.maximum(sizes[first], sizes[second])
        possible = low >= jaccard * high - _SLACK
        pairs = second[possible] * len(sets) + first[possible]
        found = _distinct(np.append(found, pairs))
        step += 1
    for pair in found.tolist():
        second_index, first_index = divmod(pair, len(sets))
        yield first_index, second_index
