"""Extraction: one number, with the sample it rests on, out of evaluation results.

What was not measured is a `Missing` value and never an exception, so that "not run" cannot be read
as "wrong".
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ropewalk.report import bounds
from ropewalk.report.spec import Quantity

PERPLEXITIES = ("perplexity", "word_perplexity", "byte_perplexity")
LOSS_VALUES = ("nll", *PERPLEXITIES, "accuracy")
RETRIEVAL_VALUES = ("accuracy", "reach", "reach_share")
COPY_VALUES = ("reach", "reach_share")
CURVE_VALUES = ("end_nll", "bound")
Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerUnit:
    """Sums by unit of resampling, sorted by its name; the mean is `sum(sums) / sum(weights)`."""

    names: tuple[str, ...]
    sums: npt.NDArray[np.float64]  # [units], nats for losses, hits for accuracy, points for scores
    weights: npt.NDArray[np.float64]
    # [units], what the sums are over: scored tokens, words, bytes, samples, or weights of the mean
    unit: str = "document"

    @property
    def mean(self) -> float:
        """Return the mean over all units."""
        return float(self.sums.sum() / self.weights.sum())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerDistance:
    """Retrieval trials, one row per distance between the key and the end of the prompt."""

    context_tokens: int
    threshold: float  # share of trials that must succeed, for the reach
    distances: npt.NDArray[np.int64]  # [distances], tokens, ascending
    trials: npt.NDArray[np.int64]
    successes: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerTrial:
    """Trials of a copy probe: how much less the second showing costs, the same at all distances."""

    distances: npt.NDArray[np.int64]  # [distances], tokens, ascending
    drops: npt.NDArray[np.float64]  # [distances, trials], nats per token
    share: float  # of the drop at the shortest distance that counts as copied
    least_nats: float  # that the drop at the shortest must exceed


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerPosition:
    """A curve by position with its documents, sorted by name, and the window a bound is of."""

    names: tuple[str, ...]
    edges: npt.NDArray[np.int64]  # [bins + 1], positions
    sums: npt.NDArray[np.float64]  # [bins, documents], nats
    counts: npt.NDArray[np.float64]  # [bins, documents], scored tokens
    window_tokens: int

    @property
    def arms(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return sums and counts of every bin and, last, of the last half of the window."""
        half = bounds.last_half(self.edges, self.window_tokens)
        return (
            np.vstack([self.sums, self.sums[half].sum(axis=0)]),
            np.vstack([self.counts, self.counts[half].sum(axis=0)]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A number and what it was computed from."""

    quantity: Quantity
    number: float  # in nats, perplexity, tokens, or a share, as the quantity's value says
    sample: PerUnit | PerDistance | PerTrial | PerPosition


@dataclasses.dataclass(frozen=True, kw_only=True)
class Missing:
    """Why there is no number. `broken` tells a result that cannot be read from one not made."""

    quantity: Quantity
    reason: str
    broken: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """Evaluation results of one study, keyed by `(study/evaluation, study/run)`."""

    study: str
    by_name: Mapping[tuple[str, str], Mapping[str, Any]]

    def key(self, quantity: Quantity) -> tuple[str, str]:
        """Return the key a quantity asks for; a bare evaluation name is the study's own."""
        name = quantity.evaluation
        evaluation = name if "/" in name else f"{self.study}/{name}"
        return evaluation, run_name(quantity)


def run_name(quantity: Quantity) -> str:
    """Return the run of a resolved quantity, `study/run`.

    Raises:
        ValueError: if the run is still given by axis values, which only the plan can resolve.
    """
    if not isinstance(quantity.run, str):
        raise ValueError(
            f"quantity of evaluation {quantity.evaluation!r} names its run by axes "
            f"{dict(quantity.run)!r}; the plan must resolve it to 'study/run'"
        )
    return quantity.run


def extract(quantity: Quantity, results: Results) -> Measured | Missing:
    """Return the number a quantity asks for, or why there is none."""
    evaluation, run = results.key(quantity)
    result = results.by_name.get((evaluation, run))
    if result is None:
        return Missing(quantity=quantity, reason=_why_not_run(evaluation, run, results))
    snapshots = result["snapshots"]
    step = _step(quantity.snapshot, result)
    if step not in snapshots:
        known = ", ".join(sorted(snapshots, key=int))
        where = "before any step" if quantity.snapshot == "first" else f"at step {step}"
        return Missing(
            quantity=quantity,
            reason=f"{evaluation} of {run} has no snapshot {where}, only at {known}",
        )
    snapshot = snapshots[step]
    found = _read(quantity, snapshot, result["protocol"], f"{evaluation} of {run}")
    if isinstance(found, Measured) and not math.isfinite(found.number):
        return Missing(
            quantity=quantity,
            reason=f"{describe(quantity)} is {found.number}, not a finite number",
            broken=True,
        )
    return found


def describe(quantity: Quantity) -> str:
    """Return a quantity in words, e.g. `perplexity of pi/ft at 4x after 80 steps`."""
    names = {
        "nll": "loss",
        "perplexity": "perplexity",
        "word_perplexity": "perplexity per word",
        "byte_perplexity": "perplexity per byte",
        "accuracy": "accuracy",
        "end_nll": "loss in the last half of the context",
        "bound": f"extrapolation bound ({bounds.EXCESS_NATS:g} nat)",
        "reach": "reach",
        "reach_share": "share of the longest tested distance reached",
        "score": "score",
    }
    word = {"score": "on", "bound": "against the loss at"}.get(quantity.value, "at")
    where = f" {word} {quantity.context}"
    where = where if quantity.context else ""
    when = {"final": "", "first": " before any step"}.get(
        quantity.snapshot, f" after {quantity.snapshot} steps"
    )
    return f"{names[quantity.value]} of {run_name(quantity)}{where}{when}"


def _step(snapshot: str, result: Mapping[str, Any]) -> str:
    if snapshot == "final":
        return str(result["final_step"])
    return "0" if snapshot == "first" else snapshot


def _why_not_run(evaluation: str, run: str, results: Results) -> str:
    runs = sorted(r for e, r in results.by_name if e == evaluation)
    if not runs:
        return f"{evaluation} was not run at this scale"
    return f"{evaluation} was not run on {run}, only on {', '.join(runs)}"


def _read(quantity: Quantity, snapshot: Json, protocol: Json, name: str) -> Measured | Missing:
    """Return the number from a snapshot of whatever form."""
    if quantity.value in CURVE_VALUES:
        return _curve(quantity, snapshot, name)
    if "contexts" in snapshot:
        return _loss(quantity, snapshot, name)
    if "cells" in snapshot:
        return _score(quantity, snapshot, name)
    if "drops" in snapshot:
        return _copy(quantity, snapshot, protocol, name)
    if "successes" not in snapshot:
        return _broken(quantity, f"{name} holds no numbers this version can read")
    return _retrieval(quantity, snapshot, protocol, name)


def _loss(quantity: Quantity, snapshot: Json, name: str) -> Measured | Missing:
    if quantity.value not in LOSS_VALUES:
        return _broken(quantity, f"{name} measures losses; it has no {quantity.value}")
    found = _chosen(quantity, snapshot["contexts"], "context", name)
    if isinstance(found, Missing):
        return found
    sums, weights = "nll_sums", "tokens"
    if quantity.value == "accuracy":
        sums = "hits"
    elif quantity.value in ("word_perplexity", "byte_perplexity"):
        weights = {"word_perplexity": "words", "byte_perplexity": "bytes"}[quantity.value]
        if found[quantity.value] is None:
            none = not sum(found[weights])
            reason = f"has no {weights}" if none else f"has so few {weights} that it overflows"
            return _broken(quantity, f"{name}: what it scores {reason}")
        if not math.isclose(
            sum(found[sums]), math.log(found[quantity.value]) * sum(found[weights]), rel_tol=1e-9
        ):
            reason = f"{name} does not weigh every token once, so that it has no {quantity.value}"
            return _broken(quantity, f"{reason} with an interval")
    elif "weights" in found:  # a mean that is not over tokens
        sums, weights = "weighted_sums", "weights"
    sample = _units(found["documents"], found[sums], found[weights])
    return Measured(
        quantity=quantity,
        number=perplexity(sample.mean) if quantity.value in PERPLEXITIES else sample.mean,
        sample=sample,
    )


def _curve(quantity: Quantity, snapshot: Json, name: str) -> Measured | Missing:
    curve = snapshot.get("curve")
    if curve is None:
        return _broken(quantity, f"{name} has no curve by position; it has no {quantity.value}")
    found = _chosen(quantity, snapshot["contexts"], "context", name)
    if isinstance(found, Missing):
        return found
    order = np.argsort(np.array(curve["documents"], dtype=str), kind="stable")
    sample = PerPosition(
        names=tuple(curve["documents"][i] for i in order),
        edges=np.asarray(curve["edges"], dtype=np.int64),
        sums=np.asarray(curve["nll_sums"], dtype=np.float64).T[:, order],
        counts=np.asarray(curve["counts"], dtype=np.float64).T[:, order],
        window_tokens=int(found["context_tokens"]),
    )
    try:
        sums, counts = sample.arms
    except ValueError as error:
        return _broken(quantity, f"{name}: {error}")
    if quantity.value == "end_nll":
        units = _units(sample.names, sums[-1], counts[-1])
        return Measured(quantity=quantity, number=units.mean, sample=units)
    with np.errstate(invalid="ignore"):
        means = (sums.sum(axis=1) / counts.sum(axis=1))[:, None]
    bound = bounds.measured(sample.edges, means[:-1], means[-1], sample.window_tokens)
    number = bounds.shown(float(bound[0]), int(sample.edges[-1]))
    return Measured(quantity=quantity, number=number, sample=sample)


def _score(quantity: Quantity, snapshot: Json, name: str) -> Measured | Missing:
    if quantity.value != "score":
        reason = f"{name} measures samples; it has no {quantity.value}, only score"
        return _broken(quantity, reason)
    cell = _chosen(quantity, snapshot["cells"], "cell", name)
    if isinstance(cell, Missing):
        return cell
    scores = np.asarray(cell["scores"], dtype=np.float64)
    if not scores.size:
        return _broken(quantity, f"{name} holds no sample of {quantity.context}")
    weights = cell.get("weights", [1.0] * len(scores))
    # Numbers of samples, so that those two runs could both make pair; documents; or by place.
    listed = snapshot.get("documents")
    names = cell.get("samples", listed if isinstance(listed, list) else range(len(scores)))
    unit = "document" if names is listed else "sample"
    sample = _units(names, (scores * weights).tolist(), weights, unit)
    return Measured(quantity=quantity, number=sample.mean, sample=sample)


def _copy(quantity: Quantity, snapshot: Json, protocol: Json, name: str) -> Measured | Missing:
    if quantity.value not in COPY_VALUES:
        return _broken(quantity, f"{name} is a copy probe; it has no {quantity.value}")
    sample = PerTrial(
        distances=np.asarray(snapshot["distances"], dtype=np.int64),
        drops=np.asarray(snapshot["drops"], dtype=np.float64),
        share=float(protocol["share"]),
        least_nats=float(protocol["least_nats"]),
    )
    return Measured(quantity=quantity, number=float(snapshot[quantity.value]), sample=sample)


def _chosen(quantity: Quantity, known: Json, kind: str, name: str) -> Json | Missing:
    """Return the part of a snapshot that the quantity names; a question without a name is wrong."""
    if quantity.context is not None and quantity.context in known:
        part: Json = known[quantity.context]
        return part
    reason = f"{name} has no {kind} {quantity.context!r}, only {', '.join(sorted(known))}"
    return Missing(quantity=quantity, reason=reason, broken=quantity.context is None)


def _units(names: Any, sums: Any, weights: Any, unit: str = "document") -> PerUnit:
    """Return a sample sorted by name, so that two results pair whatever order they list them in."""
    rows = sorted(zip(map(str, names), sums, weights, strict=True))
    return PerUnit(
        names=tuple(name for name, _, _ in rows),
        sums=np.array([total for _, total, _ in rows], dtype=np.float64),
        weights=np.array([weight for _, _, weight in rows], dtype=np.float64),
        unit=unit,
    )


def _broken(quantity: Quantity, reason: str) -> Missing:
    return Missing(quantity=quantity, reason=reason, broken=True)


def perplexity(nll: float) -> float:
    """Return `exp(nll)` of a mean loss in nats per token; infinite where it overflows."""
    with np.errstate(over="ignore"):
        return float(np.exp(nll))


def _retrieval(quantity: Quantity, snapshot: Json, protocol: Json, name: str) -> Measured | Missing:
    if quantity.value not in RETRIEVAL_VALUES:
        return _broken(quantity, f"{name} measures retrieval; it has no {quantity.value}")
    sample = PerDistance(
        context_tokens=int(snapshot["context_tokens"]),
        threshold=float(protocol["threshold"]),
        distances=np.asarray(snapshot["distances"], dtype=np.int64),
        trials=np.asarray(snapshot["trials"], dtype=np.int64),
        successes=np.asarray(snapshot["successes"], dtype=np.int64),
    )
    if not sample.trials.sum():
        return _broken(quantity, f"{name} holds no trial")
    return Measured(quantity=quantity, number=float(snapshot[quantity.value]), sample=sample)
