"""Stage `train`: one run, from the newest checkpoint to `final/` and its snapshots."""

import dataclasses
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ropewalk.base.canonical import plain
from ropewalk.base.files import PARTIAL, read_json, write_json
from ropewalk.base.manifest import File, damage
from ropewalk.base.spec import decode
from ropewalk.base.stage import Job, StageError
from ropewalk.train import checkpoint, launch, metrics, origin, segments, stop, worker
from ropewalk.train.adopt import adopt
from ropewalk.train.attempt import (
    SNAPSHOTS,
    Assignment,
    Outcome,
    assignment,
    attempt,
    work_folder,
)
from ropewalk.train.budget import with_steps
from ropewalk.train.lease import held
from ropewalk.train.spec import PublishedWeights, Run, TrainJob
from ropewalk.train.stop import StoppedEarlyError, StopRequest
from ropewalk.train.timetable import timetable
from ropewalk.train.world import alone

ACROSS_CODE = "ROPEWALK_RESUME_ACROSS_CODE"
LEASE = "lease.json"


def work(job: Job) -> tuple[Iterable[Path], Mapping[str, Any]]:
    """Train the run, or go on with it; return its files and what happened.

    Raises:
        StoppedEarlyError: the process was asked to stop and left a checkpoint (exit code 75).
        StageError: for settings this machine cannot do, a second writer, a bad loss, or a run that
            makes no progress.
    """
    job = _with_steps(job)
    spec: TrainJob = job.spec
    run = spec.run
    record = (work_folder(job.folder, job.recipe) if run.phases else job.folder) / origin.RECORD
    weights = origin.folder_of(job, record)
    with held(job.folder / LEASE) as lease:
        if not run.phases:
            _note_origin(run, weights, record)
            parameters = adopt(run, weights, job.input("tokenizer"), job.folder / "final")
            nothing = Outcome(from_step=0, step=0, steps=0, tokens=0, parameters=parameters)
            return _artifact(job, nothing, record)
        given = assignment(job, weights, lease)
        with stop.listening(given.work / worker.STOP) as request:
            _make_work_folder(job, given.work)
            if not record.is_file():  # of the weights that the first step was made with
                _note_origin(run, weights, record)
            request.file.unlink(missing_ok=True)
            if run.hardware.processes == 1:
                with alone(run.hardware) as world:
                    outcome = attempt(given, world, request)
            else:
                outcome = _launched(given, request)
        if not outcome.finished:
            if outcome.step == outcome.from_step:
                raise StageError(_no_step(given.work, outcome, request))
            raise StoppedEarlyError(outcome.step, outcome.steps)
        checkpoint.prune(given.work / "checkpoints", keep=1, newest=outcome.step)
        return _artifact(job, outcome, record)


def _note_origin(run: Run, folder: Path | None, record: Path) -> None:
    """Write down, and say, which published weights the run begins with."""
    if folder is None or not isinstance(run.weights, PublishedWeights):
        record.unlink(missing_ok=True)
        return
    found = origin.origin_of(run.weights, folder)
    write_json(record, plain(found))
    done = "begins with" if run.phases else "adopts"
    print(f"train: {done} {found.where}", flush=True)
    for name, sha256 in found.files.items():
        print(f"train: {name} sha256 {sha256}", flush=True)


def _with_steps(job: Job) -> Job:
    """Return the job with budgets of time as steps, by the calibrations among its inputs."""
    spec: TrainJob = job.spec
    calibrations = {
        name: read_json(manifest.path("result.json"))
        for name, manifest in job.many("calibration").items()
    }
    run = with_steps(spec.run, spec.timed or {}, calibrations)
    return dataclasses.replace(job, spec=dataclasses.replace(spec, run=run))


def _no_step(work: Path, outcome: Outcome, request: StopRequest) -> str:
    """Return what to tell somebody whose run would be started again and again for nothing."""
    by = f" {reason}" if (reason := request.reason()) else ""
    return (
        f"{work}: this attempt was asked to stop{by}, within {request.seconds():.0f} s and before "
        f"it had made a step: the run stands at step {outcome.step} of {outcome.steps} as before. "
        f"If nobody cancelled it, its time limit ({stop.BUDGET}, or the runtime of the Slurm job) "
        "is too short for start-up and one step: give it more time, or make a step shorter (a "
        "smaller batch, more processes), and start again"
    )


