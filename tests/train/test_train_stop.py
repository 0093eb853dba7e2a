"""Asked to stop, a run leaves a checkpoint and 75; without progress it ends in a message."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resume_sample import LONG, assert_same, ledger, work_of
from train_sample import RUN, changed, losses, process, start

from ropewalk.base.stage import StageError
from ropewalk.train import attempt, segments, step
from ropewalk.train.stop import BUDGET, EXIT_CODE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["TERM", "USR1"])
def test_train_signal_leaves_a_checkpoint_and_75(
    made: dict[str, Path], tmp_path: Path, number: signal.Signals
) -> None:
    """Exit code 0 of an unfinished run would be taken for a trained model."""
    run = changed(LONG, hardware={"checkpoint_every_seconds": 1000})
    child = process(run, made, tmp_path)
    while (
        not (metrics := list(tmp_path.glob("work-*/metrics.jsonl"))) or not metrics[0].read_text()
    ):
        assert child.poll() is None
        time.sleep(0.005)
    child.send_signal(number)
    child.communicate()
    assert child.returncode == EXIT_CODE
    (left,) = tmp_path.glob("work-*/checkpoints/step-*")
    assert len(losses(tmp_path)) == int(left.name.removeprefix("step-")) < 30
    assert not (tmp_path / "manifest.json").exists()
    assert not (tmp_path / "lease.json").exists()


@pytest.mark.parametrize("place", ["objective", "train"], ids=["loading", "before the first step"])
def test_train_signal_during_start_up_is_a_failure(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """With 75 a job whose time ends before its first step would be started again for ever."""

    def signalled(*values: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*values, **named)

    original = getattr(attempt, place)
    monkeypatch.setattr(attempt, place, signalled)
    with pytest.raises(StageError, match=r"by SIGTERM.*before it had made a step.*time limit") as e:
        start(RUN, made, tmp_path)
    assert str(work_of(tmp_path)) in str(e.value)
    assert "at step 0 of 6" in str(e.value)
    assert not list(tmp_path.glob("work-*/checkpoints/*"))
    assert not (tmp_path / "lease.json").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.undo()
    assert start(RUN, made, tmp_path).result["final_step"] == 6


def test_train_signal_during_the_first_step_keeps_the_step(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long first step that was done must not be thrown away."""

    def signalled(*values: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return original(*values)

    original = step.loss_sum
    monkeypatch.setattr(step, "loss_sum", signalled)
    with pytest.raises(SystemExit, match="after step 2 of 6"):
        start(RUN, made, tmp_path)
    assert [p.name for p in work_of(tmp_path).glob("checkpoints/*")][-1:] == ["step-000002"]


def test_train_time_budget_by_time_budget_to_the_same_end(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training longer than a job's time limit goes on in as many jobs as it takes."""
    # By this process too: bits are those of a number of threads.
    undisturbed, broken = tmp_path / "undisturbed", tmp_path / "broken"
    start(LONG, made, undisturbed)
    monkeypatch.setenv(segments.TRY_AGAIN, "1")
    budget, stopped, finished = 0.05, 0, False
    while not finished:  # as little time as lets a step be done on this machine, right now
        monkeypatch.setenv(BUDGET, str(budget))
        try:
            start(LONG, made, broken)
            finished = True
        except StageError as error:
            assert "before it had made a step" in str(error)  # noqa: PT017
            budget *= 1.3
        except SystemExit as stop:
            assert stop.code == EXIT_CODE  # noqa: PT017
            stopped += 1
    assert stopped > 1
    assert_same(broken, undisturbed)
    steps = [s["from_step"] for s in ledger(broken) if s["event"] == "start"]
    assert steps == sorted(steps)
    monkeypatch.setenv(BUDGET, "soon")
    with pytest.raises(StageError, match="'soon' is not a number"):
        start(LONG, made, tmp_path / "other")


def test_train_without_progress_ends_quickly(made: dict[str, Path], tmp_path: Path) -> None:
    """A loop that starts again whatever says 75 must end, though each attempt is stopped."""
    codes = []
    while not codes or codes[-1] == EXIT_CODE:
        child = process(RUN, made, tmp_path, **{BUDGET: "0"})
        output, _ = child.communicate()
        codes.append(child.returncode)
    assert codes == [1]
    assert "before it had made a step" in output
    assert BUDGET in output


def test_train_attempts_without_fruit_are_refused(
    made: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: Callable[[int | None], None],
) -> None:
    """A run that is killed before its first checkpoint, every time, would burn jobs for ever."""
    stop_after(2)
    with pytest.raises(SystemExit):
        start(RUN, made, tmp_path)
    stop_after(0)
    for _ in range(2):
        with pytest.raises(StageError, match="before it had made a step"):
            start(RUN, made, tmp_path)
    killed = {**ledger(tmp_path)[-2], "host": "node-7", "slurm_job": "4711"}
    assert killed["event"] == "start"
    with (work_of(tmp_path) / "segments.jsonl").open("a") as stream:
        stream.write(json.dumps(killed) + "\n" + '{"event": "sta')  # and a line cut short
    stop_after(None)
    before = ledger_size(tmp_path)
    with pytest.raises(StageError, match="last 3 attempts began at step 2 of 6") as caught:
        start(RUN, made, tmp_path)
    assert str(work_of(tmp_path) / "segments.jsonl") in str(caught.value)
    assert "on node-7, Slurm job 4711: killed" in str(caught.value)
    assert ledger_size(tmp_path) == before  # a refusal is no attempt
    monkeypatch.setenv(segments.TRY_AGAIN, "1")
    assert start(RUN, made, tmp_path).result["final_step"] == 6
    assert [a.to_step for a in segments.attempts(work_of(tmp_path))] == [2, 2, 2, None, 6]


def ledger_size(folder: Path) -> int:
    return (work_of(folder) / "segments.jsonl").stat().st_size


def test_train_refusal_by_hand(tmp_path: Path) -> None:
    """Progress, an end in order, or another step make an attempt one that may be repeated."""

    def attempted(step: int, to: int | None = None, *, error: bool = False) -> None:
        with contextlib.suppress(RuntimeError):
            segment = segments.Segment(
                tmp_path, writes=True, from_step=step, facts={"code": f"code-{step}"}
            )
            segment.__enter__()
            if error:
                segment.__exit__(RuntimeError, None, None)
            elif to is not None:
                segment.reached(to)
                segment.__exit__(None, None, None)

    def refused(step: int) -> bool:
        return segments.refusal(tmp_path, step, 9) is not None

    assert not refused(0)
    attempted(0)
    attempted(0, error=True)
    assert not refused(0)
    attempted(0, 0)
    assert refused(0)
    assert not refused(1)  # the third left a checkpoint before it was killed
    attempted(0, 4)
    assert not refused(0)
    for _ in range(3):
        attempted(4)
    assert refused(4)
    attempted(9, 9)  # the end, exported again
    attempted(9, 9)
    attempted(9, 9)
    assert not refused(9)
    for _ in range(3):
        attempted(9, error=True)
    assert refused(9)
    assert segments.codes(tmp_path, 9) == [
        {"from_step": 0, "code": "code-0"},
        {"from_step": 4, "code": "code-4"},
    ]
