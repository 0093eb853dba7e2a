"""An edit -> exactly these jobs, and the dry-run names the culprit.

Each row guards a silent failure: a stale number that looks fresh, or a month of training redone
for a comment.
"""

import json
import re
from collections.abc import Callable

import pytest

from .project import Project

PAPER = "papers/position_interpolation.yaml"
TIMED = "papers/growlength.yaml"
EVERYTHING_TRAINED = {"train", "evaluate", "judge", "report"}


def rules(jobs: set[tuple[str, str]]) -> set[str]:
    return {rule for rule, _ in jobs}


def test_nothing_is_to_be_done_after_a_run(project: Project) -> None:
    jobs, text = project.planned()
    assert jobs == set()
    assert "Nothing to be done" in text


def accept(project: Project, module: str) -> None:
    """Change code without effect and accept the change."""
    records = (json.loads(p.read_text()) for p in project.folder.rglob("provenance.json"))
    before = next(r["code_files"][module] for r in records if module in r["code_files"])
    project.edit(f"src/{module}", "import numpy as np\n", "import numpy as np\n\nNEW = 1\n")
    _, text = project.planned()
    (after,) = set(re.findall(rf"{re.escape(module)}@(\w+)", text)) - {before}
    (project.folder / "accepted.yaml").write_text(
        f"- {{ file: {module}, from: '{before}', to: '{after}', reason: unused }}\n"
    )


def training_times(project: Project) -> dict[str, int]:
    """Return when each training wrote its losses."""
    found = project.folder.glob("results/tiny/runs/*/*/work-*/metrics.jsonl")
    return {str(path): path.stat().st_mtime_ns for path in found}


Edit = Callable[[Project], None]


def swap_two_values(project: Project) -> None:
    """Learning rate and weight decay change places: the set of values stays the same."""
    project.edit("papers/shared.yaml", "lr: 4.0e-3", "lr: 0.1")
    text = (project.folder / "papers/shared.yaml").read_text()
    start = text.index("lr: 0.1,")
    changed = text[:start] + text[start:].replace("weight_decay: 0.1", "weight_decay: 4.0e-3", 1)
    (project.folder / "papers/shared.yaml").write_text(changed)


def reorder_keys(project: Project) -> None:
    project.edit(
        "papers/shared.yaml",
        "schedule: { shape: cosine, warmup_steps: 10, final: 0.1 }",
        "schedule: { final: 0.1, warmup_steps: 10, shape: cosine }",
    )


def one_more_evaluation(project: Project) -> None:
    project.edit(
        "overlay.yaml",
        "  evaluations:\n    perplexity:",
        "  evaluations:\n"
        "    again:\n"
        "      corpus: python-tiny-test\n"
        "      runs: [original]\n"
        "      protocol: { kind: same_tokens, contexts: { 1x: 64 }, scored_tokens: 16,"
        " documents: 4 }\n"
        "    perplexity:",
    )


def edit_corpus_file(project: Project) -> None:
    path = project.folder / "notes" / "train.jsonl"
    path.write_text(path.read_text() + json.dumps({"text": "one more note " * 60}) + "\n")


