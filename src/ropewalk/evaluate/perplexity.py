"""Numbers of a set of scored tokens: sums per document, the mean loss of a protocol, perplexity.

All sums are float64, of what was scored and nothing else: a token that was cut away or left out
stands in no denominator.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from ropewalk.base.stage import StageError
from ropewalk.evaluate.scorer import Scores

Mean = Literal["tokens", "windows", "labels"]
# (document, first token, one past the last) -> words and bytes of that text
Written = Callable[[int, int, int], tuple[int, int]]


def summarise(
    scores: Scores,
    weights: np.ndarray,
    *,
    documents: Sequence[str],
    context_tokens: int,
    mean: Mean = "tokens",
    written: Written,
) -> dict[str, Any]:
    """Return the numbers of one snapshot at one context, as they stand in `result.json`.

    `documents` names the documents of the scores; those without a scored token are left out.
    `weights` float64 [n] are those of `weigh`. `tokens`, `words` and `bytes` are of the scored part
    of each document; a token that is scored in several windows counts in `tokens` every time. Word
    and byte perplexity are exp of the loss per token times tokens per word or byte, null where the
    scored part has no text or the number is beyond a float64; bits are per byte. Losses that are
    not finite are counted in `non_finite`; they are in no sum and no count of tokens.

    Raises:
        StageError: if no loss is finite, or if the perplexity is beyond what a float64 can hold.
    """
    finite = np.isfinite(scores.nll)
    document, weight = scores.document[finite], weights[finite]
    nll = scores.nll[finite].astype(np.float64)

    def by_document(values: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(document, weights=values, minlength=len(documents))[present]

    present = np.flatnonzero(np.bincount(document, minlength=len(documents)))
    tokens, sums = by_document(), by_document(nll)
    shares, weighted = by_document(weight), by_document(weight * nll)
    total = math.fsum(shares)
    if total <= 0:
        raise StageError(
            f"at context {context_tokens} none of {len(scores)} losses is finite and has a weight "
            f"in the mean over {mean}: evaluate in fp32, look at the run, or give longer texts"
        )
    loss = math.fsum(weighted) / total
    first, stop = _scored_parts(scores, len(documents))
    sizes = [written(i, int(first[i]), int(stop[i])) for i in present.tolist()]
    words, size = sum(w for w, _ in sizes), sum(b for _, b in sizes)
    distinct = int((stop - first)[present].sum())
    per_byte = loss * distinct / size if size else None
    numbers = {
        "context_tokens": context_tokens,
        "mean": mean,
        "documents": [documents[i] for i in present.tolist()],
        "tokens": tokens.tolist(),
        "words": [w for w, _ in sizes],
        "bytes": [b for _, b in sizes],
        "nll_sums": sums.tolist(),
        "hits": by_document(scores.hit[finite]).astype(np.int64).tolist(),
        "windows": len(np.unique(scores.window[finite])),
        "preceding": [int(f(scores.preceding[finite])) for f in (np.min, np.max)],
        "non_finite": int((~finite).sum()),
        "nll": loss,
        "perplexity": perplexity(loss),
        "word_perplexity": _exp(loss * distinct / words) if size else None,
        "byte_perplexity": None if per_byte is None else _exp(per_byte),
        "bits_per_byte": None if per_byte is None else per_byte / math.log(2),
    }
    if mean != "tokens":
        numbers |= {"weights": shares.tolist(), "weighted_sums": weighted.tolist()}
    return numbers


def weigh(scores: Scores, mean: Mean) -> np.ndarray:
    """Return the weight of every score in the mean of a protocol, float64 [n].

    Over tokens each weighs 1. Over windows those of a window weigh 1 together. Over labels a window
    weighs as many as it scores, less one unless it is the first of its text. A loss that is not
    finite weighs nothing. `scores` are of texts, in the order of their spans.
    """
    finite = np.isfinite(scores.nll)
    if mean == "tokens":
        return finite.astype(np.float64)
    windows = int(scores.window.max(initial=-1)) + 1
    sizes = np.bincount(scores.window[finite], minlength=windows).astype(np.float64)
    wanted = np.ones(windows)
    if mean == "labels":
        _, firsts = np.unique(scores.document, return_index=True)
        wanted = sizes - 1
        wanted[scores.window[firsts]] += 1
    shares = np.divide(wanted, sizes, out=np.zeros(windows), where=sizes > 0)
    return np.where(finite, shares[scores.window], 0.0)


def writing(tokenizer: Tokenizer, read: Callable[[int], np.ndarray]) -> Written:
    """Return what counts words and UTF-8 bytes of tokens [first, stop) of document `read(i)`.

    Of the text they decode to, without special tokens. Words are what whitespace separates, an
    empty one at either end included (lm-evaluation-harness, `count_words`).
    """
    known: dict[tuple[int, int, int], tuple[int, int]] = {}

    def written(document: int, first: int, stop: int) -> tuple[int, int]:
        key = (document, first, stop)
        if key not in known:
            text = tokenizer.decode(read(document)[first:stop].tolist(), skip_special_tokens=True)
            known[key] = len(re.split(r"\s+", text)), len(text.encode())
        return known[key]

    return written


def perplexity(nll: float) -> float:
    """Return exp(nll), `nll` in nats per token.

    Raises:
        StageError: if it is not a finite float64.
    """
    found = _exp(nll)
    if found is None:
        raise StageError(
            f"the mean loss of {nll} nats per token has no finite perplexity: the weights are "
            "damaged or numerics.precision overflows; evaluate in fp32 or look at the run"
        )
    return found


def _exp(nats: float) -> float | None:
    try:
        return math.exp(nats)
    except OverflowError:
        return None


def _scored_parts(scores: Scores, documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first position scored of each document and one past the last, int64.

    Every protocol scores one stretch of a document, whatever the number of its windows.
    """
    first = np.full(documents, np.iinfo(np.int64).max)
    stop = np.zeros(documents, dtype=np.int64)
    np.minimum.at(first, scores.document, scores.position)
    np.maximum.at(stop, scores.document, scores.position.astype(np.int64) + 1)
    return first, stop
