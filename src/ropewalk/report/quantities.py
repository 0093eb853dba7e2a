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

from ropewalk.report import measurements
from ropewalk.report.measurements import PerRound, PerStep
from ropewalk.report.spec import OF_TRAINING, Quantity

PERPLEXITIES = ("perplexity", "word_perplexity", "byte_perplexity")
LOSS_VALUES = ("nll", *PERPLEXITIES, "accuracy")
RETRIEVAL_VALUES = ("accuracy", "reach", "reach_share")
COPY_VALUES = ("reach", "reach_share")
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
class Measured:
    """A number and what it was computed from."""

    quantity: Quantity
    number: float  # in nats, perplexity, tokens, or a share, as the quantity's value says
    sample: PerUnit | PerDistance | PerTrial | PerRound | PerStep


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
    calibrations: Mapping[str, Json] = dataclasses.field(default_factory=dict)
    # by `study/calibration`
    trainings: Mapping[str, Json] = dataclasses.field(default_factory=dict)
    # by `study/run`: facts of its manifest, and `calibration`

    def key(self, quantity: Quantity) -> tuple[str, str]:
        """Return the key a quantity asks for; a bare evaluation name is the study's own.

        Of a calibration it is its name and no run, of a training no evaluation and its run.
        """
        if quantity.calibration:
            return f"{self.study}/{quantity.calibration}", ""
        if quantity.value in OF_TRAINING:
            return "", run_name(quantity)
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
    if quantity.calibration or quantity.value in OF_TRAINING:
        return _beside(quantity, evaluation, run, results)
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
        "reach": "reach",
        "reach_share": "share of the longest tested distance reached",
        "score": "score",
        "seconds_per_step": "seconds of a step",
        "tokens_per_second": "speed",
        "peak_gigabytes": "peak memory of a step",
        "tokens_that_fit": "number of tokens that fit",
        "run_seconds": "seconds of all steps",
        "loss_rise": "rise of the training loss",
    }
    if quantity.calibration:
        return f"{names[quantity.value]} at {quantity.context} ({quantity.calibration})"
    if quantity.value == "loss_rise":
        return f"rise of the training loss of {run_name(quantity)} at phase {quantity.context}"
    where = f" {'on' if quantity.value == 'score' else 'at'} {quantity.context}"
    where = where if quantity.context else ""
    when = {"final": "", "first": " before any step"}.get(
        quantity.snapshot, f" after {quantity.snapshot} steps"
    )
    return f"{names[quantity.value]} of {run_name(quantity)}{where}{when}"


def _beside(quantity: Quantity, name: str, run: str, results: Results) -> Measured | Missing:
    """Return a number that no evaluation gives."""
    try:
        sample: PerRound | PerStep
        if quantity.calibration:
            sample = measurements.of_calibration(quantity, name, results.calibrations)
        else:
            sample = measurements.of_training(
                quantity, run, results.trainings, results.calibrations
            )
    except LookupError as error:
        return Missing(quantity=quantity, reason=str(error.args[0]))
    return Measured(quantity=quantity, number=measurements.number(sample), sample=sample)


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