TABLE: list[tuple[str, Edit, set[str], str]] = [
    (
        "what an evaluation scores",
        lambda p: p.edit(PAPER, "scored_tokens: 32", "scored_tokens: 16"),
        {"evaluate", "judge", "report"},
        "spec.protocol.scored_tokens=16",
    ),
    (
        "the learning rate of one run",
        lambda p: p.edit("overlay.yaml", "runs:\n    extend:\n", "runs:\n    extend:\n"
            "      overrides: { own: { when: { method: direct }, set: { optimizer.lr: 0.5 } } }\n"),
        EVERYTHING_TRAINED,
        "spec.run.optimizer.lr=0.5",
    ),
    (
        "two values swapped",
        swap_two_values,
        EVERYTHING_TRAINED,
        "spec.run.optimizer.weight_decay=0.004",
    ),
    ("keys reordered", reorder_keys, set(), "Nothing to be done"),
    (
        "a comment and a docstring in a module",
        lambda p: p.edit("src/ropewalk/data/packing.py", '"""', '# more words\n"""More. '),
        set(),
        "Nothing to be done",
    ),
    (
        "a new field in the claims' types",
        lambda p: p.edit("src/ropewalk/report/spec.py", "    note: str | None = None\n",
            "    note: str | None = None\n    weight: float = 1.0\n"),
        {"judge", "report"},
        "ropewalk/report/spec.py@",
    ),
    (
        "code of the packing",
        lambda p: p.edit("src/ropewalk/data/packing.py", "import numpy as np\n",
            "import numpy as np\n\nNEW = 1\n"),
        {"pack", "check", *EVERYTHING_TRAINED},  # a check looks at packed windows
        "ropewalk/data/packing.py@",
    ),
    (
        "code of the model",
        lambda p: p.edit("src/ropewalk/model/rope.py", "import numpy as np\n",
            "import numpy as np\n\nNEW = 1\n"),
        {"calibrate", "check", *EVERYTHING_TRAINED},  # the laws of bases count its frequencies
        "ropewalk/model/rope.py@",
    ),
    (
        "code of a training step",
        lambda p: p.edit("src/ropewalk/train/step.py", "import torch\n",
            "import torch\n\nNEW = 1\n"),
        {"calibrate", *EVERYTHING_TRAINED},
        "ropewalk/train/step.py@",
    ),
    (
        "code of the metrics, which costs a step nothing",
        lambda p: p.edit("src/ropewalk/train/metrics.py", "import os\n", "import os\n\nNEW = 1\n"),
        EVERYTHING_TRAINED,
        "ropewalk/train/metrics.py@",
    ),
    (
        "the learning rate of runs with a calibration",
        lambda p: p.edit(TIMED, "optimizer: { lr: 3.0e-3 }", "optimizer: { lr: 2.0e-3 }"),
        EVERYTHING_TRAINED,
        "spec.run.optimizer.lr=0.002",
    ),
    (
        "the rounds of a calibration",
        lambda p: p.edit(TIMED, "rounds: 3", "rounds: 4"),
        {"calibrate", *EVERYTHING_TRAINED},
        "spec.rounds=4",
    ),
    (
        "code of the evaluation",
        lambda p: p.edit("src/ropewalk/evaluate/scorer.py", "import numpy as np\n",
            "import numpy as np\n\nNEW = 1\n"),
        {"evaluate", "judge", "report"},
        "ropewalk/evaluate/scorer.py@",
    ),
    (
        "code of one protocol",
        lambda p: p.edit("src/ropewalk/evaluate/copying.py", "import numpy as np\n",
            "import numpy as np\n\nNEW = 1\n"),
        {"evaluate", "judge", "report"},
        "ropewalk/evaluate/copying.py@",
    ),
    (
        "code of one check",
        lambda p: p.edit("src/ropewalk/evaluate/check_string.py", "import numpy as np\n",
            "import numpy as np\n\nNEW = 1\n"),
        {"check", "judge", "report"},
        "ropewalk/evaluate/check_string.py@",
    ),
    (
        "code of the pages",
        lambda p: p.edit("src/ropewalk/report/page.py", "\nOUTCOMES", "\nNEW = 1\nOUTCOMES"),
        {"report"},
        "ropewalk/report/page.py@",
    ),
    ("one more evaluation", one_more_evaluation, {"evaluate", "judge", "report"}, "again"),
    (
        "the vocabulary of the tokenizer",
        lambda p: p.edit("papers/shared.yaml", "vocabulary_size: 512,", "vocabulary_size: 500,"),
        {"tokenizer", "tokenize", "gather", "pack", "check", *EVERYTHING_TRAINED},
        "spec.tokenizer.vocabulary_size=500",
    ),
    (
        "a file of the corpus",
        edit_corpus_file,
        {"inventory", "tokenizer", "tokenize", "gather", "pack", "check", *EVERYTHING_TRAINED},
        "files=",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "expected", "culprit"), [row[1:] for row in TABLE],
                         ids=[row[0] for row in TABLE])  # fmt: skip
