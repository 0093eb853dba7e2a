"""Budgets of time in the plan: which calibrations a run needs, and the steps they are to time."""

from collections.abc import Callable

from ropewalk.base.stage import StageError
from ropewalk.study.load import Problems
from ropewalk.study.schema import Calibration
from ropewalk.train.spec import CalibrateJob, Run, Shape, Timed
from ropewalk.train.timetable import sequences_of, timetable


def calibrate_job(calibration: Calibration, run: Run) -> CalibrateJob:
    """Return the job that measures a run's model on the run's hardware.

    Raises:
        ValueError: if the run has several processes, which a calibration does not start.
    """
    if run.hardware.processes != 1:
        raise ValueError(
            f"hardware.processes {run.hardware.processes} of its run: a calibration measures one "
            "process; name a run with one"
        )
    return CalibrateJob(
        architecture=run.architecture,
        numerics=run.numerics,
        shapes=calibration.shapes,
        rounds=calibration.rounds,
        steps=calibration.steps,
        memory_gigabytes=calibration.memory_gigabytes,
        device=run.hardware.device,
        sequences_per_forward=run.hardware.sequences_per_forward,
        recompute_activations=run.hardware.recompute_activations,
        compile=run.hardware.compile,
    )


def budgets(
    run: Run,
    where: str,
    resolved: Callable[[str, str], Run | None],
    job_of: Callable[[str, str], CalibrateJob | None],
    problems: Problems,
) -> tuple[dict[str, tuple[Timed, ...]], list[str]]:
    """Return the steps of the runs whose seconds a run shares, and the calibrations that time them.

    Both are empty for a run without budgets of time. `resolved` gives a run by its name, `job_of`
    what a calibration measures; a shape that it does not measure is a problem.
    """
    timed: dict[str, tuple[Timed, ...]] = {}
    own: list[Timed] = []
    for index, phase in enumerate(run.phases):
        like, place = phase.seconds_like, f"{where}.phases.{index}.seconds_like"
        if like is None:
            continue
        if run.calibration is None:
            problems.add(f"{where}.calibration: missing; phases.{index}.seconds_like needs it")
            continue
        own.append(_part(run, index, run.calibration, steps=1))
        other = resolved(like.run, f"{place}.run")
        if other is not None and like.run not in timed:
            timed[like.run] = _parts(other, like.run, place, problems)
    names: list[str] = []
    for part in (*own, *(part for parts in timed.values() for part in parts)):
        job = job_of(part.calibration, f"{where}.calibration")
        if job is not None and not measures(job, part):
            problems.add(
                f"{where}: calibration {part.calibration!r} has no shape of {part.sequences} "
                f"sequences with length_tokens {part.length_tokens} in a window of "
                f"{part.context_tokens}, which seconds_like needs; add it to its shapes"
            )
        if part.calibration not in names:
            names.append(part.calibration)
    return timed, names


def measures(job: CalibrateJob, part: Timed) -> bool:
    """Return whether a calibration has the shape of some steps."""

    def key(shape: Shape) -> tuple[int, int, int]:
        return shape.length_tokens, shape.context_tokens, shape.rows

    wanted = (part.length_tokens, part.context_tokens, part.sequences)
    return any(key(shape) == wanted for shape in job.shapes.values())


def _parts(other: Run, name: str, place: str, problems: Problems) -> tuple[Timed, ...]:
    """Return the phases of a run that a budget comes from."""
    if any(phase.seconds_like is not None for phase in other.phases):
        problems.add(
            f"{place}.run: {name!r} has a budget of time itself; name the run that it comes from"
        )
        return ()
    if other.calibration is None:
        problems.add(f"{place}.run: {name!r} has no calibration, so nobody knows its seconds")
        return ()
    try:
        steps = [stretch.steps for stretch in timetable(other)]
    except StageError as error:
        problems.add(f"{place}.run: {name!r}: {error}")
        return ()
    return tuple(
        _part(other, index, other.calibration, steps=count) for index, count in enumerate(steps)
    )


def _part(run: Run, index: int, calibration: str, *, steps: int) -> Timed:
    phase = run.phases[index]
    return Timed(
        calibration=calibration,
        length_tokens=phase.length_tokens,
        context_tokens=phase.context_tokens,
        sequences=sequences_of(run.batch, phase),
        steps=steps,
    )
