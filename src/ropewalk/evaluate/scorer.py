"""Scoring spans with a model: the loss and the top-1 hit of every scored token.

Legend: B sequences of a forward pass, T tokens of each, n scored tokens of each.

Sequences of one forward pass have equal length and are scored at equal places, so there is no
padding and logits exist only where a token is scored.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from ropewalk.base.stage import StageError
from ropewalk.evaluate.spans import Spans
from ropewalk.model.reader import Reader

SCORER_VERSION = 2  # of what a score means; scores of another version are not comparable
TOKENS_AT_ONCE = 2**15  # read by one forward pass of several sequences, at most


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Scored tokens, in the order of the spans; all columns [n]."""

    document: np.ndarray  # int32, index in the plan's documents
    position: np.ndarray  # int32, of the token in its document
    preceding: np.ndarray  # int32, tokens its span read before it
    window: np.ndarray  # int32, row of its span in the table
    nll: np.ndarray  # float32, nats; not finite where the model's arithmetic failed
    hit: np.ndarray  # bool: the token is the model's first choice

    def __len__(self) -> int:
        return len(self.nll)


@torch.inference_mode()
def score(
    reader: Reader,
    spans: Spans,
    document: Callable[[int], np.ndarray],
    *,
    opening: int | None = None,
    sequences: int = 8,
    first_window: int = 0,
) -> Scores:
    """Score every span; `document(i)` gives the token ids of document i.

    `opening` is the token read before spans that have one. A forward pass reads at most
    `sequences` sequences. `spans` is a piece of a table that begins at row `first_window`.

    Raises:
        StageError: for a token the model does not have, naming the document.
    """
    ends = np.cumsum(spans.scored)
    starts = ends - spans.scored
    total = int(ends[-1]) if len(spans) else 0
    nll = np.empty(total, dtype=np.float32)
    hit = np.empty(total, dtype=bool)
    before = spans.opening.astype(np.int64) - spans.start  # place of a token less its position
    for rows in _batches(spans, sequences):
        one = int(rows[0])
        first = int(spans.scored_start[one] + before[one]) - 1
        ids, targets = [], []
        for row in rows.tolist():
            text = document(int(spans.document[row]))
            read = np.asarray(text[spans.start[row] : spans.end[row]], dtype=np.int64)
            ids.append(np.concatenate([[opening], read]) if spans.opening[row] else read)
            scored = text[spans.scored_start[row] : spans.scored_end[row]]
            targets.append(np.asarray(scored, dtype=np.int64))
        losses, hits = reader.losses(
            _tensor(ids, reader), first, _tensor(targets, reader, scored=True)
        )
        places = _ranges(starts[rows], ends[rows])
        nll[places], hit[places] = losses.flatten().cpu().numpy(), hits.flatten().cpu().numpy()
    position = _ranges(spans.scored_start, spans.scored_end)
    return Scores(
        document=np.repeat(spans.document, spans.scored).astype(np.int32),
        position=position.astype(np.int32),
        preceding=(position + np.repeat(before, spans.scored)).astype(np.int32),
        window=np.repeat(np.arange(first_window, first_window + len(spans)), spans.scored).astype(
            np.int32
        ),
        nll=nll,
        hit=hit,
    )


def _tensor(rows: Sequence[np.ndarray], reader: Reader, *, scored: bool = False) -> torch.Tensor:
    ids = np.stack(rows)
    if ids.size and int(ids.max()) >= reader.vocabulary_size:
        raise StageError(
            f"{reader.name} has a vocabulary of {reader.vocabulary_size}, but a token that is "
            f"{'scored' if scored else 'read'} has the id {int(ids.max())}: the text was tokenised "
            "for another model"
        )
    return torch.from_numpy(ids).to(reader.device)


def at_once(sequences: int, tokens: int) -> int:
    """Return how many sequences of `tokens` tokens, at most `sequences`, one forward pass reads."""
    return max(1, min(sequences, TOKENS_AT_ONCE // max(1, tokens)))


def _batches(spans: Spans, sequences: int) -> Iterator[np.ndarray]:
    """Yield row indices in batches of one shape, longest first (memory fails early)."""
    first = spans.scored_start - spans.start + spans.opening
    shapes = np.stack([spans.lengths, first, spans.scored], axis=1)
    found, group = np.unique(shapes, axis=0, return_inverse=True)
    for index in range(len(found) - 1, -1, -1):
        rows = np.flatnonzero(group.reshape(-1) == index)
        size = at_once(sequences, int(found[index, 0]))
        for begin in range(0, len(rows), size):
            yield rows[begin : begin + size]


def _ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the whole numbers of [starts[0], ends[0]), then of [starts[1], ends[1]), ..."""
    sizes = ends - starts
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(sizes.sum())
