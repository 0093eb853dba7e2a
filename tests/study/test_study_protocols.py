"""What one kind of evaluation depends on and the others do not: its libraries, its files."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from study_samples import DEMO, plan, write

from ropewalk.study.data_nodes import Node
from ropewalk.study.lookups import Lookups
from ropewalk.study.registry import STAGES
from ropewalk.study.triggers import LOCK, Triggers

PINS = "datasets==1.0\nlm_eval==2.0\nnumpy==3.0\nrouge_score==4.0\ntokenizers==5.0\n"
MORE = """\
evaluations:
  benchmarks:
    corpus: test
    runs: [original]
    protocol: {{ kind: harness, tasks: [mine], folder: {tasks} }}
  written:
    corpus: test
    runs: [original]
    protocol: {{ kind: summaries }}
"""


@pytest.fixture
def triggers(tmp_path: Path) -> Triggers:
    (tmp_path / "tasks" / "more").mkdir(parents=True)
    (tmp_path / "tasks" / "more" / "mine.yaml").write_text("task: mine\n")
    more = MORE.format(tasks=tmp_path / "tasks")
    write(tmp_path, demo=DEMO.replace("evaluations:\n", more, 1))
    (tmp_path / LOCK).write_text(PINS)
    return Triggers(plan(tmp_path), tmp_path)


def node(triggers: Triggers, evaluation: str) -> Node:
    nodes = triggers.plan.of_stage("evaluate")
    return next(n for n in nodes if n.wildcards["evaluation"] == evaluation)


def test_a_protocol_is_made_again_by_its_own_libraries(triggers: Triggers) -> None:
    """Guards against an upgrade of the harness that leaves old numbers, or redoes perplexities."""
    own = {
        "loss": set(),
        "benchmarks": {"datasets==1.0", "lm-eval==2.0"},
        "written": {"rouge-score==4.0"},
    }
    every = set().union(*own.values())
    lookups = Lookups(triggers.plan, triggers)
    params = triggers.params("evaluate")
    for evaluation, expected in own.items():
        found = node(triggers, evaluation)
        causes = set(triggers.of(found))
        assert causes & every == expected
        assert {"numpy==3.0", "tokenizers==5.0"} <= causes
        words = shlex.split(lookups.arguments("evaluate", found.wildcards))
        pinned = {words[i + 1] for i, word in enumerate(words) if word == "--library"}
        assert pinned & every == expected
        texts: set[Any] = {p if isinstance(p, str) else p(found.wildcards) for p in params}
        assert texts - {""} == causes


def test_task_files_of_one_s_own_are_a_cause(triggers: Triggers) -> None:
    """Guards against the number of another question after a task file was edited."""
    names = ("loss", "benchmarks", "written")
    before = {name: triggers.of(node(triggers, name)) for name in names}
    (triggers.root / "tasks" / "more" / "mine.yaml").write_text("task: mine\nnum_fewshot: 0\n")
    fresh = Triggers(triggers.plan, triggers.root)
    changed = {name for name in names if fresh.of(node(fresh, name)) != before[name]}
    assert changed == {"benchmarks"}
    found = node(fresh, "benchmarks")
    words = shlex.split(Lookups(fresh.plan, fresh).arguments("evaluate", found.wildcards))
    assert words[words.index("--listing") + 1] == fresh.source(found) != ""


def test_modules_with_libraries_of_their_own_are_modules_of_protocols() -> None:
    """Guards against a module that is renamed and whose libraries are forgotten without a word."""
    from importlib.util import find_spec

    for stage in STAGES.values():
        for module in stage.chosen_libraries:
            assert find_spec(module) is not None