def test_edit_reruns_exactly(
    project: Project, edit: Edit, expected: set[str], culprit: str
) -> None:
    edit(project)
    jobs, text = project.planned()
    assert rules(jobs) == expected
    assert culprit in text


def test_one_run_leaves_the_others_alone(project: Project) -> None:
    """A setting of one arm must not touch the base or the other arms."""
    project.edit("overlay.yaml", "runs:\n    extend:\n", "runs:\n    extend:\n"
        "      overrides: { own: { when: { method: direct }, set: { seed: 7 } } }\n")  # fmt: skip
    jobs, _ = project.planned()
    touched = {wildcards for rule, wildcards in jobs if rule in ("train", "evaluate")}
    assert touched
    assert all("direct" in wildcards for wildcards in touched)


def test_a_new_measurement_trains_only_what_takes_its_time_from_it(project: Project) -> None:
    """A run whose steps are written down must not wait for a stopwatch, nor be trained again."""
    project.edit(TIMED, "rounds: 3", "rounds: 4")
    jobs, _ = project.planned()
    assert {w for rule, w in jobs if rule == "train"} == {"study=growlength, run=tiny-grow-seconds"}


def test_a_calibration_that_stands_is_not_measured_again(copied: Project) -> None:
    """A lost manifest must not move the steps of every run of equal time."""
    folder = "results/tiny/calibrations/growlength/main"
    before, times = copied.manifest(folder), training_times(copied)
    (copied.folder / folder / "manifest.json").unlink()
    done = copied.snakemake()
    text = done.stdout + done.stderr
    assert "calibrate: unchanged inputs, spec and code" in text
    assert copied.manifest(folder) == before
    assert training_times(copied) == times
    assert copied.planned()[0] == set()


MEASURES = {  # code -> the evaluations or checks whose numbers it makes
    "evaluate/scorer.py": {
        "perplexity",
        "retrieval",
        "conventions",
        "by_position",
        "copying",
        "dynamic_ntk",
        "held_out",
        "needles_rope",
        "needles_string",
    },
    "evaluate/copying.py": {"copying"},
    "evaluate/recall_probe.py": {"retrieval", "needles_rope", "needles_string"},
    "evaluate/presets.py": {"perplexity", "conventions", "by_position", "dynamic_ntk", "held_out"},
    "evaluate/harness.py": set(),  # of a protocol that nothing here asks for
    "evaluate/check_pi.py": {"interpolation_bound", "extrapolation_bound", "random_fit"},
    "evaluate/check_string.py": {"frequency", "position_frequency"},
}


@pytest.mark.parametrize("module", MEASURES)
def test_code_of_one_kind_makes_that_kind_again(project: Project, module: str) -> None:
    """A new scorer of summaries must not cost every perplexity; a new token scorer must.

    All evaluations share a stage, and so do all checks: the spec says whose code is whose.
    """
    path = f"src/ropewalk/{module}"
    text = (project.folder / path).read_text()
    (project.folder / path).write_text(f"{text}\nNEW_NUMBER = 1\n")
    jobs, text = project.planned()
    again = {
        re.search(r"(?:evaluation|check)=(\w+)", wildcards)[1]  # type: ignore[index]
        for rule, wildcards in jobs
        if rule in ("evaluate", "check")
    }
    assert again == MEASURES[module]
    assert not rules(jobs) & {"train", "pack", "tokenize"}
    every = list(project.folder.glob("results/tiny/evaluations/*/*/*/*/manifest.json"))
    for evaluation in again & {path.parts[-4] for path in every}:
        runs = {wildcards for _, wildcards in jobs if f"evaluation={evaluation}," in wildcards}
        assert len(runs) == sum(path.parts[-4] == evaluation for path in every), evaluation
    assert (f"ropewalk/{module}@" in text) == bool(again)


