"""Which phase a step belongs to, and how a step is cut over processes and forward passes."""

import dataclasses

from ropewalk.base.stage import StageError
from ropewalk.train.spec import Batch, Hardware, Phase, Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stretch:
    """The steps of one phase; steps count from 0 over the whole run."""

    phase: Phase
    first: int
    steps: int
    sequences: int  # of one optimizer step, over all processes

    @property
    def tokens_per_step(self) -> int:
        """Return the tokens one optimizer step reads, over all processes."""
        return self.sequences * self.phase.length_tokens


def timetable(run: Run) -> tuple[Stretch, ...]:
    """Return the phases of a run with their steps.

    A phase given in tokens takes as many whole steps as fit; a batch given in tokens holds the same
    number of tokens in every phase.

    Raises:
        StageError: for a phase shorter than one step or whose budget is time that no calibration
            has made steps of yet (`budget.with_steps`), or a snapshot after the end.
    """
    found: list[Stretch] = []
    first = 0
    for index, phase in enumerate(run.phases):
        if phase.seconds_like is not None:
            raise StageError(
                f"phases[{index}].seconds_like: steps follow from calibrations only; by hand give "
                "steps or tokens"
            )
        sequences = sequences_of(run.batch, phase)
        per_step = sequences * phase.length_tokens
        steps = phase.steps if phase.steps is not None else (phase.tokens or 0) // per_step
        if steps < 1:
            raise StageError(
                f"phases[{index}]: {phase.steps or phase.tokens or 0} "
                f"{'tokens' if phase.steps is None else 'steps'} are less than one step, "
                f"which has {per_step} tokens"
            )
        found.append(Stretch(phase=phase, first=first, steps=steps, sequences=sequences))
        first += steps
    late = [step for step in run.snapshot_steps if step > first]
    if late:
        raise StageError(f"snapshot_steps: {late[0]} lies behind the run's {first} steps")
    return tuple(found)


def sequences_of(batch: Batch | None, phase: Phase) -> int:
    """Return the sequences of one optimizer step of a phase, over all processes.

    Raises:
        StageError: for a run without a batch.
    """
    if batch is None:
        raise StageError("batch: missing; a run with phases needs it")
    if batch.sequences is not None:
        return batch.sequences
    return (batch.tokens or 0) // phase.length_tokens


def stretch_of(stretches: tuple[Stretch, ...], step: int) -> Stretch:
    """Return the stretch that step `step` belongs to; the last one for a step behind the end."""
    return [s for s in stretches if s.first <= step][-1]


def forward_rows(stretch: Stretch, hardware: Hardware) -> tuple[slice, ...]:
    """Return the rows of each forward pass of one process within its part of a step.

    Every process does the same number of passes, which sharded models need.

    Raises:
        StageError: if the sequences of a step do not divide over the processes.
    """
    if stretch.sequences % hardware.processes:
        raise StageError(
            f"hardware.processes: {hardware.processes} processes cannot share the "
            f"{stretch.sequences} sequences of a step evenly; use a divisor of that"
        )
    mine = stretch.sequences // hardware.processes
    at_once = min(hardware.sequences_per_forward or mine, mine)
    return tuple(slice(i, min(i + at_once, mine)) for i in range(0, mine, at_once))
