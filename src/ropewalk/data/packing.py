"""Cutting documents into windows: pure functions from document lengths to pieces.

A window is a list of pieces (document, start, length). Nothing here touches a token.
"""

import bisect
import dataclasses
from collections.abc import Sequence
from fractions import Fraction

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """All windows of one corpus."""

    rows: np.ndarray  # int64 [windows + 1]: window i has pieces rows[i] .. rows[i + 1] - 1
    document: np.ndarray  # int64 [pieces]
    start: np.ndarray  # int64 [pieces]: first token of the piece in its document
    length: np.ndarray  # int64 [pieces]
    dropped_tokens: int  # tokens of the corpus that are in no window
    documents_cut: int  # documents that do not lie whole in one window

    @property
    def count(self) -> int:
        """Return the number of windows."""
        return len(self.rows) - 1

    def first(self, windows: int) -> "Cut":
        """Return the first windows only; the statistics stay those of the corpus."""
        pieces = self.rows[windows]
        return dataclasses.replace(
            self,
            rows=self.rows[: windows + 1],
            document=self.document[:pieces],
            start=self.start[:pieces],
            length=self.length[:pieces],
        )


def concat(lengths: np.ndarray, length_tokens: int) -> Cut:
    """Join the documents in order and cut the stream into windows of exactly `length_tokens`.

    The tail shorter than a window is dropped.

    >>> concat(np.array([3, 4]), 3)  # windows: document 0 | document 1, tokens 0 to 2 | 1 dropped
    Cut(rows=array([0, 1, 2]), document=array([0, 1]), start=array([0, 0]), length=array([3, 3]), \
dropped_tokens=1, documents_cut=1)
    """
    lengths = _checked(lengths, length_tokens)
    total = int(lengths.sum())
    used = total - total % length_tokens
    starts = np.cumsum(lengths) - lengths
    windows = np.arange(0, used, length_tokens)
    cuts = np.union1d(starts[starts < used], windows)  # every piece begins at one of these
    document = np.searchsorted(starts, cuts, side="right") - 1  # an empty document begins none
    ends = np.append(cuts[1:], used)
    length = ends - cuts
    whole = np.zeros(len(lengths), dtype=bool)
    whole[document[length == lengths[document]]] = True
    return Cut(
        rows=np.append(np.searchsorted(cuts, windows), len(cuts)),
        document=document,
        start=cuts - starts[document],
        length=length,
        dropped_tokens=total - used,
        documents_cut=int(np.count_nonzero(~whole & (lengths > 0))),
    )


def best_fit(lengths: np.ndarray, length_tokens: int) -> Cut:
    """Put whole documents into windows by best-fit decreasing; every token lies in one window.

    Documents longer than a window are cut into full windows and a rest, which is packed like a
    document (Ding et al. 2024, arXiv 2404.10830, section 3). Windows may end short. They are
    ordered by their first document, so that taking the first ones is no choice by length, and so
    are the pieces inside a window.
    """
    lengths = _checked(lengths, length_tokens)
    pieces = -(-lengths // length_tokens)
    document = np.repeat(np.arange(len(lengths)), pieces)
    order = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = order * length_tokens
    length = np.minimum(lengths[document] - start, length_tokens)
    window = best_fit_bins(length, length_tokens)
    # number windows by their first piece
    _, first, window = np.unique(window, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    window = rank[window]
    by_window = np.argsort(window, kind="stable")
    return Cut(
        rows=np.searchsorted(window[by_window], np.arange(len(first) + 1)),
        document=document[by_window],
        start=start[by_window],
        length=length[by_window],
        dropped_tokens=0,
        documents_cut=int(np.count_nonzero(pieces > 1)),
    )


def best_fit_bins(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Return the bin (int64, from 0) of every item: best-fit decreasing, exactly.

    Items are taken from large to small, equal ones in order; each goes into the bin with the least
    room that still holds it. Items of one size and bins of one room are handled together, so that
    the work grows with the number of different sizes, not of items.

    Args:
        sizes: int64, each in [1, capacity].
        capacity: of a bin.
    """
    order = np.argsort(-sizes, kind="stable")
    values, counts = np.unique(sizes, return_counts=True)
    bin_of = np.empty(len(sizes), dtype=np.int64)
    with_room: dict[int, list[np.ndarray]] = {}  # room -> bins that have exactly this much
    rooms: list[int] = []  # its keys, ascending
    bins = placed = 0
    for size, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        left = count
        while left:
            place = bisect.bisect_left(rooms, size)
            if place < len(rooms):
                room = rooms.pop(place)
                candidates = np.concatenate(with_room.pop(room))
            else:
                room = capacity
                opened = -(-left // (capacity // size))
                candidates = np.arange(bins, bins + opened)
                bins += opened
            # The bin just filled has the least room of all, so it takes items until none fits.
            each = room // size
            full = min(len(candidates), left // each)
            rest = left - full * each if full < len(candidates) else 0
            took = full * each + rest
            chosen = np.repeat(candidates[: full + (rest > 0)], each)[:took]
            bin_of[order[placed : placed + took]] = chosen
            placed += took
            left -= took
            for after, which in (
                (room - each * size, candidates[:full]),
                (room - rest * size, candidates[full : full + (rest > 0)]),
                (room, candidates[full + (rest > 0) :]),
            ):
                if len(which) and after:
                    if after not in with_room:
                        with_room[after] = []
                        bisect.insort(rooms, after)
                    with_room[after].append(which)
    return bin_of


def per_document(lengths: np.ndarray, length_tokens: int) -> Cut:
    """Return one window per document of at least `length_tokens`, referring to the whole document.

    What part of the document is read is up to the reader.
    """
    lengths = _checked(lengths, length_tokens)
    document = np.flatnonzero(lengths >= length_tokens)
    return Cut(
        rows=np.arange(len(document) + 1),
        document=document,
        start=np.zeros(len(document), dtype=np.int64),
        length=lengths[document],
        dropped_tokens=int(lengths.sum() - lengths[document].sum()),
        documents_cut=0,
    )


POLICIES = {"concat": concat, "documents": best_fit, "per_document": per_document}


def shares(available: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Return how many windows to take of each corpus.

    The total is as large as the corpus that runs out first allows, and is split by largest
    remainders (Hamilton's method), so every count is within one of total * weight.

    Args:
        available: windows each corpus has.
        weights: positive, in any scale; read as the decimal numbers they are written as.

    Raises:
        ValueError: for a weight that is not positive.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    if not exact or min(exact) <= 0:
        raise ValueError(f"weights {list(weights)} must be above 0")
    exact = [weight / sum(exact) for weight in exact]
    # No count exceeds total * weight rounded up, so this total is always possible.
    total = min(int(a / weight) for a, weight in zip(available, exact, strict=True))
    quotas = [total * weight for weight in exact]
    counts = [int(quota) for quota in quotas]
    remainders = sorted(range(len(counts)), key=lambda i: (counts[i] - quotas[i], i))
    for index in remainders[: total - sum(counts)]:
        counts[index] += 1
    return counts


def _checked(lengths: np.ndarray, length_tokens: int) -> np.ndarray:
    if length_tokens < 1:
        raise ValueError(f"length_tokens {length_tokens} is below 1")
    return np.asarray(lengths, dtype=np.int64)
