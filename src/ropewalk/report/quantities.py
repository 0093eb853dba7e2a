"""Extraction: one number, with the sample it rests on, out of evaluation results.

What was not measured is a `Missing` value and never an exception, so that "not run" cannot be read
as "wrong".
"""

import dataclasses
import fnmatch
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ropewalk.evaluate.reach import reaches
from ropewalk.report import bounds, measurements
from ropewalk.report.measurements import Counted, PerRound, PerStep
from ropewalk.report.samples import (
    Between,
    Measured,
    Missing,
    PerDistance,
    PerPosition,
    PerSeed,
    PerTrial,
    PerUnit,
    Seen,
)
from ropewalk.report.spec import OF_TRAINING, Quantity

PERPLEXITIES = ("perplexity", "word_perplexity", "byte_perplexity")
LOSS_VALUES = ("nll", *PERPLEXITIES, "accuracy")
CURVE_VALUES = ("end_nll", "bound")
SHARES = ("accuracy", "score")  # of retrieval trials: the same
REACHES = ("reach", "reach_share")
Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """Evaluation results of one study, keyed by `(study/evaluation, study/run)`.

    `by_name` includes the repetitions of a run under other seeds, `shown` has each run once.
    """

    study: str
    by_name: Mapping[tuple[str, str], Mapping[str, Any]]
    calibrations: Mapping[str, Json] = dataclasses.field(default_factory=dict)
    # by `study/calibration`
    trainings: Mapping[str, Json] = dataclasses.field(default_factory=dict)
    # by `study/run`: facts of its manifest, and `calibration`
    seen: Mapping[str, Seen] = dataclasses.field(default_factory=dict)  # by run, where asked for
    replicas: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    # run -> the same run under other seeds

    @property
    def shown(self) -> list[tuple[tuple[str, str], Json]]:
        """Return the results of every run as it is written, sorted by name."""
        again = {name for names in self.replicas.values() for name in names}
        return sorted((key, found) for key, found in self.by_name.items() if key[1] not in again)

    def key(self, quantity: Quantity) -> tuple[str, str]:
        """Return the key a quantity asks for; a bare evaluation name is the study's own.

        Of a shape of a calibration it is its name and no run, of a training no evaluation and its
        run.
        """
        if quantity.calibration:
            run = run_name(quantity) if quantity.context is None else ""
            return f"{self.study}/{quantity.calibration}", run
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
    """Return the number a quantity asks for, or why there is none.

    Of a run with several seeds it is the mean of their numbers.
    """
    seeds = () if quantity.measurement else results.replicas.get(results.key(quantity)[1], ())
    if not seeds:
        return _extract(quantity, results)
    each: list[Measured] = []
    for run in (results.key(quantity)[1], *seeds):
        found = _extract(dataclasses.replace(quantity, run=run), results)
        if isinstance(found, Missing):
            return dataclasses.replace(found, quantity=quantity)
        each.append(found)
    number = float(np.mean([measured.number for measured in each]))
    return Measured(quantity=quantity, number=number, sample=PerSeed(each=tuple(each)))


def _extract(quantity: Quantity, results: Results) -> Measured | Missing:
    evaluation, run = results.key(quantity)
    if quantity.calibration or quantity.value in OF_TRAINING:
        return _beside(quantity, evaluation, run, results)
    result = results.by_name.get((evaluation, run))
    if result is None:
        return Missing(quantity=quantity, reason=_why_not_run(evaluation, run, results))
    if quantity.value == "frequency":
        return _frequency(quantity, results)
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


def _frequency(quantity: Quantity, results: Results) -> Measured | Missing:
    """Return how many pairs at a distance training had shown when the reach first got that far.

    It got there somewhere between two snapshots; the number is the middle.
    """
    key = evaluation, run = results.key(quantity)
    seen, distance = results.seen.get(run), quantity.distance
    if distance is None or seen is None or not distance < len(seen.per_token):
        return _broken(quantity, f"nothing says how often {run} sees the distance {distance}")
    pairs = float(seen.per_token[distance]) * seen.tokens_per_step
    before = 0
    for step in sorted(results.by_name[key]["snapshots"], key=int):
        asked = dataclasses.replace(quantity, value="reach", distance=None, snapshot=step)
        reach = _extract(asked, results)
        if isinstance(reach, Missing):
            return dataclasses.replace(reach, quantity=quantity)
        if reach.number >= distance:
            sample = Between(low=pairs * before, high=pairs * int(step))
            middle = (sample.low + sample.high) / 2
            return Measured(quantity=quantity, number=middle, sample=sample)
        before = int(step)
    reason = f"{evaluation} of {run} has no snapshot whose reach is {distance:,} tokens"
    return Missing(quantity=quantity, reason=reason)


