"""The file that `ropewalk evaluate` leaves: numbers with their intervals and all they depend on."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ropewalk.evaluate import intervals
from ropewalk.evaluate.intervals import DRAWS, LEVEL, Interval
from ropewalk.evaluate.spec import Conventions, CopyProbe, Losses, Protocol

Json = dict[str, Any]

_BY_DOCUMENT = (
    "documents",
    "tokens",
    "words",
    "bytes",
    "nll_sums",
    "hits",
    "weights",
    "weighted_sums",
)


def numbers(protocol: Protocol, snapshot: Mapping[str, Any], seed: int) -> Json:
    """Return the numbers of one snapshot, intervals beside them.

    Of losses `contexts` (of conventions: `conventions`) has the numbers by label, and the longest
    context stands at the top as well. `snapshot` is as `measure` gives it.
    """
    if isinstance(protocol, Losses):
        found = {label: losses(one, seed) for label, one in snapshot["contexts"].items()}
        rest = {key: value for key, value in snapshot.items() if key != "contexts"}
        if isinstance(protocol, Conventions):
            return {**rest, "conventions": found}
        longest = max(found.values(), key=lambda one: one["context_tokens"])
        top = {key: value for key, value in longest.items() if key != "by_document"}
        return {**rest, **top, "contexts": found}
    result = dict(snapshot)
    if "reach_interval" in result:
        method = "trial bootstrap" if isinstance(protocol, CopyProbe) else "binomial bootstrap"
        reach = Interval(**result["reach_interval"])
        result["reach_interval"] = _described(reach, "reach", method, seed)
    if "cells" in result:
        result["cells"] = {name: _cell(cell, seed) for name, cell in result["cells"].items()}
    return result


def losses(found: Mapping[str, Any], seed: int) -> Json:
    """Return the numbers of one context from those of `evaluate.perplexity.summarise`."""
    by_document = {key: found[key] for key in _BY_DOCUMENT if key in found}
    tokens = sum(found["tokens"])
    return {
        **{key: found[key] for key in found if key not in (*by_document, "perplexity")},
        "token_perplexity": found["perplexity"],
        "interval": _of_perplexity(found, seed),
        "nll_sum": math.fsum(found["nll_sums"]),
        "tokens_scored": tokens,
        "token_accuracy": sum(found["hits"]) / tokens,
        "documents": len(found["documents"]),
        "words": sum(found["words"]),
        "bytes": sum(found["bytes"]),
        "by_document": by_document,
    }


def _of_perplexity(losses: Mapping[str, Any], seed: int) -> Json | None:
    """Return the interval of the perplexity; None for one document, which shows no spread.

    An end beyond a float64 is None.
    """
    sums = losses.get("weighted_sums", losses["nll_sums"])
    counts = losses.get("weights", losses["tokens"])
    if len(sums) < 2:
        return None
    mean = intervals.mean_nll(sums, counts, seed=seed)
    found = _described(mean, "token_perplexity", "document bootstrap", seed)
    return {**found, "low": _exp(mean.low), "high": _exp(mean.high)}


def _exp(nats: float) -> float | None:
    """Return exp(nats), None where that is beyond a float64."""
    try:
        return math.exp(nats)
    except OverflowError:
        return None


def _cell(cell: Mapping[str, Any], seed: int) -> Json:
    """Return a cell with the interval of its mean: Wilson's where every score is 0 or 1."""
    scores: Sequence[float] = cell["scores"]
    if len(scores) < 2:
        return {**cell, "interval": None}
    weights = cell.get("weights")
    if weights is None and set(scores) <= {0.0, 1.0}:
        share = intervals.wilson(int(sum(scores)), len(scores))
        return {**cell, "interval": _described(share, "mean", "Wilson", seed)}
    counts: list[Any] = [1.0] * len(scores) if weights is None else list(weights)
    sums = [score * count for score, count in zip(scores, counts, strict=True)]
    mean = intervals.mean_nll(sums, counts, seed=seed)
    return {**cell, "interval": _described(mean, "mean", "sample bootstrap", seed)}


def _described(found: Interval, of: str, method: str, seed: int) -> Json:
    drawn = {} if method == "Wilson" else {"draws": DRAWS, "seed": seed}
    return {**dataclasses.asdict(found), "of": of, "level": LEVEL, "method": method, **drawn}
