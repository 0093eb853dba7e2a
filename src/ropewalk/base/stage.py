"""The frame every stage runs in: check inputs, do the work once, leave a manifest and provenance.

A stage is a function `work(job)` that writes its files into `job.folder` and returns them with a
deterministic result. The frame verifies input manifests, refuses code other than the submitted,
skips the work when the artifact that stands there was made from the same inputs, spec, code,
libraries and source listing, and writes the manifest last.
"""

import contextlib
import dataclasses
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ropewalk import __version__
from ropewalk.base.canonical import digest, plain
from ropewalk.base.closure import PACKAGE_ROOT, closure
from ropewalk.base.files import write_json, write_text
from ropewalk.base.manifest import (
    MANIFEST,
    PROVENANCE,
    ArtifactError,
    File,
    Manifest,
    read_manifest,
    read_provenance,
    recipe_id,
    write_manifest,
)

SUBMITTED_CODE = "ROPEWALK_SUBMITTED_CODE"
# JSON: entry modules, a space between -> code digest when the workflow started
LIBRARIES = (
    "accelerate datasets gigatoken jinja2 lm-eval matplotlib numpy orjson pyarrow rouge-score "
    "safetensors sentencepiece tokenizers torch transformers"
).split()


Accepted = Mapping[tuple[str, str], str]  # (file, digest) -> older digest it is declared equal to


class StageError(RuntimeError):
    """A stage that cannot go on; the message names the input or setting and what is right."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What a stage is given."""

    stage: str
    spec: Any  # the stage's frozen spec type
    inputs: Mapping[str, Manifest]
    folder: Path  # where the artifact lies; the manifest is written there last
    recipe: str
    code: str  # digest of the stage's code closure, accepted changes counting as none
    code_files: Mapping[str, str] = dataclasses.field(default_factory=dict)  # digests as they are
    accepted: Accepted = dataclasses.field(default_factory=dict)
    chosen: Any = None  # the module that does what the spec asks for, where kinds share a stage

    def same_code(self, code_files: Mapping[str, str]) -> bool:
        """Return whether recorded code is this job's, changes accepted since then included."""
        return digest(canonical_code(code_files, self.accepted)) == self.code

    def input(self, name: str) -> Manifest:
        """Return one input; a missing one is a StageError that names it."""
        if name not in self.inputs:
            raise StageError(f"{self.stage}: input {name!r} is missing; pass --input {name}=PATH")
        return self.inputs[name]

    def many(self, prefix: str) -> dict[str, Manifest]:
        """Return the inputs named `prefix:...`, keyed by what follows the colon."""
        start = f"{prefix}:"
        return {k.removeprefix(start): m for k, m in self.inputs.items() if k.startswith(start)}


Work = Callable[[Job], tuple[Iterable[Path | File], Mapping[str, Any]]]


def run_stage(
    stage: str,
    entry: str,
    work: Work,
    *,
    spec: Any,
    inputs: Mapping[str, Path],
    folder: Path,
    rebuilds: int = 0,
    listing: str = "",
    libraries: Mapping[str, str | None] | None = None,
    accepted: Accepted | None = None,
    chosen: str | None = None,
) -> Manifest:
    """Run `work` inside the frame and return the manifest it leaves in `folder`.

    `entry` names the module of `work`, `chosen` the one that does what this spec asks for, where
    kinds of work share a stage: for their code, nothing is imported here. `inputs` maps input names
    to manifest paths; `rebuilds` counts how often damaged files of this artifact had to be made
    again (recorded, never part of its identity).
    `listing` stands for files the stage reads that no manifest describes; standing work counts only
    under an equal one.
    `libraries` are those the stage's numbers depend on, with the version pinned for each, or None
    where any will do. `accepted` are the changes of code declared to alter no result.

    Raises:
        StageError, ArtifactError: before any work is done, if inputs, code or libraries are not
            what they should be.
    """
    libraries, accepted = libraries or {}, accepted or {}
    entries = (entry,) if chosen is None else (entry, chosen)
    code_files = closure(*entries)
    _refuse_newer_code(stage, entries, digest(code_files))
    _refuse_other_libraries(stage, libraries)
    code = digest(canonical_code(code_files, accepted))
    manifests = {name: read_manifest(path) for name, path in inputs.items()}
    recipe = recipe_id(stage, spec, manifests)
    job = Job(
        stage=stage,
        spec=spec,
        inputs=manifests,
        folder=folder,
        recipe=recipe,
        code=code,
        code_files=code_files,
        accepted=accepted,
    )
    standing = _standing(job, listing, libraries)
    if standing is not None:
        print(f"{stage}: unchanged inputs, spec and code: {folder} stands as it is", flush=True)
        _restore(job, standing, rebuilds)
        return standing
    started, clock = time.time(), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    files, result = work(job)
    manifest = write_manifest(
        folder, stage=stage, spec=spec, inputs=manifests, files=files, result=result
    )
    provenance = {
        "stage": stage,
        "recipe": recipe,
        "content": manifest.content,
        "inputs": {name: m.content for name, m in manifests.items()},
        "rebuilds": rebuilds,
        "code": code,
        "code_files": code_files,
        "listing": listing,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]][:3]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.monotonic() - clock, 3),
        "files": {f.path: (folder / f.path).stat().st_mtime_ns for f in manifest.files},
        "manifest": (folder / MANIFEST).read_text(encoding="utf-8"),
        **environment(),
    }
    write_json(folder / PROVENANCE, provenance)
    return manifest


