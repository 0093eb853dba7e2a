"""A hub on this machine, and its local cache: nothing leaves the machine."""

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import frames
from hub_server import BRANCH, COMMIT, git_blob, make_cache, serve

from ropewalk.base.stage import StageError
from ropewalk.data.hub import hub_listing
from ropewalk.data.spec import HubSource

CHILD = Path(__file__).parent / "hub_child.py"


def rows(name: str, count: int) -> list[dict[str, Any]]:
    rng = random.Random(name)
    return [
        {"text": f"{name} {i} ü " + rng.randbytes(150).hex(), "meta": {"set": "ab"[i % 2]}, "n": i}
        for i in range(count)
    ]


def lines(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def parquet(records: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), sink, row_group_size=90)
    return sink.getvalue()


def card(text: str) -> bytes:
    return f"---\n{text}---\n# A card\n".encode()


TRAIN = {f"data/train-{i}.jsonl.zst": rows(f"book{i}", n) for i, n in enumerate((700, 1, 40))}
PLAIN = lines(TRAIN["data/train-0.jsonl.zst"])
LINES = {
    ".gitattributes": b"*.zst filter=lfs\n",
    "README.md": card(
        "configs:\n"
        "- config_name: all\n  data_files:\n"
        "  - {split: train, path: data/train-*.jsonl.zst}\n"
        "  - {split: dev, path: data/dev.jsonl}\n"
        "- config_name: few\n  data_files:\n"
        "  - {split: train, path: data/train-1.jsonl.zst}\n"
    ),
    **{path: frames(lines(records)) for path, records in TRAIN.items()},
    "data/train-0.jsonl.zst": frames(PLAIN[:99_999], PLAIN[99_999:]),
    "data/dev.jsonl": lines(rows("dev", 2)),
}
TABLE = rows("row", 200)
PARQUET = {f"data/{split}-00000-of-00001.parquet": parquet(TABLE) for split in ("train", "test")}
# Settings that only the card knows: the separator, and that digits are text.
CSV = {
    "README.md": card(
        "configs:\n- config_name: default\n  sep: '|'\n  data_files: data/*.csv\n"
        "dataset_info:\n  features:\n"
        "  - {name: text, dtype: string}\n  - {name: n, dtype: int64}\n"
    ),
    "data/x.csv": b"text|n\n007|1\n008|2\n",
}
EMPTY = {"train.jsonl": b""}
HUB = {"org/lines": LINES, "org/parquet": PARQUET, "org/csv": CSV, "org/empty": EMPTY}


