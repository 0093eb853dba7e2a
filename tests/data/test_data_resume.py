"""A tokenize job that is killed goes on, and leaves what an undisturbed one leaves."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_samples import Chain, Run, words

from ropewalk.base.canonical import canonical_json, plain
from ropewalk.base.files import sha256_file
from ropewalk.base.manifest import MANIFEST, Manifest, read_manifest
from ropewalk.data.progress import PROGRESS, Progress
from ropewalk.data.shards import Shard
from ropewalk.data.spec import DocumentCorpus, InventoryJob, JsonlSource, TokenizeJob
from ropewalk.data.tally import Tally

KILLS = 20


class Job:
    """A tokenize job over three files of JSON lines, as a process that can be killed."""

    def __init__(self, run: Run, chain: Chain, folder: Path) -> None:
        raw = folder / "raw"
        raw.mkdir()
        for file in range(3):
            lines = []
            for line in range(400):
                text = "\n".join(words(1000 * file + line, 12 + line % 9))
                lines.append(json.dumps({"text": text}) if line % 50 else '{"text": ')
            (raw / f"{file}.jsonl").write_text("\n".join(lines) + "\n")
        source = JsonlSource(location="x", train=("*.jsonl",))
        self.inputs = {
            "tokenizer": chain.tokenizer,
            "inventory": run(
                "inventory", InventoryJob(source=source, folder=str(raw)), "raw-inventory"
            ),
        }
        self.spec = TokenizeJob(
            corpus=DocumentCorpus(source="x", split="train", minimum_tokens=150),
            source=source,
            folder=str(raw),
            shard_tokens=8_000,
        )

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "ropewalk.cli", "tokenize", "--out", str(folder)]
        words += ["--spec", canonical_json(plain(self.spec))]
        for name, manifest in self.inputs.items():
            words += ["--input", f"{name}={manifest.folder / MANIFEST}"]
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def finish(self, folder: Path) -> Manifest:
        process = self.start(folder)
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
        return read_manifest(folder / MANIFEST)


@pytest.fixture
def job(run: Run, chain: Chain, tmp_path: Path) -> Job:
    """Return the job, its inputs made."""
    return Job(run, chain, tmp_path)


def listed(folder: Path) -> list[dict]:
    """Return the finished shards that a folder's progress names."""
    file = folder / PROGRESS
    lines = file.read_text().split("\n")[1:-1] if file.is_file() else []
    return [json.loads(line)["shard"] for line in lines]


def test_killed_at_random_moments_it_leaves_the_same_bytes(job: Job, tmp_path: Path) -> None:
    """Guards against lost, doubled or half-written documents after kill -9, power cut or OOM."""
    clock = time.monotonic()
    whole = job.finish(tmp_path / "whole")
    seconds = time.monotonic() - clock
    shards = {file.path: file.sha256 for file in whole.files}
    assert len(shards) > 20
    rng = random.Random(5)
    folder, kills, inside, kept = tmp_path / "killed", 0, 0, 0
    while kills < KILLS:
        before = {s["file"]: (folder / s["file"]).stat().st_mtime_ns for s in listed(folder)}
        process = job.start(folder)
        time.sleep(rng.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode != 0
        if (folder / MANIFEST).exists():  # the work was done before the signal came: begin anew
            assert read_manifest(folder / MANIFEST) == whole
            folder = tmp_path / f"killed-{kills}"
            continue
        # What counts as finished is finished, was not made again, and nothing else looks so.
        finished = listed(folder)
        inside += 0 < len(finished) < len(shards)
        for shard in finished:
            assert sha256_file(folder / shard["file"]) == shard["sha256"] == shards[shard["file"]]
        for name, modified in before.items():
            kept += 1
            assert (folder / name).stat().st_mtime_ns == modified
    assert inside >= 3, "the kills must hit the work, not only the start"
    assert kept
    resumed = job.finish(folder)
    assert resumed == whole
    assert {f.name for f in folder.iterdir()} == {f.name for f in (tmp_path / "whole").iterdir()}


def entry(folder: Path, name: str, content: bytes) -> Shard:
    (folder / name).write_bytes(content)
    return Shard(
        file=name,
        bytes=len(content),
        sha256=sha256_file(folder / name),
        documents=1,
        tokens=2,
    )


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """Return a folder with three finished shards and one that was being written."""
    progress = Progress(tmp_path, "key")
    tally = Tally()
    for index in range(3):
        tally.take(2, subset="s", text_bytes=5)
        shard = entry(tmp_path, f"shard-{index:05d}.arrow", bytes([index] * 9))
        progress.record(shard, (0, index + 1), tally)  # type: ignore[arg-type]
    (tmp_path / "shard-00003.arrow").write_bytes(b"whole, but not yet noted")
    (tmp_path / "shard-00004.arrow.77.partial").write_bytes(b"ha")
    return tmp_path


def test_progress_is_what_was_recorded(begun: Path) -> None:
    """Guards against counts that start again at zero, and leftovers that look like shards."""
    again = Progress(begun, "key")
    assert [e.shard.file for e in again.finished] == [f"shard-{i:05d}.arrow" for i in range(3)]
    assert again.start == (0, 3)
    assert (again.tally.documents, again.tally.tokens, again.tally.subsets) == (3, 6, {"s": [3, 6]})
    assert sorted(f.name for f in begun.glob("shard-*")) == [f.path for f in again.files]


def test_progress_of_another_job_is_dropped(begun: Path) -> None:
    """Guards against shards of other settings, code or inputs under a new manifest."""
    again = Progress(begun, "other")
    assert (again.finished, again.start) == ([], (0, 0))
    assert not list(begun.glob("shard-*"))


def test_a_damaged_shard_and_what_follows_is_made_again(begun: Path) -> None:
    """Guards against a flipped bit that a resumed job would put its manifest over."""
    (begun / "shard-00001.arrow").write_bytes(bytes([1] * 8 + [2]))
    again = Progress(begun, "key")
    assert [e.shard.file for e in again.finished] == ["shard-00000.arrow"]
    assert again.start == (0, 1)


@pytest.mark.parametrize("cut", range(1, 120, 7))
def test_a_line_cut_short_is_no_line(begun: Path, cut: int) -> None:
    """Guards against a torn write: the kill may come inside the progress file itself."""
    file = begun / PROGRESS
    content = file.read_bytes()
    file.write_bytes(content[:-cut])
    again = Progress(begun, "key")
    assert len(again.finished) == 2
    shard = entry(begun, "shard-00002.arrow", bytes([2] * 9))
    again.record(shard, (0, 3), Tally())  # type: ignore[arg-type]
    assert len(Progress(begun, "key").finished) == 3
