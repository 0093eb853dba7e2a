"""Interrupted and started again, a run ends in the same bits."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from resume_sample import LONG, assert_same, ledger, wait_for_step, work_of
from train_sample import RUN, changed, exported, losses, process, start

from ropewalk.base.canonical import digest
from ropewalk.base.closure import closure
from ropewalk.train import segments, stage
from ropewalk.train.stop import EXIT_CODE


def test_train_killed_and_resumed_gives_the_same_bits(
    made: dict[str, Path], undisturbed: Path, tmp_path: Path
) -> None:
    """State outside the checkpoint that influences an update shows here."""
    child = process(LONG, made, tmp_path)
    wait_for_step(child, tmp_path, 5)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "final").exists()
    assert len(losses(tmp_path)) < 30
    again = process(LONG, made, tmp_path)
    output, _ = again.communicate()
    assert again.returncode == 0, output
    assert "going on from" in output
    assert_same(tmp_path, undisturbed)
    work = work_of(tmp_path)
    assert [p.name for p in (work / "checkpoints").iterdir()] == ["step-000030"]
    events = ledger(tmp_path)
    assert [s["event"] for s in events] == ["start", "start", "end"]
    assert events[1]["from_step"] >= 5
    assert events[2]["to_step"] == 30
    assert events[0]["checkpoint_code"] is None
    assert events[1]["checkpoint_code"] == events[1]["code"]


def test_train_killed_again_and_again_while_saving_in_the_background(
    made: dict[str, Path], undisturbed: Path, tmp_path: Path
) -> None:
    """A checkpoint half committed, or of another step than it says, ends in other bits."""
    run = changed(LONG, hardware={"checkpoint_in_background": True})
    chance = random.Random(0)
    for kill in range(4):
        child = process(run, made, tmp_path)
        if kill < 3:
            wait_for_step(child, tmp_path, 4 + 8 * kill)
            time.sleep(chance.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
        output, _ = child.communicate()
    assert child.returncode == 0, output
    assert_same(tmp_path, undisturbed)
    begun = [s["from_step"] for s in ledger(tmp_path) if s["event"] == "start"]
    assert begun[0] == 0
    assert begun[1:] == sorted(set(begun[1:]))
    assert begun[-1] >= 20


def test_train_damaged_checkpoint_is_not_used(
    made: dict[str, Path], tmp_path: Path, stop_after: Callable[[int | None], None]
) -> None:
    """A flipped bit in optimizer state would go on training without a sign."""
    stop_after(3)
    with pytest.raises(SystemExit):
        start(RUN, made, tmp_path)
    stop_after(None)
    kept = sorted(tmp_path.glob("work-*/checkpoints/*"))
    assert [p.name for p in kept] == ["step-000002", "step-000003"]
    file = next(kept[1].glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    start(RUN, made, tmp_path)
    assert ledger(tmp_path)[-1]["from_step"] == 2


def test_train_other_code_starts_over(
    made: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stop_after: Callable[[int | None], None],
) -> None:
    """Half a run by one code and half by another is a run by none."""
    stop_after(1)
    with pytest.raises(SystemExit):
        start(RUN, made, tmp_path)
    identity = next(tmp_path.glob("work-*/identity.json"))
    record = json.loads(identity.read_text())
    assert record["code"] == digest(closure("ropewalk.train.stage"))
    identity.write_text(json.dumps({**record, "code": "feedbeef", "code_files": {}}))

    monkeypatch.setenv(stage.ACROSS_CODE, "1")
    with pytest.raises(SystemExit, match="after step 2"):
        start(RUN, made, tmp_path)

    monkeypatch.delenv(stage.ACROSS_CODE)
    identity.write_text(json.dumps({**record, "code": "feedbeef", "code_files": {}}))
    with pytest.raises(SystemExit, match="after step 1"):
        start(RUN, made, tmp_path)
    assert len(list(tmp_path.glob("work-*.feedbeef.1"))) == 1
    assert "begun by other code (feedbeef" in capsys.readouterr().out


def test_train_code_of_every_step_stands_in_the_manifest(
    made: dict[str, Path], tmp_path: Path, stop_after: Callable[[int | None], None]
) -> None:
    """A run of two codes, once allowed, must never look like a run of one."""
    stop_after(2)
    with pytest.raises(SystemExit):
        start(RUN, made, tmp_path)
    file = work_of(tmp_path) / "segments.jsonl"
    code = ledger(tmp_path)[0]["code"]
    file.write_text(file.read_text().replace(code, "feedbeef"))  # other code did these
    stop_after(None)
    found = start(RUN, made, tmp_path).result
    assert found["code_by_step"] == [
        {"from_step": 0, "code": "feedbeef"},
        {"from_step": 2, "code": code},
    ]


def test_train_finished_run_is_only_exported_again(made: dict[str, Path], tmp_path: Path) -> None:
    """A damaged export costs seconds, a damaged snapshot the training: never a wrong file."""
    run = changed(RUN, snapshot_steps=(3,))
    start(run, made, tmp_path)
    before = exported(tmp_path)
    for _ in range(segments.FRUITLESS + 1):
        (tmp_path / "final" / "model.safetensors").write_bytes(b"damaged")
        start(run, made, tmp_path)
        assert ledger(tmp_path)[-1]["from_step"] == 6
        assert exported(tmp_path) == before
    (tmp_path / "step-000003" / "model.safetensors").write_bytes(b"damaged")
    start(run, made, tmp_path)
    assert exported(tmp_path) == before
    (new,) = [p for p in tmp_path.glob("work-*") if "." not in p.name]
    assert json.loads((new / "segments.jsonl").read_text().splitlines()[0])["from_step"] == 0


def test_train_leftovers_of_a_kill_are_removed(
    made: dict[str, Path], tmp_path: Path, stop_after: Callable[[int | None], None]
) -> None:
    """Half an export, or a work folder with nothing in it, must not look like something made."""
    stop_after(1)
    with pytest.raises(SystemExit):
        start(RUN, made, tmp_path)
    work = work_of(tmp_path)
    for left in (tmp_path / "step-000003.1.partial", work / "identity.json.1.partial"):
        left.mkdir()
        (left / "file").touch()
    stop_after(None)
    start(RUN, made, tmp_path)
    assert not list(tmp_path.rglob("*.partial*"))
    empty = tmp_path / "empty" / work.name
    empty.mkdir(parents=True)
    start(RUN, made, empty.parent)
    assert [p.name for p in empty.parent.glob("work-*")] == [work.name]


def test_train_resumed_on_another_number_of_processes(
    made: dict[str, Path],
    undisturbed: Path,
    tmp_path: Path,
    stop_after: Callable[[int | None], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1 -> 2 -> 1 processes read the same data in the same order and train the same model.

    The signal in between reaches every process of the step, as Slurm's do: torch's launcher would
    end of it, and its workers with it.
    """
    stop_after(5)
    with pytest.raises(SystemExit):
        start(LONG, made, tmp_path)
    run = changed(LONG, hardware={"processes": 2, "checkpoint_in_background": True})
    child = process(run, made, tmp_path)
    wait_for_step(child, tmp_path, 9)
    below = psutil.Process(child.pid).children(recursive=True)
    for pid in [child.pid, *(process_.pid for process_ in below)]:
        os.kill(pid, signal.SIGUSR1)
    output, _ = child.communicate()
    assert child.returncode == EXIT_CODE, output
    stop_after(None)
    start(LONG, made, tmp_path)
    starts = [s for s in ledger(tmp_path) if s["event"] == "start"]
    assert [s["processes"] for s in starts] == [1, 2, 1]
    assert 5 == starts[1]["from_step"] < starts[2]["from_step"] < 30
    found, expected = losses(tmp_path), losses(undisturbed)
    assert found[:5] == expected[:5]
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("background", [False, True], ids=["waiting", "background"])
def test_train_two_processes_killed_and_resumed(
    made: dict[str, Path], tmp_path: Path, background: bool
) -> None:
    """Sharded state is restored to the bit, and the killed stage leaves no process behind."""
    run = changed(LONG, hardware={"processes": 2, "checkpoint_in_background": background})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    first = process(run, made, whole)
    output, _ = first.communicate()
    assert first.returncode == 0, output
    child = process(run, made, broken)
    wait_for_step(child, broken, 5)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assignment = str(next(broken.glob("work-*/assignment.json")))
    deadline = time.monotonic() + 60
    while any(
        assignment in (other.info["cmdline"] or ()) for other in psutil.process_iter(["cmdline"])
    ):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    again = process(run, made, broken)
    output, _ = again.communicate()
    assert again.returncode == 0, output
    assert "going on from" in output
    assert_same(broken, whole)