class Machine:
    """A home folder, and an address of the hub."""

    def __init__(self, home: Path, url: str, requests: list[str]) -> None:
        self.home, self.requests = home, requests
        self._url = url

    def start(self, *jobs: tuple[str, dict[str, Any]], **env: str) -> "tuple[int, list[Any]]":
        """Do jobs in one process; return its exit code and the results."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        settings = {"HF_ENDPOINT": self._url, "HF_HOME": str(self.home / "hf"), **env}
        done = subprocess.run(
            [sys.executable, CHILD],
            input=json.dumps(jobs),
            env={**kept, **settings},
            capture_output=True,
            text=True,
        )
        results = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode >= 0:  # not killed
            assert done.returncode == 0, done.stderr
        return done.returncode, results

    def do(self, *jobs: tuple[str, dict[str, Any]], **env: str) -> list[Any]:
        return self.start(*jobs, **env)[1]

    def job(self, kind: str, source: dict[str, Any], **options: Any) -> tuple[str, dict[str, Any]]:
        made = f"{source['name']}-{source.get('configuration')}-{source['revision']}"
        return kind, {"folder": str(self.home / made), "source": source, **options}

    def listed(self, source: dict[str, Any]) -> dict[str, Any]:
        folder = self.job("inventory", source)[1]["folder"]
        return json.loads((Path(folder) / "inventory.json").read_text())


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with serve(HUB) as (url, requests):
        yield Machine(tmp_path, url, requests)


def of(name: str, **settings: Any) -> dict[str, Any]:
    return {"name": f"org/{name}", "revision": BRANCH, **settings}


EVERYTHING = of("lines", configuration="all", validation="dev")


def test_the_inventory_lists_the_files_of_a_configuration_at_a_commit(machine: Machine) -> None:
    """Guards against a branch that moves under a job, and against another configuration's files."""
    few = of("lines", configuration="few")
    everything, one = machine.do(
        machine.job("inventory", EVERYTHING), machine.job("inventory", few)
    )
    assert everything["commit"] == COMMIT
    assert everything["splits"] == {
        "train": {"files": 3, "bytes": sum(len(LINES[path]) for path in TRAIN)},
        "validation": {"files": 1, "bytes": len(LINES["data/dev.jsonl"])},
        "test": {"files": 0, "bytes": 0},
    }
    assert everything["unmatched"] == {"test": ["test"]}
    small = ("data/train-1.jsonl.zst", "data/dev.jsonl")
    assert machine.listed(EVERYTHING)["files"] == [
        {
            "path": path,
            "split": "train" if "train" in path else "validation",
            "bytes": len(LINES[path]),
            **(
                {"sha256": "", "git_blob": git_blob(LINES[path])}
                if path in small
                else {"sha256": hashlib.sha256(LINES[path]).hexdigest()}
            ),
        }
        for path in sorted([*TRAIN, "data/dev.jsonl"])
    ]
    assert [file["path"] for file in machine.listed(few)["files"]] == [small[0]]
    assert one["unmatched"] == {"validation": ["validation"], "test": ["test"]}


def test_what_the_hub_does_not_have_is_named(machine: Machine) -> None:
    """Guards against a traceback of a library in the place of the key that is wrong."""
    found = machine.do(
        *(
            machine.job("inventory", source)
            for source in (
                of("nothing"),
                {**EVERYTHING, "revision": "v9"},
                {**EVERYTHING, "configuration": "more"},
                {**EVERYTHING, "configuration": None},
                {**EVERYTHING, "train": "training", "validation": None, "test": "exam"},
            )
        )
    )
    messages = [result["error"] for result in found]
    assert all("source." in message for message in messages)
    for message, part in zip(
        messages,
        (
            "hub data set org/nothing at main: RepositoryNotFoundError",
            "hub data set org/lines at v9: RevisionNotFoundError",
            "'more' not found. Available: ['all', 'few']",
            "pick one among the available configs: ['all', 'few']",
            "no files of the splits training, exam; its splits are train, dev",
        ),
        strict=True,
    ):
        assert part in message


def test_a_killed_job_goes_on_in_the_same_file_at_the_same_commit(machine: Machine) -> None:
    """Guards against records lost or read twice, and against the branch being asked again."""
    path = "data/train-0.jsonl.zst"
    expected = [[i, {"text": row["text"]}] for i, row in enumerate(TRAIN[path])]
    code, (_, before) = machine.start(
        machine.job("inventory", EVERYTHING),
        machine.job("read", EVERYTHING, path=path, killed_after=333),
        machine.job("read", EVERYTHING, path=path),
    )
    assert code == -signal.SIGKILL
    (after,) = machine.do(machine.job("read", EVERYTHING, path=path, first=333))
    assert before == expected[:333]
    assert before + after == expected
    files = {r.split()[1] for r in machine.requests if "/resolve/" in r and "/data/" in r}
    assert files == {f"/datasets/org/lines/resolve/{COMMIT}/{path}"}
    asked = [r for r in machine.requests if f"/{BRANCH}" in r]
    assert asked == [f"GET /api/datasets/org/lines/revision/{BRANCH}"]


