"""Protocol `copy`: whether a model copies random tokens it has seen before, by distance.

A row is an opening (BOS, or one token of filler where the tokenizer has no BOS: something must
predict the first token of the segment), the segment, filler, and the segment again. The distance is
the number of tokens from the first token of the first showing to that of the second. A segment is
drawn token by token from the corpus' own frequencies, without special tokens: so its tokens are
usual, and their order says nothing. Filler is cut from the corpus.

Rows are as long as their distance needs, and a trial has the same opening and segment at every
distance, with the same text before the second showing: filler grows to the left. So a distance
changes how far back the first showing stands and nothing else; a model that breaks down beyond some
length still shows what it reaches before; and the first showing, which by causality knows nothing
of what follows, is read once per trial, on its own.

The drop of a trial is the mean loss of the first showing less that of the second, over all tokens
of the segment but the first: nothing foretells when the segment begins again, so its first token
cannot be copied, and it is left out of both.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ropewalk.base.rng import generator
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.data.tokens import Tokens
from ropewalk.evaluate import intervals
from ropewalk.evaluate.filler import corpus_tokens
from ropewalk.evaluate.plan import Plan, Replies
from ropewalk.evaluate.reach import effective_length
from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.spans import Spans
from ropewalk.evaluate.spec import CopyProbe

FIRST, SECOND = "first", "second"  # labels of the spans


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The rows of a probe: for each distance all trials."""

    distances: tuple[int, ...]  # ascending
    openings: np.ndarray  # int64 [trials]
    segments: np.ndarray  # int64 [trials, segment]
    fillers: np.ndarray  # int64 [trials, longest distance - segment]; of shorter ones the end

    def ids(self, index: int) -> np.ndarray:
        """Return one row, int64 [1 + distance + segment]; rows of one distance are neighbours."""
        place, trial = divmod(index, len(self.segments))
        segment, filler = self.segments[trial], self.fillers[trial]
        between = self.distances[place] - len(segment)
        pieces = [
            self.openings[trial : trial + 1],
            segment,
            filler[len(filler) - between :],
            segment,
        ]
        return np.concatenate(pieces)

    @property
    def names(self) -> list[str]:
        """Return a name per row: distance and number of the trial."""
        return [f"{d}/{trial}" for d in self.distances for trial in range(len(self.segments))]

    @property
    def spans(self) -> dict[str, Spans]:
        """Return what is scored: the first showing of every trial, the second of every row."""
        trials, segment = self.segments.shape
        first = np.zeros(trials, dtype=np.int64)
        second = np.repeat(np.array(self.distances, dtype=np.int64), trials)
        return {
            label: Spans(
                document=np.arange(len(distance)),
                start=np.zeros(len(distance), dtype=np.int64),
                end=distance + segment,  # the last token is predicted and not read
                scored_start=distance + 1,
                scored_end=distance + 1 + segment,
                opening=np.zeros(len(distance), dtype=bool),
            )
            for label, distance in ((FIRST, first), (SECOND, second))
        }


def plan(protocol: CopyProbe, seed: int, tokens: Tokens, tokenizer: LoadedTokenizer) -> Plan:
    """Return both showings to be scored; `tokens` give the frequencies and the filler.

    Raises:
        StageError: if the corpus has no tokens.
    """
    text = np.concatenate(corpus_tokens(tokens, tokenizer))
    rows = build(protocol, seed, text, tokenizer.bos)

    def summary(scores: Mapping[str, Scores], _: Mapping[str, Replies]) -> dict[str, Any]:
        return summarise(scores, rows, protocol, seed)

    return Plan(documents=rows.names, document=rows.ids, spans=rows.spans, summarise=summary)


def distances_of(protocol: CopyProbe) -> tuple[int, ...]:
    """Return the distances, spaced geometrically from a segment to the longest possible."""
    longest = protocol.context_tokens - protocol.segment_tokens - 1
    spaced = np.geomspace(protocol.segment_tokens, longest, protocol.distances)
    return tuple(sorted(set(np.rint(spaced).astype(int).tolist())))


def build(protocol: CopyProbe, seed: int, text: np.ndarray, bos: int | None) -> Rows:
    """Return the rows; `text` int64 [tokens] gives frequencies and filler."""
    distances = distances_of(protocol)
    size = protocol.segment_tokens
    between = distances[-1] - size
    openings, segments, fillers = [], [], []
    for trial in range(protocol.trials):
        random = generator(seed, "copy probe", trial)
        # A token at a random place of the text has the text's own frequencies.
        segments.append(text[random.integers(len(text), size=size)])
        end = int(random.integers(len(text)))
        stretch = text.take(np.arange(end - between - 1, end), mode="wrap")
        fillers.append(stretch[1:])
        openings.append(stretch[0] if bos is None else bos)
    return Rows(
        distances=distances,
        openings=np.array(openings, dtype=np.int64),
        segments=np.array(segments, dtype=np.int64),
        fillers=np.array(fillers, dtype=np.int64).reshape(protocol.trials, between),
    )


def summarise(
    scores: Mapping[str, Scores], rows: Rows, protocol: CopyProbe, seed: int
) -> dict[str, Any]:
    """Return the numbers of one snapshot, as they stand in `result.json`.

    `first_nll`, `second_nll` and `drops` are nats per token, in rows of one distance, a column per
    trial. `accuracy` is the share of first choices in the second showing at every distance,
    `chance_accuracy` that in the first. `reach` is the effective length by the mean drops, and
    `reach_interval` its 95 % interval by the bootstrap over trials (the same at all distances).
    Losses that are not finite are left out; where a showing has no other, its loss is null and the
    drop 0: nothing was copied.
    """
    trials, places = len(rows.segments), len(rows.distances)
    first_nll, first_hits = _means(scores[FIRST], rows)  # [trials]
    second_nll, second_hits = (
        found.reshape(places, trials) for found in _means(scores[SECOND], rows)
    )
    gained = first_nll - second_nll
    drops = np.where(np.isfinite(gained), gained, 0.0)
    share, least = protocol.share, protocol.least_nats
    mean = drops.mean(axis=1)[None]
    reach = int(effective_length(rows.distances, mean, share=share, least_nats=least)[0])
    ends = intervals.effective_length(
        rows.distances, drops, share=share, least_nats=least, seed=seed
    )
    return {
        "context_tokens": protocol.context_tokens,
        "distances": list(rows.distances),
        "trials": [trials] * places,
        "first_nll": [_or_null(first_nll)] * places,
        "second_nll": [_or_null(row) for row in second_nll],
        "drops": drops.tolist(),
        "accuracy": second_hits.mean(axis=1).tolist(),
        "chance_accuracy": float(first_hits.mean()),
        "reach": reach,
        "reach_share": reach / rows.distances[-1],
        "reach_interval": {"low": ends.low, "high": ends.high},
    }


def _means(scores: Scores, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Return mean loss and share of first choices of every showing, its first token left out."""
    size = rows.segments.shape[1]
    nll = scores.nll.astype(np.float64).reshape(-1, size)[:, 1:]
    hits = scores.hit.reshape(-1, size)[:, 1:]
    finite = np.isfinite(nll)
    counts = finite.sum(axis=1)
    sums = np.where(finite, nll, 0.0).sum(axis=1)
    means = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return means, hits.mean(axis=1)


def _or_null(values: np.ndarray) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]
