"""Two runs from nothing but the same measurements give the same bits, in two folders."""

import shutil
from pathlib import Path

import pytest

from .project import Project


def test_two_runs_from_nothing_are_identical(
    finished: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Guards every promise of the report: hidden state, paths and time must not reach results.

    Calibrations are measurements, and what they measured is an input of runs of equal time: the
    second project is given those of the first.
    """
    other = Project(tmp_path_factory.mktemp("elsewhere"))
    other.use_notes()
    measured = "results/tiny/calibrations"
    shutil.copytree(finished.folder / measured, other.folder / measured)
    other.snakemake()

    def manifests(project: Project) -> dict[str, bytes]:
        results = project.folder / "results"
        return {str(p.relative_to(results)): p.read_bytes() for p in results.rglob("manifest.json")}

    first, second = manifests(finished), manifests(other)
    assert len(first) > 20
    assert first.keys() == second.keys()
    # Manifests hold the hashes of every file (tokens, windows, weights, scores) and every result.
    assert {n for n in first if first[n] != second[n]} == set()


def test_results_hold_no_path_of_this_machine(finished: Project) -> None:
    """A report that names a home folder cannot be published."""
    for path in sorted((finished.folder / "results/tiny").rglob("*")):
        if path.suffix in (".json", ".html", ".csv") and path.name != "provenance.json":
            if "work-" in str(path) or not path.is_file():
                continue
            text = path.read_text()
            assert str(finished.folder) not in text, path
            assert str(Path.home()) not in text, path
