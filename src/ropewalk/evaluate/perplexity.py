"""Numbers of a set of scored tokens: sums per document, the mean over tokens, perplexity.

Every token weighs the same: nll is the sum of all losses over the number of all scored tokens, in
float64 nats, and perplexity is its exponential. Means per document or per window are not used.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ropewalk.base.stage import StageError
from ropewalk.evaluate.scorer import Scores


def summarise(scores: Scores, documents: Sequence[str], context_tokens: int) -> dict[str, Any]:
    """Return the numbers of one snapshot at one context, as they stand in `result.json`.

    `documents` names the documents of the corpus; those without a scored token are left out.

    Raises:
        StageError: if the perplexity is beyond what a float64 can hold.
    """
    counts = np.bincount(scores.document, minlength=len(documents))
    sums = np.bincount(
        scores.document, weights=scores.nll.astype(np.float64), minlength=len(documents)
    )
    hits = np.bincount(scores.document, weights=scores.hit, minlength=len(documents))
    present = np.flatnonzero(counts)
    nll = math.fsum(sums[present]) / int(counts.sum())
    return {
        "context_tokens": context_tokens,
        "documents": [documents[i] for i in present.tolist()],
        "tokens": counts[present].tolist(),
        "nll_sums": sums[present].tolist(),
        "hits": hits[present].astype(np.int64).tolist(),
        "nll": nll,
        "perplexity": perplexity(nll),
    }


def perplexity(nll: float) -> float:
    """Return exp(nll), `nll` in nats per token.

    Raises:
        StageError: if it is not a finite float64.
    """
    try:
        return math.exp(nll)
    except OverflowError:
        raise StageError(
            f"the mean loss of {nll} nats per token has no finite perplexity: the weights are "
            "damaged or numerics.precision overflows; evaluate in fp32 or look at the run"
        ) from None
