"""Stopping early and in order: a signal, a file or a deadline, then a checkpoint, then exit 75.

75 (EX_TEMPFAIL) tells the workflow to start the stage again; an unfinished run never ends with 0.
An attempt that was asked to stop before it made a step ends as a plain failure instead: to start it
again would take as long and come as far.
"""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from ropewalk.base.stage import StageError

EXIT_CODE = 75
BUDGET = "ROPEWALK_STOP_AFTER_SECONDS"  # from the begin of the training
DEADLINE = "ROPEWALK_STOP_AT"  # seconds since the epoch; how the stage tells its workers
SLURM_END = "SLURM_JOB_END_TIME"  # seconds since the epoch; Slurm sets it (>= 22.05)
SLURM_MARGIN_SECONDS = 60.0  # for processes to end; step and checkpoint are measured
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StoppedEarlyError(SystemExit):
    """The run has a checkpoint and more steps to do; the process ends with 75."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(EXIT_CODE)
        self.step = step
        self.steps = steps

    def __str__(self) -> str:
        return f"stopped early after step {self.step} of {self.steps}; start it again to go on"


@dataclasses.dataclass(kw_only=True)
class StopRequest:
    """Whether somebody wants this run to stop; asked once per step."""

    file: Path  # exists when the launcher wants its workers to stop
    deadline: float | None  # seconds since the epoch
    began: float = dataclasses.field(default_factory=time.monotonic)
    signalled: str | None = None  # the name of a signal that came

    def reason(self, needed_seconds: float = 0.0) -> str | None:
        """Return why the run should write a checkpoint and stop, or None.

        `needed_seconds` is how long it would take if it were asked later.
        """
        if self.signalled is not None:
            return f"by {self.signalled}"
        if self.deadline is not None and time.time() + needed_seconds >= self.deadline:
            return f"by its time limit ({BUDGET} or {SLURM_END})"
        return f"by the file {self.file}" if self.file.exists() else None

    def pending(self, needed_seconds: float = 0.0) -> bool:
        """Return whether there is a reason to stop."""
        return self.reason(needed_seconds) is not None

    def seconds(self) -> float:
        """Return for how long this process has listened."""
        return time.monotonic() - self.began


@contextlib.contextmanager
def listening(file: Path) -> Iterator[StopRequest]:
    """Yield a request that SIGTERM, SIGUSR1 or the deadline of the environment fulfils.

    The deadline is `ROPEWALK_STOP_AFTER_SECONDS` from now; without that, in a Slurm job, a minute
    before the job's end. Python only lets the main thread handle signals; elsewhere file and
    deadline remain.
    """
    request = StopRequest(file=file, deadline=_deadline())

    def note(number: int, _frame: FrameType | None) -> None:
        request.signalled = signal.Signals(number).name

    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, note) for number in SIGNALS}
        # The launcher holds signals back until there is somebody to hear them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _deadline() -> float | None:
    if DEADLINE in os.environ:
        return _seconds(DEADLINE)
    if BUDGET in os.environ:
        return time.time() + _seconds(BUDGET)
    if SLURM_END in os.environ:
        return _seconds(SLURM_END) - SLURM_MARGIN_SECONDS
    return None


def _seconds(variable: str) -> float:
    value = os.environ[variable]
    try:
        return float(value)
    except ValueError:
        raise StageError(f"{variable}: {value!r} is not a number of seconds") from None
