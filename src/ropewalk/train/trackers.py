"""Where a training can be watched beside its metrics file: TensorBoard, and Weights & Biases.

TensorBoard is written wherever it is installed, to `tensorboard/` in the work folder. Weights &
Biases is used if and only if the environment variable WANDB_PROJECT is set; entity, name, group,
mode (WANDB_MODE=offline) and the key are wandb's own variables. A run that goes on after an
interruption goes on as the same run there.

Trackers only look on: one that fails while the training runs is given up with a message.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ropewalk.base.stage import StageError

PROJECT = "WANDB_PROJECT"
FLUSH_SECONDS = 15  # until TensorBoard can see a step


class Tracker(Protocol):
    """Something that shows numbers by step."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Show the values of a step; steps increase."""

    def sync(self) -> None:
        """Hand over everything shown so far: a checkpoint is about to say that it happened."""

    def close(self, *, failed: bool) -> None:
        """Finish; `failed` says that the training ended with an error."""


class TensorBoard:
    """Event files in a folder; steps behind `after_step` in older files of it are hidden."""

    def __init__(self, folder: Path, after_step: int) -> None:
        # Imported here: it takes 0.2 s, many where TensorFlow is installed.
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard import SummaryWriter

        self._summary = Summary
        # A queue that fills up makes the training wait for the writing thread.
        self._writer: Any = SummaryWriter(
            folder, purge_step=after_step + 1, max_queue=1000, flush_secs=FLUSH_SECONDS
        )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write one event with all values: a fifth of the time of one per value."""
        entries = [self._summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        self._writer.file_writer.add_summary(self._summary(value=entries), step)

    def sync(self) -> None:
        """Write out what is queued: steps before a checkpoint are never done again."""
        self._writer.flush()

    def close(self, *, failed: bool) -> None:  # noqa: ARG002
        """Write out and close."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, begun or continued under an id of our own."""

    def __init__(self, wandb: Any, folder: Path, run_id: str, config: Mapping[str, Any]) -> None:
        self._run = wandb.init(
            project=os.environ[PROJECT],
            id=run_id,
            resume="allow",
            dir=str(folder),
            config=dict(config),
        )
        # Steps behind the checkpoint are done again; the service keeps what it has of them.
        self._from = int(self._run.step)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step that is not there yet."""
        if step >= self._from:
            self._run.log(dict(values), step=step)

    def sync(self) -> None:
        """Do nothing: a process of wandb's own has every step as soon as it is logged."""

    def close(self, *, failed: bool) -> None:
        """Send the rest and finish."""
        self._run.finish(exit_code=1 if failed else 0)


class Guarded:
    """A tracker whose failure ends the tracking, never the training."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker: Tracker | None = tracker

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Show the values of a step, unless the tracker was given up."""
        self._attempt(f"from step {step} on", lambda tracker: tracker.add(step, values))

    def sync(self) -> None:
        """Hand over everything, unless the tracker was given up."""
        self._attempt("before a checkpoint", lambda tracker: tracker.sync())

    def close(self, *, failed: bool) -> None:
        """Finish, unless the tracker was given up."""
        self._attempt("at the end", lambda tracker: tracker.close(failed=failed))

    def _attempt(self, when: str, action: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            action(self._tracker)
        except Exception as error:  # of any kind: other people's programs, with a network behind
            self._tracker = None
            _warn(f"{self._name} is given up {when}", error)


def trackers(
    work: Path, *, after_step: int, run_id: str, config: Mapping[str, Any]
) -> Sequence[Guarded]:
    """Return the trackers of a training that goes on after a step, ready to be written to.

    `run_id` names the training for Weights & Biases, the same after every interruption: letters,
    digits, - and _, at most 128; `config` is shown beside it.

    Raises:
        StageError: if WANDB_PROJECT is set and wandb is missing, or refuses a new run.
    """
    found = []
    try:
        found.append(Guarded("TensorBoard", TensorBoard(work / "tensorboard", after_step)))
    except Exception as error:  # not installed, or beside a protobuf that it does not know
        _warn("no TensorBoard", error)
    if os.environ.get(PROJECT) and (wandb := _wandb(work, after_step, run_id, config)):
        found.append(Guarded("Weights & Biases", wandb))
    return found


def _wandb(
    work: Path, after_step: int, run_id: str, config: Mapping[str, Any]
) -> WeightsAndBiases | None:
    project = os.environ[PROJECT]
    try:
        import wandb
    except ImportError as error:
        raise StageError(
            f"{PROJECT}: {project!r} asks for Weights & Biases, which cannot be imported "
            f"({error}); install it with `pip install wandb`, or unset {PROJECT}"
        ) from error
    try:
        return WeightsAndBiases(wandb, work, run_id, config)
    except Exception as error:
        if after_step:  # hours of work stand behind it: a service that is down does not stop it
            _warn("Weights & Biases is given up for this attempt", error)
            return None
        raise StageError(
            f"{PROJECT}: {project!r} cannot be begun at Weights & Biases: {error}; log in with "
            f"`wandb login`, set WANDB_MODE=offline, or unset {PROJECT}"
        ) from error


def _warn(what: str, error: Exception) -> None:
    print(f"train: {what}: {type(error).__name__}: {error}; training goes on", flush=True)
