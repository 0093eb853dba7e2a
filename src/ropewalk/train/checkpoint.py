"""Checkpoints to go on from: sharded (torch DCP), whole or absent, checked before they are used.

A checkpoint is a folder `step-000120` that appears by one rename, after every file in it and its
list of sha256 has reached the disk. It holds everything that influences a later update: weights,
optimizer state, step, tokens, loss scale. The data order is a function of the step.
"""

import contextlib
import dataclasses
import itertools
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from ropewalk.base.canonical import plain
from ropewalk.base.files import fsync_directory, read_json, write_json
from ropewalk.base.manifest import File, damage, sha256_file
from ropewalk.base.spec import SpecError, decode
from ropewalk.model.forward import Objective
from ropewalk.train.optimizer import LossScale
from ropewalk.train.world import World

KEPT = 2
RECORD = "checkpoint.json"


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


def save(
    folder: Path,
    objective: Objective,
    optimizer: Optimizer,
    progress: Progress,
    code: str,
    world: World,
) -> Path:
    """Write a checkpoint below `folder`, remove all but the last two, and return its path.

    Every process takes part; the folder must be one that all of them see.
    """
    final = folder / name(progress.step)
    partial = final.with_suffix(".partial")
    if world.first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    world.barrier()
    with _quiet():
        # Syncs its files before it returns.
        dcp.save(_state(objective, optimizer), checkpoint_id=partial, no_dist=world.size == 1)
    world.barrier()
    listed = sorted(file for file in partial.iterdir() if file.is_file())
    mine = [
        File(path=file.name, bytes=file.stat().st_size, sha256=sha256_file(file))
        for file in listed[world.rank :: world.size]
    ]
    gathered = itertools.chain.from_iterable(world.gather(mine))
    files = sorted(gathered, key=lambda file: file.path)
    if world.first:
        record = Record(progress=progress, code=code, files=tuple(files))
        write_json(partial / RECORD, plain(record))
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        fsync_directory(folder)
        prune(folder, KEPT)
    world.barrier()
    return final


def latest(folder: Path, world: World) -> tuple[Path, Record] | None:
    """Return the newest undamaged checkpoint below `folder`; each process checks its share."""
    for path in _folders(folder):
        try:
            record = decode(Record, read_json(path / RECORD), (str(path / RECORD),))
        except (FileNotFoundError, ValueError, SpecError) as error:
            print(f"train: {path} is not a whole checkpoint ({error}); trying the one before")
            continue
        mine = record.files[world.rank :: world.size]
        problems = [f"{file.path} {what}" for file in mine if (what := damage(path, file))]
        problems = list(itertools.chain.from_iterable(world.gather(problems)))
        if not problems:
            return path, record
        if world.first:
            print(f"train: {path} is damaged ({problems[0]}); trying the one before", flush=True)
    return None


def restore(path: Path, objective: Objective, optimizer: Optimizer, world: World) -> None:
    """Read weights and optimizer state, whatever the number of processes that wrote them."""
    state = _state(objective, optimizer)
    with _quiet():
        dcp.load(state, checkpoint_id=path, no_dist=world.size == 1)
    set_state_dict(
        objective,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what interrupted saves left."""
    for path in _folders(folder)[keep:]:
        shutil.rmtree(path)
    for path in folder.glob("*.partial"):
        shutil.rmtree(path)


def _state(objective: Objective, optimizer: Optimizer) -> dict[str, Any]:
    model, state = get_state_dict(objective, optimizer)
    return {"model": model, "optimizer": state}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence DCP's remark that one process is not many."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _folders(folder: Path) -> list[Path]:
    """Return the checkpoints below `folder`, newest first."""
    found = (path for path in folder.glob("step-*") if path.suffix != ".partial")
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)
