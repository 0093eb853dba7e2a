"""A checkpoint is that of its step and whole, or it is not there."""

import dataclasses
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from train_sample import ARCHITECTURE, RUN, changed

from ropewalk.base.stage import StageError
from ropewalk.model.forward import Objective
from ropewalk.model.spec import Architecture, Numerics, PlainRope
from ropewalk.train import checkpoint
from ropewalk.train.checkpoint import Checkpoints, Progress
from ropewalk.train.optimizer import LossScale, adamw
from ropewalk.train.origin import source
from ropewalk.train.saving import Saving
from ropewalk.train.sharding import objective
from ropewalk.train.spec import Hardware
from ropewalk.train.stop import BUDGET, DEADLINE, SLURM_END, StopRequest, listening
from ropewalk.train.world import World

WORLD = World(rank=0, size=1, device=torch.device("cpu"), mesh=None)
BOTH = pytest.mark.parametrize("background", [False, True], ids=["waiting", "background"])


class Trained:
    """A model, its optimizer, and steps that change every number of both."""

    def __init__(self, architecture: Architecture = ARCHITECTURE) -> None:
        self.model: Objective = objective(
            architecture, PlainRope(), Numerics(), source(RUN, None), WORLD
        )
        assert RUN.optimizer is not None
        self.optimizer = adamw(self.model, RUN.optimizer)

    def step(self, number: int) -> None:
        random = torch.Generator().manual_seed(number)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def numbers(self) -> dict[str, torch.Tensor]:
        """Return copies of all weights and all optimizer state."""
        found = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        for index, values in self.optimizer.state_dict()["state"].items():
            found |= {f"{index}.{key}": value.clone() for key, value in values.items()}
        return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def saves(folder: Path, trained: Trained, *, background: bool, kept: int = 2) -> Checkpoints:
    hardware = Hardware(checkpoint_in_background=background, checkpoints_kept=kept)
    return Checkpoints(folder, trained.model, trained.optimizer, "code", WORLD, hardware)


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def little_room() -> Iterator[None]:
    """A full disk, as far as a process can have one of its own: no file beyond 60 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@BOTH
def test_train_checkpoint_is_that_of_its_step(tmp_path: Path, background: bool) -> None:
    """Training that goes on while a checkpoint is written would leak later steps into it."""
    trained = Trained()
    trained.step(1)
    with saves(tmp_path, trained, background=background) as own:
        for step in (1, 2, 3):  # the staging memory is used again
            progress = Progress(step=step, tokens=256 * step, scale=LossScale(good_steps=step))
            expected = trained.numbers()
            own.begin(progress)
            for later in range(20):
                trained.step(later)
            own.commit()
            found = checkpoint.latest(tmp_path, WORLD)
            assert found is not None
            path, record = found
            assert (path.name, record.progress, record.code) == (
                f"step-00000{step}",
                progress,
                "code",
            )
            other = Trained()
            checkpoint.restore(path, other.model, other.optimizer, WORLD)
            assert same(other.numbers(), expected)
            assert not same(trained.numbers(), expected)
    assert steps_in(tmp_path) == ["step-000002", "step-000003"]


def test_train_checkpoint_in_flight_does_not_exist(tmp_path: Path) -> None:
    """A process killed before the commit must go on from the checkpoint before."""
    trained = Trained()
    trained.step(1)
    with saves(tmp_path, trained, background=True) as own:
        own.save(Progress(step=1))
        own.begin(Progress(step=2))
        assert own.in_flight
        assert own.step == 1
    # All its files are written now; only the commit is missing.
    assert steps_in(tmp_path) == ["step-000001", "step-000002.partial"]
    found = checkpoint.latest(tmp_path, WORLD)
    assert found is not None
    assert found[0].name == "step-000001"
    with saves(tmp_path, trained, background=True) as own:
        own.begin(Progress(step=2))
        own.begin(Progress(step=3))  # commits the one before
        assert steps_in(tmp_path)[:2] == ["step-000001", "step-000002"]
        own.commit()
    assert steps_in(tmp_path) == ["step-000002", "step-000003"]


@BOTH
def test_train_checkpoint_without_room_is_an_error(
    tmp_path: Path, background: bool, request: pytest.FixtureRequest
) -> None:
    """A full disk found by a thread must stop the run, and must not cost the checkpoint before."""
    trained = Trained()
    trained.step(1)
    with saves(tmp_path, trained, background=background, kept=1) as own:

        def save(step: int) -> None:
            own.begin(Progress(step=step))
            own.commit()

        save(1)
        request.getfixturevalue("little_room")
        with pytest.raises(StageError, match=r"step-000002 could not be written: .*too large") as e:
            save(2)
    assert str(tmp_path) in str(e.value)
    assert "go on from: step-000001." in str(e.value)
    assert steps_in(tmp_path) == ["step-000001"]
    assert checkpoint.latest(tmp_path, WORLD) is not None


@BOTH
def test_train_checkpoint_before_any_update_changes_nothing(
    tmp_path: Path, background: bool
) -> None:
    """fp16 leaves out first steps; a save in between must not count as one of AdamW's."""
    plain, saved = Trained(), Trained()
    with saves(tmp_path, saved, background=background) as own:
        own.begin(Progress(step=1))
        own.commit()
    again = Trained()
    checkpoint.restore(tmp_path / "step-000001", again.model, again.optimizer, WORLD)
    for trained in (plain, saved, again):
        trained.step(1)
    assert same(saved.numbers(), plain.numbers())
    assert same(again.numbers(), plain.numbers())


