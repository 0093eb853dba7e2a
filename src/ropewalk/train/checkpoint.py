"""Checkpoints to go on from: sharded (torch DCP), whole or absent, checked before they are used.

A checkpoint is a folder `step-000120` that appears by one rename, after every file in it and its
list of sha256 has reached the disk; until then it is called `step-000120.partial`, which nothing
reads. It holds everything that influences a later update: weights, optimizer state, step, tokens,
loss scale. The data order is a function of the step.
"""

import contextlib
import dataclasses
import itertools
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from ropewalk.base.canonical import plain
from ropewalk.base.files import PARTIAL, fsync_directory, read_json, sha256_file, write_json
from ropewalk.base.manifest import File, damage
from ropewalk.base.spec import SpecError, decode
from ropewalk.base.stage import StageError
from ropewalk.model.forward import Objective
from ropewalk.train.optimizer import LossScale
from ropewalk.train.spec import Hardware
from ropewalk.train.world import World

RECORD = "checkpoint.json"
VISIBLE_SECONDS = 90.0  # until a network file system shows all nodes what one has written


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is, beside its weights and optimizer state."""

    step: int = 0  # optimizer steps done
    tokens: int = 0  # read by them
    scale: LossScale = LossScale()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What a checkpoint's folder holds."""

    progress: Progress
    code: str  # digest of the stage's code
    files: tuple[File, ...]


def name(step: int) -> str:
    """Return the folder name of a step: `step-000120`."""
    return f"step-{step:06d}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Flight:
    """A save that has begun and is not a checkpoint yet."""

    progress: Progress
    partial: Path
    files: Future[list[File]]  # of this process


