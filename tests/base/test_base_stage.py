"""The frame every stage runs in."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from ropewalk.base.canonical import digest
from ropewalk.base.closure import closure
from ropewalk.base.files import write_json, write_text
from ropewalk.base.manifest import MANIFEST, PROVENANCE, ArtifactError, Manifest
from ropewalk.base.stage import SUBMITTED_CODE, Job, StageError, canonical_code, run_stage

ENTRY = "ropewalk.base.rng"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    text: str


@dataclasses.dataclass
class Stage:
    """A stage that counts how often its work is done."""

    folder: Path
    done: int = 0
    entry: str = ENTRY
    suffix: str = ""  # what another machine or library would add to the bytes

    def work(self, job: Job) -> tuple[Iterable[Path], Mapping[str, Any]]:
        self.done += 1
        file = job.folder / "out.txt"
        write_text(file, job.spec.text + self.suffix)
        return [file], {"letters": len(job.spec.text)}

    causes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def run(self, text: str = "abc", rebuilds: int = 0, **inputs: Path) -> Manifest:
        return run_stage(
            "demo",
            self.entry,
            self.work,
            spec=Spec(text=text),
            inputs=inputs,
            folder=self.folder,
            rebuilds=rebuilds,
            **self.causes,
        )

    def rewrite(self, **changes: Any) -> None:
        """Change what the provenance file says."""
        write_json(self.folder / PROVENANCE, {**self.provenance(), **changes})

    def provenance(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.folder / PROVENANCE).read_text())
        return data


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "out")


@pytest.fixture
def other(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "input")


def test_nothing_is_done_twice(stage: Stage) -> None:
    """Guards against a training that starts again because a job was submitted again."""
    first = stage.run()
    assert stage.run() == first
    assert stage.done == 1


def test_another_spec_is_other_work(stage: Stage) -> None:
    """Guards against old results under new settings."""
    stage.run("abc")
    assert stage.run("abcd").result == {"letters": 4}
    assert stage.done == 2


def test_other_code_is_other_work(stage: Stage) -> None:
    """Guards against old results of code that was changed."""
    recipe = stage.run().recipe
    stage.entry = "ropewalk.base.spec"
    assert stage.run().recipe == recipe  # the same thing, made anew
    assert stage.done == 2


def test_other_input_content_is_other_work(stage: Stage, other: Stage) -> None:
    """Guards against results of inputs that were made again with other bytes."""
    path = other.folder / MANIFEST
    first = other.run("input")
    stage.run(tokens=path)
    stage.run(tokens=path)
    assert stage.done == 1
    other.suffix, other.entry = "!", "ropewalk.base.spec"
    second = other.run("input")
    assert second.recipe == first.recipe
    assert second.content != first.content
    stage.run(tokens=path)
    assert stage.done == 2


def test_another_listing_is_other_work(stage: Stage) -> None:
    """Guards against a corpus that changed on disk under an inventory that says `unchanged`."""
    stage.causes = {"listing": "files=a"}
    stage.run()
    stage.run()
    assert (stage.done, stage.provenance()["listing"]) == (1, "files=a")
    stage.causes = {"listing": "files=b"}
    stage.run()
    assert (stage.done, stage.provenance()["listing"]) == (2, "files=b")


def test_only_libraries_of_the_stage_count(stage: Stage) -> None:
    """Guards against trainings redone for a plotting library, and kept under another numpy."""
    stage.run()
    installed = metadata.version("numpy")
    stage.rewrite(libraries={"numpy": f"{installed}+local", "matplotlib": "0.1"})
    stage.causes = {"libraries": {"numpy": None}}
    stage.run()
    assert stage.done == 1
    stage.causes = {"libraries": {"numpy": None, "matplotlib": None}}
    stage.run()
    assert stage.done == 2
    stage.rewrite(libraries={})
    stage.causes = {"libraries": {"numpy": None}}
    stage.run()
    assert stage.done == 3


def test_other_version_than_pinned_is_refused(stage: Stage) -> None:
    """Guards against numbers recorded under a version that was pinned but never installed."""
    installed = metadata.version("numpy")
    stage.causes = {"libraries": {"numpy": "0.1", "no-such-library": "1.0"}}
    with pytest.raises(StageError) as caught:
        stage.run()
    message = str(caught.value)
    assert f"numpy {installed} where 0.1 is pinned" in message
    assert "no-such-library (not installed) where 1.0 is pinned" in message
    assert "make env" in message
    assert stage.done == 0
    stage.causes = {"libraries": {"numpy": f"{installed}+cpu"}}  # a build of the same release
    stage.run()
    assert stage.done == 1


def test_accepted_code_is_no_other_work(stage: Stage) -> None:
    """Guards against a month of training redone for a change declared harmless."""
    first = stage.run()
    now = stage.provenance()["code_files"]
    file = "ropewalk/base/rng.py"
    older = {**now, file: "0" * 12}
    stage.rewrite(code_files=older, code=digest(older))
    stage.causes = {"accepted": {(file, now[file]): "0" * 12}}
    assert stage.run() == first
    assert stage.done == 1
    stage.causes = {"accepted": {(file, now[file]): "1" * 12}}
    stage.run()
    assert stage.done == 2


def test_accepted_digests_lead_to_the_oldest() -> None:
    """Guards against a chain of accepted changes that is followed one step only, or for ever."""
    accepted = {("a", "3"): "2", ("a", "2"): "1", ("b", "2"): "9", ("c", "1"): "2", ("c", "2"): "1"}
    found = canonical_code({"a": "3", "b": "3", "c": "1"}, accepted)
    assert (found["a"], found["b"]) == ("1", "3")
    assert found["c"] in {"1", "2"}


def test_a_deleted_manifest_is_restored_without_work(stage: Stage) -> None:
    """Guards against work lost to Snakemake, which deletes declared outputs before each attempt."""
    stage.run()
    text = (stage.folder / MANIFEST).read_bytes()
    (stage.folder / MANIFEST).unlink()
    stage.run()
    assert (stage.folder / MANIFEST).read_bytes() == text
    assert stage.done == 1


def _truncate(stage: Stage) -> None:
    (stage.folder / "out.txt").write_text("ab")


def _drop(stage: Stage) -> None:
    (stage.folder / "out.txt").unlink()


def _half_manifest(stage: Stage) -> None:
    (stage.folder / MANIFEST).write_text('{"format_version"')


def _half_provenance(stage: Stage) -> None:
    (stage.folder / PROVENANCE).write_text("{")


@pytest.mark.parametrize("damage", [_truncate, _drop, _half_manifest, _half_provenance])
def test_a_damaged_artifact_is_made_again(stage: Stage, damage: Callable[[Stage], None]) -> None:
    """Guards against a stage that trusts its own broken leftovers, or stumbles over them."""
    whole = stage.run()
    damage(stage)
    assert stage.run() == whole
    assert stage.done == 2
    assert (stage.folder / "out.txt").read_text() == "abc"


def test_the_number_of_rebuilds_is_recorded_either_way(stage: Stage) -> None:
    """Guards against a plan that asks for the same rebuild again and again."""
    stage.run()
    assert stage.provenance()["rebuilds"] == 0
    _truncate(stage)
    stage.run(rebuilds=1)
    assert stage.provenance()["rebuilds"] == 1
    stage.run(rebuilds=2)  # damaged when planned, whole when run
    assert (stage.provenance()["rebuilds"], stage.done) == (2, 2)
    stage.run()
    assert stage.provenance()["rebuilds"] == 2


def test_code_newer_than_the_submission_is_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against queued jobs that run whatever code lies on disk when they start."""
    monkeypatch.setenv(SUBMITTED_CODE, json.dumps({ENTRY: "0" * 16}))
    with pytest.raises(StageError, match="code changed after this job was submitted"):
        stage.run()
    assert stage.done == 0
    monkeypatch.setenv(SUBMITTED_CODE, json.dumps({ENTRY: digest(closure(ENTRY))}))
    stage.run()
    monkeypatch.setenv(SUBMITTED_CODE, json.dumps({"another": "0" * 16}))
    stage.run()
    assert stage.done == 1


