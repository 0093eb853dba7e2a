"""The attempts at a run: `segments.jsonl` in the work folder, a line when one begins and ends.

It is a ledger (which code, machine and job did which steps, and for how long), and it shows when
starting again leads nowhere: an attempt that was killed has no end.
"""

import contextlib
import dataclasses
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

FILE = "segments.jsonl"
TRY_AGAIN = "ROPEWALK_TRY_AGAIN"
FRUITLESS = 3  # attempts in a row from one step, after which something has to change


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt, as it was written down."""

    from_step: int
    code: str  # digest
    host: str
    started: str
    slurm_job: str | None
    to_step: int | None  # None: it was killed, or ended by an error
    error: str | None

    @property
    def ended(self) -> str:
        """Return how it ended, in words."""
        if self.error is not None:
            return self.error
        return "killed" if self.to_step is None else f"step {self.to_step}"


class Segment:
    """The stretch of a run that one attempt does, written down when it begins and when it ends."""

    def __init__(self, work: Path, *, writes: bool, from_step: int, facts: dict[str, Any]) -> None:
        self._file = work / FILE
        self._writes = writes  # one process of a run does
        self._clock = time.monotonic()
        self._entry: dict[str, Any] = {
            "from_step": from_step,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **facts,
        }

    def __enter__(self) -> "Segment":
        self._append({"event": "start", **self._entry})
        return self

    def reached(self, step: int) -> None:
        """Note the step the attempt ended at."""
        self._entry["to_step"] = step

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        seconds = round(time.monotonic() - self._clock, 3)
        error = None if kind is None else kind.__name__
        self._append({"event": "end", **self._entry, "seconds": seconds, "error": error})

    def _append(self, entry: dict[str, Any]) -> None:
        if self._writes:
            # A node that failed may have left half a line: a line break first keeps it apart.
            line = "" if _ends_whole(self._file) else "\n"
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(line + json.dumps(entry, sort_keys=True) + "\n")
                stream.flush()
                os.fsync(stream.fileno())


def attempts(work: Path) -> list[Attempt]:
    """Return the attempts at the run in a work folder, in order; torn lines are left out."""
    found: list[dict[str, Any]] = []
    file = work / FILE
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                entry = json.loads(line)
                if entry.get("event") == "start":
                    found.append(entry)
                elif found:  # there is one writer at a time
                    found[-1] = entry
    return [
        Attempt(
            from_step=entry["from_step"],
            code=entry["code"],
            host=entry["host"],
            started=entry["started"],
            slurm_job=entry.get("slurm_job"),
            to_step=entry.get("to_step") if entry["event"] == "end" else None,
            error=entry.get("error"),
        )
        for entry in found
    ]


def refusal(work: Path, step: int, steps: int) -> str | None:
    """Return why a run of `steps` steps should not be started from `step` again, or None."""
    last = attempts(work)[-FRUITLESS:]
    fruitless = [
        a
        for a in last
        if a.from_step == step
        and (a.error is not None or a.to_step is None or a.to_step == step < steps)
    ]
    if len(fruitless) < FRUITLESS or os.environ.get(TRY_AGAIN) == "1":
        return None
    ends = "; ".join(
        f"{a.started} on {a.host}{f', Slurm job {a.slurm_job}' if a.slurm_job else ''}: {a.ended}"
        for a in fruitless
    )
    return (
        f"{work / FILE}: the last {FRUITLESS} attempts began at step {step} of {steps} and left no "
        f"newer checkpoint ({ends}). Starting again as it is would do the same: their logs say why "
        "(out of memory, a node that fails, a time limit too short for start-up and one "
        f"checkpoint). Then set {TRY_AGAIN}=1 to go on"
    )


def codes(work: Path, steps: int) -> list[dict[str, Any]]:
    """Return which code did the `steps` steps of a run, [{from_step, code}], changes only.

    Steps that an attempt did and lost are not its own: those of a later one count.
    """
    kept: list[Attempt] = []
    for attempt in attempts(work):
        if attempt.from_step == steps:  # it only exported
            continue
        kept = [a for a in kept if a.from_step < attempt.from_step]
        kept.append(attempt)
    return [
        {"from_step": a.from_step, "code": a.code}
        for index, a in enumerate(kept)
        if index == 0 or a.code != kept[index - 1].code
    ]


def _ends_whole(file: Path) -> bool:
    if not file.is_file() or file.stat().st_size == 0:
        return True
    with file.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() == b"\n"
