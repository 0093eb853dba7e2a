"""When a run saves and when it stops: what each process wants after a step, and what all then do.

The loop sums what the processes want once per step, together with the targets of the step, so that
all of them save, commit and stop at the same one.
"""

import time
from collections.abc import Callable, Sequence

from ropewalk.train.checkpoint import Checkpoints, Progress
from ropewalk.train.stop import StopRequest
from ropewalk.train.world import World


class Saving:
    """The saves of one attempt, by the clock and at its end."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        world: World,
        stop: StopRequest,
        *,
        every_seconds: float,
        steps: int,
        ready: Callable[[], None],
    ) -> None:
        self._checkpoints, self._world, self._stop = checkpoints, world, stop
        self._every_seconds = every_seconds
        self._steps = steps  # of the whole run
        self._ready = ready  # called before a checkpoint is begun or appears; raises if it may not
        self._begun = self._asked = time.monotonic()
        self._step_seconds = 0.0

    @property
    def step(self) -> int:
        """Return the step of the newest checkpoint."""
        return self._checkpoints.step

    def wanted(self) -> tuple[float, ...]:
        """Return what this process wants after the coming step: to save, to stop, to commit."""
        now = time.monotonic()
        self._step_seconds, self._asked = now - self._asked, now
        saves = self._checkpoints
        due = now - self._begun >= self._every_seconds and not saves.in_flight
        # Whoever goes on now can stop after the step behind the coming one at the earliest, and
        # then waits for what is in flight and writes one more.
        writes = saves.write_seconds * (2 if saves.in_flight else 1)
        stopping = self._stop.pending(2 * self._step_seconds + writes)
        return (self._world.first and due, stopping, saves.written)

    def after(self, progress: Progress, wished: Sequence[float]) -> bool:
        """Do what the processes want, the sums of it being `wished`; return whether to stop.

        Before it stops and at the run's end there is a checkpoint of `progress` when it returns.
        """
        due, stopping, written = wished
        saves = self._checkpoints
        if written == self._world.size:
            self._ready()
            saves.commit()
        last = stopping or progress.step == self._steps
        if due or last:
            self._begun = time.monotonic()
            self._ready()
            if last:
                saves.save(progress)
            else:
                saves.begin(progress)
        return stopping > 0
