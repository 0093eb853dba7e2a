"""One writer per run: a lease file with an owner and a heartbeat.

A run may be started twice, e.g. when a head process died, its job went on, and the workflow was
started again. The second writer is refused while the first one's heartbeat goes on; a lease whose
owner is dead is taken over.
"""

import contextlib
import dataclasses
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ropewalk.base.canonical import plain
from ropewalk.base.files import read_json, write_json
from ropewalk.base.spec import SpecError, decode
from ropewalk.base.stage import StageError

HEARTBEAT_SECONDS = 20.0
STALE_AFTER_SECONDS = 600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Owner:
    """A process that writes a run."""

    host: str
    pid: int
    started: str  # clock ticks since boot at which the process started: pids are used again
    slurm_job: str | None = None
    slurm_restart: str | None = None  # how often Slurm has requeued the job


class LeaseError(StageError):
    """Another process writes this run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lease:
    """A held lease."""

    file: Path
    owner: Owner

    def check(self) -> None:
        """Raise LeaseError if somebody else has taken the lease over."""
        found = _read(self.file)
        if found != self.owner:
            raise LeaseError(
                f"{self.file}: the lease now belongs to {_name(found)}; this process stops here"
            )


@contextlib.contextmanager
def held(
    file: Path,
    *,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
    stale_after_seconds: float = STALE_AFTER_SECONDS,
) -> Iterator[Lease]:
    """Hold the lease `file` for the length of a block, its heartbeat being the file's time.

    Raises:
        LeaseError: if a living process holds it; the message names that process.
    """
    owner = _self()
    file.parent.mkdir(parents=True, exist_ok=True)
    with _exclusively(file):
        found = _read(file)
        if found is not None:
            silent = max(0.0, time.time() - file.stat().st_mtime)
            if not _dead(found, owner, silent, stale_after_seconds):
                raise LeaseError(
                    f"{file.parent} is being written by {_name(found)}, alive {silent:.0f} s ago. "
                    "Wait for it or end it; if it is gone for certain, the lease can be taken "
                    f"over {stale_after_seconds:.0f} s after its last heartbeat"
                )
            print(f"train: taking over the lease of {_name(found)}, which is gone", flush=True)
        write_json(file, plain(owner))
    over = threading.Event()
    heart = threading.Thread(target=_beat, args=(file, owner, over, heartbeat_seconds), daemon=True)
    heart.start()
    try:
        yield Lease(file=file, owner=owner)
    finally:
        over.set()
        heart.join()
        with _exclusively(file):
            if _read(file) == owner:
                file.unlink()


def alive(owner: Owner) -> bool:
    """Return whether an owner lives, as far as this host can tell."""
    return owner.host != socket.gethostname() or _process_start(owner.pid) == owner.started


def _beat(file: Path, owner: Owner, over: threading.Event, seconds: float) -> None:
    while not over.wait(seconds):
        # A file system that is away for a moment must not end the heartbeat of a living run.
        with contextlib.suppress(OSError):
            if _read(file) != owner:
                return
            os.utime(file)


@contextlib.contextmanager
def _exclusively(file: Path) -> Iterator[None]:
    """Hold a lock beside the lease while it is read and written in one go."""
    with file.with_name(f"{file.name}.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _read(file: Path) -> Owner | None:
    try:
        return decode(Owner, read_json(file), (str(file),))
    except FileNotFoundError:
        return None
    except (ValueError, SpecError):
        return Owner(host="(unreadable lease)", pid=0, started="")


def _self() -> Owner:
    return Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=_process_start(os.getpid()) or "",
        slurm_job=os.environ.get("SLURM_JOB_ID"),
        slurm_restart=os.environ.get("SLURM_RESTART_COUNT"),
    )


def _process_start(pid: int) -> str | None:
    """Return when a process of this host started, or None if it is dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    # The command's name, in parentheses, may hold spaces; state and start time come after it.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def _dead(owner: Owner, me: Owner, silent_seconds: float, stale_after_seconds: float) -> bool:
    if silent_seconds >= stale_after_seconds:
        return True
    if owner.host == me.host:
        return not alive(owner)
    # Slurm ends a job before it requeues it: the same job under another count is its successor.
    return (
        owner.slurm_job is not None
        and owner.slurm_job == me.slurm_job
        and owner.slurm_restart != me.slurm_restart
    )


def _name(owner: Owner | None) -> str:
    if owner is None:
        return "nobody"
    job = f", Slurm job {owner.slurm_job}" if owner.slurm_job else ""
    return f"process {owner.pid} on {owner.host}{job}"
