"""From a budget of time to a number of steps, by what calibrations measured: pure functions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ropewalk.base.stage import StageError
from ropewalk.train.spec import Phase, Run, Timed
from ropewalk.train.timetable import sequences_of

Json = Mapping[str, Any]


def with_steps(
    run: Run,
    timed: Mapping[str, Sequence[Timed]],
    calibrations: Mapping[str, Json],
) -> Run:
    """Return a run whose budgets of time are numbers of steps; other phases stay as they are.

    A phase with `seconds_like` gets the whole number of steps nearest to

        share * (seconds of the run it names) / (seconds of one of its own steps)

    where the seconds of a run are those of its steps, phase by phase. So a run gets the steps of
    its twin exactly.

    Args:
        run: with `calibration` where a phase has `seconds_like`.
        timed: the steps of the runs that are named, by `study/run`.
        calibrations: results of stage `calibrate`, by `study/calibration`.

    Raises:
        StageError: if a calibration, or a shape in it, is missing, or a budget is below one step.
    """
    phases = tuple(
        _settled(run, index, phase, timed, calibrations) for index, phase in enumerate(run.phases)
    )
    return dataclasses.replace(run, phases=phases)


def _settled(
    run: Run,
    index: int,
    phase: Phase,
    timed: Mapping[str, Sequence[Timed]],
    calibrations: Mapping[str, Json],
) -> Phase:
    like = phase.seconds_like
    if like is None:
        return phase
    where = f"phases[{index}].seconds_like"
    if like.run not in timed or run.calibration is None:
        raise StageError(
            f"{where}: the steps of {like.run!r} or the run's calibration are not given"
        )
    budget = like.share * sum(part.steps * _seconds(part, calibrations) for part in timed[like.run])
    own = Timed(
        calibration=run.calibration,
        length_tokens=phase.length_tokens,
        context_tokens=phase.context_tokens,
        sequences=sequences_of(run.batch, phase),
        steps=1,
    )
    step = _seconds(own, calibrations)
    steps = round(budget / step)
    if steps < 1:
        raise StageError(
            f"{where}: {budget:.3g} s, {like.share:g} of what {like.run} takes, are less than one "
            f"step of {step:.3g} s; give a larger share"
        )
    return dataclasses.replace(phase, steps=steps, seconds_like=None)


def _seconds(part: Timed, calibrations: Mapping[str, Json]) -> float:
    """Return the seconds of one step of a shape."""
    if part.calibration not in calibrations:
        raise StageError(
            f"input 'calibration:{part.calibration}' is missing; pass it with --input NAME=PATH"
        )
    wanted = (part.length_tokens, part.context_tokens, part.sequences)
    for shape in calibrations[part.calibration]["shapes"].values():
        if (shape["length_tokens"], shape["context_tokens"], shape["sequences"]) == wanted:
            return float(shape["seconds_per_step"])
    raise StageError(
        f"calibration {part.calibration} has no shape of {part.sequences} sequences of "
        f"{part.length_tokens} tokens in a window of {part.context_tokens}"
    )
