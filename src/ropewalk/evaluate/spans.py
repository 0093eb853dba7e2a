"""Which tokens a protocol reads and scores: explicit spans, planned before any model.

A span reads tokens [start, end) of one document as positions 0, 1, ..., after the plan's opening
token (BOS) where it has one. It scores the tokens [scored_start, scored_end), each predicted from
all that the span reads before it. So the first token read is never scored, BOS is never scored, and
the last scored token may lie one past the last that is read.
"""

import dataclasses

import numpy as np

from ropewalk.base.stage import StageError
from ropewalk.data.packing import ranges
from ropewalk.evaluate.spec import SameTokens, SlidingWindow


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Spans:
    """A table of spans, one row per forward pass of one sequence; columns [n], int64 but one.

    Raises:
        ValueError: for a span that scores what it cannot predict, or reads or scores nothing.
    """

    document: np.ndarray  # index in the plan's documents
    start: np.ndarray  # first token read
    end: np.ndarray  # one past the last token read
    scored_start: np.ndarray  # first token scored
    scored_end: np.ndarray  # one past the last token scored, at most end + 1
    opening: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=bool))
    # bool: the plan's opening token is read before `start`, at position 0; default: nowhere

    def __post_init__(self) -> None:
        if not self.opening.size:
            object.__setattr__(self, "opening", np.zeros(len(self.document), dtype=bool))
        predicted = self.start + 1 - self.opening  # the first token that something predicts
        ordered = (
            (self.start >= 0)
            & (self.start <= self.end)
            & (predicted <= self.scored_start)
            & (self.scored_start < self.scored_end)
            & (self.scored_end <= self.end + 1)
        )
        if not ordered.all():
            row = int(np.flatnonzero(~ordered)[0])
            raise ValueError(
                f"span {row} reads [{self.start[row]}, {self.end[row]}) "
                f"{'after' if self.opening[row] else 'without'} an opening token and scores "
                f"[{self.scored_start[row]}, {self.scored_end[row]}): the scored tokens must "
                "follow the first one read, and end at most one past the last"
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
        """Return the tokens read by each span, its opening included, int64 [n]."""
        return self.end - self.start + self.opening

    @property
    def scored(self) -> np.ndarray:
        """Return the tokens scored by each span, int64 [n]."""
        return self.scored_end - self.scored_start


def table(rows: list[tuple[int, int, int, int, int]], opening: bool = False) -> Spans:
    """Return spans from (document, start, end, scored_start, scored_end) tuples."""
    columns = np.array(rows, dtype=np.int64).reshape(-1, 5).T
    names = [field.name for field in dataclasses.fields(Spans)]
    return Spans(
        **dict(zip(names, columns, strict=False)), opening=np.full(len(rows), opening, dtype=bool)
    )


def same_tokens(lengths: np.ndarray, protocol: SameTokens) -> dict[str, Spans]:
    """Return the spans of each context label: equal targets, different left edges.

    Of a document the stretch [1, 1 + max(contexts)) is used. It leaves out the first token, so that
    the longest context does not see a BOS that the shorter ones cannot see; and since every context
    ends where the stretch ends, a shorter one starts inside the document, not at its beginning.
    Documents long enough are taken in corpus order. `lengths` is int64 [documents], as they are
    stored, BOS included.

    Raises:
        StageError: if fewer than `protocol.documents` documents are long enough.
    """
    longest = max(protocol.contexts.values())
    chosen = take(lengths, protocol.documents, minimum=longest + 1)
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


def sliding(
    documents: np.ndarray, lengths: np.ndarray, protocol: SlidingWindow, context_tokens: int
) -> Spans:
    """Return the windows of `context_tokens` over some texts, in order; see `SlidingWindow`.

    `documents` int64 [texts] are their indices in the plan, `lengths` int64 [texts] their tokens,
    BOS not counted: it is the opening of spans. A window reads `context_tokens` with its opening.
    With a stride S, window k ends k S after the first one, which ends with its context.
    """
    unread = int(protocol.window == "inputs")  # targets past the last token read
    first_opened = int(protocol.bos != "none")
    later_opened = int(protocol.bos == "window")
    first_reach = context_tokens + unread - first_opened  # tokens of the text, last target included
    later_reach = context_tokens + unread - later_opened
    stride = protocol.stride_tokens or 1
    counts = 1 + (np.maximum(lengths - first_reach, 0) + stride - 1) // stride
    if protocol.stride_tokens is None:
        counts = np.minimum(counts, 1)
    counts = np.where(lengths + first_opened < 2, 0, counts)  # nothing to predict, or from nothing
    document, length = np.repeat(documents, counts), np.repeat(lengths, counts)
    number = ranges(np.zeros(len(counts), dtype=np.int64), counts)  # within the text, from 0
    first = number == 0
    nominal = first_reach + number * stride  # where the window ends in a text without end
    end = np.minimum(nominal, length)
    opening = np.where(first, first_opened, later_opened).astype(bool)
    begin = end if protocol.tail == "full" else nominal
    start = np.maximum(begin - np.where(first, first_reach, later_reach), 0)
    scored_start = start + 1 - opening
    if protocol.scored == "new":
        scored_start = np.where(first, scored_start, nominal - stride)
    spans = Spans(
        document=document,
        start=start,
        end=end - unread,
        scored_start=scored_start,
        scored_end=end,
        opening=opening,
    )
    if protocol.tail == "drop":
        return spans[nominal <= length]
    if protocol.tail == "drop_last":
        return spans[number < np.repeat(counts, counts) - 2]
    return spans


def take(lengths: np.ndarray, documents: int | None, *, minimum: int) -> np.ndarray:
    """Return the indices of the first documents of at least `minimum` tokens, int64; None: all.

    Raises:
        StageError: if there are fewer, or none.
    """
    enough = np.flatnonzero(np.asarray(lengths) >= minimum).astype(np.int64)
    if len(enough) < (1 if documents is None else documents):
        raise StageError(
            f"protocol.documents asks for {'all' if documents is None else documents} documents of "
            f"at least {minimum} tokens, the corpus has {len(enough)} (of {len(lengths)}): lower "
            "protocol.documents, protocol.minimum_tokens or the contexts, or give the corpus more "
            "long documents (corpus minimum_tokens, limit)"
        )
    return enough[:documents]