def canonical_code(code_files: Mapping[str, str], accepted: Accepted) -> dict[str, str]:
    """Return file digests, each replaced by the oldest one it was accepted as equal to."""
    return {file: _oldest(file, found, accepted) for file, found in code_files.items()}


def _oldest(file: str, found: str, accepted: Accepted) -> str:
    seen = {found}
    while (older := accepted.get((file, found))) is not None and older not in seen:
        seen.add(older)
        found = older
    return found


def public_version(version: str) -> str:
    """Return a version without its local part: `2.13.0+cpu` is the release `2.13.0`."""
    return version.partition("+")[0]


def installed(name: str) -> str | None:
    """Return the version of a library in this environment, None where there is none."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None


def environment() -> dict[str, Any]:
    """Return versions, machine and source revision: measurements, never part of an identity."""
    versions = {name: version for name in LIBRARIES if (version := installed(name)) is not None}
    return {
        "ropewalk": __version__,
        "python": platform.python_version(),
        "libraries": versions,
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "git": _git_revision(),
    }


def _git_revision() -> dict[str, Any] | None:
    """Return the revision of the checkout the code lies in, or None outside one."""
    root = PACKAGE_ROOT.parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"revision": head, "dirty": bool(dirty)}


def _refuse_newer_code(stage: str, entries: tuple[str, ...], code: str) -> None:
    """A job that waited in a queue must not run other code than it was submitted with."""
    submitted = json.loads(os.environ.get(SUBMITTED_CODE, "{}")).get(" ".join(entries))
    if submitted is not None and submitted != code:
        raise StageError(
            f"{stage}: the code changed after this job was submitted ({submitted} -> {code}). "
            "Start snakemake again: it submits the job with the code as it is now"
        )


def _refuse_other_libraries(stage: str, libraries: Mapping[str, str | None]) -> None:
    """Numbers recorded under a pinned version must come from that version."""
    others = [
        f"{name} {installed(name) or '(not installed)'} where {pin} is pinned"
        for name, pin in sorted(libraries.items())
        if pin is not None and public_version(installed(name) or "") != public_version(pin)
    ]
    if others:
        raise StageError(
            f"{stage}: this environment has {'; '.join(others)}. Run `make env`, which installs "
            "the pinned versions"
        )


def _standing(job: Job, listing: str, libraries: Iterable[str]) -> Manifest | None:
    """Return the artifact in the job's folder if this very job made it and it is undamaged.

    Snakemake deletes declared outputs (the manifest) before a job starts, so the manifest's text is
    kept in the provenance file as well.
    """
    provenance = read_provenance(job.folder)
    if provenance is None:
        return None
    versions = provenance["libraries"]
    same = (
        provenance["recipe"] == job.recipe
        and job.same_code(provenance["code_files"])
        and provenance["inputs"] == {name: m.content for name, m in job.inputs.items()}
        and provenance.get("listing", "") == listing
        and all(
            public_version(versions.get(name, "")) == public_version(installed(name) or "")
            for name in libraries
        )
    )
    if not same:
        return None
    manifest = job.folder / MANIFEST
    if not manifest.is_file():
        write_text(manifest, provenance["manifest"])
    try:
        return read_manifest(manifest)
    except ArtifactError:
        manifest.unlink()
        return None


def _restore(job: Job, standing: Manifest, rebuilds: int) -> None:
    """Record the present file times, so that the next plan sees the files as checked.

    The number of rebuilds is what made the workflow ask; kept, so that it does not ask again.
    """
    provenance = read_provenance(job.folder)
    assert provenance is not None  # else nothing would stand
    provenance["files"] = {f.path: (job.folder / f.path).stat().st_mtime_ns for f in standing.files}
    provenance["rebuilds"] = max(rebuilds, provenance["rebuilds"])
    write_json(job.folder / PROVENANCE, plain(provenance))
