"""The training loop: phases of steps, from the newest checkpoint to the final weights.

Every number that steers an update is global: the loss of a step is the sum over its tokens divided
by the number of its targets, over all processes and forward passes. So 1 x 8, 2 x 4 and 8 forward
passes of 1 sequence train the same model.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch

from ropewalk.base.canonical import plain
from ropewalk.base.stage import StageError
from ropewalk.model import numerics
from ropewalk.model.flops import model_flops_per_token, step_flops
from ropewalk.model.forward import Objective
from ropewalk.model.rotary import set_rope
from ropewalk.train import checkpoint
from ropewalk.train.checkpoint import Checkpoints, Progress
from ropewalk.train.machine import Machine, memory_bytes
from ropewalk.train.metrics import Metrics, MetricsLog
from ropewalk.train.optimizer import LossScale
from ropewalk.train.saving import Saving
from ropewalk.train.schedule import share
from ropewalk.train.spec import Optimizer, Run, Schedule
from ropewalk.train.step import Rows, gradients, update
from ropewalk.train.stop import StopRequest
from ropewalk.train.timetable import Stretch, forward_rows
from ropewalk.train.world import World


class Batches(Protocol):
    """The data of one phase: a pure function of the step."""

    def rows(self, step: int, part: tuple[int, int]) -> Rows:
        """Return the rows that process `part[0]` of `part[1]` reads in a step of the phase."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Everything the loop works with; nothing in here changes but weights and optimizer state."""

    run: Run
    optimizer_spec: Optimizer
    schedule: Schedule
    stretches: tuple[Stretch, ...]
    batches: Callable[[Stretch], Batches]
    objective: Objective
    optimizer: torch.optim.Optimizer
    world: World
    machine: Machine
    work: Path  # checkpoints and metrics
    code: str  # digest, recorded in checkpoints
    stop: StopRequest
    snapshot: Callable[[int, Stretch], None]  # export the weights after a step
    still_mine: Callable[[], None]  # raises if another process took the run over

    @property
    def steps(self) -> int:
        """Return the optimizer steps of the whole run."""
        return self.stretches[-1].first + self.stretches[-1].steps


def train(training: Training, progress: Progress) -> Progress:
    """Go on from `progress` (weights and optimizer state are those of it) and return where it ends.

    That is the last step, or earlier if a stop was requested, and there is a checkpoint of it. A
    stop requested before the first step leaves everything as it is and returns `progress`.

    Raises:
        StageError: for a loss or gradient that is not finite, naming the last good checkpoint, and
            for a checkpoint that cannot be written.
    """
    world, run = training.world, training.run
    if progress.step < training.steps and world.sum(training.stop.pending())[0]:
        return progress
    with (
        _log(training, progress) as log,
        _saving(training, progress, log) as saving,
        numerics.applied(run.numerics, world.device),
    ):
        if progress.step == 0 and 0 in run.snapshot_steps:
            training.snapshot(0, training.stretches[0])
        for stretch in training.stretches:
            if progress.step >= stretch.first + stretch.steps:
                continue
            set_rope(training.objective.model, run.architecture, stretch.phase.rope)
            batches = training.batches(stretch)
            while progress.step < stretch.first + stretch.steps:
                progress, wished = _step(
                    training, stretch, batches, progress, log, saving.wanted(), saving.step
                )
                if progress.step in run.snapshot_steps and progress.step < training.steps:
                    training.snapshot(progress.step, stretch)
                if saving.after(progress, wished):
                    return progress
    return progress


def _step(
    training: Training,
    stretch: Stretch,
    batches: Batches,
    progress: Progress,
    log: MetricsLog | None,
    wanted: tuple[float, ...],
    saved_step: int,
) -> tuple[Progress, list[float]]:
    """Do one optimizer step; return the progress, and `wanted` summed over all processes."""
    world, spec = training.world, training.optimizer_spec
    clock = time.monotonic()
    step = progress.step
    fp16 = training.run.numerics.precision == "fp16"
    factor = progress.scale.factor if fp16 else 1.0
    found = gradients(
        training.objective,
        batches.rows(step - stretch.first, (world.rank, world.size)),
        forward_rows(stretch, training.run.hardware),
        world,
        factor,
        wanted,
    )
    if found.targets == 0:
        raise StageError(
            f"step {step} has no targets: every segment of its windows is one token or a prompt"
        )

    lr = spec.lr * share(training.schedule, step, training.steps)
    # Too large a factor: the update is left out, unless there is no factor left to blame.
    overflow = fp16 and factor > 1 and math.isfinite(found.loss) and not math.isfinite(found.norm)
    if not overflow:
        _refuse_non_finite(found.loss, found.norm, step, saved_step, training.work)
        update(training.objective, training.optimizer, spec.clip_norm, found.norm, lr)
    training.optimizer.zero_grad(set_to_none=True)

    scale = progress.scale.after(finite=not overflow) if fp16 else LossScale()
    tokens = stretch.tokens_per_step
    after = Progress(step=step + 1, tokens=progress.tokens + tokens, scale=scale)
    memory = world.most(memory_bytes(world.device))
    if log is not None:
        seconds = time.monotonic() - clock
        flops = step_flops(training.run.architecture, tokens=tokens, pairs=found.pairs)
        log.add(
            Metrics(
                step=after.step,
                tokens=after.tokens,
                loss=found.loss,
                lr=lr,
                grad_norm=found.norm if math.isfinite(found.norm) else None,
                phase=training.stretches.index(stretch),
                sequences=(after.step - stretch.first) * stretch.sequences,
                scale=factor if fp16 else None,
                skipped=overflow if fp16 else None,
                tokens_per_second=tokens / seconds,
                flops_per_second=flops / seconds,
                mfu=training.machine.mfu(flops / seconds),
                memory_bytes=int(memory),
            )
        )
    return after, found.wished


def _refuse_non_finite(loss: float, norm: float, step: int, saved: int, work: Path) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    last = work / "checkpoints" / checkpoint.name(saved)
    good = str(last) if last.exists() else "none yet"
    raise StageError(
        f"step {step}: loss {loss} and gradient norm {norm} are not both finite; weights were not "
        f"updated. Last good checkpoint: {good}. Lower optimizer.lr or set optimizer.clip_norm"
    )


@contextlib.contextmanager
def _saving(training: Training, progress: Progress, log: MetricsLog | None) -> Iterator[Saving]:
    """Yield what saves the run; what it has in flight at the end of the block is given up."""

    def ready() -> None:
        if log is not None:
            training.still_mine()
            log.sync()

    with Checkpoints(
        training.work / "checkpoints",
        training.objective,
        training.optimizer,
        training.code,
        training.world,
        training.run.hardware,
        step=progress.step,
    ) as checkpoints:
        yield Saving(
            checkpoints,
            training.world,
            training.stop,
            every_seconds=training.run.hardware.checkpoint_every_seconds,
            steps=training.steps,
            ready=ready,
        )


@contextlib.contextmanager
def _log(training: Training, progress: Progress) -> Iterator[MetricsLog | None]:
    """Yield the metrics log, on the process that has it, and close it after the block."""
    if not training.world.first:
        yield None
        return
    run = training.run
    log = MetricsLog(
        training.work,
        after_step=progress.step,
        steps=training.steps,
        machine=training.machine,
        model_flops_per_token=[
            model_flops_per_token(run.architecture, s.phase.length_tokens)
            for s in training.stretches
        ],
        config=plain(run),
    )
    failed = True
    try:
        yield log
        failed = False
    finally:
        log.close(failed=failed)
