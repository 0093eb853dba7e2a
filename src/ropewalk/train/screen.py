"""How far a training is: one line in place on a terminal, a line now and then in a log."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

TERMINAL_SECONDS = 0.5  # between two looks at the same line
LOG_SECONDS = 10.0  # between two lines


class Screen:
    """The progress line of an attempt that goes on after a step; `clock` gives seconds."""

    def __init__(
        self,
        *,
        after_step: int,
        steps: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stdout
        self._steps, self._clock = steps, clock
        self._terminal = self._stream.isatty()
        self._interval = TERMINAL_SECONDS if self._terminal else LOG_SECONDS
        self._said: float | None = None
        self._open = False  # the cursor stands behind an unfinished line
        # What the time left is computed from. The first step of an attempt is left out as soon as
        # there is another: it compiles, allocates and reads cold files.
        self._since = (clock(), after_step)
        self._first = after_step + 1

    def show(
        self,
        *,
        step: int,
        loss: float,
        lr: float,
        tokens_per_second: float,
        flops_per_second: float | None = None,
        mfu: float | None = None,
        memory_bytes: int | None = None,
        skipped: bool | None = None,
    ) -> None:
        """Show a finished step, if the last one shown was long enough ago or it is the end."""
        now = self._clock()
        since, done = self._since
        left = (now - since) / (step - done) * (self._steps - step)
        if step == self._first:
            self._since = (now, step)
        due = self._said is None or now - self._said >= self._interval
        if not due and step != self._steps:
            return
        self._said = now
        parts = [
            f"train: step {step}/{self._steps}",
            f"loss {loss:.4f}" + (" (fp16 overflow, no update)" if skipped else ""),
            f"lr {lr:.2e}",
            f"{tokens_per_second:,.0f} tokens/s",
        ]
        if mfu is not None:
            parts.append(f"MFU {mfu:.1%}")
        elif flops_per_second is not None:
            parts.append(f"{flops_per_second / 1e9:,.1f} GFLOP/s")
        if memory_bytes is not None:
            parts.append(f"{memory_bytes / 2**30:.2f} GiB")
        parts.append(f"{_duration(left)} left")
        self._write("  ".join(parts))

    def close(self) -> None:
        """End an unfinished line."""
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = False

    def _write(self, line: str) -> None:
        if self._terminal:
            # Cut to the width: a line that wraps cannot be rewritten in place.
            line = line[: shutil.get_terminal_size().columns - 1]
            self._stream.write(f"\r{line}\x1b[K")  # and what the longer line before left over
            self._open = True
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