def describe(quantity: Quantity) -> str:
    """Return a quantity in words, e.g. `perplexity of pi/ft at 4x after 80 steps`."""
    if quantity.value == "frequency":
        return (
            f"position frequency of {run_name(quantity)} at {quantity.distance:,} tokens when its "
            "reach first got there"
        )
    names = {
        "nll": "loss",
        "perplexity": "perplexity",
        "word_perplexity": "perplexity per word",
        "byte_perplexity": "perplexity per byte",
        "accuracy": "accuracy",
        "end_nll": "loss in the last half of the context",
        "bound": f"extrapolation bound ({bounds.EXCESS_NATS:g} nat)",
        "reach": "reach",
        "reach_share": "share of the longest tested reach",
        "score": "score",
        "seconds_per_step": "seconds of a step",
        "tokens_per_second": "speed",
        "seconds_per_million_tokens": "time of a million tokens",
        "peak_gigabytes": "peak memory of a step",
        "tokens_that_fit": "number of tokens that fit",
        "run_seconds": "seconds of all steps",
        "loss_rise": "rise of the training loss",
        "trained_tokens": "number of trained tokens",
    }
    if quantity.calibration:
        of = f"at {quantity.context}" if quantity.context else f"of {run_name(quantity)}"
        return f"{names[quantity.value]} {of} ({quantity.calibration})"
    if quantity.value == "loss_rise":
        return f"rise of the training loss of {run_name(quantity)} at phase {quantity.context}"
    word = {"score": "on", "bound": "against the loss at"}.get(quantity.value, "at")
    where = f" {word} {quantity.context}"
    where = where if quantity.context else ""
    if quantity.depth:
        low, high = (100 * share for share in quantity.depth)
        where += f" for what stands at {low:.3g} to {high:.3g} % of a prompt"
    when = {"final": "", "first": " before any step"}.get(
        quantity.snapshot, f" after {quantity.snapshot} steps"
    )
    return f"{names[quantity.value]} of {run_name(quantity)}{where}{when}"


def _beside(quantity: Quantity, name: str, run: str, results: Results) -> Measured | Missing:
    """Return a number that no evaluation gives."""
    try:
        sample: PerRound | PerStep | Counted
        if quantity.calibration:
            sample = measurements.of_calibration(
                quantity, name, run, results.trainings, results.calibrations
            )
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
    if quantity.value in CURVE_VALUES:
        return _curve(quantity, snapshot, name)
    if "contexts" in snapshot:
        return _loss(quantity, snapshot, name)
    if "cells" in snapshot:
        return _cells(quantity, snapshot, protocol, name)
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


def _cells(quantity: Quantity, snapshot: Json, protocol: Json, name: str) -> Measured | Missing:
    if quantity.context is None:
        return _broken(quantity, f"{name} has several cells; name one, or a pattern")
    known: Json = snapshot["cells"]
    chosen = {c: known[c] for c in known if fnmatch.fnmatchcase(c, quantity.context)}
    if not chosen:
        reason = f"{name} has no cell {quantity.context!r}, only {', '.join(sorted(known))}"
        return Missing(quantity=quantity, reason=reason)
    if any(not cell["scores"] for cell in chosen.values()):
        return _broken(quantity, f"{name} holds no sample of {quantity.context}")
    if quantity.value in REACHES:
        return _by_length(quantity, chosen, protocol, name)
    if quantity.value == "accuracy":
        return _needles(quantity, chosen, name)
    if quantity.value != "score" or quantity.depth is not None:
        reason = f"{name} measures samples; it has no {quantity.value}, only score"
        return _broken(quantity, f"{reason}, which is not of a depth" if quantity.depth else reason)
    listed = snapshot.get("documents")
    names, sums, weights = [], [], []
    for label, cell in chosen.items():
        scores = np.asarray(cell["scores"], dtype=np.float64)
        each = cell.get("weights", [1.0] * len(scores))
        # Numbers of samples, so that those two runs could both make pair; documents; or by place.
        own = cell.get("samples", listed if isinstance(listed, list) else range(len(scores)))
        names += list(own) if len(chosen) == 1 else [f"{label}:{sample}" for sample in own]
        sums += (scores * each).tolist()
        weights += list(each)
    unit = "document" if len(chosen) == 1 and names == listed else "sample"
    sample = _units(names, sums, weights, unit)
    return Measured(quantity=quantity, number=sample.mean, sample=sample)


