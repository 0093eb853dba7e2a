"""Loss and next-token accuracy by position, in bins whose widths grow geometrically.

A position is the number of tokens read before the scored one, BOS included.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ropewalk.evaluate.scorer import Scores


def edges(longest_tokens: int, points: int) -> np.ndarray:
    """Return the edges of at most `points` bins of positions, int64 [bins + 1], ascending.

    Bin i holds the positions [edges[i], edges[i + 1]); together they hold 1, ..., longest - 1. The
    edges are powers of longest ** (1 / points), rounded; equal ones are one.
    """
    return np.unique(np.rint(np.geomspace(1, longest_tokens, points + 1)).astype(np.int64))


def curve(scores: Scores, documents: Sequence[str], bins: np.ndarray) -> dict[str, Any]:
    """Return sums and means by bin, as they stand in `result.json`; `bins` are `edges`.

    `tokens`, `nll` and `accuracy` are of all documents [bins], null where a bin holds no token;
    `counts`, `nll_sums` and `hits` are by document [documents][bins], so that intervals can be made
    by drawing documents. Losses that are not finite are left out of all of them.
    """
    finite = np.isfinite(scores.nll)
    place = np.searchsorted(bins, scores.preceding[finite], side="right") - 1
    shape = (len(documents), len(bins) - 1)
    cell = np.ravel_multi_index((scores.document[finite], place), shape)

    def by_cell(values: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(cell, weights=values, minlength=shape[0] * shape[1]).reshape(shape)

    counts = by_cell()
    sums = by_cell(scores.nll[finite].astype(np.float64))
    hits = by_cell(scores.hit[finite]).astype(np.int64)
    tokens = counts.sum(axis=0)

    def mean(values: np.ndarray) -> list[float | None]:
        return [
            v / n if n else None for v, n in zip(values.sum(axis=0).tolist(), tokens, strict=True)
        ]

    return {
        "edges": bins.tolist(),
        "tokens": tokens.tolist(),
        "nll": mean(sums),
        "accuracy": mean(hits),
        "documents": list(documents),
        "counts": counts.tolist(),
        "nll_sums": sums.tolist(),
        "hits": hits.tolist(),
    }
