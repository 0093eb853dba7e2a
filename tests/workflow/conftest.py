"""One finished run for all tests of the workflow; each test restores what it edits."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .project import Project

LOCK = "requirements.lock"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project in which everything was made once."""
    project = Project(tmp_path_factory.mktemp("finished"))
    project.use_notes()
    project.snakemake()
    return project


@pytest.fixture
def project(finished: Project) -> Iterator[Project]:
    """Return the finished project; text files outside the results are restored afterwards."""
    kept: dict[Path, bytes] = {}
    for part in ("src", "papers", "rules", "notes", "overlay.yaml", "config.yaml", LOCK):
        root = finished.folder / part
        files = [root] if root.is_file() else [p for p in root.rglob("*") if p.is_file()]
        kept |= {p: p.read_bytes() for p in files if "__pycache__" not in p.parts}
    times = {path: path.stat().st_mtime_ns for path in kept}
    yield finished
    (finished.folder / "accepted.yaml").unlink(missing_ok=True)
    for path, content in kept.items():
        if path.read_bytes() != content or path.stat().st_mtime_ns != times[path]:
            path.write_bytes(content)
            os.utime(path, ns=(times[path], times[path]))


@pytest.fixture
def copied(finished: Project, tmp_path: Path) -> Project:
    """Return a copy of the finished project, in which a test may run anything."""
    return finished.clone(tmp_path / "copied")