def test_train_checkpoint_damaged_one_makes_room_for_sound_ones(tmp_path: Path) -> None:
    """A damaged newest one must not push out what the run went on from, and what came after."""
    trained = Trained()
    trained.step(1)
    with saves(tmp_path, trained, background=False, kept=2) as own:
        own.save(Progress(step=5))
        own.save(Progress(step=9))
    next((tmp_path / "step-000009").glob("*.distcp")).unlink()
    found = checkpoint.latest(tmp_path, WORLD, seconds=0.0)
    assert found is not None
    assert found[0].name == "step-000005"
    with saves(tmp_path, trained, background=False, kept=1) as own:
        own.save(Progress(step=7))
    assert steps_in(tmp_path) == ["step-000007"]


def test_train_checkpoint_of_another_model_is_named(tmp_path: Path) -> None:
    """A tensor that is not in the file must not keep its random start."""
    trained = Trained()
    trained.step(1)
    with saves(tmp_path, trained, background=False) as own:
        own.save(Progress(step=1))
    wider = Trained(changed(ARCHITECTURE, layers=3))
    with pytest.raises(StageError, match=r"step-000001 cannot be read .*layers\.2"):
        checkpoint.restore(tmp_path / "step-000001", wider.model, wider.optimizer, WORLD)


def test_train_checkpoint_at_least_one_is_kept(tmp_path: Path) -> None:
    """Keeping none would delete the checkpoint that was just written."""
    with pytest.raises(StageError, match=r"hardware\.checkpoints_kept: 0"):
        saves(tmp_path, Trained(), background=False, kept=0)


@dataclasses.dataclass
class Written:
    """Stands for `Checkpoints`: notes what it is told."""

    write_seconds: float = 0.0
    in_flight: bool = False
    written: bool = False
    step: int = 0
    told: list[str] = dataclasses.field(default_factory=list)

    def begin(self, progress: Progress) -> None:
        self.told.append(f"begin {progress.step}")

    def save(self, progress: Progress) -> None:
        self.told.append(f"save {progress.step}")

    def commit(self) -> None:
        self.told.append("commit")


def saving(own: Any, tmp_path: Path, *, size: int = 1, left: float = 1e6) -> Saving:
    stop = StopRequest(file=tmp_path / "stop", deadline=time.time() + left)
    world: Any = SimpleNamespace(first=True, size=size)

    def ready() -> None:
        own.told.append("ready")

    return Saving(own, world, stop, every_seconds=0, steps=9, ready=ready)