def test_damaged_inputs_are_refused_before_any_work(stage: Stage, other: Stage) -> None:
    """Guards against numbers computed from a file that changed on the way."""
    other.run()
    _truncate(other)
    with pytest.raises(ArtifactError, match=r"out\.txt has 2 bytes"):
        stage.run(tokens=other.folder / MANIFEST)
    assert stage.done == 0
    assert not stage.folder.exists()


def test_a_stage_that_fails_leaves_no_manifest(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against half of an artifact that later stages take for the whole."""

    def fail(job: Job) -> tuple[Iterable[Path], Mapping[str, Any]]:
        write_text(job.folder / "out.txt", "half")
        raise StageError("no")

    monkeypatch.setattr(stage, "work", fail)
    with pytest.raises(StageError):
        stage.run()
    assert not (stage.folder / MANIFEST).exists()


def test_inputs_are_found_by_name_and_by_prefix(tmp_path: Path, stage: Stage) -> None:
    """Guards against a missing input that is taken for an empty one."""
    manifest = stage.run()
    job = Job(
        stage="demo",
        spec=None,
        inputs={"tokens:a": manifest, "tokens:b:2": manifest, "tokenizer": manifest},
        folder=tmp_path,
        recipe="",
        code="",
    )
    assert set(job.many("tokens")) == {"a", "b:2"}
    assert job.input("tokenizer") is manifest
    with pytest.raises(StageError, match="--input filler=PATH"):
        job.input("filler")


def test_provenance_holds_what_may_differ_and_the_manifest_does_not(stage: Stage) -> None:
    """Guards against hosts and times in identities, and against results nobody can trace."""
    stage.run()
    provenance = stage.provenance()
    manifest = json.loads((stage.folder / MANIFEST).read_text())
    assert provenance["code_files"] == closure(ENTRY)
    assert {"host", "started", "seconds", "python", "libraries"} <= set(provenance)
    assert not {"host", "started", "seconds"} & set(manifest)
    stamp = (stage.folder / "out.txt").stat().st_mtime_ns
    assert provenance["files"] == {"out.txt": stamp}