def _launched(given: Assignment, request: StopRequest) -> Outcome:
    """Run the processes of an assignment to their end and return what they left."""
    file, left = given.work / "assignment.json", given.work / worker.OUTCOME
    left.unlink(missing_ok=True)
    write_json(file, plain(given))
    # A session of its own: signals meant for the stage reach the workers as a request, through a
    # file, so that the launcher does not kill them in the middle of a checkpoint.
    process = subprocess.Popen(
        launch.command(file, given.spec.run.hardware),
        env=launch.environment(request.deadline),
        start_new_session=True,
    )
    try:
        while process.poll() is None:
            if request.pending():
                request.file.touch()
            time.sleep(0.2)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if not left.is_file():
        asked = f", after it was asked to stop {why}" if (why := request.reason()) else ""
        raise StageError(
            f"the {given.spec.run.hardware.processes} training processes ended with exit code "
            f"{process.returncode} before the run was done{asked}; the reason stands above"
        )
    return decode(Outcome, read_json(left))


def _make_work_folder(job: Job, folder: Path) -> None:
    """Make the work folder, or keep the one that stands there if going on from it is right."""
    record = folder / "identity.json"
    # What a killed attempt was writing; nobody else writes here, this process holds the lease.
    for path in [*job.folder.glob(f"*{PARTIAL}"), *folder.glob(f"*{PARTIAL}")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
    if folder.exists():
        begun = read_json(record) if record.is_file() else {}
        made_by = begun.get("code", "unknown")
        files = begun.get("code_files")
        same = job.same_code(files) if files else made_by == job.code
        if not same and os.environ.get(ACROSS_CODE) != "1":
            aside = _set_aside(folder, made_by)
            print(
                f"train: {folder} was begun by other code ({made_by}, now {job.code}); starting "
                f"from the beginning, the old one is {aside.name}. To go on with it instead, set "
                f"{ACROSS_CODE}=1",
                flush=True,
            )
        elif damaged := _damaged_snapshot(job.folder, folder):
            aside = _set_aside(folder, made_by)
            print(
                f"train: {damaged}: it can only be made by training again; starting from the "
                f"beginning, the old work is {aside.name}",
                flush=True,
            )
    if not folder.exists():
        _clear_exports(job.folder)
        folder.mkdir(parents=True)
    write_json(record, {"code": job.code, "code_files": job.code_files, "recipe": job.recipe})


def _set_aside(folder: Path, code: str) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{code}.{number}")).exists():
        number += 1
    return folder.rename(aside)


def _damaged_snapshot(exports: Path, folder: Path) -> str | None:
    """Return which snapshot differs from what was exported; `final` can be exported again."""
    record = folder / SNAPSHOTS
    noted: dict[str, list[dict[str, Any]]] = read_json(record) if record.is_file() else {}
    for name, files in noted.items():
        for entry in files if name != "final" else []:
            file = decode(File, entry)
            if what := damage(exports / name, file):
                return f"{exports / name / file.path} {what}"
    return None


def _clear_exports(folder: Path) -> None:
    """Remove what another recipe exported to this folder."""
    for path in [folder / "final", *folder.glob("step-*")]:
        shutil.rmtree(path, ignore_errors=True)


def _artifact(job: Job, outcome: Outcome, record: Path) -> tuple[list[Path], dict[str, Any]]:
    """Return the exported files and the deterministic facts of the run."""
    spec: TrainJob = job.spec
    snapshots = {
        str(step): checkpoint.name(step)
        for step in sorted(set(spec.run.snapshot_steps))
        if spec.run.phases and step < outcome.step
    }
    snapshots[str(outcome.step)] = "final"
    work = work_folder(job.folder, job.recipe)
    codes = segments.codes(work, outcome.steps)
    entries = metrics.read(work / "metrics.jsonl")
    files = [
        file
        for name in snapshots.values()
        for file in sorted((job.folder / name).iterdir())
        if file.is_file()
    ]
    return files, {
        "steps": outcome.steps,
        "final_step": outcome.step,
        "tokens": outcome.tokens,
        "parameters": outcome.parameters,
        **origin.fact(record),
        "snapshots": snapshots,
        "phases": [
            {
                "length_tokens": stretch.phase.length_tokens,
                "context_tokens": stretch.phase.context_tokens,
                "sequences": stretch.sequences,
                "steps": stretch.steps,
            }
            for stretch in timetable(spec.run)
        ],
        "loss_curve": metrics.curve(entries),
        "switches": metrics.switches(entries),
        # Only where somebody let other code go on: else the code is no fact of the run.
        **({"code_by_step": codes} if len(codes) > 1 else {}),
    }