def test_train_saving_leaves_time_for_the_last_checkpoint(tmp_path: Path) -> None:
    """A run that stops at its deadline is killed while it writes what it stopped for."""
    assert saving(Written(write_seconds=50), tmp_path, left=60).wanted() == (True, False, False)
    assert saving(Written(write_seconds=70), tmp_path, left=60).wanted() == (True, True, False)
    waits = Written(write_seconds=50, in_flight=True)  # for what is in flight, then writes
    assert saving(waits, tmp_path, left=60).wanted() == (False, True, False)


def test_train_saving_commits_when_all_processes_have_written(tmp_path: Path) -> None:
    """A checkpoint renamed while another process still writes its part is half a checkpoint."""
    own = Written()
    two = saving(own, tmp_path, size=2)
    assert not two.after(Progress(step=1), (1, 0, 0))
    assert not two.after(Progress(step=2), (0, 0, 1))
    assert not two.after(Progress(step=3), (0, 0, 2))
    assert two.after(Progress(step=4), (0, 1, 0))  # one process was asked to stop: all do
    assert not two.after(Progress(step=9), (0, 0, 0))
    assert own.told == [
        *("ready", "begin 1"),
        *("ready", "commit"),
        *("ready", "save 4"),
        *("ready", "save 9"),
    ]


def test_train_deadline_comes_from_the_budget_or_from_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that does not know its end is killed at it, and loses what it did since it saved."""
    for name in (BUDGET, DEADLINE, SLURM_END):
        monkeypatch.delenv(name, raising=False)
    now = time.time()

    def deadline() -> float | None:
        with listening(tmp_path / "stop") as request:
            return request.deadline

    assert deadline() is None
    monkeypatch.setenv(SLURM_END, str(round(now) + 3600))
    assert deadline() == round(now) + 3600 - 60
    monkeypatch.setenv(BUDGET, "100")
    assert deadline() == pytest.approx(now + 100, abs=30)
    monkeypatch.setenv(DEADLINE, "12.5")
    assert deadline() == 12.5
    monkeypatch.setenv(DEADLINE, "soon")
    with pytest.raises(StageError, match="ROPEWALK_STOP_AT: 'soon' is not a number"):
        deadline()


def test_train_checkpoint_all_processes_read_the_one_the_first_sees(tmp_path: Path) -> None:
    """A node that sees an older state of a shared folder would load the shards of another step."""
    trained = Trained()
    with Checkpoints(
        tmp_path, trained.model, trained.optimizer, "code", WORLD, Hardware()
    ) as saves:
        for step in (1, 2):
            trained.step(step)
            saves.save(Progress(step=step))
    newer, older = checkpoint._records(tmp_path)
    assert [newer[0], older[0]] == ["step-000002", "step-000001"]
    answers: list[Any] = [[[older], []]]  # what the first process saw; later answers are its own

    class Second(World):
        def gather(self, value: Any) -> list[Any]:
            return answers.pop() if answers else [value]

    found = checkpoint.latest(
        tmp_path, Second(rank=1, size=2, device=torch.device("cpu"), mesh=None)
    )
    assert found is not None
    assert found[0].name == "step-000001"
    assert found[1] == older[1]


def test_train_checkpoint_waits_for_files_of_other_nodes(tmp_path: Path) -> None:
    """On a network file system a file shows later than its writer says that it is written."""
    late = tmp_path / "__1_0.distcp"
    timer = threading.Timer(0.3, late.write_bytes, (b"shard",))
    timer.start()
    file = checkpoint.File(path=late.name, bytes=5, sha256="")
    assert checkpoint._await(tmp_path, [file], seconds=20) == []
    timer.join()
    assert checkpoint._await(tmp_path / "no", [file], seconds=0.1) == [late.name]
