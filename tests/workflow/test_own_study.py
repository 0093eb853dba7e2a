"""The study that CONTRIBUTING shows: complete as it stands, and nothing else is made again."""

import json
import textwrap
from pathlib import Path

from .project import ROOT, Project

NAME = "papers/twice.yaml"


def shown() -> str:
    """Return the YAML that CONTRIBUTING says to put into the file."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    lines = text[text.index(f"`{NAME}`:") :].splitlines()[2:]
    end = next(i for i, line in enumerate(lines) if line.startswith("    snakemake"))
    return textwrap.dedent("\n".join(lines[:end]))


def test_the_study_of_the_documentation_is_judged(copied: Project) -> None:
    """Guards against an example that no longer loads, and against a study that touches others."""
    (copied.folder / NAME).write_text(shown())
    jobs, _ = copied.planned()
    rules = [rule for rule, _ in jobs]
    assert rules.count("train") == rules.count("evaluate") == 2
    assert all("study=twice" in words for rule, words in jobs if rule not in ("pack", "report"))
    copied.snakemake("twice")
    judged = json.loads((copied.folder / "results/tiny/judged/twice/judged.json").read_text())
    outcome = judged["claims"]["yarn_is_better"]["outcome"]
    assert outcome in ("reproduced", "contradicted", "inconclusive")


def test_it_is_planned_at_every_scale(tmp_path: Path) -> None:
    """Guards against an example that works at the scale of the tests alone."""
    fresh = Project(tmp_path)
    (fresh.folder / NAME).write_text(shown())
    for scale in ("mini", "paper"):
        text = fresh.snakemake("-n", "twice", "--config", f"scale={scale}").stdout
        assert "study=twice, run=yarn" in text
