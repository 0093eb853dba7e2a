"""Cutting documents into windows: pure functions from document lengths to pieces.

A window is a list of pieces (document, start, length). Nothing here touches a token. Corpora have
up to a billion pieces, so that columns are int32, sorting is by counting, and what needs wider
numbers on the way works on a block of documents or windows at a time.
"""

import bisect
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from ropewalk.data.frequency import histogram

_BLOCK = 1 << 20  # documents or windows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """Windows of one corpus; the counts are those of the whole corpus."""

    offsets: np.ndarray  # int64 [windows + 1]: window i has pieces offsets[i] .. offsets[i + 1] - 1
    document: np.ndarray  # int32 [pieces]
    start: np.ndarray  # int32 [pieces]: first token of the piece in its document
    length: np.ndarray  # int32 [pieces]
    dropped_tokens: int  # in no window
    documents_cut: int  # in more than one window, or with a part in none
    documents_dropped: int  # with tokens, but none of them in a window

    @property
    def count(self) -> int:
        """Return the number of windows."""
        return len(self.offsets) - 1

    @property
    def tokens(self) -> int:
        """Return the tokens of all pieces."""
        return int(self.length.sum(dtype=np.int64))

    def take(self, windows: np.ndarray) -> "Cut":
        """Return these windows, int64 [n], in this order."""
        counts = np.diff(self.offsets)[windows]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        columns: dict[str, Any] = {
            name: np.empty(offsets[-1], dtype=np.int32) for name in ("document", "start", "length")
        }
        for begin in range(0, len(windows), _BLOCK):
            block = slice(begin, begin + _BLOCK)
            pieces = ranges(self.offsets[windows[block]], counts[block])
            done = offsets[begin]
            for name, column in columns.items():
                column[done : done + len(pieces)] = getattr(self, name)[pieces]
        return dataclasses.replace(self, offsets=offsets, **columns)


