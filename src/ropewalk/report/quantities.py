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

from ropewalk.report.spec import Quantity

LOSS_VALUES = ("nll", "perplexity", "accuracy")
RETRIEVAL_VALUES = ("accuracy", "reach", "reach_share")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerDocument:
    """Sums over scored tokens by document, sorted; the mean is `sum(sums) / sum(tokens)`."""

    documents: tuple[str, ...]
    sums: npt.NDArray[np.float64]  # [documents], nats for losses, hits for accuracy
    tokens: npt.NDArray[np.int64]  # [documents]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerDistance:
    """Retrieval trials, one row per distance between the key and the end of the prompt."""

    context_tokens: int
    threshold: float  # share of trials that must succeed, for the reach
    distances: npt.NDArray[np.int64]  # [distances], tokens, ascending
    trials: npt.NDArray[np.int64]
    successes: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A number and what it was computed from."""

    quantity: Quantity
    number: float  # in nats, perplexity, tokens, or a share, as the quantity's value says
    sample: PerDocument | PerDistance


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
    found = (
        _loss(quantity, snapshot, f"{evaluation} of {run}")
        if "contexts" in snapshot
        else _retrieval(quantity, snapshot, result["protocol"], f"{evaluation} of {run}")
    )
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
        "accuracy": "accuracy",
        "reach": "reach",
        "reach_share": "share of the longest tested distance reached",
    }
    where = f" at {quantity.context}" if quantity.context else ""
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


def _loss(quantity: Quantity, snapshot: Mapping[str, Any], name: str) -> Measured | Missing:
    if quantity.value not in LOSS_VALUES:
        reason = f"{name} measures losses; it has no {quantity.value}"
        return Missing(quantity=quantity, reason=reason, broken=True)
    contexts = snapshot["contexts"]
    if quantity.context is None or quantity.context not in contexts:
        reason = f"{name} has no context {quantity.context!r}, only {', '.join(sorted(contexts))}"
        return Missing(quantity=quantity, reason=reason, broken=quantity.context is None)
    data = contexts[quantity.context]
    # Sorted by document, so that two results pair whatever order they list documents in.
    order = sorted(range(len(data["documents"])), key=data["documents"].__getitem__)
    sums = data["hits" if quantity.value == "accuracy" else "nll_sums"]
    sample = PerDocument(
        documents=tuple(str(data["documents"][i]) for i in order),
        sums=np.array([sums[i] for i in order], dtype=np.float64),
        tokens=np.array([data["tokens"][i] for i in order], dtype=np.int64),
    )
    mean = float(sample.sums.sum() / sample.tokens.sum())
    return Measured(
        quantity=quantity,
        number=perplexity(mean) if quantity.value == "perplexity" else mean,
        sample=sample,
    )


def perplexity(nll: float) -> float:
    """Return `exp(nll)` of a mean loss in nats per token; infinite where it overflows."""
    with np.errstate(over="ignore"):
        return float(np.exp(nll))


def _retrieval(
    quantity: Quantity, snapshot: Mapping[str, Any], protocol: Mapping[str, Any], name: str
) -> Measured | Missing:
    if quantity.value not in RETRIEVAL_VALUES:
        reason = f"{name} measures retrieval; it has no {quantity.value}"
        return Missing(quantity=quantity, reason=reason, broken=True)
    sample = PerDistance(
        context_tokens=int(snapshot["context_tokens"]),
        threshold=float(protocol["threshold"]),
        distances=np.asarray(snapshot["distances"], dtype=np.int64),
        trials=np.asarray(snapshot["trials"], dtype=np.int64),
        successes=np.asarray(snapshot["successes"], dtype=np.int64),
    )
    if not sample.trials.sum():
        return Missing(quantity=quantity, reason=f"{name} holds no trial", broken=True)
    return Measured(quantity=quantity, number=float(snapshot[quantity.value]), sample=sample)
