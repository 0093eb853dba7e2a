"""One attempt at a run by one process of its world: go on from the newest checkpoint, export."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ropewalk.base.canonical import plain
from ropewalk.base.files import read_json, write_json
from ropewalk.base.manifest import File, Manifest, read_manifest, sha256_file
from ropewalk.base.spec import decode
from ropewalk.base.stage import Job, StageError
from ropewalk.data.loader import Loader, Windows
from ropewalk.train import checkpoint
from ropewalk.train.checkpoint import Progress, Record
from ropewalk.train.export import export
from ropewalk.train.lease import Lease, Owner
from ropewalk.train.loop import Training, train
from ropewalk.train.machine import machine
from ropewalk.train.optimizer import adamw
from ropewalk.train.origin import source
from ropewalk.train.rows import Data, check
from ropewalk.train.segments import Segment, refusal
from ropewalk.train.sharding import objective
from ropewalk.train.spec import Run, TrainJob
from ropewalk.train.stop import StopRequest
from ropewalk.train.timetable import Stretch, forward_rows, stretch_of, timetable
from ropewalk.train.world import World

SNAPSHOTS = "snapshots.json"  # in the work folder: exported folder -> its files, as `File`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """What every process of a run is told; as JSON for processes started by a launcher."""

    spec: TrainJob
    inputs: Mapping[str, str]  # name -> manifest path
    folder: str  # of the artifact
    recipe: str
    code: str
    lease: str
    owner: Owner  # of the lease
    weights: str | None = None  # folder of the initial weights; None: drawn from their addresses

    @property
    def work(self) -> Path:
        """Return the folder of checkpoints and metrics, which the workflow does not know."""
        return work_folder(Path(self.folder), self.recipe)

    @property
    def manifests(self) -> dict[str, Manifest]:
        """Return the inputs; the stage's frame has verified them."""
        return {n: read_manifest(Path(path), verify=False) for n, path in self.inputs.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where an attempt ended."""

    from_step: int  # where it began
    step: int
    steps: int  # of the whole run
    tokens: int
    parameters: int

    @property
    def finished(self) -> bool:
        """Return whether the run is at its end."""
        return self.step == self.steps


def work_folder(folder: Path, recipe: str) -> Path:
    """Return the work folder of a recipe inside the folder of its artifact."""
    return folder / f"work-{recipe}"


def assignment(job: Job, weights: Path | None, lease: Lease) -> Assignment:
    """Return what the processes of a job are told."""
    return Assignment(
        spec=job.spec,
        inputs={name: str(m.folder / "manifest.json") for name, m in job.inputs.items()},
        folder=str(job.folder),
        recipe=job.recipe,
        code=job.code,
        weights=None if weights is None else str(weights),
        lease=str(lease.file),
        owner=lease.owner,
    )


def read_assignment(file: Path) -> Assignment:
    """Read an assignment written as JSON."""
    return decode(Assignment, read_json(file))


def attempt(given: Assignment, world: World, stop: StopRequest) -> Outcome:
    """Train until the end or until a stop is requested; at the end, export `final`.

    Raises:
        StageError: for settings this machine cannot do, a loss that is not finite, or a run that
            several attempts have not brought forward.
    """
    stretches = timetable(given.spec.run)
    found = checkpoint.latest(given.work / "checkpoints", world)
    step = 0 if found is None else found[1].progress.step
    refused = refusal(given.work, step, stretches[-1].first + stretches[-1].steps)
    if refused := world.gather(refused)[0]:  # all say what the first has read
        raise StageError(refused)
    facts = {
        "code": given.code,
        "checkpoint_code": None if found is None else found[1].code,  # of what it goes on from
        "device": given.spec.run.hardware.device,
        "processes": world.size,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    with Segment(given.work, writes=world.first, from_step=step, facts=facts) as segment:
        return _attempt(given, world, stop, stretches, found, segment)


def _attempt(
    given: Assignment,
    world: World,
    stop: StopRequest,
    stretches: tuple[Stretch, ...],
    found: tuple[Path, Record] | None,
    segment: Segment,
) -> Outcome:
    run, inputs, work = given.spec.run, given.manifests, given.work
    if run.optimizer is None or run.schedule is None:
        raise StageError("optimizer, schedule: missing; a run with phases needs both")
    # Before anything is loaded: what the last phase lacks must not end the training weeks later.
    data = _data(run, inputs, stretches)
    phases = {}
    for stretch in stretches:
        forward_rows(stretch, run.hardware)
        phases[stretch.first] = data(stretch)
    weights = None if given.weights is None else Path(given.weights)
    model = objective(
        run.architecture,
        stretches[0].phase.rope,
        run.numerics,
        source(run, weights),
        world,
        recompute_activations=run.hardware.recompute_activations,
        compile=run.hardware.compile,
    )
    optimizer = adamw(model, run.optimizer)
    progress = Progress()
    if found is not None:
        path, record = found
        checkpoint.restore(path, model, optimizer, world)
        progress = record.progress
        if world.first:
            print(f"train: going on from {path}", flush=True)
    lease = Lease(file=Path(given.lease), owner=given.owner)
    training = Training(
        run=run,
        optimizer_spec=run.optimizer,
        schedule=run.schedule,
        stretches=stretches,
        batches=lambda stretch: phases[stretch.first],
        objective=model,
        optimizer=optimizer,
        world=world,
        machine=machine(world.device, world.size, run.numerics),
        work=work,
        code=given.code,
        stop=stop,
        snapshot=lambda step, stretch: _snapshot(
            given, training, inputs["tokenizer"], checkpoint.name(step), stretch
        ),
        still_mine=lease.check,
    )
    from_step = progress.step
    progress = train(training, progress)
    segment.reached(progress.step)
    outcome = Outcome(
        from_step=from_step,
        step=progress.step,
        steps=training.steps,
        tokens=progress.tokens,
        parameters=sum(p.numel() for p in model.parameters()),
    )
    if outcome.finished:
        last = stretch_of(stretches, progress.step)
        _snapshot(given, training, inputs["tokenizer"], "final", last)
    return outcome


def _data(
    run: Run, inputs: Mapping[str, Manifest], stretches: tuple[Stretch, ...]
) -> Callable[[Stretch], Data]:
    tokens = {n.removeprefix("tokens:"): m for n, m in inputs.items() if n.startswith("tokens:")}

    def data(stretch: Stretch) -> Data:
        phase = stretch.phase
        name = f"windows:{phase.windows}:{phase.length_tokens}"
        if name not in inputs:
            raise StageError(f"train: input {name!r} is missing; pass --input {name}=PATH")
        windows = Windows(inputs[name], tokens)
        if windows.length != phase.length_tokens:
            raise StageError(
                f"{name} has rows of {windows.length} tokens, the phase's length_tokens is "
                f"{phase.length_tokens}"
            )
        check(phase.positions, windows)
        number = stretches.index(stretch)
        loader = Loader(windows, seed=run.seed, phase=number, sequences=stretch.sequences)
        return Data(loader=loader, positions=phase.positions, seed=run.seed, phase=number)

    return data


def _snapshot(
    given: Assignment, training: Training, tokenizer: Manifest, name: str, stretch: Stretch
) -> None:
    """Export the present weights to the artifact's folder and note the hashes of the files."""
    folder = Path(given.folder) / name
    phase = stretch.phase
    architecture = given.spec.run.architecture
    model = training.objective.model
    world = training.world
    export(folder, model, architecture, phase.rope, phase.context_tokens, tokenizer, world)
    if world.first:
        record = given.work / SNAPSHOTS
        noted: dict[str, Any] = read_json(record) if record.is_file() else {}
        noted[name] = [
            File(path=file.name, bytes=file.stat().st_size, sha256=sha256_file(file))
            for file in sorted(folder.iterdir())
        ]
        write_json(record, plain(noted))
    world.barrier()
