"""The workflow itself: lint, light parsing, profiles, and messages for bad input."""

import re
import sys

import pytest
import yaml

from .project import ROOT, Project


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a clean copy in which nothing was made."""
    return Project(tmp_path_factory.mktemp("fresh"))


def test_lint_is_clean(fresh: Project) -> None:
    done = fresh.snakemake("--lint")
    assert "Congratulations" in done.stdout + done.stderr


def test_paper_scale_is_planned_without_data(fresh: Project) -> None:
    """The true reproduction: 7B to 65B, 8192 to 32768 tokens, with its GPUs."""
    done = fresh.snakemake("-n", "position_interpolation", "--config", "scale=paper")
    text = done.stdout + done.stderr
    gpus = {}
    for block in re.split(r"\n(?=\[)", text):
        run = re.search(r"study=position_interpolation, run=(\S+)", block)
        if "rule train:" in block and run:
            gpus[run[1]] = int(re.search(r"gpus=(\d+)", block)[1])  # type: ignore[index]
    assert gpus == {
        "direct-7B-4x-pile": 32,
        "direct-13B-4x-pile": 32,
        "direct-33B-4x-pile": 32,
        "pi-7B-4x-pile": 32,
        "pi-7B-8x-pile": 128,
        "pi-7B-16x-pile": 128,
        "pi-7B-4x-redpajama": 32,
        "pi-13B-4x-pile": 32,
        "pi-13B-8x-pile": 128,
        "pi-13B-16x-pile": 128,
        "pi-33B-4x-pile": 32,
        "pi-33B-8x-pile": 128,
        "pi-65B-4x-pile": 128,
        "summaries": 128,
    }


def test_planning_imports_no_heavy_package(fresh: Project) -> None:
    """Every cluster job parses the Snakefile twice: torch there would cost hours."""
    code = (
        "import runpy, sys\n"
        "sys.argv = ['snakemake', '-n', 'all', '--config', 'scale=paper']\n"
        "try:\n"
        "    runpy.run_module('snakemake', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert 'ropewalk.study.plan' in sys.modules\n"
    )
    fresh.run("python", "-c", code)


def test_profiles_win_nothing_they_should_not(fresh: Project) -> None:
    """Keys of profiles/default override those of --profile, so it must not set resources."""
    keys = set(yaml.safe_load((fresh.folder / "profiles/default/config.yaml").read_text()))
    assert not keys & {"set-resources", "default-resources", "executor", "jobs", "configfile"}


BAD = [
    ("config.yaml", "scale: mini", "scale: huge", ["scale", "'huge'", "mini"]),
    ("config.yaml", "results: results", "results: a\nresults: b", ["config.yaml:", "twice"]),
    ("config.yaml", "results: results", "result: results", ["result", "did you mean 'results'"]),
    (
        "config.yaml",
        "# studies: [position_interpolation]",
        "studies: [position_interpolatoin] #",
        ["studies", "did you mean 'position_interpolation'"],
    ),
    ("papers/shared.yaml", "lr: 3.0e-3", "lr: 3e-3", ["papers/shared.yaml:", "lr", "3.0e-3"]),
    ("papers/shared.yaml", " heads: 4\n", " heads: 3\n", ["128", "not divisible by heads 3"]),
    (
        "papers/position_interpolation.yaml",
        "{ kind: linear, factor: 4.0 }",
        "{ kind: linear, factor: 0.5 }",
        ["papers/position_interpolation.yaml:", "factor 0.5 is below 1"],
    ),
    ("papers/shared.yaml", "tokenizer: bpe-2048", "tokenizer: bpe-2084", ["bpe-2084", "bpe-2048"]),
    ("papers/shared.yaml", "split: test", "split: tset", ["'tset'", "test"]),
]


@pytest.mark.parametrize(("file", "old", "new", "words"), BAD, ids=[row[2] for row in BAD])
def test_bad_input_is_named(
    fresh: Project, file: str, old: str, new: str, words: list[str]
) -> None:
    """One message with file, key, value and what is right, before anything runs."""
    before = (fresh.folder / file).read_text()
    try:
        fresh.edit(file, old, new)
        done = fresh.snakemake("-n", "all", check=False)
    finally:
        (fresh.folder / file).write_text(before)
    text = done.stdout + done.stderr
    assert done.returncode
    assert [word for word in words if word not in text] == []


def test_all_problems_are_reported_at_once(fresh: Project) -> None:
    edits = [row[:3] for row in BAD if row[0] == "papers/shared.yaml"][:2]
    before = (fresh.folder / "papers/shared.yaml").read_text()
    try:
        for file, old, new in edits:
            fresh.edit(file, old, new)
        done = fresh.run("ropewalk", "show", "position_interpolation", check=False)
    finally:
        (fresh.folder / "papers/shared.yaml").write_text(before)
    assert done.returncode == 2
    assert "3.0e-3" in done.stderr
    assert "not divisible by heads 3" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_corpus_stops_its_stage(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing may be trained on a corpus that a filter emptied."""
    project = Project(tmp_path_factory.mktemp("empty"))
    project.use_notes()
    project.edit(
        "overlay.yaml",
        "python-tiny-train: { source: notes }",
        "python-tiny-train: { source: notes, minimum_tokens: 1000000 }",
    )
    target = "results/data/tokens/python-tiny-train/bpe-512/manifest.json"
    done = project.snakemake(target, check=False)
    text = done.stdout + done.stderr
    assert done.returncode
    assert "minimum_tokens" in text
    assert not (project.folder / target).exists()


def test_commands_explain_themselves(fresh: Project) -> None:
    for command in ("show", "why", "claims", "doctor", "train", "tokenize", "evaluate", "judge"):
        text = fresh.run("ropewalk", command, "--help").stdout
        assert len(text) > 300, command
    assert sys.version_info[:2] == (3, 11)
    assert (ROOT / "slurm").is_symlink()
