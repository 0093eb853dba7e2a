"""Interrupted and started again, a run ends in the same bits."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from train_sample import RUN, changed, exported, losses, process, start

from ropewalk.base.canonical import digest
from ropewalk.base.closure import closure
from ropewalk.base.stage import StageError
from ropewalk.train import stage
from ropewalk.train.spec import Phase
from ropewalk.train.stop import BUDGET, EXIT_CODE

LONG = changed(
    RUN, phases=(Phase(windows="packed", length_tokens=32, steps=30),), snapshot_steps=(3,)
)


@pytest.fixture(scope="module")
def undisturbed(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    child = process(LONG, made, folder)
    output, _ = child.communicate()
    assert child.returncode == 0, output
    return folder


def wait_for_step(child: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Wait until a checkpoint of `step` or later stands in the only work folder."""
    while not any(
        int(path.name.removeprefix("step-")) >= step
        for path in folder.glob("work-*/checkpoints/step-??????")
    ):
        assert child.poll() is None, child.communicate()[0]
        time.sleep(0.005)


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
    assert exported(tmp_path) == exported(undisturbed)
    assert losses(tmp_path) == losses(undisturbed)
    manifests = [(p / "manifest.json").read_bytes() for p in (tmp_path, undisturbed)]
    assert manifests[0] == manifests[1]
    work = next(tmp_path.glob("work-*"))
    assert [p.name for p in (work / "checkpoints").iterdir()] == ["step-000030"]
    segments = [json.loads(line) for line in (work / "segments.jsonl").read_text().splitlines()]
    assert [s["event"] for s in segments] == ["start", "start", "end"]
    assert segments[1]["from_step"] >= 5
    assert segments[2]["to_step"] == 30


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


def test_train_time_budget_ends_with_75(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job near the end of its slot must stop by itself, and go on from there."""
    monkeypatch.setenv(BUDGET, "0")
    for step in (1, 2):
        with pytest.raises(SystemExit) as caught:
            start(RUN, made, tmp_path)
        assert caught.value.code == EXIT_CODE
        assert f"after step {step} of 6" in str(caught.value)
    monkeypatch.setenv(BUDGET, "soon")
    with pytest.raises(StageError, match="'soon' is not a number"):
        start(RUN, made, tmp_path)
    monkeypatch.delenv(BUDGET)
    assert start(RUN, made, tmp_path).result["final_step"] == 6


def test_train_damaged_checkpoint_is_not_used(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit in optimizer state would go on training without a sign."""
    monkeypatch.setenv(BUDGET, "0")
    for _ in range(3):
        with pytest.raises(SystemExit):
            start(RUN, made, tmp_path)
    monkeypatch.delenv(BUDGET)
    kept = sorted(tmp_path.glob("work-*/checkpoints/*"))
    assert [p.name for p in kept] == ["step-000002", "step-000003"]
    file = next(kept[1].glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    start(RUN, made, tmp_path)
    segments = next(tmp_path.glob("work-*/segments.jsonl")).read_text().splitlines()
    assert json.loads(segments[-1])["from_step"] == 2


def test_train_other_code_starts_over(
    made: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Half a run by one code and half by another is a run by none."""
    monkeypatch.setenv(BUDGET, "0")
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


def test_train_finished_run_is_only_exported_again(made: dict[str, Path], tmp_path: Path) -> None:
    """A damaged export costs seconds, a damaged snapshot the training: never a wrong file."""
    run = changed(RUN, snapshot_steps=(3,))
    start(run, made, tmp_path)
    before = exported(tmp_path)
    (tmp_path / "final" / "model.safetensors").write_bytes(b"damaged")
    start(run, made, tmp_path)
    segments = next(tmp_path.glob("work-*/segments.jsonl")).read_text().splitlines()
    assert json.loads(segments[-1])["from_step"] == 6
    assert exported(tmp_path) == before
    (tmp_path / "step-000003" / "model.safetensors").write_bytes(b"damaged")
    start(run, made, tmp_path)
    assert exported(tmp_path) == before
    (new,) = [p for p in tmp_path.glob("work-*") if "." not in p.name]
    assert json.loads((new / "segments.jsonl").read_text().splitlines()[0])["from_step"] == 0


@pytest.mark.slow
def test_train_two_processes_killed_and_resumed(made: dict[str, Path], tmp_path: Path) -> None:
    """Sharded state is restored to the bit, and the killed stage leaves no process behind."""
    run = changed(LONG, hardware={"processes": 2})
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
    while any(assignment in line for line in _command_lines()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    again = process(run, made, broken)
    output, _ = again.communicate()
    assert again.returncode == 0, output
    assert "going on from" in output
    assert exported(broken) == exported(whole)
    assert losses(broken) == losses(whole)


def _command_lines() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                found.append((entry / "cmdline").read_text().replace("\0", " "))
    return found
