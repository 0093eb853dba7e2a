"""Which tokens a perplexity protocol reads and scores: explicit spans, planned before any model.

A span reads tokens [start, end) of one document as positions 0, 1, ... and scores the tokens
[scored_start, scored_end) of it, each predicted from the tokens of the span before it. The first
token of a span is never scored: nothing predicts it. The first token of a document is its BOS where
it has one, so BOS is never scored either, and no BOS is added to windows that start further on.
"""

import dataclasses

import numpy as np

from ropewalk.base.stage import StageError
from ropewalk.evaluate.spec import SameTokens, SlidingWindow


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Spans:
    """A table of spans, one row per forward pass of one sequence; all columns int64 [n]."""

    document: np.ndarray  # index in the corpus
    start: np.ndarray  # first token read
    end: np.ndarray  # one past the last token read
    scored_start: np.ndarray  # first token scored
    scored_end: np.ndarray  # one past the last token scored

    def __post_init__(self) -> None:
        ordered = (
            (self.start >= 0)
            & (self.start < self.scored_start)
            & (self.scored_start < self.scored_end)
            & (self.scored_end <= self.end)
        )
        if not ordered.all():
            row = int(np.flatnonzero(~ordered)[0])
            raise ValueError(
                f"span {row} reads [{self.start[row]}, {self.end[row]}) and scores "
                f"[{self.scored_start[row]}, {self.scored_end[row]}): the scored tokens must be "
                "among those read, after the first of them"
            )

    def __len__(self) -> int:
        return len(self.document)

    def __getitem__(self, rows: slice | np.ndarray) -> "Spans":
        """Return some of the rows as a table of their own."""
        return Spans(
            **{field.name: getattr(self, field.name)[rows] for field in dataclasses.fields(self)}
        )

    @property
    def lengths(self) -> np.ndarray:
        """Return the tokens read by each span, int64 [n]."""
        return self.end - self.start

    @property
    def scored(self) -> np.ndarray:
        """Return the tokens scored by each span, int64 [n]."""
        return self.scored_end - self.scored_start


def table(rows: list[tuple[int, int, int, int, int]]) -> Spans:
    """Return spans from (document, start, end, scored_start, scored_end) tuples."""
    columns = np.array(rows, dtype=np.int64).reshape(-1, 5).T
    names = [field.name for field in dataclasses.fields(Spans)]
    return Spans(**dict(zip(names, columns, strict=True)))


def same_tokens(lengths: np.ndarray, protocol: SameTokens) -> dict[str, Spans]:
    """Return the spans of each context label: equal targets, different left edges.

    Of a document the stretch [1, 1 + max(contexts)) is used. It leaves out the first token, so that
    the longest context does not see a BOS that the shorter ones cannot see; and since every context
    ends where the stretch ends, a shorter one starts inside the document, not at its beginning.
    Documents long enough are taken in corpus order. `lengths` is int64 [documents], BOS included.

    Raises:
        StageError: if fewer than `protocol.documents` documents are long enough.
    """
    longest = max(protocol.contexts.values())
    chosen = _take(lengths, protocol.documents, minimum=longest + 1)
    end = np.full(len(chosen), longest + 1, dtype=np.int64)
    return {
        label: Spans(
            document=chosen,
            start=end - context,
            end=end,
            scored_start=end - protocol.scored_tokens,
            scored_end=end,
        )
        for label, context in protocol.contexts.items()
    }


def sliding_window(lengths: np.ndarray, protocol: SlidingWindow) -> dict[str, Spans]:
    """Return the spans of each context label: every token but a document's first, scored once.

    The first window scores all its tokens but the first. Each later one ends a stride further on
    and scores its last stride of tokens; where less than a stride is left, the last window ends
    with the document and scores what is left. All windows after the first are full.
    `lengths` is int64 [documents], BOS included.

    Raises:
        StageError: if fewer than `protocol.documents` documents are long enough.
    """
    chosen = _take(lengths, protocol.documents, minimum=max(protocol.minimum_tokens, 2))
    planned = {}
    for label, window in protocol.contexts.items():
        rows: list[tuple[int, int, int, int, int]] = []
        for document in chosen.tolist():
            total = int(lengths[document])
            if protocol.cut_tokens is not None:
                total = min(total, protocol.cut_tokens)
            end = min(window, total)
            rows.append((document, 0, end, 1, end))
            while end < total:
                scored_start, end = end, min(end + protocol.stride_tokens, total)
                rows.append((document, end - window, end, scored_start, end))
        planned[label] = table(rows)
    return planned


def _take(lengths: np.ndarray, documents: int, *, minimum: int) -> np.ndarray:
    """Return the indices of the first documents of at least `minimum` tokens, int64."""
    enough = np.flatnonzero(np.asarray(lengths) >= minimum).astype(np.int64)
    if len(enough) < documents:
        raise StageError(
            f"protocol.documents asks for {documents} documents of at least {minimum} tokens, the "
            f"corpus has {len(enough)} (of {len(lengths)}): lower protocol.documents or the "
            "contexts, or give the corpus more long documents (corpus minimum_tokens, limit)"
        )
    return enough[:documents]