def ranges(begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return begins[0], begins[0] + 1, ... (counts[0] of them), then begins[1], ...: int64.

    >>> ranges(np.array([7, 0]), np.array([2, 3]))
    array([7, 8, 0, 1, 2])
    """
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(begins - (ends - counts), counts)


def concat(lengths: np.ndarray, length_tokens: int) -> Cut:
    """Join the documents in order and cut the stream into windows of exactly `length_tokens`.

    The tail shorter than a window is dropped.

    >>> concat(np.array([3, 4]), 3)  # windows: document 0 | document 1, tokens 0 to 2 | 1 dropped
    Cut(offsets=array([0, 1, 2]), document=array([0, 1], dtype=int32), \
start=array([0, 0], dtype=int32), length=array([3, 3], dtype=int32), dropped_tokens=1, \
documents_cut=1, documents_dropped=0)
    """
    lengths = _checked(lengths, length_tokens)
    total = int(lengths.sum(dtype=np.int64))
    used = total - total % length_tokens
    columns: list[list[np.ndarray]] = [[_EMPTY], [_EMPTY], [_EMPTY]]
    offsets = [np.zeros(0, dtype=np.int64)]
    before = done = cut = dropped = 0  # tokens and pieces of earlier blocks
    for begin in range(0, len(lengths), _BLOCK):
        sizes = lengths[begin : begin + _BLOCK].astype(np.int64)
        ends = before + np.cumsum(sizes)
        starts = ends - sizes
        kept = np.minimum(ends, used) - np.minimum(starts, used)  # tokens that are in a window
        first = starts // length_tokens
        pieces = np.where(kept > 0, (starts + kept - 1) // length_tokens - first + 1, 0)
        document = np.repeat(np.arange(len(sizes)), pieces)
        window = ranges(first, pieces)
        left = np.maximum(window * length_tokens, starts[document])
        right = np.minimum((window + 1) * length_tokens, (starts + kept)[document])
        for column, values in zip(
            columns, (document + begin, left - starts[document], right - left), strict=True
        ):
            column.append(values.astype(np.int32))
        offsets.append(done + np.flatnonzero(left % length_tokens == 0))
        before, done = int(ends[-1]), done + len(document)
        cut += int(np.count_nonzero((pieces > 1) | ((kept > 0) & (kept < sizes))))
        dropped += int(np.count_nonzero((kept == 0) & (sizes > 0)))
    document, start, length = (np.concatenate(column) for column in columns)
    return Cut(
        offsets=np.append(np.concatenate(offsets), done),
        document=document,
        start=start,
        length=length,
        dropped_tokens=total - used,
        documents_cut=cut,
        documents_dropped=dropped,
    )


def best_fit(lengths: np.ndarray, length_tokens: int) -> Cut:
    """Put whole documents into windows by best-fit decreasing; every token lies in one window.

    Documents longer than a window are cut into full windows and a rest, which is packed like a
    document (Ding et al. 2024, arXiv 2404.10830, section 3). Windows may end short. They come by
    composition, full ones first, so whoever takes some of them must draw; the pieces of a window
    are in corpus order.
    """
    lengths = _checked(lengths, length_tokens)
    whole = lengths // length_tokens
    rest = lengths - whole * np.int32(length_tokens)
    split = np.flatnonzero(whole)
    full = int(whole.sum(dtype=np.int64))  # pieces that are windows of their own
    items = np.flatnonzero(rest).astype(np.int32)
    bins = best_fit_bins(rest[items], length_tokens)
    filled = np.bincount(bins) if len(bins) else np.zeros(0, dtype=np.int64)  # pieces per bin
    items = items[counting_order(bins)]
    del bins
    return Cut(
        offsets=np.concatenate([np.arange(full + 1), full + np.cumsum(filled)]),
        document=np.concatenate([np.repeat(split.astype(np.int32), whole[split]), items]),
        start=np.concatenate(
            [_multiples(whole[split], length_tokens), whole[items] * np.int32(length_tokens)]
        ),
        length=np.concatenate([np.full(full, length_tokens, dtype=np.int32), rest[items]]),
        dropped_tokens=0,
        documents_cut=int(np.count_nonzero(lengths > length_tokens)),
        documents_dropped=0,
    )


def _multiples(counts: np.ndarray, step: int) -> np.ndarray:
    """Return 0, step, 2 step, ... (counts[0] of them), then 0, step, ...: int32."""
    blocks = [_EMPTY]
    for begin in range(0, len(counts), _BLOCK):
        block = counts[begin : begin + _BLOCK]
        blocks.append((ranges(np.zeros(len(block), np.int64), block) * step).astype(np.int32))
    return np.concatenate(blocks)


def best_fit_bins(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Return the bin (int32, from 0) of every item: best-fit decreasing, exactly.

    Items are taken from large to small, equal ones in order; each goes into the bin with the least
    room that still holds it. Items of one size and bins of one room are handled together, so that
    the work grows with the number of different sizes, not of items.

    Args:
        sizes: integers in [1, capacity].
        capacity: of a bin.
    """
    order = counting_order(capacity - sizes)
    counts = histogram(sizes, capacity)
    bin_of = np.empty(len(sizes), dtype=np.int32)
    with_room: dict[int, list[np.ndarray]] = {}  # room -> bins that have exactly this much
    rooms: list[int] = []  # its keys, ascending
    bins = placed = 0
    for size in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[size])
        while left:
            place = bisect.bisect_left(rooms, size)
            if place < len(rooms):
                room = rooms.pop(place)
                found = with_room.pop(room)
                candidates = found[0] if len(found) == 1 else np.concatenate(found)
            else:
                room = capacity
                opened = -(-left // (capacity // size))
                candidates = np.arange(bins, bins + opened, dtype=np.int32)
                bins += opened
            # The bin just filled has the least room of all, so it takes items until none fits.
            each = room // size
            full = min(len(candidates), left // each)
            rest = left - full * each if full < len(candidates) else 0
            took = full * each + rest
            chosen = candidates[: full + (rest > 0)]
            if each > 1:
                chosen = np.repeat(chosen, each)[:took]
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


def counting_order(keys: np.ndarray) -> np.ndarray:
    """Return the stable order that sorts `keys` (integers from 0): int64, in linear time.

    Sixteen bits at a time, which numpy sorts by counting.
    """
    highest = int(keys.max(initial=0))
    order = np.argsort((keys & 0xFFFF).astype(np.uint16), kind="stable")
    for shift in range(16, highest.bit_length(), 16):
        digits = ((keys >> shift) & 0xFFFF).astype(np.uint16)
        order = order[np.argsort(digits[order], kind="stable")]
    return order


def per_document(lengths: np.ndarray, length_tokens: int) -> Cut:
    """Return one window per document of at least `length_tokens`, referring to the whole document.

    What part of the document is read is up to the reader.
    """
    lengths = _checked(lengths, length_tokens)
    document = np.flatnonzero(lengths >= length_tokens).astype(np.int32)
    long = lengths[document]
    return Cut(
        offsets=np.arange(len(document) + 1),
        document=document,
        start=np.zeros(len(document), dtype=np.int32),
        length=long,
        dropped_tokens=int(lengths.sum(dtype=np.int64) - long.sum(dtype=np.int64)),
        documents_cut=int(np.count_nonzero(long > length_tokens)),
        documents_dropped=int(np.count_nonzero((lengths > 0) & (lengths < length_tokens))),
    )


POLICIES: Mapping[str, Callable[[np.ndarray, int], Cut]] = {
    "concat": concat,
    "documents": best_fit,
    "per_document": per_document,
}


def draw(policy: str, available: int, wanted: int, rng: np.random.Generator) -> np.ndarray | None:
    """Return which windows to take, int64 [wanted], in this order; None for all as they are.

    They are a draw from all, so that a share of a corpus is no choice by place or composition.
    Windows of `documents` lie by composition and come in the order of the draw; the other policies
    keep the order of the corpus.
    """
    if policy == "documents":
        return rng.permutation(available)[:wanted]
    if wanted == available:
        return None
    return np.sort(rng.permutation(available)[:wanted])


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


_EMPTY = np.empty(0, dtype=np.int32)


def _checked(lengths: np.ndarray, length_tokens: int) -> np.ndarray:
    """Return the lengths as int32; what does not fit the index is refused."""
    limit = np.iinfo(np.int32).max
    if not 1 <= length_tokens <= limit:
        raise ValueError(f"length_tokens {length_tokens} must lie within 1 and {limit}")
    if len(lengths) > limit:
        raise ValueError(f"{len(lengths)} documents are more than an index of {limit}")
    return np.asarray(lengths, dtype=np.int32)