def test_records_are_those_of_the_file(machine: Machine) -> None:
    """Guards against types guessed where the card declares them, and rows lost between batches."""
    table, csv = of("parquet", subset_field="meta.set"), of("csv")
    path, test = PARQUET
    _, _, _, whole, some, texts, missing, empty = machine.do(
        machine.job("inventory", table),
        machine.job("inventory", csv),
        machine.job("inventory", of("empty")),
        machine.job("read", table, path=path, also=["n"]),
        machine.job("read", table, path=path, first=85, wanted=[90, 199]),
        machine.job("read", csv, path="data/x.csv", also=["n"]),
        machine.job("read", csv, path="data/x.csv", also=["summary"]),
        machine.job("read", of("empty"), path="train.jsonl"),
    )
    assert whole == [[i, row] for i, row in enumerate(TABLE)]
    fields = {i: {k: TABLE[i][k] for k in ("text", "meta")} for i in (90, 199)}
    assert some == [[i, fields.get(i)] for i in range(85, 200)]
    assert texts == [[0, {"text": "007", "n": 1}], [1, {"text": "008", "n": 2}]]
    assert "data/x.csv has no column 'summary'; its columns are text, n" in missing["error"]
    assert f"org/empty at {COMMIT}, file train.jsonl: it holds no record" in empty["error"]
    assert not any(test in request for request in machine.requests)


OFFLINE = {"HF_HUB_OFFLINE": "1"}


def test_the_cache_is_read_as_the_hub_is(machine: Machine) -> None:
    """Guards against a corpus whose identity depends on whether there was network."""
    files = [(EVERYTHING, "data/train-2.jsonl.zst"), (of("csv"), "data/x.csv")]

    def jobs(revision: str) -> list[tuple[str, dict[str, Any]]]:
        return [
            machine.job(kind, {**source, "revision": revision}, **options)
            for source, path in files
            for kind, options in (("inventory", {}), ("read", {"path": path}))
        ]

    online = machine.do(*jobs(COMMIT))
    machine.requests.clear()
    home = machine.home / "offline"
    for source, _ in files:
        make_cache(home, source["name"], HUB[source["name"]])
    offline = machine.do(*jobs(BRANCH), HF_HOME=str(home), **OFFLINE)
    assert machine.requests == []
    assert offline == online
    assert len(offline[1]) == 40
    for source, _ in files:
        assert machine.listed(source) == machine.listed({**source, "revision": COMMIT})


def test_what_is_not_in_the_cache_is_named_with_the_remedy(machine: Machine) -> None:
    """Guards against hours of attempts on a node without network, and against a damaged cache."""
    path, other, third = TRAIN
    inventory = machine.job("inventory", EVERYTHING)
    (nothing,) = machine.do(inventory, **OFFLINE)
    snapshot = make_cache(machine.home / "hf", EVERYTHING["name"], LINES)
    (_, cached) = machine.do(inventory, machine.job("read", EVERYTHING, path=path), **OFFLINE)
    assert len(cached) == len(TRAIN[path])
    (snapshot / path).unlink()
    for damaged in (other, third):
        (snapshot / damaged).resolve().write_bytes(LINES[damaged][:-1] + b"?")
    gone, *changed = machine.do(
        *(machine.job("read", EVERYTHING, path=p) for p in (path, other, third)), **OFFLINE
    )
    assert machine.requests == []
    command = "`hf download org/lines --repo-type dataset --revision"
    assert (
        f"HF_HUB_OFFLINE is set: download it where there is network with {command} main`"
        in (nothing["error"])
    )
    assert f"{path} is not in the local cache" in gone["error"]
    assert f"{command} {COMMIT}`" in gone["error"]
    assert all("the local cache is damaged. Delete" in result["error"] for result in changed)


@pytest.mark.parametrize("name", ["data", "./data", "/data/pile", "../org/pile", "a/b/c", "a b/c"])
def test_a_folder_is_no_data_set_of_the_hub(name: str) -> None:
    """Guards against `datasets` reading a folder that happens to have the name."""
    with pytest.raises(StageError, match=r"source\.name: .* is not a data set of the hub"):
        hub_listing(HubSource(name=name, revision="main"))
