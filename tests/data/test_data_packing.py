import itertools
from collections.abc import Callable
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from ropewalk.data import packing
from ropewalk.data.packing import (
    Cut,
    best_fit,
    best_fit_bins,
    concat,
    counting_order,
    draw,
    per_document,
    shares,
)

lengths = st.lists(st.integers(0, 40), min_size=1, max_size=30).map(np.array)
window = st.integers(1, 17)
Policy = Callable[[np.ndarray, int], Cut]
policies = st.sampled_from([concat, best_fit, per_document])


@pytest.fixture(autouse=True, params=[3, 1 << 20], ids=["blocks", "whole"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Corpora larger than a block are what nobody sees in a test."""
    monkeypatch.setattr(packing, "_BLOCK", request.param)


def pieces(cut: Cut) -> list[list[tuple[int, int, int]]]:
    flat = list(zip(cut.document.tolist(), cut.start.tolist(), cut.length.tolist(), strict=True))
    return [flat[a:b] for a, b in itertools.pairwise(cut.offsets.tolist())]


def tokens(cut: Cut) -> list[list[tuple[int, int]]]:
    """Return every window as a list of (document, token)."""
    return [[(d, s + i) for d, s, n in row for i in range(n)] for row in pieces(cut)]


def stream(sizes: np.ndarray) -> list[tuple[int, int]]:
    return [(d, i) for d, n in enumerate(sizes.tolist()) for i in range(n)]


@given(lengths, window)
def test_concat_is_the_stream_cut_into_blocks(sizes: np.ndarray, length: int) -> None:
    """Guards against a token lost, repeated or moved where documents meet window borders."""
    whole = stream(sizes)
    count = len(whole) // length
    cut = concat(sizes, length)
    assert tokens(cut) == [whole[i * length : (i + 1) * length] for i in range(count)]
    assert cut.dropped_tokens == len(whole) - count * length
    assert (cut.length > 0).all()
    homes = [
        {t // length for t in range(a, a + n)}
        for a, n in zip(np.cumsum(sizes) - sizes, sizes, strict=True)
    ]
    kept = [{window for window in home if window < count} for home in homes]
    assert cut.documents_cut == sum(
        len(home) > 1 and bool(inside) for home, inside in zip(homes, kept, strict=True)
    )
    assert cut.documents_dropped == sum(
        bool(home) and not inside for home, inside in zip(homes, kept, strict=True)
    )


@given(lengths, window)
def test_best_fit_holds_every_token_exactly_once(sizes: np.ndarray, length: int) -> None:
    """Guards against packing that drops the tails of documents, or repeats them."""
    cut = best_fit(sizes, length)
    rows = tokens(cut)
    assert sorted(t for row in rows for t in row) == stream(sizes)
    assert all(0 < len(row) <= length for row in rows)
    assert cut.dropped_tokens == 0
    assert cut.documents_cut == int((sizes > length).sum())
    assert cut.documents_dropped == 0
    assert (cut.length > 0).all()  # an empty document is no piece
    for row in pieces(cut):
        assert row == sorted(row)
        assert all(s % length == 0 for _, s, _ in row)  # a document is cut at whole windows only


def brute_best_fit(sizes: list[int], capacity: int) -> list[int]:
    rooms: list[int] = []
    bins = [0] * len(sizes)
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        fitting = [b for b, room in enumerate(rooms) if room >= sizes[item]]
        if not fitting:
            rooms.append(capacity)
            fitting = [len(rooms) - 1]
        best = min(fitting, key=lambda b: rooms[b])
        rooms[best] -= sizes[item]
        bins[item] = best
    return bins


def fills(bins: list[int], sizes: list[int]) -> list[list[int]]:
    """Return the sizes in every bin, without the names of the bins."""
    groups: dict[int, list[int]] = {}
    for b, size in zip(bins, sizes, strict=True):
        groups.setdefault(b, []).append(size)
    return sorted(sorted(group) for group in groups.values())


@settings(max_examples=300)
@given(st.data(), st.integers(1, 30))
def test_best_fit_by_histogram_is_best_fit_one_by_one(data: st.DataObject, capacity: int) -> None:
    """Guards against a fast packer that packs worse than the algorithm it names."""
    sizes = data.draw(st.lists(st.integers(1, capacity), min_size=1, max_size=60))
    found = best_fit_bins(np.array(sizes), capacity).tolist()
    filled = fills(found, sizes)
    assert all(sum(group) <= capacity for group in filled)
    assert sorted(map(sum, filled)) == sorted(
        map(sum, fills(brute_best_fit(sizes, capacity), sizes))
    )


def optimum(sizes: list[int], capacity: int) -> int:
    """Return the least number of bins, by trying all."""

    def place(index: int, rooms: tuple[int, ...], best: int) -> int:
        if len(rooms) >= best:
            return best
        if index == len(sizes):
            return len(rooms)
        for b, room in enumerate(rooms):
            if room >= sizes[index]:
                after = (*rooms[:b], room - sizes[index], *rooms[b + 1 :])
                best = place(index + 1, after, best)
        return place(index + 1, (*rooms, capacity - sizes[index]), best)

    return place(0, (), len(sizes) + 1)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=7))
def test_best_fit_keeps_its_bound(sizes: list[int]) -> None:
    """Guards against more than 11/9 OPT + 6/9 bins (Dósa 2007; best-fit decreasing shares it)."""
    used = len(set(best_fit_bins(np.array(sizes), 12).tolist()))
    best = optimum(sorted(sizes, reverse=True), 12)
    assert best <= used <= Fraction(11, 9) * best + Fraction(6, 9)


@pytest.mark.parametrize("length", [2048, 8192])
def test_a_large_corpus_is_packed_almost_without_padding(length: int) -> None:
    """Guards against a packer that is right on small cases and wasteful on real ones."""
    rng = np.random.default_rng(0)
    sizes = np.maximum(rng.lognormal(6.2, 1.25, 30_000).astype(np.int64), 1)
    cut = best_fit(sizes, length)
    assert cut.tokens == sizes.sum()
    assert cut.count <= -(-sizes.sum() // length) * 1.0002


@given(st.lists(st.integers(0, 1 << 40), max_size=50), st.integers(0, 40))
def test_counting_order_is_a_stable_sort(keys: list[int], shift: int) -> None:
    """Guards against a digit left out, which sorts small corpora and not large ones."""
    array = np.array([key >> shift for key in keys], dtype=np.int64)
    assert counting_order(array).tolist() == np.argsort(array, kind="stable").tolist()


@given(lengths, window)
def test_per_document_refers_to_whole_documents(sizes: np.ndarray, length: int) -> None:
    """Guards against windows of documents too short to fill them."""
    cut = per_document(sizes, length)
    long = [(d, 0, n) for d, n in enumerate(sizes.tolist()) if n >= length]
    assert pieces(cut) == [[piece] for piece in long]
    assert cut.dropped_tokens == sum(n for n in sizes.tolist() if n < length)
    assert cut.documents_dropped == sum(0 < n < length for n in sizes.tolist())
    assert cut.documents_cut == sum(n > length for n in sizes.tolist())


@given(lengths, window, policies, st.data())
def test_take_gives_these_windows_in_this_order(
    sizes: np.ndarray, length: int, policy: Policy, data: st.DataObject
) -> None:
    """Guards against a mixture that takes other windows than it counts."""
    cut = policy(sizes, length)
    chosen = data.draw(st.lists(st.integers(0, max(0, cut.count - 1)), max_size=2 * cut.count))
    part = cut.take(np.array(chosen, dtype=np.int64))
    whole = pieces(cut)
    assert pieces(part) == [whole[window] for window in chosen]
    assert (part.dropped_tokens, part.documents_cut) == (cut.dropped_tokens, cut.documents_cut)


@given(lengths, window, policies)
def test_columns_are_as_narrow_as_they_can_be(
    sizes: np.ndarray, length: int, policy: Policy
) -> None:
    """Guards against an index of twice the size."""
    cut = policy(sizes, length)
    assert {c.dtype.name for c in (cut.document, cut.start, cut.length)} == {"int32"}


def test_a_draw_of_packed_windows_follows_no_length() -> None:
    """Guards against a mixture that gets the windows of long documents, and training by size."""
    rng = np.random.default_rng(0)
    sizes = np.maximum(rng.lognormal(4, 1.25, 20_000).astype(np.int64), 1)
    cut = best_fit(sizes, 256)
    chosen = draw("documents", cut.count, cut.count, np.random.default_rng(1))
    assert chosen is not None
    assert sorted(chosen.tolist()) == list(range(cut.count))
    # packing itself leaves windows in the order of their composition
    for found, trend in ((cut, True), (cut.take(chosen), False)):
        in_window = np.diff(found.offsets)  # pieces
        of = np.corrcoef(np.arange(found.count), in_window)[0, 1]
        assert (abs(of) > 0.3) == trend
        assert abs(of) < 3 / np.sqrt(found.count) or trend
    part = cut.take(chosen[: cut.count // 4])
    whole, quarter = cut.length.mean(), part.length.mean()
    assert abs(quarter / whole - 1) < 0.05


@pytest.mark.parametrize("policy", ["concat", "per_document"])
def test_a_draw_from_a_corpus_in_order_is_spread_over_it(policy: str) -> None:
    """Guards against a mixture that reads the first files of a corpus only."""
    assert draw(policy, 100, 100, np.random.default_rng(0)) is None
    chosen = draw(policy, 10_000, 2500, np.random.default_rng(0))
    assert chosen is not None
    assert len(set(chosen.tolist())) == 2500
    assert chosen.tolist() == sorted(chosen.tolist())
    quarters = np.bincount(chosen // 2500, minlength=4)
    assert len(quarters) == 4
    assert abs(quarters - 625).max() < 100  # five standard deviations


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 100)), min_size=1, max_size=4),
    st.sampled_from([1, 100, 7]),
)
def test_shares_follow_the_weights_exactly(corpora: list[tuple[int, int]], scale: int) -> None:
    """Guards against a mixture that drifts from its weights or asks for windows nobody has."""
    available, weights = [a for a, _ in corpora], [w / scale for _, w in corpora]
    counts = shares(available, weights)
    exact = [Fraction(str(w)) / sum(Fraction(str(v)) for v in weights) for w in weights]
    total = sum(counts)
    assert all(c <= a for c, a in zip(counts, available, strict=True))
    assert all(abs(c - total * w) < 1 for c, w in zip(counts, exact, strict=True))
    # one window more would ask the scarcest corpus for more than it has
    assert any((total + 1) * w > a for w, a in zip(exact, available, strict=True))


@pytest.mark.parametrize(
    ("available", "weights", "expected"),
    [
        ([85, 100], [0.85, 0.15], [85, 15]),  # in binary floats 85 / 0.85 is below 100
        ([1000, 3], [3, 1], [9, 3]),
        ([10, 10, 10], [1, 1, 1], [10, 10, 10]),
        ([7], [0.2], [7]),
    ],
)
def test_shares_by_hand(available: list[int], weights: list[float], expected: list[int]) -> None:
    """Guards against a window lost to rounding."""
    assert shares(available, weights) == expected


@pytest.mark.parametrize("weight", [0, -1.0])
def test_a_weight_that_takes_nothing_is_refused(weight: float) -> None:
    """Guards against a corpus that is listed and never used."""
    with pytest.raises(ValueError, match="above 0"):
        shares([1, 1], [1, weight])


def test_what_an_index_cannot_hold_is_refused() -> None:
    """Guards against lengths that wrap around in 32 bits."""
    for length in (0, 1 << 31):
        with pytest.raises(ValueError, match="length_tokens"):
            concat(np.array([1]), length)