def _needles(quantity: Quantity, cells: Json, name: str) -> Measured | Missing:
    """Return the share of needles that were found, all or those at a depth."""
    low, high = quantity.depth or (0.0, math.inf)
    names, sums, weights = [], [], []
    for label, cell in cells.items():
        if "found" not in cell or any(not depths for depths in cell["depths"]):
            return _broken(quantity, f"{name}: {label} has no needles whose depth is known")
        for sample, found, depths in zip(
            cell["samples"], cell["found"], cell["depths"], strict=True
        ):
            inside = [f for f, depth in zip(found, depths, strict=True) if low <= depth < high]
            if inside:
                names.append(f"{label}:{sample}")
                sums.append(sum(inside))
                weights.append(len(inside))
    if not names:
        return _broken(quantity, f"{name} has no needle at a depth in {quantity.depth}")
    sample = _units(names, sums, weights, "sample")
    return Measured(quantity=quantity, number=sample.mean, sample=sample)


def _by_length(quantity: Quantity, cells: Json, protocol: Json, name: str) -> Measured | Missing:
    """Return the longest length at which, and at all shorter ones, a task succeeds."""
    tasks = sorted({label.rpartition("/")[0] for label in cells})
    if len(tasks) > 1:
        return _broken(quantity, f"{name}: a reach is of one task, not of {', '.join(tasks)}")
    ordered = sorted(cells.values(), key=lambda cell: int(cell["length_tokens"]))
    if any(score not in (0, 1) for cell in ordered for score in cell["scores"]):
        return _broken(quantity, f"{name}: samples of {tasks[0]} do not just succeed or fail")
    sample = PerDistance(
        threshold=float(protocol["threshold"]),
        distances=np.array([cell["length_tokens"] for cell in ordered], dtype=np.int64),
        trials=np.array([len(cell["scores"]) for cell in ordered], dtype=np.int64),
        successes=np.array([int(sum(cell["scores"])) for cell in ordered], dtype=np.int64),
    )
    reach = reaches(sample.distances, sample.successes[None], sample.trials, sample.threshold)
    number = float(reach[0]) / (sample.distances[-1] if quantity.value == "reach_share" else 1)
    return Measured(quantity=quantity, number=float(number), sample=sample)


def _copy(quantity: Quantity, snapshot: Json, protocol: Json, name: str) -> Measured | Missing:
    if quantity.value not in REACHES:
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
    if quantity.value not in (*SHARES, *REACHES):
        return _broken(quantity, f"{name} measures retrieval; it has no {quantity.value}")
    distances = np.asarray(snapshot["distances"], dtype=np.int64)
    kept = np.ones(len(distances), dtype=bool)
    if quantity.depth is not None:
        if quantity.value in REACHES or protocol.get("prompt") != "full":
            reason = "only the accuracy in prompts that are always full is of a depth"
            return _broken(quantity, f"{name}: {reason}")
        depths = 1 - distances / int(snapshot["context_tokens"])
        kept = (depths >= quantity.depth[0]) & (depths < quantity.depth[1])
    sample = PerDistance(
        threshold=float(protocol["threshold"]),
        distances=distances[kept],
        trials=np.asarray(snapshot["trials"], dtype=np.int64)[kept],
        successes=np.asarray(snapshot["successes"], dtype=np.int64)[kept],
    )
    if not sample.trials.sum():
        return _broken(quantity, f"{name} holds no trial")
    number = float(sample.successes.sum() / sample.trials.sum())
    if quantity.value in REACHES:
        number = float(snapshot[quantity.value])
    return Measured(quantity=quantity, number=number, sample=sample)
