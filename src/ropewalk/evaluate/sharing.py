"""Reading once what several tables of spans read: one merged table, and each table's own part.

By causality the loss at a token depends on the tokens before it alone. So spans that read the same
tokens share a forward pass, whatever part of it each of them scores; and where nothing depends on
the length that is read, so do spans that begin at the same token.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from ropewalk.data.packing import ranges
from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.spans import Spans


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Shared:
    """Tables of spans by label, and the one table that is read in their place."""

    label: str  # of what is read
    spans: Spans
    tables: Mapping[str, Spans]
    rows: Mapping[str, np.ndarray]  # int64 [spans of the table]: their rows in `spans`

    def part(self, label: str, scores: Scores) -> Scores:
        """Return the scores of one table from those of `spans`, as if it had been read alone."""
        own, rows = self.tables[label], self.rows[label]
        offsets = np.cumsum(self.spans.scored) - self.spans.scored
        begins = offsets[rows] + own.scored_start - self.spans.scored_start[rows]
        places = ranges(begins, own.scored)
        columns = {
            field.name: getattr(scores, field.name)[places] for field in dataclasses.fields(scores)
        }
        columns["window"] = np.repeat(np.arange(len(own), dtype=np.int32), own.scored)
        return Scores(**columns)


def share(tables: Mapping[str, Spans], *, label: str, beginnings: bool) -> Shared:
    """Merge tables: each read once, scored from the first token any of them scores to the last.

    With `beginnings` a span is also read as the beginning of a longer one. That is exact, up to
    rounding, only where no angle and nothing in attention depends on the length that is read.
    """
    keys = np.concatenate(
        [
            np.stack([t.document, t.start, t.opening, 0 * t.end if beginnings else t.end], axis=1)
            for t in tables.values()
        ]
    )
    found, row = np.unique(keys, axis=0, return_inverse=True)
    row = row.reshape(-1)

    def extreme(column: str, which: np.ufunc, start: int) -> np.ndarray:
        values = np.full(len(found), start, dtype=np.int64)
        which.at(values, row, np.concatenate([getattr(t, column) for t in tables.values()]))
        return values

    spans = Spans(
        document=found[:, 0],
        start=found[:, 1],
        end=extreme("end", np.maximum, 0),
        scored_start=extreme("scored_start", np.minimum, np.iinfo(np.int64).max),
        scored_end=extreme("scored_end", np.maximum, 0),
        opening=found[:, 2].astype(bool),
    )
    cuts = np.cumsum([len(t) for t in tables.values()])[:-1]
    return Shared(
        label=label,
        spans=spans,
        tables=tables,
        rows=dict(zip(tables, np.split(row, cuts), strict=True)),
    )
