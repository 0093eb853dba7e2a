"""Spans: what is read and scored, against the definition token by token."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perplexity_cases import BOS, EOS, Documents, loaded, numbered, scores_of
from tokenizers import Tokenizer

from ropewalk.base.stage import StageError
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.evaluate import losses
from ropewalk.evaluate.plan import Plan
from ropewalk.evaluate.sharing import share
from ropewalk.evaluate.spans import Spans, same_tokens, sliding, table
from ropewalk.evaluate.spec import PositionCurve, SameTokens, SlidingWindow


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> LoadedTokenizer:
    """Return a tokenizer with BOS and EOS that opens no document."""
    return loaded(tmp_path_factory.mktemp("plain"), tokenizer)


@pytest.fixture(scope="module")
def opening(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> LoadedTokenizer:
    """Return one whose BOS opens every document."""
    return loaded(tmp_path_factory.mktemp("opening"), tokenizer, opening=True)


@st.composite
def protocols(draw: st.DrawFn) -> SlidingWindow:
    window = draw(st.sampled_from(["tokens", "inputs"]))
    context = draw(st.integers(2 if window == "tokens" else 1, 30))
    longest = context if window == "inputs" else context - 1
    return SlidingWindow(
        contexts={"1x": context},
        stride_tokens=draw(st.none() | st.integers(1, longest)),
        cut_tokens=draw(st.none() | st.integers(2, 60)),
        minimum_tokens=draw(st.integers(0, 5)),
        text=draw(st.sampled_from(["documents", "stream"])),
        bos=draw(st.sampled_from(["none", "document", "window"])),
        window=window,
        tail=draw(st.sampled_from(["full", "short", "drop", "drop_last"])),
        scored=draw(st.sampled_from(["new", "all"])),
    )


LENGTHS = st.lists(st.integers(0, 70), min_size=1, max_size=5)


def texts_by_definition(lengths: list[int], protocol: SlidingWindow) -> list[list[int]]:
    """Return the texts a protocol is about as lists of tokens, see `numbered`."""
    opened = protocol.bos != "none" and protocol.text == "documents"
    documents = []
    for i, length in enumerate(lengths):
        if length + opened >= protocol.minimum_tokens:
            cut = length if protocol.cut_tokens is None else protocol.cut_tokens - opened
            documents.append([2 + 1000 * i + place for place in range(length)][:cut])
    if protocol.text == "stream":
        return [[token for document in documents for token in document]]
    return documents


def windows_by_definition(text: list[int], protocol: SlidingWindow) -> list[tuple[list, list]]:
    """Return (tokens read, tokens scored) of every window of a text, with plain lists.

    BOS is a token in front of the text, or of what each window takes of it; a window is cut from
    the list and slides over it. What is scored is what a window reads, or one more, without its
    first token and without what an earlier window scored.
    """
    context, more = protocol.contexts["1x"], int(protocol.window == "inputs")
    front = [BOS] if protocol.bos == "window" else []
    stream = ([BOS] if protocol.bos == "document" else []) + text
    size = context + more - len(front)  # tokens of the list a window is about
    begins, begin = [], 0
    while stream:
        begins.append(begin)
        if begin + size >= len(stream) or protocol.stride_tokens is None:
            break
        begin += protocol.stride_tokens
    whole = [b + size <= len(stream) for b in begins]
    if protocol.tail == "full":
        begins = [
            b if full else max(0, len(stream) - size) for b, full in zip(begins, whole, strict=True)
        ]
    if protocol.tail == "drop":
        begins = [b for b, full in zip(begins, whole, strict=True) if full]
    if protocol.tail == "drop_last":
        begins = begins[:-2]
    windows, done = [], 0
    for begin in begins:
        about = front + stream[begin : begin + size]
        end = min(begin + size, len(stream))
        scored = about[1:]
        if protocol.scored == "new":
            scored = scored[len(scored) - min(len(scored), end - done) :]
        done = end
        if scored:
            windows.append((about[: len(about) - more], scored))
    return windows


def found(planned: Plan) -> list[list[tuple[list, list]]]:
    """Return (tokens read, tokens scored) of every span of a plan, text by text."""
    (spans,) = planned.spans.values()
    windows: dict[int, list[tuple[list, list]]] = {}
    for row in range(len(spans)):
        text = planned.document(int(spans.document[row])).tolist()
        read = text[spans.start[row] : spans.end[row]]
        if spans.opening[row]:
            read = [planned.opening, *read]
        assert len(read) == spans.lengths[row]
        scored = text[spans.scored_start[row] : spans.scored_end[row]]
        assert len(scored) == spans.scored[row]
        windows.setdefault(int(spans.document[row]), []).append((read, scored))
    return list(windows.values())


@pytest.mark.parametrize("stored_with", ["plain", "opening"])
@settings(max_examples=400, deadline=None)
@given(protocols(), LENGTHS)
def test_windows_are_those_of_the_definition(
    request: pytest.FixtureRequest, stored_with: str, protocol: SlidingWindow, lengths: list[int]
) -> None:
    """Guards: too little context, another tail, a BOS read twice, scored or left in the text.

    Documents may be stored with BOS or without.
    """
    tokenizer = request.getfixturevalue(stored_with)
    documents = numbered(lengths, opened=stored_with == "opening")
    expected = [
        windows_by_definition(text, protocol) for text in texts_by_definition(lengths, protocol)
    ]
    expected = [windows for windows in expected if windows]
    if not expected:
        with pytest.raises(StageError, match=r"(no token of the documents|protocol\.documents)"):
            losses.plan(protocol, 0, documents, tokenizer)
        return
    planned = losses.plan(protocol, 0, documents, tokenizer)
    assert found(planned) == expected
    (spans,) = planned.spans.values()
    assert spans.lengths.max() <= protocol.contexts["1x"]


@settings(max_examples=400, deadline=None)
@given(protocols(), LENGTHS)
def test_every_token_is_scored_exactly_once(
    plain: LoadedTokenizer, protocol: SlidingWindow, lengths: list[int]
) -> None:
    """Guards: a token scored twice or never, at tails, in short documents, or where they meet.

    Not scored is the first token of a text before which nothing is read; and what a tail drops,
    which the result counts.
    """
    protocol = dataclasses.replace(protocol, scored="new")
    if protocol.stride_tokens is None:
        protocol = dataclasses.replace(protocol, stride_tokens=1)
    documents = numbered(lengths)
    try:
        planned = losses.plan(protocol, 0, documents, plain)
    except StageError:
        return  # nothing can be scored, see above
    counts = Counter(
        token for windows in found(planned) for _, scored in windows for token in scored
    )
    texts = [text for text in texts_by_definition(lengths, protocol) if text]
    unpredicted = {text[0] for text in texts} if protocol.bos == "none" else set()
    missing = {t for text in texts for t in text} - unpredicted - set(counts)
    assert set(counts.values()) == {1}
    assert not unpredicted & set(counts)
    if protocol.tail in ("full", "short"):
        assert not missing
    else:
        (spans,) = planned.spans.values()
        scores = dataclasses.replace(scores_of(spans), nll=np.ones(spans.scored.sum()))
        (number,) = planned.summarise({"1x": scores}, {})["contexts"].values()
        # A text without a window is left out with its first token, one of a single token dropped.
        whole = [
            t for t in texts if len(t) > 1 and t[0] in unpredicted and not set(t) & set(counts)
        ]
        assert number["left_out_tokens"] == len(missing) + len(whole)
        # nothing is lost but the end of a text
        for text in texts:
            scored = [token in counts for token in text[bool(unpredicted) :]]
            assert scored == sorted(scored, reverse=True)


def test_sliding_by_hand() -> None:
    """Guards: an off-by-one in the whole construction. 11 tokens, window 4, stride 3."""

    def rows(**settings: str) -> list[list[int]]:
        protocol = SlidingWindow(contexts={"1x": 4}, stride_tokens=3, **settings)  # type: ignore[arg-type]
        spans = sliding(np.array([5]), np.array([11]), protocol, 4)
        assert spans.document.tolist() == [5] * len(spans)
        columns = [spans.opening, spans.start, spans.end, spans.scored_start, spans.scored_end]
        return np.stack(columns, axis=1).astype(int).tolist()

    assert rows(bos="none") == [
        [0, 0, 4, 1, 4],
        [0, 3, 7, 4, 7],
        [0, 6, 10, 7, 10],
        [0, 7, 11, 10, 11],
    ]
    assert rows(bos="none", tail="short")[3:] == [[0, 9, 11, 10, 11]]
    assert len(rows(bos="none", tail="drop")) == 3
    assert len(rows(bos="none", tail="drop_last")) == 2
    assert rows(bos="none", scored="all")[3:] == [[0, 7, 11, 8, 11]]
    assert rows(bos="document")[:2] == [[1, 0, 3, 0, 3], [0, 2, 6, 3, 6]]
    assert rows(bos="window")[:2] == [[1, 0, 3, 0, 3], [1, 3, 6, 3, 6]]
    assert rows(bos="document", window="inputs")[:2] == [[1, 0, 3, 0, 4], [0, 2, 6, 4, 7]]


def test_the_first_documents_in_corpus_order_are_taken_and_cut(plain: LoadedTokenizer) -> None:
    """Guards: documents chosen by anything else; BOS counted in the minimum and not in the cut."""
    documents = numbered([4, 9, 1, 5, 30])
    protocol = SlidingWindow(
        contexts={"1x": 8},
        stride_tokens=2,
        documents=2,
        minimum_tokens=6,
        cut_tokens=7,
        bos="document",
    )
    planned = losses.plan(protocol, 0, documents, plain)
    assert planned.documents == ["doc-1", "doc-3"]
    assert [len(planned.document(i)) for i in range(2)] == [6, 5]
    bare = dataclasses.replace(protocol, bos="none")
    planned = losses.plan(bare, 0, documents, plain)
    assert planned.documents == ["doc-1", "doc-4"]
    assert [len(planned.document(i)) for i in range(2)] == [7, 7]
    assert planned.opening is None


def test_documents_that_can_score_nothing_are_dropped_and_named(plain: LoadedTokenizer) -> None:
    """Guards: documents that disappear from a mean over all of them."""
    protocol = SlidingWindow(contexts={"1x": 8}, stride_tokens=2, bos="none")
    planned = losses.plan(protocol, 0, numbered([4, 1, 0, 6]), plain)
    assert planned.documents == ["doc-0", "doc-3"]
    assert [word.split(":")[0] for word in planned.dropped] == [
        "document 'doc-1' has 1 tokens",
        "document 'doc-2' has 0 tokens",
    ]
    opened = dataclasses.replace(protocol, bos="document")
    assert len(losses.plan(opened, 0, numbered([4, 1, 0, 6]), plain).dropped) == 1
    for changes in ({"minimum_tokens": 2}, {"documents": 2}, {"text": "stream"}):
        asked = dataclasses.replace(protocol, **changes)
        assert not losses.plan(asked, 0, numbered([4, 1, 0, 6]), plain).dropped


def test_what_is_read_as_bos(tmp_path: Path, tokenizer: Tokenizer, plain: LoadedTokenizer) -> None:
    """Guards: a BOS that is silently left out, or another token in its place."""
    protocol = SlidingWindow(contexts={"1x": 8}, stride_tokens=2)
    documents = numbered([4, 9])
    assert losses.plan(protocol, 0, documents, plain).opening == BOS
    without = loaded(tmp_path / "eos", tokenizer, bos=None)
    assert losses.plan(protocol, 0, documents, without).opening == EOS
    neither = loaded(tmp_path / "none", tokenizer, bos=None, eos=None)
    with pytest.raises(StageError, match=r"protocol\.bos .* neither BOS nor EOS"):
        losses.plan(protocol, 0, documents, neither)
    bare = dataclasses.replace(protocol, bos="none")
    assert losses.plan(bare, 0, documents, neither).opening is None


def test_documents_must_begin_as_the_tokenizer_says(
    plain: LoadedTokenizer, opening: LoadedTokenizer
) -> None:
    """Guards: BOS read twice and scored (9.5 nats a document), or a word taken for BOS."""
    protocol = SlidingWindow(contexts={"1x": 8}, stride_tokens=2)
    with pytest.raises(StageError, match=r"'doc-0' begins with BOS .* are not opened"):
        losses.plan(protocol, 0, numbered([4, 9], opened=True), plain)
    with pytest.raises(StageError, match=r"'doc-1' begins without BOS .* are opened"):
        losses.plan(protocol, 0, Documents([[BOS, 5, 6], [5, 6, 7]]), opening)


@settings(deadline=None)
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
        documents=max(1, len(chosen)),
    )
    if not chosen:
        with pytest.raises(StageError, match="has 0"):
            same_tokens(np.array(lengths), protocol)
        return
    planned = same_tokens(np.array(lengths), protocol)
    for label, spans in planned.items():
        assert spans.document.tolist() == chosen
        assert (spans.lengths == protocol.contexts[label]).all()
        assert (spans.start >= 1).all()
        assert (spans.scored_end == longest + 1).all()
        assert (spans.scored == protocol.scored_tokens).all()


@pytest.mark.parametrize(
    "protocol",
    [
        SameTokens(contexts={"1x": 20}, scored_tokens=4, documents=3),
        SlidingWindow(
            contexts={"1x": 8}, stride_tokens=2, documents=3, minimum_tokens=21, bos="none"
        ),
        PositionCurve(contexts={"1x": 8, "2x": 21}, documents=3, bos="none"),
    ],
)
def test_too_few_documents_is_an_error_that_counts_them(
    protocol: SameTokens | SlidingWindow | PositionCurve, plain: LoadedTokenizer
) -> None:
    """Guards: a number measured on fewer documents than the protocol says."""
    with pytest.raises(StageError, match=r"protocol\.documents .* 3 documents .* has 2 \(of 4\)"):
        losses.plan(protocol, 0, numbered([20, 5, 21, 40]), plain)


@pytest.mark.parametrize(
    ("row", "opened"),
    [
        ((0, 0, 4, 0, 4), False),  # the first token, before which nothing is read
        ((0, 3, 8, 2, 8), True),  # a token before the first one read
        ((0, 0, 4, 2, 6), False),  # two past the last one read
        ((0, 0, 4, 3, 3), False),  # nothing
        ((0, 4, 3, 5, 6), False),  # read backwards
        ((0, -1, 3, 1, 3), False),
        ((0, 0, 0, 0, 1), False),  # from nothing
    ],
)
def test_a_span_that_scores_what_it_cannot_predict_is_refused(
    row: tuple[int, int, int, int, int], opened: bool
) -> None:
    """Guards: scoring a token from nothing, or one that no place read predicts."""
    good = (0, 0, 4, 1, 5)
    with pytest.raises(ValueError, match="span 0 reads"):
        table([row, good], opening=opened)
    assert table([good, (0, 0, 4, 4, 5)]).lengths.tolist() == [4, 4]
    assert table([(0, 3, 8, 3, 8), (0, 0, 0, 0, 1)], opening=True).lengths.tolist() == [6, 1]


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Spans]:
    return {
        str(number): sliding(
            np.arange(len(lengths := draw(st.lists(st.integers(2, 40), min_size=1, max_size=3)))),
            np.array(lengths),
            dataclasses.replace(draw(protocols()), tail="short", stride_tokens=None)
            if draw(st.booleans())
            else dataclasses.replace(draw(protocols()), tail="short"),
            draw(st.integers(31, 40)),
        )
        for number in range(draw(st.integers(1, 4)))
    }


@pytest.mark.parametrize("beginnings", [False, True])
@settings(max_examples=200, deadline=None)
@given(tables())
def test_shared_reads_give_every_table_its_own_scores(
    beginnings: bool, asked: dict[str, Spans]
) -> None:
    """Guards: a score of another context, document or token; equal reads that are read twice."""
    shared = share(asked, label="all", beginnings=beginnings)
    reads = list(zip(shared.spans.document, shared.spans.start, shared.spans.opening, strict=True))
    if not beginnings:
        reads = [(*read, end) for read, end in zip(reads, shared.spans.end, strict=True)]
    assert len(set(reads)) == len(reads)
    # A loss that is known by what predicts it: document, first token read, opening, (end,) token.
    everything = scores_of(shared.spans, with_end=not beginnings)
    for label, spans in asked.items():
        alone = scores_of(spans, with_end=not beginnings)
        part = shared.part(label, everything)
        for field in dataclasses.fields(alone):
            assert getattr(part, field.name).tolist() == getattr(alone, field.name).tolist()
