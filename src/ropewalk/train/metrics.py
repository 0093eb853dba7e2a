"""What a training writes down: one JSON line per step, TensorBoard beside it, a line on the screen.

`step`, `tokens`, `loss`, `lr` and `grad_norm` are results; `tokens_per_second` is a measurement.
"""

import contextlib
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any, TextIO

from ropewalk.base.files import write_text

PROGRESS_SECONDS = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metrics:
    """One optimizer step."""

    step: int  # steps done after this one
    tokens: int  # read so far
    loss: float  # mean over the targets of the step, nats per token, before the update
    lr: float
    grad_norm: float | None  # before clipping; None where fp16 overflowed and nothing was updated
    tokens_per_second: float  # of this step, over all processes


class MetricsLog:
    """The metrics file of a run, continued after a given step."""

    def __init__(self, work: Path, *, after_step: int, steps: int) -> None:
        self.file = work / "metrics.jsonl"
        self._steps = steps
        # Steps behind the checkpoint are done again: their lines go, and with them a torn last one.
        kept = [entry for entry in read(self.file) if entry["step"] <= after_step]
        write_text(self.file, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._stream: TextIO = self.file.open("a", encoding="utf-8")
        self._board = _tensorboard(work / "tensorboard", after_step)
        self._clock, self._said = time.monotonic(), -PROGRESS_SECONDS
        self._first = after_step

    def add(self, metrics: Metrics) -> None:
        """Append one step."""
        self._stream.write(json.dumps(dataclasses.asdict(metrics)) + "\n")
        self._stream.flush()
        if self._board is not None:
            for field in ("loss", "lr", "grad_norm", "tokens_per_second"):
                if getattr(metrics, field) is not None:
                    self._board.add_scalar(field, getattr(metrics, field), metrics.step)
        now = time.monotonic()
        if now - self._said >= PROGRESS_SECONDS or metrics.step == self._steps:
            self._said = now
            per_step = (now - self._clock) / (metrics.step - self._first)
            left = per_step * (self._steps - metrics.step)
            print(
                f"train: step {metrics.step}/{self._steps}  loss {metrics.loss:.4f}  "
                f"{metrics.tokens_per_second:,.0f} tokens/s  {_duration(left)} left",
                flush=True,
            )

    def sync(self) -> None:
        """Make everything written so far durable, before a checkpoint says that it happened."""
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._stream.close()
        if self._board is not None:
            self._board.close()


def read(file: Path) -> list[dict[str, Any]]:
    """Return the steps in a metrics file, in order; a torn last line is left out."""
    entries: list[dict[str, Any]] = []
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                entries.append(json.loads(line))
    return entries


def curve(entries: list[dict[str, Any]], points: int = 200) -> list[list[float]]:
    """Return [[step, loss]] at up to `points` evenly spaced steps, first and last included."""
    count = len(entries)
    if count > points:
        chosen = sorted({round(i * (count - 1) / (points - 1)) for i in range(points)})
        entries = [entries[i] for i in chosen]
    return [[entry["step"], entry["loss"]] for entry in entries]


def _tensorboard(folder: Path, after_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=after_step + 1)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
