"""What steps cost, and how a training went: numbers that no evaluation gives.

Times and memory come from calibrations. They are measurements of the machine that a calibration ran
on: a verdict may rest on them, and says so. Losses around the switch between phases are results.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ropewalk.evaluate import intervals
from ropewalk.report.spec import Measure, Quantity
from ropewalk.report.wording import count

Json = Mapping[str, Any]
GIGABYTE = 1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerRound:
    """A number from every round of a calibration; rounds of one calibration pair."""

    numbers: npt.NDArray[np.float64]  # [rounds]; one where it is the same in every round
    calibration: str  # `study/calibration`


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerStep:
    """Training losses before and after the beginning of a phase, nats per token."""

    before: npt.NDArray[np.float64]  # [steps]
    after: npt.NDArray[np.float64]  # [steps]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted:
    """A number that is the same whatever is measured."""

    number: float


def of_calibration(
    quantity: Quantity,
    name: str,
    run: str,
    trainings: Mapping[str, Json],
    calibrations: Mapping[str, Json],
) -> PerRound:
    """Return a value of a shape of a calibration `study/calibration`, or of all steps of a run.

    Raises:
        LookupError: if there is no such calibration, shape, run or number; says which.
    """
    if name not in calibrations:
        raise LookupError(f"calibration {name} was not made at this scale")
    shapes = calibrations[name]["shapes"]
    if quantity.context is None:
        return _of_steps(quantity.value, _steps(run, name, trainings, calibrations), name)
    if quantity.context not in shapes:
        known = ", ".join(shapes)
        raise LookupError(f"calibration {name} has no shape {quantity.context!r}, only {known}")
    return _of_steps(quantity.value, [(1, shapes[quantity.context])], name)


def of_training(
    quantity: Quantity, run: str, trainings: Mapping[str, Json], calibrations: Mapping[str, Json]
) -> PerRound | PerStep | Counted:
    """Return the seconds of a run by its calibration, its losses around a switch, or its tokens.

    Raises:
        LookupError: if there is no such training, calibration, shape or switch; says which.
    """
    if run not in trainings:
        raise LookupError(f"{run} was not trained at this scale")
    training = trainings[run]
    if quantity.value == "run_seconds":
        name = str(training.get("calibration"))
        if name not in calibrations:
            raise LookupError(f"no calibration knows the seconds of {run}")
        return _of_steps("run_seconds", _steps(run, name, trainings, calibrations), name)
    if quantity.value == "trained_tokens":
        if training.get("start") is None:
            raise LookupError(f"{run} starts from no other run")
        return Counted(number=float(training["tokens"]))
    for switch in training.get("switches", ()):
        if str(switch["phase"]) == quantity.context:
            return PerStep(
                before=np.asarray(switch["before"], dtype=np.float64),
                after=np.asarray(switch["after"], dtype=np.float64),
            )
    raise LookupError(f"{run} begins no phase {quantity.context}")


def _steps(
    run: str, name: str, trainings: Mapping[str, Json], calibrations: Mapping[str, Json]
) -> list[tuple[int, Json]]:
    """Return the steps of each phase of a run, with the shape of their rows in a calibration.

    Raises:
        LookupError: if there is no such training, or it takes steps that were not measured.
    """
    keys = ("length_tokens", "context_tokens", "sequences")
    shapes = {tuple(s[k] for k in keys): s for s in calibrations[name]["shapes"].values()}
    if not trainings.get(run, {}).get("phases"):
        raise LookupError(f"{run} was not trained at this scale")
    found = []
    for phase in trainings[run]["phases"]:
        shape = shapes.get(tuple(phase[k] for k in keys))
        if shape is None:
            raise LookupError(
                f"calibration {name} has no shape of {phase['sequences']} sequences of "
                f"{phase['length_tokens']} tokens, as {run} trains on"
            )
        found.append((phase["steps"], shape))
    return found


def _of_steps(value: Measure, steps: list[tuple[int, Json]], name: str) -> PerRound:
    """Return a value of steps of one or more shapes, taken together, in every round."""
    seconds = np.sum([n * np.asarray(shape["seconds"]) for n, shape in steps], axis=0)
    tokens = sum(n * shape["tokens"] for n, shape in steps)
    numbers: npt.NDArray[np.float64]
    if value == "run_seconds":
        numbers = seconds
    elif value == "seconds_per_step":
        numbers = seconds / sum(n for n, _ in steps)
    elif value == "tokens_per_second":
        numbers = tokens / seconds
    elif value == "seconds_per_million_tokens":
        numbers = 1e6 * seconds / tokens
    elif value == "peak_gigabytes":
        numbers = np.array([max(shape["peak_bytes"] for _, shape in steps) / GIGABYTE])
    elif all(shape["tokens_that_fit"] is not None for _, shape in steps):
        numbers = np.array([min(shape["tokens_that_fit"] for _, shape in steps)])
    else:
        raise LookupError(f"calibration {name} names no memory_gigabytes for tokens to fit into")
    return PerRound(numbers=numbers, calibration=name)


def number(sample: PerRound | PerStep | Counted) -> float:
    """Return the median over rounds, the rise of the mean loss in nats per token, or a count."""
    if isinstance(sample, Counted):
        return sample.number
    if isinstance(sample, PerRound):
        return float(np.median(sample.numbers))
    return float(sample.after.mean() - sample.before.mean())


def spread(numbers: npt.NDArray[np.float64], level: float) -> tuple[intervals.Interval, str, float]:
    """Return an interval of the median of repeated measurements, its name and what it covers.

    Its ends are two of the numbers, as far inside as a share of `level` allows whatever their
    distribution (the binomial interval of a median); the extremes where there are too few.
    """
    ordered, size = np.sort(numbers), len(numbers)
    if size == 1:
        ends = intervals.Interval(low=float(ordered[0]), high=float(ordered[0]))
        return ends, "the same in every round, a measurement", level
    rank, outside = 0, 1 / 2**size
    while rank + 1 < size // 2:
        beyond = outside + math.comb(size, rank + 1) / 2**size
        if 1 - 2 * beyond < level:
            break
        rank, outside = rank + 1, beyond
    ends = intervals.Interval(low=float(ordered[rank]), high=float(ordered[size - 1 - rank]))
    method = f"spread of the median over {count(size, 'round')}, a measurement"
    return ends, method, round(1 - 2 * outside, 2)


def rise(sample: PerStep, *, seed: int, draws: int, level: float) -> tuple[intervals.Interval, str]:
    """Return the bootstrap interval of a rise of the mean loss; either side is drawn by itself."""
    means = [
        intervals.nll_draws(side[None], np.ones_like(side[None]), seed=seed + index, draws=draws)[0]
        for index, side in enumerate((sample.before, sample.after))
    ]
    ends = intervals.percentile(means[1] - means[0], level)
    steps = count(len(sample.after), "step")
    return ends, f"bootstrap over the losses of {steps} on either side, {draws:,} draws"


def sentence(result: Json) -> str:
    """Return how a calibration measures, and on what."""
    memory = result.get("memory_gigabytes")
    fits = (
        f" Tokens that fit into {memory:g} GB follow in proportion from the peak less what "
        f"weights, gradients and optimizer state take ({result['standing_bytes'] / GIGABYTE:.3g} "
        "GB); no such batch was tried."
        if memory
        else ""
    )
    return (
        f"A measurement of the machine it was made on ({result['device']}, "
        f"{count(result['threads'], 'thread')}), which no other machine repeats: the seconds of a "
        f"training step on random tokens, forward, backward and update. Each of "
        f"{count(result['rounds'], 'round')} measures every shape in turn "
        f"({count(result['steps_per_round'], 'step')}, of which the median counts); ratios are "
        "taken within rounds. Peak memory is the most that tensors take during a step; 1 GB is "
        "1e9 bytes."
        f"{fits}"
    )