class Checkpoints:
    """The saves of one attempt: while training waits, or behind its back.

    In the background the state is copied (staged) to host memory first, so that a checkpoint is
    that of its step whatever training does meanwhile; the memory is kept for the next one. A thread
    of each process writes and hashes its part of the copy. The checkpoint is there when all
    processes have called `commit`, at the same step. All of them call every method at the same
    steps; the folder must be one that all of them see. To be used in a `with` block: what is in
    flight when it ends is given up.
    """

    def __init__(
        self,
        folder: Path,
        objective: Objective,
        optimizer: Optimizer,
        code: str,
        world: World,
        hardware: Hardware,
        *,
        step: int = 0,
    ) -> None:
        if hardware.checkpoints_kept < 1:
            raise StageError(
                f"hardware.checkpoints_kept: {hardware.checkpoints_kept} keeps none to go on from; "
                "1 is the least"
            )
        on_gpu = world.device.type == "cuda"
        wanted = hardware.checkpoint_in_background
        self.background = on_gpu if wanted is None else wanted
        self.step = step  # of the newest checkpoint
        self.write_seconds = 0.0  # how long the last save took, from its begin to the last file
        self._folder, self._objective, self._optimizer = folder, objective, optimizer
        self._code, self._world, self._keep = code, world, hardware.checkpoints_kept
        self._flight: _Flight | None = None
        options = StagingOptions(
            use_pinned_memory=on_gpu,  # a GPU copies to it at full speed
            use_non_blocking_copy=on_gpu,  # waited for once, at the end
            use_shared_memory=False,
            use_async_staging=False,
        )
        self._stager = DefaultStager(options) if self.background else None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._ends = contextlib.ExitStack()

    def __enter__(self) -> "Checkpoints":
        self._ends.enter_context(_quiet())
        return self

    def __exit__(self, *_: object) -> None:
        with self._ends:
            if self._flight is not None:
                wait([self._flight.files])
                self._flight = None
            self._pool.shutdown()
            if self._stager is not None:
                self._stager.close()

    @property
    def in_flight(self) -> bool:
        """Return whether a save has begun that is not committed."""
        return self._flight is not None

    @property
    def written(self) -> bool:
        """Return whether this process has done its part of the save in flight, or failed to."""
        return self._flight is not None and self._flight.files.done()

    def begin(self, progress: Progress) -> None:
        """Save the present state, which is that of `progress`; in the background if so set.

        Raises:
            StageError: if this save, or the one in flight before it, could not be written.
        """
        if not self.background:
            self.save(progress)
            return
        self.commit()
        partial, clock = self._begun(progress), time.monotonic()
        state = _state(self._objective, self._optimizer)
        upload = dcp.async_save(state, async_stager=self._stager, **self._where(partial))
        assert isinstance(upload, Future)  # staging is done, only writing is not

        def rest() -> list[File]:
            upload.result()
            return self._hashed(partial, clock)

        self._flight = _Flight(progress=progress, partial=partial, files=self._pool.submit(rest))

    def save(self, progress: Progress) -> None:
        """Save the present state and return when it is a checkpoint.

        Raises:
            StageError: if this save, or the one in flight before it, could not be written.
        """
        self.commit()
        partial, clock = self._begun(progress), time.monotonic()
        state = _state(self._objective, self._optimizer)

        def files() -> list[File]:
            dcp.save(state, **self._where(partial))
            return self._hashed(partial, clock)

        self._publish(progress, partial, files)

    def commit(self) -> None:
        """Wait for the save in flight, if there is one, and make it a checkpoint.

        Raises:
            StageError: if a process could not write its part.
        """
        if self._flight is not None:
            flight, self._flight = self._flight, None
            self._publish(flight.progress, flight.partial, flight.files.result)

    def _begun(self, progress: Progress) -> Path:
        """Make the empty folder of a save."""
        partial = self._folder / f"{name(progress.step)}{PARTIAL}"
        if self._world.first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self._world.barrier()
        return partial

    def _where(self, partial: Path) -> dict[str, Any]:
        # Syncs its files before it returns.
        group = self._world.writers
        return {"checkpoint_id": partial, "process_group": group, "no_dist": group is None}

    def _hashed(self, partial: Path, clock: float) -> list[File]:
        """Hash what this process wrote: another's files may not be visible here yet."""
        own = f"__{self._world.rank}_"
        files = [
            File(path=file.name, bytes=file.stat().st_size, sha256=sha256_file(file))
            for file in partial.iterdir()
            if file.name.startswith(own)
            or (self._world.first and not file.name.startswith("__"))  # DCP's metadata
        ]
        self.write_seconds = time.monotonic() - clock
        return files

    def _publish(self, progress: Progress, partial: Path, files: Callable[[], list[File]]) -> None:
        mine: list[File] = []
        failure = None
        try:
            mine = files()
        except (Exception, CheckpointException) as error:
            failure = _reason(error)
        told = self._world.gather((mine, failure))
        failures = [what for _, what in told if what is not None]
        if self._world.first and not failures:
            listed = sorted(itertools.chain.from_iterable(m for m, _ in told), key=lambda f: f.path)
            try:
                self._rename(Record(progress=progress, code=self._code, files=tuple(listed)))
            except OSError as error:
                failures = [_reason(error)]
        failures = self._world.gather(failures)[0]
        if failures:
            if self._world.first:
                shutil.rmtree(partial, ignore_errors=True)
            raise StageError(self._complaint(partial, failures[0]))
        self.step = progress.step

    def _rename(self, record: Record) -> None:
        final = self._folder / name(record.progress.step)
        partial = self._folder / f"{final.name}{PARTIAL}"
        if hidden := _await(partial, record.files):
            raise OSError(f"{hidden} were written and do not show in {partial}")
        unknown = {file.name for file in partial.iterdir()} - {file.path for file in record.files}
        if unknown:
            raise OSError(f"{partial} holds {sorted(unknown)}, which no process wrote")
        write_json(partial / RECORD, plain(record))
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        fsync_directory(self._folder)
        prune(self._folder, keep=self._keep, newest=record.progress.step)

    def _complaint(self, partial: Path, reason: str) -> str:
        there = [path.name for path in _folders(self._folder)]
        free = shutil.disk_usage(self._folder).free / 1e9
        return (
            f"the checkpoint {partial.with_suffix('')} could not be written: {reason} "
            f"({free:.1f} GB are free there). Checkpoints to go on from: "
            f"{', '.join(there) or 'none'}. Make room (hardware.checkpoints_kept says how many "
            "are kept) and start again"
        )


