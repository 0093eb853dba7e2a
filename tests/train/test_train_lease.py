"""Two jobs must never write one run; a dead job must not block it."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ropewalk.base.files import read_json, write_json
from ropewalk.train.lease import LeaseError, held


def test_train_lease_refuses_a_second_writer_by_name(tmp_path: Path) -> None:
    """A workflow started twice would mix two trainings in one folder."""
    file = tmp_path / "lease.json"
    code = (
        "import sys, pathlib\n"
        "from ropewalk.train.lease import held\n"
        "with held(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "SLURM_JOB_ID": "4711"},
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    name = f"process {other.pid} on {socket.gethostname()}, Slurm job 4711"
    with pytest.raises(LeaseError, match=name), held(file):
        pass
    other.kill()
    other.wait()
    with held(file):  # its owner is dead: taken over at once
        assert read_json(file)["pid"] == os.getpid()
    assert not file.exists()


def test_train_lease_of_another_host_is_taken_over_only_when_silent(tmp_path: Path) -> None:
    """A process on another node cannot be looked at: its heartbeat decides."""
    file = tmp_path / "lease.json"
    write_json(file, {"host": "elsewhere", "pid": 1, "started": "1"})
    with pytest.raises(LeaseError, match="process 1 on elsewhere"), held(file):
        pass
    silent = time.time() - 601
    os.utime(file, (silent, silent))
    with held(file):
        assert read_json(file)["host"] == socket.gethostname()


def test_train_lease_of_a_requeued_job_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm ends a job before it requeues it: waiting for the heartbeat would waste the slot."""
    file = tmp_path / "lease.json"
    write_json(file, {"host": "elsewhere", "pid": 1, "started": "1", "slurm_job": "7"})
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with pytest.raises(LeaseError), held(file):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with held(file):
        pass


def test_train_lease_of_a_pid_used_again_is_stale(tmp_path: Path) -> None:
    """After a reboot another process may have the pid of the dead owner."""
    file = tmp_path / "lease.json"
    write_json(file, {"host": socket.gethostname(), "pid": os.getppid(), "started": "0"})
    with held(file):
        pass


def test_train_lease_beats_and_notices_its_loss(tmp_path: Path) -> None:
    """Without a heartbeat a long run loses its lease; a loser must stop before it writes."""
    file = tmp_path / "lease.json"
    with held(file, heartbeat_seconds=0.02) as lease:
        long_ago = time.time() - 1000
        os.utime(file, (long_ago, long_ago))
        deadline = time.monotonic() + 10
        while file.stat().st_mtime < long_ago + 500:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        lease.check()
        write_json(file, {"host": "elsewhere", "pid": 1, "started": "1"})
        with pytest.raises(LeaseError, match="process 1 on elsewhere"):
            lease.check()
    assert file.exists()  # it is not ours to remove


def test_train_lease_unreadable_is_not_ignored(tmp_path: Path) -> None:
    """A torn lease may belong to somebody alive."""
    file = tmp_path / "lease.json"
    file.write_text("{")
    with pytest.raises(LeaseError, match="unreadable"), held(file):
        pass
