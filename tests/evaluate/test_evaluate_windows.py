"""Spans: what is read and scored, against the definition token by token."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.base.stage import StageError
from ropewalk.evaluate.spec import SameTokens, SlidingWindow
from ropewalk.evaluate.windows import same_tokens, sliding_window, table


@st.composite
def sliding(draw: st.DrawFn) -> tuple[np.ndarray, SlidingWindow]:
    contexts = draw(st.lists(st.integers(2, 40), min_size=1, max_size=3))
    stride = draw(st.integers(1, min(contexts) - 1))
    lengths = draw(st.lists(st.integers(0, 150), min_size=1, max_size=6))
    cut = draw(st.none() | st.integers(2, 120))
    long_enough = sum(length >= 2 for length in lengths)
    protocol = SlidingWindow(
        contexts={f"{i}x": c for i, c in enumerate(contexts)},
        stride_tokens=stride,
        documents=draw(st.integers(0, long_enough)),
        cut_tokens=cut,
    )
    return np.array(lengths), protocol


@given(sliding())
def test_sliding_scores_every_token_but_the_first_exactly_once(
    case: tuple[np.ndarray, SlidingWindow],
) -> None:
    """Guards: a token scored twice or never (short tails, documents shorter than a window)."""
    lengths, protocol = case
    chosen = [i for i, length in enumerate(lengths) if length >= 2][: protocol.documents]
    for label, spans in sliding_window(lengths, protocol).items():
        found = [
            (int(spans.document[row]), position)
            for row in range(len(spans))
            for position in range(spans.scored_start[row], spans.scored_end[row])
        ]
        expected = [
            (i, position)
            for i in chosen
            for position in range(1, min(lengths[i], protocol.cut_tokens or lengths[i]))
        ]
        assert found == expected
        assert len(spans) == 0 or spans.lengths.max() <= protocol.contexts[label]


@given(sliding())
def test_sliding_gives_each_token_the_context_of_the_definition(
    case: tuple[np.ndarray, SlidingWindow],
) -> None:
    """Guards: later windows that read less context than the protocol promises.

    Brute force per token: tokens of the first window see all before them; the others are scored by
    the first window end L, L + S, L + 2S, ..., document end that is past them.
    """
    lengths, protocol = case
    for label, spans in sliding_window(lengths, protocol).items():
        window, stride = protocol.contexts[label], protocol.stride_tokens
        for row in range(len(spans)):
            total = int(lengths[spans.document[row]])
            total = min(total, protocol.cut_tokens or total)
            for position in range(spans.scored_start[row], spans.scored_end[row]):
                end = min(window, total)
                while end <= position:
                    end = min(end + stride, total)
                assert (spans.start[row], spans.end[row]) == (max(0, end - window), end)


def test_sliding_by_hand() -> None:
    """Guards: an off-by-one in the whole construction. 10 tokens, window 4, stride 3."""
    protocol = SlidingWindow(contexts={"1x": 4}, stride_tokens=3, documents=1)
    spans = sliding_window(np.array([1, 10]), protocol)["1x"]
    rows = np.stack([spans.start, spans.end, spans.scored_start, spans.scored_end], axis=1)
    assert rows.tolist() == [[0, 4, 1, 4], [3, 7, 4, 7], [6, 10, 7, 10]]
    assert spans.document.tolist() == [1, 1, 1]


def test_sliding_leaves_out_short_documents_and_keeps_corpus_order() -> None:
    """Guards: documents chosen by anything but the order of the corpus."""
    protocol = SlidingWindow(
        contexts={"1x": 8}, stride_tokens=2, documents=2, minimum_tokens=5, cut_tokens=6
    )
    spans = sliding_window(np.array([4, 9, 5, 30]), protocol)["1x"]
    assert spans.document.tolist() == [1, 2]
    assert spans.end.tolist() == [6, 5]


def test_a_stride_of_a_whole_window_is_refused() -> None:
    """Guards: the first token of every window falling through, which nothing predicts."""
    with pytest.raises(ValueError, match=r"stride_tokens 4 .* shortest context 4 minus 1"):
        SlidingWindow(contexts={"1x": 4, "2x": 8}, stride_tokens=4, documents=1)


@given(
    st.lists(st.integers(2, 50), min_size=1, max_size=4),
    st.lists(st.integers(1, 80), min_size=1, max_size=8),
    st.data(),
)
def test_same_tokens_scores_the_same_targets_at_every_context(
    contexts: list[int], lengths: list[int], data: st.DataObject
) -> None:
    """Guards: a difference between contexts that comes from other targets, or from the BOS."""
    longest = max(contexts)
    chosen = [i for i, length in enumerate(lengths) if length > longest]
    protocol = SameTokens(
        contexts={f"{i}x": c for i, c in enumerate(contexts)},
        scored_tokens=data.draw(st.integers(1, min(contexts) - 1)),
        documents=len(chosen),
    )
    planned = same_tokens(np.array(lengths), protocol)
    for label, spans in planned.items():
        assert spans.document.tolist() == chosen
        assert (spans.lengths == protocol.contexts[label]).all()
        assert (spans.start >= 1).all()
        assert (spans.scored_end == longest + 1).all()
        assert (spans.scored == protocol.scored_tokens).all()


@pytest.mark.parametrize("kind", ["same", "sliding"])
def test_too_few_documents_is_an_error_that_counts_them(kind: str) -> None:
    """Guards: a number measured on fewer documents than the protocol says."""
    lengths = np.array([20, 5, 21, 40])
    same = SameTokens(contexts={"1x": 20}, scored_tokens=4, documents=3)
    sliding = SlidingWindow(contexts={"1x": 8}, stride_tokens=2, documents=3, minimum_tokens=21)
    planner = functools.partial(same_tokens, lengths, same)
    if kind == "sliding":
        planner = functools.partial(sliding_window, lengths, sliding)
    with pytest.raises(StageError, match=r"protocol\.documents .* 3 documents .* has 2 \(of 4\)"):
        planner()


@pytest.mark.parametrize("row", [(0, 0, 4, 0, 4), (0, 0, 4, 2, 5), (0, 3, 8, 2, 8)])
def test_a_span_that_scores_what_it_cannot_predict_is_refused(row: tuple[int, ...]) -> None:
    """Guards: scoring a token from nothing, or one that was not read."""
    with pytest.raises(ValueError, match="span 1 reads"):
        table([(0, 0, 4, 1, 4), row])