def latest(
    folder: Path, world: World, *, seconds: float = VISIBLE_SECONDS
) -> tuple[Path, Record] | None:
    """Return the newest undamaged checkpoint below `folder`; each process checks its share.

    Which there are is what the first process sees: nodes may see a shared folder differently for a
    while, and shards of two steps would fit together without an error. `seconds` is how long one
    waits for files that another node has written.
    """
    listed = _records(folder) if world.first else []
    for name_, record in world.gather(listed)[0]:
        path = folder / name_
        mine = record.files[world.rank :: world.size]
        _await(path, mine, seconds=seconds)
        problems = [f"{file.path} {what}" for file in mine if (what := damage(path, file))]
        problems = list(itertools.chain.from_iterable(world.gather(problems)))
        if not problems:
            return path, record
        if world.first:
            print(f"train: {path} is damaged ({problems[0]}); trying the one before", flush=True)
    return None


def _records(folder: Path) -> list[tuple[str, Record]]:
    """Return the names and records of the whole checkpoints below `folder`, newest first."""
    found = []
    for path in _folders(folder):
        try:
            record = decode(Record, read_json(path / RECORD), (str(path / RECORD),))
        except (FileNotFoundError, ValueError, SpecError) as error:
            print(f"train: {path} is not whole ({error}); trying the one before", flush=True)
        else:
            found.append((path.name, record))
    return found


def _await(folder: Path, files: Iterable[File], *, seconds: float = VISIBLE_SECONDS) -> list[str]:
    """Wait for files that another node has written; return those that do not show in time."""
    deadline = time.monotonic() + seconds
    while True:
        hidden = [file.path for file in files if not (folder / file.path).is_file()]
        if not hidden or time.monotonic() >= deadline:
            return hidden
        time.sleep(min(1.0, seconds / 10))


def restore(path: Path, objective: Objective, optimizer: Optimizer, world: World) -> None:
    """Read weights and optimizer state, whatever the number of processes that wrote them.

    Raises:
        StageError: for a checkpoint that is undamaged but holds something else.
    """
    state = _state(objective, optimizer)
    group = world.writers
    try:
        with _quiet():
            dcp.load(state, checkpoint_id=path, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        raise StageError(
            f"the checkpoint {path} cannot be read ({_reason(error)}): remove it to go on from the "
            "one before"
        ) from error
    set_state_dict(
        objective,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )


def prune(folder: Path, *, keep: int, newest: int) -> None:
    """Keep the last `keep` checkpoints up to step `newest`; remove the others and broken saves.

    A checkpoint of a later step was found damaged when the run went on from an earlier one.
    """
    found = _folders(folder)
    kept = [path for path in found if _step(path) <= newest][:keep]
    for path in [*(p for p in found if p not in kept), *folder.glob(f"*{PARTIAL}")]:
        shutil.rmtree(path)


def _state(objective: Objective, optimizer: Optimizer) -> dict[str, Any]:
    fresh = not optimizer.state
    model, state = get_state_dict(objective, optimizer)
    if fresh:
        # DCP has made the state by a step with a learning rate of 0, which counts as one.
        for values in optimizer.state.values():
            values["step"].zero_()
    return {"model": model, "optimizer": state}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence DCP's remark that one process is not many."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _reason(error: BaseException) -> str:
    """Return one line about an error; DCP wraps that of each process, with its trace."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
        return f"process {rank}: {_reason(cause)}"
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _folders(folder: Path) -> list[Path]:
    """Return the checkpoints below `folder`, newest first."""
    found = (path for path in folder.glob("step-*") if path.suffix != PARTIAL)
    return sorted(found, key=_step, reverse=True)