def test_only_one_evaluation_is_added(project: Project) -> None:
    one_more_evaluation(project)
    jobs, _ = project.planned()
    assert [w for r, w in jobs if r == "evaluate"] == [
        "study=position_interpolation, evaluation=again, run_study=shared, run=base"
    ]


def test_accepted_digest_reruns_nothing(project: Project) -> None:
    """A harmless change can be accepted, and only that change; the report alone names it."""
    accept(project, "ropewalk/data/packing.py")
    assert rules(project.planned()[0]) <= {"report"}
    project.edit("src/ropewalk/data/packing.py", "NEW = 1", "NEW = 2")
    assert "pack" in rules(project.planned()[0])


def test_accepted_digest_trains_nothing_again(copied: Project) -> None:
    """The stage must believe the acceptance too: a lost index would cost every training."""
    accept(copied, "ropewalk/model/rope.py")
    weights = copied.manifest("results/tiny/runs/shared/base")
    times = training_times(copied)
    (copied.folder / "results/data/windows/base-tiny/64/manifest.json").unlink()
    trained = [wildcards for rule, wildcards in copied.planned()[0] if rule == "train"]
    assert "study=shared, run=base" in trained
    done = copied.snakemake()
    text = done.stdout + done.stderr
    assert text.count("train: unchanged inputs, spec and code") == len(trained)
    assert training_times(copied) == times
    assert copied.manifest("results/tiny/runs/shared/base") == weights
    assert copied.planned()[0] == set()


def test_deleted_intermediate_is_made_again(project: Project) -> None:
    """Snakemake alone does not miss an intermediate whose successors still stand."""
    folder = "results/data/windows/base-tiny/64"
    before = project.manifest(folder)
    (project.folder / folder / "manifest.json").unlink()
    jobs, _ = project.planned()
    assert "pack" in rules(jobs)
    assert "tokenize" not in rules(jobs)
    done = project.snakemake()
    assert project.manifest(folder) == before
    text = done.stdout + done.stderr
    assert "train: unchanged inputs, spec and code" in text  # nothing was trained again
    assert project.planned()[0] == set()


def test_tampered_intermediate_is_made_again(project: Project) -> None:
    """One changed byte in a shard is found before anything reads it, and repaired."""
    folder = "results/data/tokens/python-tiny-train/bpe-512"
    before = project.manifest(folder)
    shard = project.folder / folder / before["files"][0]["path"]  # type: ignore[index]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    jobs, text = project.planned()
    assert ("tokenize", "corpus=python-tiny-train, tokenizer=bpe-512, part=00000") in jobs
    assert "tokenizer" not in rules(jobs)
    assert "rebuilds=1" in text
    why = project.run("ropewalk", "why", folder).stdout
    assert shard.name in why
    assert "sha256" in why
    project.snakemake()
    assert project.manifest(folder) == before
    assert project.planned()[0] == set()


def test_why_agrees_with_the_plan(project: Project) -> None:
    lines = project.run("ropewalk", "why", "all").stdout.splitlines()
    assert {line.rpartition(": ")[2] for line in lines} == {"up to date"}
    project.edit(PAPER, "scored_tokens: 32", "scored_tokens: 16")
    lines = project.run("ropewalk", "why", "all").stdout.splitlines()
    stale = {line.partition(":")[0] for line in lines if not line.endswith("up to date")}
    assert stale
    assert all(re.search(r"evaluations/.*/perplexity/|judged|report", path) for path in stale)
    assert any("spec.protocol.scored_tokens=16" in line for line in lines)


def test_why_names_the_code_of_one_protocol(project: Project) -> None:
    """The command must tell kinds of one stage apart as the plan does."""
    project.edit("src/ropewalk/evaluate/copying.py", "import numpy as np\n",
        "import numpy as np\n\nNEW = 1\n")  # fmt: skip
    lines = project.run("ropewalk", "why", "all").stdout.splitlines()
    stale = [line for line in lines if not line.endswith("up to date")]
    assert stale
    assert all(re.search(r"evaluations/.*/copying/|judged|report", line) for line in stale)
    assert any("ropewalk/evaluate/copying.py@" in line for line in stale)
