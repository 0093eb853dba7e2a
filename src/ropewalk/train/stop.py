"""Stopping early and in order: a signal, a file or a time budget, then a checkpoint, then exit 75.

75 (EX_TEMPFAIL) tells the workflow to start the stage again; an unfinished run never ends with 0.
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
BUDGET = "ROPEWALK_STOP_AFTER_SECONDS"
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
    deadline: float | None  # on the monotonic clock, seconds
    signalled: bool = False

    def pending(self) -> bool:
        """Return whether the run should write a checkpoint and stop."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return self.signalled or late or self.file.exists()


@contextlib.contextmanager
def listening(file: Path) -> Iterator[StopRequest]:
    """Yield a request that SIGTERM, SIGUSR1 or the time budget of the environment fulfils.

    Python only lets the main thread handle signals; elsewhere file and budget remain.
    """
    request = StopRequest(file=file, deadline=_deadline())

    def note(_number: int, _frame: FrameType | None) -> None:
        request.signalled = True

    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _deadline() -> float | None:
    value = os.environ.get(BUDGET)
    if value is None:
        return None
    try:
        return time.monotonic() + float(value)
    except ValueError:
        raise StageError(f"{BUDGET}: {value!r} is not a number of seconds") from None
