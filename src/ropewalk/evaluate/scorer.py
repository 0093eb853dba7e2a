"""Scoring spans with a model: the loss and the top-1 hit of every scored token.

Legend: B sequences of a forward pass, T tokens of each, N scored tokens, d hidden size, V words.

Sequences of one forward pass have equal length, so there is no padding. The output head is applied
to scored positions only, its logits and the log-softmax are float32 whatever the model computes in.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ropewalk.base.stage import StageError
from ropewalk.evaluate.windows import Spans

LOGITS_AT_ONCE = 2**24  # elements of one chunk of float32 logits: 64 MiB

Hidden = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """A model as the scorer sees it."""

    hidden: (
        Hidden  # (ids int64 [B, T], segment bounds of each row) -> final hidden states [B, T, d]
    )
    head: torch.Tensor  # output head [V, d]
    name: str  # of the run and snapshot, for messages
    sequences: int  # of one forward pass, at most
    logits_at_once: int = LOGITS_AT_ONCE  # elements


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Scored tokens, in the order of the spans; all columns [n]."""

    document: np.ndarray  # int32, index in the corpus
    position: np.ndarray  # int32, of the token in its document
    nll: np.ndarray  # float32, nats
    hit: np.ndarray  # bool: the token is the model's first choice


@torch.inference_mode()
def score(
    scorer: Scorer,
    spans: Spans,
    document: Callable[[int], np.ndarray],
    names: Sequence[str],
) -> Scores:
    """Score every span; `document(i)` gives the token ids of document i, `names[i]` its name.

    Raises:
        StageError: for a loss that is not finite, naming the run, the document and the position.
    """
    offsets = np.concatenate([[0], np.cumsum(spans.scored)])
    nll = np.empty(offsets[-1], dtype=np.float32)
    hit = np.empty(offsets[-1], dtype=bool)
    head = scorer.head.float()
    for rows in _batches(spans.lengths, scorer.sequences):
        batch = spans[rows]
        ids = np.stack(
            [
                np.asarray(document(i)[start:end], dtype=np.int64)
                for i, start, end in zip(
                    batch.document.tolist(), batch.start, batch.end, strict=True
                )
            ]
        )
        losses, hits = _score_batch(scorer, head, ids, batch)
        _refuse_non_finite(losses, batch, scorer.name, names)
        places = _ranges(offsets[rows], offsets[rows + 1])
        nll[places], hit[places] = losses, hits
    return Scores(
        document=np.repeat(spans.document, spans.scored).astype(np.int32),
        position=_ranges(spans.scored_start, spans.scored_end).astype(np.int32),
        nll=nll,
        hit=hit,
    )


def _batches(lengths: np.ndarray, sequences: int) -> Iterator[np.ndarray]:
    """Yield row indices in batches of equal length, longest first (memory fails early)."""
    for length in np.unique(lengths)[::-1]:
        rows = np.flatnonzero(lengths == length)
        for begin in range(0, len(rows), sequences):
            yield rows[begin : begin + sequences]


def _ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the whole numbers of [starts[0], ends[0]), then of [starts[1], ends[1]), ..."""
    sizes = ends - starts
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(sizes.sum())


def _score_batch(
    scorer: Scorer, head: torch.Tensor, ids: np.ndarray, batch: Spans
) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 losses and hits of a batch's scored tokens [N], row after row."""
    tokens = torch.from_numpy(ids).to(head.device)
    length = tokens.shape[1]
    states = scorer.hidden(tokens)
    row = np.repeat(np.arange(len(batch)), batch.scored)
    column = _ranges(batch.scored_start - batch.start, batch.scored_end - batch.start)
    flat = torch.from_numpy(row * length + column).to(head.device)
    targets = tokens.reshape(-1)[flat]
    # The state at a position predicts the next token.
    predicting = states.reshape(-1, states.shape[-1])[flat - 1]
    losses, hits = [], []
    rows_at_once = max(1, scorer.logits_at_once // head.shape[0])
    with torch.autocast(head.device.type, enabled=False):
        for states_chunk, targets_chunk in zip(
            predicting.split(rows_at_once), targets.split(rows_at_once), strict=True
        ):
            logits = F.linear(states_chunk.float(), head)
            losses.append(F.cross_entropy(logits, targets_chunk, reduction="none"))
            hits.append(logits.argmax(dim=-1) == targets_chunk)
    return torch.cat(losses).cpu().numpy(), torch.cat(hits).cpu().numpy()


def _refuse_non_finite(losses: np.ndarray, batch: Spans, run: str, names: Sequence[str]) -> None:
    if np.isfinite(losses).all():
        return
    at = int(np.flatnonzero(~np.isfinite(losses))[0])
    ends = np.cumsum(batch.scored)
    row = int(np.searchsorted(ends, at, side="right"))
    position = int(batch.scored_end[row] - (ends[row] - at))
    raise StageError(
        f"{run}: the loss of document {names[int(batch.document[row])]!r} at position {position} "
        f"is {losses[at]}, read from position {int(batch.start[row])}: the weights or "
        "numerics.precision overflow there; evaluate in fp32 or bf16, or look at the loss curve of "
        "the run"
    )
